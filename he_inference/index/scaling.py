"""Item vectors in units of one norm, so that no row is longer than 1, which is what the scales are made for.

Guarantee: a row and a norm give the same bytes here however they come: all at once, a slice at a time, or one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from he_inference.index.write import RebuildRequired, largest_norm
from he_inference.layouts.seam import Floats
from veil.errors import ConfigError

_IDS_DOMAIN = b"veil/item-ids/v1\x00"
_ROWS_AT_A_TIME = 65536
_SLACK = 1.0 + 1e-6


@dataclass(frozen=True, slots=True)
class ScaledItems:
    """Item vectors divided by their longest: float64[items, d], rows of norm at most 1, and that norm."""

    rows: Floats = field(repr=False)
    norm: float


class ScaledRows:
    """Item vectors [items, d] divided by a norm as they are read, so that no second copy is made of them all."""

    def __init__(self, factors: NDArray[np.floating], norm: float) -> None:
        self._factors, self._norm = factors, norm

    @property
    def shape(self) -> tuple[int, ...]:
        """(items, dimensions)."""
        return self._factors.shape

    def __getitem__(self, rows: Any, /) -> Floats:
        return np.asarray(self._factors[rows], np.float64) / self._norm


def scale_items(factors: NDArray[np.floating], headroom: float = 1.0) -> ScaledItems:
    """Divides [items, d] by the largest row norm (1 when all are zero), which is what the scales are made for.

    headroom: at least 1; items that come later may be that much longer than the longest now, and the bound of score
    errors is as much larger. Raises `ConfigError` when a value is not finite.
    """
    norm = norm_of(factors, headroom)
    rows = np.array(factors, dtype=np.float64)
    rows /= norm
    return ScaledItems(rows, norm)


def norm_of(factors: NDArray[np.floating], headroom: float = 1.0) -> float:
    """The norm that `scale_items` divides by, without making the rows."""
    if factors.ndim != 2:
        raise ConfigError(f"got item vectors of {factors.ndim} axes, expected [items, dimensions]")
    if not 1.0 <= headroom <= 100.0:
        raise ConfigError(f"got a headroom of {headroom}, expected 1 to 100")
    parts = range(0, len(factors), _ROWS_AT_A_TIME)
    norms = [largest_norm(np.asarray(factors[start : start + _ROWS_AT_A_TIME], np.float64)) for start in parts]
    if not np.all(np.isfinite(norms)):
        raise ConfigError("got item vectors with NaN or infinity, expected finite numbers")
    return max(norms, default=0.0) * headroom or 1.0


def scaled_by(factors: ArrayLike, item_norm: float) -> Floats:
    """float64[n, d] or float64[d]: vectors in units of `item_norm`, for `update` and `append`.

    Raises `RebuildRequired` when one is longer, `ConfigError` when a value is not finite.
    """
    vectors = np.asarray(factors, np.float64) / item_norm
    norm = largest_norm(np.atleast_2d(vectors))
    if not np.isfinite(norm):
        raise ConfigError("got item vectors with NaN or infinity, expected finite numbers")
    if norm > _SLACK:
        raise RebuildRequired(
            f"got an item vector of norm {norm * item_norm:.6g}, expected at most its item norm {item_norm:.6g}",
            hint="build the index again: its norm is fixed when it is built",
        )
    return vectors


def item_ids_digest(ids: Iterable[str]) -> bytes:
    """SHA-256 over the ids in order, 32 bytes: which items the numbers stand for."""
    digest = hashlib.sha256(_IDS_DOMAIN)
    for identifier in ids:
        raw = identifier.encode()
        digest.update(len(raw).to_bytes(4, "little") + raw)
    return digest.digest()
