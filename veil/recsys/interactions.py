"""Who met what: one organisation's users and items as a sparse 0/1 matrix.

Guarantee: an `Interactions` is complete and consistent once it exists: indices are in range, sorted and unique within
each user, and every array is read-only. Neither its `repr` nor any error that it raises shows a user, a pseudonym or
a row.

The layout is compressed sparse rows (CSR): the items of user `u` are `indices[indptr[u]:indptr[u + 1]]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from veil.errors import DataError

MAX_USERS = 100_000_000
MAX_ITEMS = 10_000_000

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """Implicit feedback of `users` users on `items` items.

    Attributes:
        users: number of users (rows), at least 0; a user may have no interaction.
        items: number of items (columns) of the shared catalogue, whether met or not.
        indptr: int64[users + 1], where each user's items begin; `indptr[-1]` is the number of interactions.
        indices: int32[nnz] in [0, items), strictly increasing within a user.
        time: int64[nnz], seconds since 1970 (or any increasing clock), beside `indices`; None when not known.
        value: float32[nnz], rating or weight, beside `indices`; None when not known. Training uses presence alone.
        pseudonyms: one keyed pseudonym for each user (see `veil.recsys.pseudonyms`), never a user id; None when absent.
    """

    users: int
    items: int
    indptr: Int64
    indices: Int32
    time: Int64 | None = None
    value: Float32 | None = None
    pseudonyms: Sequence[str] | None = field(default=None)

    def __post_init__(self) -> None:
        """Checks everything; raises `DataError` (shapes and counts only)."""
        if not (0 <= self.users <= MAX_USERS and 0 <= self.items <= MAX_ITEMS):
            raise DataError(
                f"got {self.users} users and {self.items} items, expected at most {MAX_USERS} and {MAX_ITEMS}"
            )
        object.__setattr__(self, "indptr", _frozen(self.indptr, np.int64))
        object.__setattr__(self, "indices", _frozen(self.indices, np.int32))
        if self.indptr.shape != (self.users + 1,) or self.indices.ndim != 1:
            raise DataError(f"got row starts of shape {self.indptr.shape}, expected ({self.users + 1},)")
        if self.indptr[0] != 0 or self.indptr[-1] != len(self.indices) or bool((np.diff(self.indptr) < 0).any()):
            raise DataError("got row starts that do not rise from 0 to the number of interactions")
        if len(self.indices) and (int(self.indices.min()) < 0 or int(self.indices.max()) >= self.items):
            raise DataError(f"got an item index outside [0, {self.items})")
        steps = np.diff(self.indices)
        within = np.ones(len(steps), dtype=bool)
        starts = self.indptr[1:-1]
        within[starts[(starts > 0) & (starts < len(self.indices))] - 1] = False
        if bool((steps[within] <= 0).any()):
            raise DataError("got items that are not strictly increasing within a user", hint="use from_pairs")
        for name, dtype in (("time", np.int64), ("value", np.float32)):
            column = getattr(self, name)
            if column is not None:
                object.__setattr__(self, name, _frozen(column, dtype))
                if getattr(self, name).shape != self.indices.shape:
                    raise DataError(f"got {len(column)} entries of {name}, expected {len(self.indices)}")
        if self.pseudonyms is not None:
            object.__setattr__(self, "pseudonyms", tuple(self.pseudonyms))
            if len(self.pseudonyms) != self.users:
                raise DataError(f"got {len(self.pseudonyms)} pseudonyms, expected {self.users}")

    @classmethod
    def from_pairs(
        cls,
        user_of: npt.ArrayLike,
        item_of: npt.ArrayLike,
        *,
        users: int,
        items: int,
        time: npt.ArrayLike | None = None,
        value: npt.ArrayLike | None = None,
        pseudonyms: Sequence[str] | None = None,
    ) -> Interactions:
        """Builds from parallel arrays of row and column numbers, in any order.

        A pair that occurs more than once is kept once, with its earliest time and its largest value.
        Raises `DataError` when lengths differ or a number is out of range.
        """
        row = np.asarray(user_of, dtype=np.int64)
        column = np.asarray(item_of, dtype=np.int64)
        if row.ndim != 1 or row.shape != column.shape:
            raise DataError(f"got {row.shape} users and {column.shape} items, expected two columns of one length")
        if len(row) and (row.min() < 0 or row.max() >= users or column.min() < 0 or column.max() >= items):
            raise DataError(f"got a pair outside {users} users x {items} items")
        when = None if time is None else np.asarray(time, dtype=np.int64)
        weight = None if value is None else np.asarray(value, dtype=np.float32)
        for name, extra in (("time", when), ("value", weight)):
            if extra is not None and extra.shape != row.shape:
                raise DataError(f"got {extra.shape} entries of {name}, expected {row.shape}")
        key = row * np.int64(max(items, 1)) + column
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
        if len(first):
            when = None if when is None else np.minimum.reduceat(when[order], first)
            weight = None if weight is None else np.maximum.reduceat(weight[order], first)
        row, column = row[order][first], column[order][first]
        indptr = np.zeros(users + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=users), out=indptr[1:])
        return cls(
            users=users,
            items=items,
            indptr=indptr,
            indices=column.astype(np.int32),
            time=when,
            value=weight,
            pseudonyms=pseudonyms,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Interactions]) -> Interactions:
        """One part after the other, over the same items. Optional columns stay where every part has them."""
        if not parts:
            raise DataError("got no interactions to join, expected at least one part")
        items = {part.items for part in parts}
        if len(items) != 1:
            raise DataError(f"got parts over {sorted(items)} items, expected one catalogue")
        offsets = np.cumsum([0, *(len(part.indices) for part in parts)])
        times = [part.time for part in parts if part.time is not None]
        values = [part.value for part in parts if part.value is not None]
        names = [name for part in parts for name in (part.pseudonyms or ())]
        users = sum(part.users for part in parts)
        starts = [part.indptr[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
        return cls(
            users=users,
            items=items.pop(),
            indptr=np.concatenate([*starts, offsets[-1:]]).astype(np.int64),
            indices=np.concatenate([part.indices for part in parts]),
            time=np.concatenate(times) if len(times) == len(parts) else None,
            value=np.concatenate(values) if len(values) == len(parts) else None,
            pseudonyms=names if len(names) == users and users else None,
        )

    @property
    def nnz(self) -> int:
        """Number of interactions."""
        return len(self.indices)

    def lengths(self) -> Int64:
        """int64[users]: number of items of each user."""
        return np.diff(self.indptr)

    def counts(self) -> Int64:
        """int64[items]: number of users of each item. Private: it leaves a party only as a noised release."""
        return np.bincount(self.indices, minlength=self.items).astype(np.int64)

    def history(self, user: int) -> Int32:
        """int32[n]: the items of one user, increasing."""
        return self.indices[self.indptr[user] : self.indptr[user + 1]]

    def row_of(self) -> Int64:
        """int64[nnz]: the user of each interaction, beside `indices`."""
        return np.repeat(np.arange(self.users, dtype=np.int64), self.lengths())

    def rows(self, selector: npt.ArrayLike | slice) -> Interactions:
        """The chosen users, in the order given. `selector`: row numbers, a boolean mask over users, or a slice."""
        chosen = np.arange(self.users, dtype=np.int64)[
            selector if isinstance(selector, slice) else np.asarray(selector)
        ].reshape(-1)
        lengths = self.lengths()[chosen]
        indptr = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        # Position of every kept entry: its row's old start plus its place within the row.
        take = np.arange(indptr[-1], dtype=np.int64) + np.repeat(self.indptr[:-1][chosen] - indptr[:-1], lengths)
        return Interactions(
            users=len(chosen),
            items=self.items,
            indptr=indptr,
            indices=self.indices[take],
            time=None if self.time is None else self.time[take],
            value=None if self.value is None else self.value[take],
            pseudonyms=None if self.pseudonyms is None else [self.pseudonyms[user] for user in chosen.tolist()],
        )

    def keep(self, mask: npt.ArrayLike) -> Interactions:
        """The interactions where `mask`, bool[nnz], is true; the users stay, some perhaps with none."""
        kept = np.asarray(mask, dtype=bool)
        if kept.shape != self.indices.shape:
            raise DataError(f"got a mask of shape {kept.shape}, expected {self.indices.shape}")
        indptr = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])[self.indptr]
        return Interactions(
            users=self.users,
            items=self.items,
            indptr=indptr,
            indices=self.indices[kept],
            time=None if self.time is None else self.time[kept],
            value=None if self.value is None else self.value[kept],
            pseudonyms=self.pseudonyms,
        )

    def contains(self, user_of: npt.ArrayLike, item_of: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether each pair is present; the two index arrays are broadcast against each other."""
        keys = self.row_of() * np.int64(max(self.items, 1)) + self.indices
        wanted = np.asarray(user_of, dtype=np.int64) * np.int64(max(self.items, 1)) + np.asarray(item_of, np.int64)
        place = np.searchsorted(keys, wanted)
        return (
            np.asarray(keys[np.minimum(place, len(keys) - 1)] == wanted) if len(keys) else np.zeros(wanted.shape, bool)
        )

    def to_sparse(self, dtype: npt.DTypeLike = np.float32) -> sparse.csr_array:
        """The 0/1 matrix, users x items."""
        ones = np.ones(self.nnz, dtype=dtype)
        return sparse.csr_array((ones, self.indices, self.indptr), shape=(self.users, self.items))

    def dense(self, selector: npt.ArrayLike | slice) -> Float32:
        """float32[chosen, items] of 0 and 1: a block of users, for block-wise work."""
        chosen = self.rows(selector)
        block = np.zeros((chosen.users, self.items), np.float32)
        block[chosen.row_of(), chosen.indices] = 1.0
        return block

    def __repr__(self) -> str:
        extras = [name for name in ("time", "value", "pseudonyms") if getattr(self, name) is not None]
        return f"Interactions(users={self.users}, items={self.items}, nnz={self.nnz}, with={extras})"


def _frozen(array: Any, dtype: type[_Scalar]) -> npt.NDArray[_Scalar]:
    """A read-only array of that type; copies only when the type differs or the caller could still write to it."""
    source = np.asarray(array)
    if source.size and not (np.issubdtype(source.dtype, np.number) or source.dtype == np.bool_):
        raise DataError(f"got an array of {source.dtype}, expected numbers")
    own = np.ascontiguousarray(source, dtype=dtype)
    if own.flags.writeable:
        own = own.copy() if own is array else own
        own.flags.writeable = False
    return own
