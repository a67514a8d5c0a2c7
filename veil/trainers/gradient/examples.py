"""From a party's rows to tensors of fixed shapes, one user at a time, and the secret coins of sampling.

Guarantee: what a user's entry holds is a function of that user's rows and of public facts: a module file is handed one
user at a time. Whatever goes wrong with one user's rows changes that user's entry only, and is neither raised nor
logged: an abort or a line that depends on one user would be a release that nobody has paid for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from veil.errors import ConfigError
from veil.privacy.noise import ByteSource
from veil.trainers.gradient.contract import Facts, ModuleCode, Tensors, UserRows, no_rows, rows_of
from veil.trainers.gradient.releases import sampling_threshold
from veil.trainers.rows import PartyRows

DTYPES: Final = (torch.bool, torch.int64, torch.float32)
_MOST_NAMES: Final = 32


@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """Every user's tensors, stacked.

    Attributes:
        tensors: by name, first extent users; entries of users that are not usable are those of a user without rows.
        usable: bool[users]: which users count and contribute.
    """

    tensors: Tensors
    usable: npt.NDArray[np.bool_]

    def __repr__(self) -> str:
        return f"Examples(users={len(self.usable)})"

    @property
    def count(self) -> int:
        """Number of users that count. Private."""
        return int(self.usable.sum())


def template(code: ModuleCode, facts: Facts) -> Tensors:
    """The tensors of a user without rows. Raises `ConfigError` when they are not what the contract says."""
    made = code.example(no_rows(len(facts.labels)), facts)
    if not isinstance(made, dict) or not 1 <= len(made) <= _MOST_NAMES:
        raise ConfigError(f"got {type(made).__name__} for a user without rows, expected 1 to {_MOST_NAMES} tensors")
    for name, tensor in made.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in DTYPES:
            raise ConfigError(f"got {name!r} of a user without rows, expected a bool, int64 or float32 tensor")
    return made


def prepare(code: ModuleCode, facts: Facts, rows: PartyRows, blank: Tensors) -> Examples:
    """The tensors of every user. blank: what `template` returned. Raises nothing that depends on a user."""
    users = _users_of(code, facts, rows)
    tensors = {name: one.expand(users.count, *one.shape).clone() for name, one in blank.items()}
    usable = np.zeros(users.count, np.bool_)
    for number in range(users.count):
        try:
            made = code.example(users.user(number), facts)
        except Exception:  # noqa: BLE001, S112 - see the module's guarantee: nothing may leave here that one user caused
            continue
        if made is None or not _fits(made, blank):
            continue
        for name, tensor in made.items():
            tensors[name][number] = tensor
        usable[number] = True
    return Examples(tensors, usable)


def sample(users: int, sampling: float, coins: ByteSource) -> npt.NDArray[np.bool_]:
    """Poisson sampling: bool[users], each true on its own with probability floor(q 2^64) / 2^64 <= q, exactly.

    coins: a cryptographic generator of this party alone. What it decides is never sent, kept or logged: the accounting
    counts on its being secret.
    """
    threshold = sampling_threshold(sampling)
    if threshold == 2**64:
        return np.ones(users, np.bool_)
    draws = np.frombuffer(coins(8 * users), dtype="<u8")
    taken: npt.NDArray[np.bool_] = draws < np.uint64(threshold)
    return taken


def blocks(chosen: npt.NDArray[np.int64], block_users: int) -> Iterator[npt.NDArray[np.int64]]:
    """The chosen user numbers in runs of at most `block_users`."""
    for start in range(0, len(chosen), block_users):
        yield chosen[start : start + block_users]


@dataclass(frozen=True, eq=False, repr=False)
class _Interactions:
    count: int
    indptr: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64] | None
    nothing: UserRows

    def user(self, number: int) -> UserRows:
        run = slice(int(self.indptr[number]), int(self.indptr[number + 1]))
        items = self.items[run]
        if self.times is None:
            return UserRows(items.copy(), None, (), self.nothing.labels)
        # Ties of time go by item index: a rule that no other user has a part in.
        order = np.lexsort((items, self.times[run]))
        return UserRows(items[order], self.times[run][order], (), self.nothing.labels)


@dataclass(frozen=True, eq=False, repr=False)
class _Texts:
    count: int
    start: npt.NDArray[np.int64]
    text: tuple[str, ...]
    label: npt.NDArray[np.bool_]
    nothing: UserRows

    def user(self, number: int) -> UserRows:
        run = slice(int(self.start[number]), int(self.start[number + 1]))
        return UserRows(self.nothing.items, None, self.text[run], self.label[run].copy())


def _users_of(code: ModuleCode, facts: Facts, rows: PartyRows) -> _Interactions | _Texts:
    nothing = no_rows(len(facts.labels))
    if rows_of(code) == "texts":
        texts = rows.need_texts()
        if texts.label.shape[1] != len(facts.labels):
            raise ConfigError(
                f"got texts with {texts.label.shape[1]} labels, expected the {len(facts.labels)} categories of the"
                " catalogue",
                hint="[texts] labels in the party's config",
            )
        if texts.names is not None and texts.names != facts.labels:
            # As many, but others or in another order: the columns would mean one thing here and another elsewhere.
            raise ConfigError(
                "got texts whose labels are not the categories of the catalogue in sorted order, expected these",
                hint="[texts] labels in the party's config; without it they are",
            )
        start = np.searchsorted(texts.user, np.arange(texts.users + 1))
        return _Texts(texts.users, start, tuple(texts.text), texts.label, nothing)
    interactions = rows.need_interactions()
    items = interactions.indices.astype(np.int64)
    return _Interactions(interactions.users, interactions.indptr, items, interactions.time, nothing)


def _fits(made: object, blank: Mapping[str, torch.Tensor]) -> bool:
    if not isinstance(made, dict) or set(made) != set(blank):
        return False
    return all(
        isinstance(tensor, torch.Tensor) and tensor.dtype == blank[name].dtype and tensor.shape == blank[name].shape
        for name, tensor in made.items()
    )
