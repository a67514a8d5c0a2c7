"""Clients that may know some of the items only: an audience, with an index of its own in which the others are zero.

What a client may know cannot be decided under encryption query by query: a result is one ciphertext over thousands of
items, made without knowing which score lies where, and a mask that is multiplied in would cost a second product and
noise. So it is decided when the index is built. The rows of hidden items become zero, and what they decrypt to is noise
of the client's own making: it depends on query, keys and rounding, and on no hidden item.

Guarantee: an answer to a client of an audience is a function of its query and the visible items. Its shape, item
numbers and blocks are those of everybody's index, the same for every query; the scale (`item_norm`) is taken over
visible rows alone. A client belongs to one audience at most; whoever is in none sees every item. The model's client
files, which hold fold-in vectors and titles of all items, are refused to an audience.

What it costs: each audience is one more index on disk and in the page cache, of the same size as the first (8 bytes for
each item and padded dimension at most), and as long to build and update; queries to different indexes share no batch.
What it does not hide: how many items there are. For a history offer the fold-in columns of hidden items must be zero as
well (`visible_rows` on them too); a hidden item in a history then counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from he_inference.service.access import Account, Client
from veil.errors import ConfigError, InputError, PolicyError
from veil.files import read_bounded
from veil.settings import Section

_FILE_LIMIT_BYTES = 64 << 20


class Audience(Section):
    """Clients that share one view of the items."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
    # Index file of this audience; hidden rows are zero in it.
    index: Path
    # Text file with the numbers of hidden items, from 0, one a line.
    hidden: Path
    # Who belongs to it: certificate/<name> or token/<name>.
    clients: tuple[Account, ...] = Field(min_length=1, max_length=4096)


def check_audiences(audiences: Sequence[Audience]) -> None:
    """Raises `ConfigError` when two audiences share a name, an index or a client."""
    for what, found in (
        ("name", [audience.name for audience in audiences]),
        ("index", [str(audience.index) for audience in audiences]),
        ("client", [account for audience in audiences for account in audience.clients]),
    ):
        twice = sorted({value for value in found if found.count(value) > 1})
        if twice:
            raise ConfigError(f"got {what} {twice[0]} in more than one place, expected each audience to have its own")


def audience_of(audiences: Sequence[Audience], client: Client) -> Audience | None:
    """The audience that a client belongs to; None when it may know every item."""
    return next((audience for audience in audiences if client.account in audience.clients), None)


def refuse_files(audience: Audience | None) -> None:
    """Raises `PolicyError` when the model's client files would show hidden items."""
    if audience is not None:
        raise PolicyError(
            "got a request for the model's files of a client that may know some of the items only",
            hint="the operator gives it fold-in vectors and titles of its own items",
        )


def read_hidden(path: Path, items: int) -> NDArray[np.int64]:
    """int64[hidden], ascending, without repetition. Raises `ConfigError` for anything but numbers of items."""
    try:
        lines = read_bounded(path, _FILE_LIMIT_BYTES).decode("ascii").split()
    except (InputError, UnicodeDecodeError):
        raise ConfigError(f"got no readable list of item numbers at {path.name}, expected one number a line") from None
    if not all(line.isdigit() and len(line) <= 9 for line in lines):
        raise ConfigError(f"got a line in {path.name} that is no number, expected item numbers from 0")
    return checked_hidden(np.array(lines, dtype=np.int64), items)


def checked_hidden(hidden: Sequence[int] | NDArray[np.int64], items: int) -> NDArray[np.int64]:
    """As `read_hidden`. At least one item must be left, since an empty view has no scale."""
    numbers: NDArray[np.int64] = np.unique(np.asarray(hidden, dtype=np.int64))
    if len(numbers) and not (numbers[0] >= 0 and numbers[-1] < items):
        raise ConfigError(f"got hidden item {numbers[0] if numbers[0] < 0 else numbers[-1]}, expected 0 to {items - 1}")
    if len(numbers) >= items:
        raise ConfigError(f"got all {items} items hidden, expected at least one that is not")
    return numbers


def visible_rows(rows: NDArray[np.floating], hidden: Sequence[int] | NDArray[np.int64]) -> NDArray[np.floating]:
    """A copy of float[items, d] with zero rows where items are hidden: before `scale_items`, not after, since the scale
    would tell of the longest hidden row otherwise. Raises `ConfigError` as `checked_hidden` does."""
    numbers = checked_hidden(hidden, len(rows))
    shown = rows.copy()
    shown[numbers] = 0
    return shown
