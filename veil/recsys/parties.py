"""How a demo or a test lays a data set out over organisations: whose users are whose, and each one's raw file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from veil.errors import DataError
from veil.files import write_atomic
from veil.recsys.dataset import Dataset
from veil.recsys.interactions import Interactions
from veil.recsys.splits import by_user

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One organisation's share: `data` holds the users numbered `users` (int64, increasing) in the whole data set."""

    users: Int64
    data: Dataset


def split_parties(dataset: Dataset, fractions: Sequence[float], seed: int = 0) -> list[Part]:
    """Splits the users over organisations at random, in the given shares (positive, adding up to 1)."""
    return _parts(dataset, by_user(dataset.train.users, fractions, seed=seed))


def split_as_given(dataset: Dataset) -> list[Part]:
    """Splits by the organisation of each user that the data set states in `extra["party_of"]` (the synthetic one does).

    Raises `DataError` when it states none.
    """
    party_of = dataset.extra.get("party_of")
    if party_of is None or party_of.shape != (dataset.train.users,):
        raise DataError(f"got data set {dataset.name} without party_of", hint="use split_parties")
    return _parts(dataset, [np.flatnonzero(party_of == party).astype(np.int64) for party in np.unique(party_of)])


def _parts(dataset: Dataset, groups: Sequence[Int64]) -> list[Part]:
    return [Part(users, dataset.subset(users, f"{dataset.name}/{number}")) for number, users in enumerate(groups)]


def write_party_csv(
    path: Path,
    interactions: Interactions,
    item_ids: Sequence[str],
    *,
    user_ids: Sequence[str] | None = None,
) -> None:
    """Writes an organisation's raw file: header `user_id,item_id[,time]`, rows by time where known.

    user_ids: one for each user; `user-0`, `user-1`, … when None. The time column is left out when times are unknown.
    The test side of a data set is not in it. The file is readable by its owner only.
    """
    if len(item_ids) != interactions.items:
        raise DataError(f"got {len(item_ids)} item ids, expected {interactions.items}")
    if user_ids is not None and len(user_ids) != interactions.users:
        raise DataError(f"got {len(user_ids)} user ids, expected {interactions.users}")
    names = user_ids if user_ids is not None else [f"user-{number}" for number in range(interactions.users)]
    frame = pl.DataFrame(
        {
            "user_id": pl.Series(list(names), dtype=pl.String).gather(interactions.row_of()),
            "item_id": pl.Series(list(item_ids), dtype=pl.String).gather(interactions.indices.astype(np.int64)),
        }
    )
    if interactions.time is not None:
        frame = frame.with_columns(pl.Series("time", interactions.time)).sort("time", maintain_order=True)
    buffer = io.BytesIO()
    frame.write_csv(buffer)
    write_atomic(Path(path), buffer.getvalue(), mode=0o600)
