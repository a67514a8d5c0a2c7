"""Checked columns into numbers: every feature lies in [-1, 1], and its column's part of a row has a public norm.

Guarantee: a row of the result depends on that row and the schema alone. One-hot columns have at most one feature at 1
and the others at 0. `squares_bound` is exact: no row can have more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from veil.errors import InputError
from veil.tabular.reading import PartyTable
from veil.tabular.schema import CategoricalColumn, Column, HashedColumn, NumericColumn

_DOMAIN: Final = b"veil/tabular-bucket/v1\x00"

Float64 = npt.NDArray[np.float64]


def encode_features(table: PartyTable) -> Float64:
    """All of a party's features, before standardisation and clipping; float64[rows, width], entries in [-1, 1]."""
    out = np.zeros((table.rows, table.party.width))
    for column, values, place in zip(table.party.columns, table.columns, table.party.slices(), strict=True):
        if len(values) != table.rows:
            raise InputError(f"got {len(values)} values of {column.name!r}, expected {table.rows}")
        if isinstance(column, NumericColumn) and not column.one_hot:
            out[:, place] = _linear(column, values)
        else:
            code = _codes(column, values)
            hit = np.flatnonzero(code >= 0)
            out[hit, place.start + code[hit]] = 1.0
    return out


def scaled(column: NumericColumn, values: Float64) -> Float64:
    """Clamp to [lower, upper], transform, then the line that takes these bounds to -1 and 1.

    float64[n] of finite numbers -> float64[n]: 2 (t / top) - 1, t = x - lower, top = upper - lower; for "log" both of
    these go through log2(1 + .) first.
    """
    position = np.clip(values, column.lower, column.upper) - column.lower
    top = column.upper - column.lower
    if column.transform == "log":
        position, top = np.log2(1.0 + position), float(np.log2(1.0 + top))
    # Clamped again: a quotient may exceed 1 in the last place. Doubled last, as the position may be near the largest
    # number there is.
    return np.clip(2.0 * (position / top) - 1.0, -1.0, 1.0)


def bucket(column: str, value: str, buckets: int) -> int:
    """The bucket of a value: the first 8 bytes of SHA-256(domain || column || NUL || value), big-endian, modulo.

    No key: buckets are public and equal on every machine. The modulo's bias is below 2^-51.
    """
    digest = hashlib.sha256(_DOMAIN + column.encode() + b"\x00" + value.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % buckets


def squares_bound(column: Column) -> float:
    """Bound on the sum of squares of one row's features of this column, before standardisation."""
    if column.one_hot or not isinstance(column, NumericColumn):
        return 1.0
    if column.missing != "indicator":
        return 1.0
    # Either a value with the indicator at 0, or the fill with the indicator at 1.
    return max(1.0, 1.0 + float(_fill(column)) ** 2)


def _fill(column: NumericColumn) -> float:
    # The schema's own check lets `fill` be None only where it is not used.
    return float(scaled(column, np.array([column.fill if column.fill is not None else column.lower]))[0])


def _linear(column: NumericColumn, values: pl.Series) -> Float64:
    missing = values.is_null().to_numpy()
    out = np.zeros((len(values), column.width))
    out[:, 0] = np.where(missing, _fill(column), scaled(column, _numbers(values, column.lower)))
    if column.missing == "indicator":
        out[:, 1] = missing
    return out


def _numbers(values: pl.Series, blank: float) -> Float64:
    return np.asarray(values.fill_null(blank).to_numpy(), dtype=np.float64)


def _codes(column: Column, values: pl.Series) -> npt.NDArray[np.int64]:
    """Position of the feature that is 1, or -1 for none; int64[rows]."""
    if isinstance(column, NumericColumn):
        number = _numbers(values, column.lower if column.fill is None else column.fill)
        code = np.searchsorted(np.asarray(column.edges), number, side="right").astype(np.int64)
        if column.missing == "indicator":
            code[values.is_null().to_numpy()] = len(column.edges) + 1
        return code
    distinct = values.unique()
    found = pl.Series(list(map(_code_of(column), distinct.to_list())), dtype=pl.Int64)
    of_value = pl.DataFrame({"value": distinct, "code": found})
    joined = pl.DataFrame({"value": values}).join(of_value, on="value", how="left", maintain_order="left")
    return np.asarray(joined["code"].to_numpy(), dtype=np.int64)


def _code_of(column: CategoricalColumn | HashedColumn) -> Callable[[str], int]:
    known = {"": column.width - 1} if column.missing == "indicator" else {}
    if isinstance(column, HashedColumn):
        name, buckets = column.name, column.buckets
        return lambda value: known[value] if value in known else bucket(name, value, buckets)
    # A table: looking through the vocabulary for every text of a file would take its length times theirs.
    known |= {value: at for at, value in enumerate(column.vocabulary)}
    # `veil.tabular.reading` has refused unknown values where the schema does; -1 is no feature at all.
    other = len(column.vocabulary) if column.unknown == "other" else -1
    return lambda value: known.get(value, other)
