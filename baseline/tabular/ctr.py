"""Criteo and Avazu display-advertising samples, with their columns split over organisations.

Guarantee: train, dev and test are the source's own; nothing of a schema is computed from rows (bounds, edges and
numbers of buckets are round numbers, vocabularies the exchange's own codes). What was chosen by looking at scores are
the numbers of buckets, column weights and norm shares: tuned on train and dev, without paying privacy for it.

Who holds what (the semantics of Criteo's columns are undisclosed, so that split is by kind):

    criteo, 2   shop: label, I1..I13 (counts, "mostly")       network: C1..C26 (hashed categories)
    criteo, 3   shop: label, I1..I13      network: C1..C13     profiles: C14..C26
    avazu, 2    exchange: label, C1, banner_pos, site_*, app_*     advertiser: device_*, C14..C21
    avazu, 3    exchange: as above     carrier: device_*     advertiser: C14..C21 (the creative and its campaign)

Left out: Avazu's `hour` (one hour in the whole sample) and `device_ip` (6,116 values in 8,087 rows: a hash of it is
noise here, and it would identify). Unit: one row stands for one user, as the files carry no user id that covers rows;
Avazu's `id` and, for Criteo, split and row number are the ids. Source of the samples: README in their folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import polars as pl

from veil.errors import ConfigError, InputError
from veil.tabular.schema import (
    CategoricalColumn,
    Column,
    HashedColumn,
    Label,
    NumericColumn,
    PartyColumns,
    TabularSchema,
    equal_shares,
)

DatasetName = Literal["criteo", "avazu"]
SPLITS: Final = ("train", "dev", "test")
IDENTIFIER: Final = "user"
_MOST_BYTES: Final = 64 * 1024**2

_CRITEO_NUMBERS: Final = tuple(f"I{number}" for number in range(1, 14))
_CRITEO_CATEGORIES: Final = tuple(f"C{number}" for number in range(1, 27))
_AVAZU: Final = [
    "id",
    "click",
    "hour",
    "C1",
    "banner_pos",
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
    "device_id",
    "device_ip",
    "device_model",
    "device_type",
    "device_conn_type",
    "C14",
    "C15",
    "C16",
    "C17",
    "C18",
    "C19",
    "C20",
    "C21",
]
_AVAZU_CODES: Final = {
    "C1": ("1001", "1002", "1005", "1007", "1008", "1010", "1012"),
    "banner_pos": ("0", "1", "2", "3", "4", "5", "7"),
    "device_type": ("0", "1", "2", "4", "5"),
    "device_conn_type": ("0", "2", "3", "5"),
    "C18": ("0", "1", "2", "3"),
    # The id that stands for "no id".
    "device_id": ("a99f214a",),
}
_AVAZU_EXCHANGE: Final = (
    "C1",
    "banner_pos",
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
)
_AVAZU_DEVICE: Final = ("device_id", "device_model", "device_type", "device_conn_type")
_AVAZU_CREATIVE: Final = tuple(f"C{number}" for number in range(14, 22))
# Counts double from edge to edge; the last bin is open up to the bound.
_EDGES: Final = (0.5, 1.5, 3.0, 6.0, 12.0, 25.0, 50.0, 100.0, 200.0, 400.0, 1000.0, 3000.0, 10_000.0, 100_000.0)
_CRITEO_TOP: Final = {
    "I1": 50.0,
    "I2": 4000.0,
    "I3": 400.0,
    "I4": 50.0,
    "I5": 1_000_000.0,
    "I6": 4000.0,
    "I7": 200.0,
    "I8": 50.0,
    "I9": 2000.0,
    "I10": 4.0,
    "I11": 25.0,
    "I12": 25.0,
    "I13": 100.0,
}


@dataclass(frozen=True)
class CtrOptions:
    """buckets: of a hashed column. weights: of columns, by name, 1 where absent. shares: norm shares by party."""

    buckets: int = 16
    bits: int = 13
    weights: tuple[tuple[str, float], ...] = ()
    shares: tuple[tuple[str, float], ...] = ()
    positive_weight: float = 1.0
    slots: int = 8192


def load_frames(name: DatasetName, folder: Path) -> dict[str, pl.DataFrame]:
    """All columns as text plus the id `user`, by split. Raises `InputError` when a file is absent or too large."""
    frames = {}
    for split in SPLITS:
        path = Path(folder) / f"{name}_{split}.csv.gz"
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise InputError(f"got no file {path.name} of at most {_MOST_BYTES} bytes, expected the sample's files")
        if name == "criteo":
            names = ["click", *_CRITEO_NUMBERS, *_CRITEO_CATEGORIES]
            frame = pl.read_csv(path, separator="\t", has_header=False, new_columns=names, infer_schema=False)
            ids = pl.Series(IDENTIFIER, [f"{split}-{row}" for row in range(len(frame))])
            frame = frame.with_columns(ids)
        else:
            frame = pl.read_csv(path, has_header=split == "train", new_columns=_AVAZU, infer_schema=False)
            frame = frame.rename({"id": IDENTIFIER})
        frames[split] = frame
    return frames


def ctr_schema(name: DatasetName, parties: int, options: CtrOptions | None = None) -> TabularSchema:
    """The public schema of a sample with its columns over 2 or 3 parties. Raises `ConfigError` for other numbers."""
    chosen = options or CtrOptions()
    weights, shares = dict(chosen.weights), dict(chosen.shares)
    holders = _holders(name, parties)
    made = tuple(
        PartyColumns(
            party=party,
            identifier=IDENTIFIER,
            columns=tuple(_column(name, column, chosen.buckets, weights.get(column, 1.0)) for column in columns),
            norm_share=shares.get(party, equal_shares(parties, chosen.bits)),
        )
        for party, columns in holders.items()
    )
    return TabularSchema(
        slots=chosen.slots,
        bits=chosen.bits,
        parties=made,
        label=Label(name="click", positive_weight=chosen.positive_weight),
        label_party=made[0].party,
    )


def write_party_files(frames: dict[str, pl.DataFrame], schema: TabularSchema, folder: Path) -> dict[str, list[Path]]:
    """What each organisation would hold, <folder>/<party>/<split>.csv; paths by split, in rank order."""
    written: dict[str, list[Path]] = {}
    for split, frame in frames.items():
        for party in schema.parties:
            columns = [IDENTIFIER, *(column.name for column in party.columns)]
            if party.party == schema.label_party:
                columns.append(schema.label.name)
            path = Path(folder) / party.party / f"{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.select(columns).write_csv(path)
            written.setdefault(split, []).append(path)
    return written


def _holders(name: DatasetName, parties: int) -> dict[str, tuple[str, ...]]:
    if parties not in (2, 3):
        raise ConfigError(f"got {parties} parties, expected 2 or 3")
    if name == "criteo":
        if parties == 2:
            return {"shop": _CRITEO_NUMBERS, "network": _CRITEO_CATEGORIES}
        return {"shop": _CRITEO_NUMBERS, "network": _CRITEO_CATEGORIES[:13], "profiles": _CRITEO_CATEGORIES[13:]}
    if parties == 2:
        return {"exchange": _AVAZU_EXCHANGE, "advertiser": _AVAZU_DEVICE + _AVAZU_CREATIVE}
    return {"exchange": _AVAZU_EXCHANGE, "carrier": _AVAZU_DEVICE, "advertiser": _AVAZU_CREATIVE}


def _column(name: DatasetName, column: str, buckets: int, weight: float) -> Column:
    if name == "avazu":
        if column in _AVAZU_CODES:
            return CategoricalColumn(name=column, weight=weight, vocabulary=_AVAZU_CODES[column])
        return HashedColumn(name=column, weight=weight, buckets=buckets)
    if column in _CRITEO_NUMBERS:
        top = _CRITEO_TOP[column]
        edges = tuple(edge for edge in _EDGES if edge < top)
        return NumericColumn(name=column, weight=weight, lower=-1000.0, upper=1e9, edges=edges, missing="indicator")
    return HashedColumn(name=column, weight=weight, buckets=buckets, missing="indicator")
