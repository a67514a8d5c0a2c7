"""A data set for training and evaluation: training interactions, what is held out, and the items' public facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from veil.errors import DataError
from veil.recsys.interactions import Interactions
from veil.recsys.items import ItemTable

Int64 = npt.NDArray[np.int64]

# Unmet items a user that the NCF protocol ranks the held-out item among.
NEGATIVES = 99


@dataclass(frozen=True)
class Dataset:
    """Training interactions and what is held out.

    Attributes:
        name: for reports.
        train: `users` x `items`.
        test_items: int64[users], the held-out item of each user, -1 for none; never in `train`.
        negatives: int64[users, 99], items that the user never met; None when there are none. A row may contain the
            test item itself (the NCF split has 156 such rows); metrics ignore that entry.
        table: the items' public facts.
        extra: further arrays and numbers, by name (each loader says which).
    """

    name: str
    train: Interactions
    test_items: Int64
    negatives: Int64 | None
    table: ItemTable
    extra: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks shapes and that no test item is trained on; raises `DataError`."""
        users, items = self.train.users, self.train.items
        if self.test_items.shape != (users,) or len(self.table) != items:
            raise DataError(
                f"got test items {self.test_items.shape} and {len(self.table)} items, expected {users} x {items}"
            )
        held = np.flatnonzero(self.test_items >= 0)
        if len(held) and (
            int(self.test_items.max()) >= items or bool(self.train.contains(held, self.test_items[held]).any())
        ):
            raise DataError("got a test item outside the catalogue or among the same user's training items")
        negatives = self.negatives
        if negatives is not None and (
            negatives.ndim != 2
            or len(negatives) != users
            or (negatives.size and (int(negatives.min()) < 0 or int(negatives.max()) >= items))
        ):
            raise DataError(f"got negatives of shape {negatives.shape}, expected {users} rows of item numbers")

    def subset(self, users: npt.ArrayLike, name: str | None = None) -> Dataset:
        """The chosen users only, in the order given; `extra` is dropped."""
        chosen = np.asarray(users, dtype=np.int64)
        return Dataset(
            name=name or self.name,
            train=self.train.rows(chosen),
            test_items=self.test_items[chosen],
            negatives=None if self.negatives is None else self.negatives[chosen],
            table=self.table,
        )
