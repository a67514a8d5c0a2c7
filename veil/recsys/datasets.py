"""Loaders of public data sets, and of the synthetic one, by name.

The files are not part of Veil: their terms forbid handing them on (each folder's README states them). Every loader
takes the folder where they lie. Sources: MovieLens (Harper and Konstan, TiiS 2015) in the split of He et al. (Neural
Collaborative Filtering, WWW 2017); RecBole; Amazon reviews (McAuley) through ReChorus; Retail Rocket through CaseRec.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from veil.errors import ConfigError, DataError, InputError
from veil.files import read_bounded
from veil.recsys.dataset import NEGATIVES, Dataset
from veil.recsys.interactions import Interactions
from veil.recsys.items import ItemTable
from veil.recsys.splits import leave_one_out, sample_negatives
from veil.recsys.synthetic import generate

MAX_FILE_BYTES = 256 * 1024 * 1024
# Seed of the negatives that Veil draws for data sets that come without.
NEGATIVES_SEED = 20260
_MOST_SYNTHETIC_USERS = 2_000_000


def load_ml1m(folder: Path) -> Dataset:
    """MovieLens-1M, the NCF leave-one-out split: 6,040 users, 3,706 items, 994,169 training interactions, no times.

    Item numbers are NCF's; item ids are MovieLens ids, or `ncf-<number>` for the 91 rare items that have none.
    """
    users, items = 6040, 3706
    train = _frame(folder / "train.tsv.gz", ["user", "item"])
    test = _frame(folder / "test.rating", ["user", "item", "rating", "time"])
    if test["user"].to_list() != list(range(users)):
        raise DataError("got test.rating with other users than 0..6039 in order, expected the NCF split")
    listed = _frame(folder / "test.negative.gz", ["pair", *(f"n{k}" for k in range(NEGATIVES))], {"pair": pl.String})
    if listed["pair"].to_list() != [f"({user},{item})" for user, item in test.select("user", "item").iter_rows()]:
        raise DataError("got test.negative.gz that does not fit test.rating, expected the NCF split")
    return Dataset(
        name="ml-1m",
        train=Interactions.from_pairs(train["user"].to_numpy(), train["item"].to_numpy(), users=users, items=items),
        test_items=test["item"].to_numpy().astype(np.int64),
        negatives=listed.drop("pair").to_numpy().astype(np.int64),
        table=_ml1m_items(folder),
    )


def load_ml1m_timed(folder: Path) -> Dataset:
    """The users 0..2997 of `load_ml1m`, whose times are known: the same split, with `train.time`.

    The training pairs that the raw file does not confirm (rare items known up to a swap) are left out. Item numbers
    are the same as in `load_ml1m`.
    """
    whole = load_ml1m(folder)
    known = whole.subset(np.arange(2998), "ml-1m-timed")
    raw = _frame(folder / "ratings_users_1_2998.dat.gz", ["user", "item", "rating", "time"], separator="::")
    numbers = {identifier: number for number, identifier in enumerate(whole.table.ids)}
    raw = raw.with_columns(
        pl.col("user") - 1,
        pl.col("item").cast(pl.String).replace_strict(numbers, default=None, return_dtype=pl.Int64),
    ).drop_nulls()
    raw = raw.filter(pl.Series(known.train.contains(raw["user"].to_numpy(), raw["item"].to_numpy())))
    train = Interactions.from_pairs(
        raw["user"].to_numpy(),
        raw["item"].to_numpy(),
        users=known.train.users,
        items=known.train.items,
        time=raw["time"].to_numpy(),
        value=raw["rating"].to_numpy(),
    )
    return Dataset(known.name, train, known.test_items, known.negatives, known.table)


def load_ml100k(folder: Path) -> Dataset:
    """MovieLens-100K (RecBole's files): 943 users, 1,682 items; last by time held out, 99 negatives drawn here."""
    raw = _frame(folder / "ml-100k.inter.gz", ["user", "item", "rating", "time"], skip_header=True)
    columns = {"item": pl.String, "title": pl.String, "year": pl.String, "class": pl.String}
    facts = _frame(folder / "ml-100k.item.gz", list(columns), columns, skip_header=True).fill_null("")
    years = [int(year) if year.isdigit() else 0 for year in facts["year"]]
    table = ItemTable(
        ids=tuple(facts["item"]),
        titles=tuple(facts["title"]),
        categories=tuple(tuple(dict.fromkeys(names.split())) for names in facts["class"]),
        years=tuple(years),
    )
    return _by_last_time("ml-100k", raw, table)


def load_amazon_grocery(folder: Path) -> Dataset:
    """Amazon Grocery and Gourmet Food, 5-core: 14,681 users, 8,687 items; last by time held out, negatives drawn here.

    Items carry a category number and no title.
    """
    raw = _frame(folder / "train.csv.gz", ["user", "item", "time"], skip_header=True)
    columns = {"item": pl.Int64, "category": pl.String, "complement": pl.String, "substitute": pl.String}
    facts = _frame(folder / "item_meta.csv.gz", list(columns), columns, skip_header=True)
    category = dict(facts.select("item", "category").iter_rows())
    met = sorted(set(raw["item"]))
    table = ItemTable(
        ids=tuple(str(item) for item in met),
        titles=("",) * len(met),
        categories=tuple((f"category {category[item]}",) if item in category else () for item in met),
    )
    return _by_last_time("amazon-grocery", raw, table)


def load_retailrocket(folder: Path, events: Sequence[str] = ("view", "add_to_cart", "purchase")) -> Dataset:
    """Retail Rocket, filtered sample: up to 3,431 users, 8,885 items, no times and no item facts.

    events: which of "view", "add_to_cart", "purchase" count as an interaction. A random item of each user with two or
    more is held out (seeded), negatives drawn here.
    """
    unknown = set(events) - {"view", "add_to_cart", "purchase"}
    if unknown or not events:
        raise ConfigError("got other events, expected some of view, add_to_cart, purchase")
    raw = pl.concat(
        _frame(folder / f"{event}_ecommerce.dat.gz", ["user", "item", "count"], skip_header=True) for event in events
    )
    met = sorted(set(raw["item"]))
    table = ItemTable(ids=tuple(map(str, met)), titles=("",) * len(met), categories=((),) * len(met))
    return _by_last_time("retailrocket", raw, table)


LOADERS: Mapping[str, Callable[[Path], Dataset]] = {
    "ml-1m": load_ml1m,
    "ml-1m-timed": load_ml1m_timed,
    "ml-100k": load_ml100k,
    "amazon-grocery": load_amazon_grocery,
    "retailrocket": load_retailrocket,
}


def load_dataset(name: str, folder: Path | None = None) -> Dataset:
    """Loads by name: "synthetic" or "synthetic:USERS", or one of `LOADERS` with its folder, "name:folder" in one text.

    Raises `ConfigError` for another name and `DataError`/`InputError` for files that do not fit.
    """
    if folder is None and ":" in name:
        name, _, rest = name.partition(":")
        folder = Path(rest)
    if name == "synthetic":
        if folder is None:
            return generate()
        users = str(folder)
        if not (users.isascii() and users.isdigit() and 100 <= int(users) <= _MOST_SYNTHETIC_USERS):
            raise ConfigError(f"got synthetic:{users[:20]}, expected 100 to {_MOST_SYNTHETIC_USERS} users")
        return generate(int(users))
    if name not in LOADERS:
        raise ConfigError(f"got data set {name!r}, expected synthetic or NAME:FOLDER with NAME of {', '.join(LOADERS)}")
    if folder is None or not Path(folder).is_dir():
        raise ConfigError(
            f"got no folder for data set {name}, expected {name}:FOLDER", hint="the folder with its files"
        )
    return LOADERS[name](Path(folder))


def _by_last_time(name: str, raw: pl.DataFrame, table: ItemTable) -> Dataset:
    """Numbers users and items, holds out the last by time (a random one without times) and draws negatives."""
    people = {user: number for number, user in enumerate(sorted(set(raw["user"])))}
    numbers = {identifier: number for number, identifier in enumerate(table.ids)}
    interactions = Interactions.from_pairs(
        raw["user"].replace_strict(people, return_dtype=pl.Int64).to_numpy(),
        raw["item"].cast(pl.String).replace_strict(numbers, return_dtype=pl.Int64).to_numpy(),
        users=len(people),
        items=len(table),
        time=raw["time"].cast(pl.Int64).to_numpy() if "time" in raw.columns else None,
    )
    order = "latest" if interactions.time is not None else "random"
    held = leave_one_out(interactions, order=order, seed=NEGATIVES_SEED)  # type: ignore[arg-type]
    negatives = sample_negatives(held.train, held.test_items, count=NEGATIVES, seed=NEGATIVES_SEED)
    return Dataset(name, held.train, held.test_items, negatives, table)


def _ml1m_items(folder: Path) -> ItemTable:
    columns = {"item": pl.Int64, "id": pl.String, "title": pl.String, "genres": pl.String, "exact": pl.Int64}
    facts = _frame(folder / "items.tsv", list(columns), columns, skip_header=True).fill_null("")
    return ItemTable(
        ids=tuple(identifier or f"ncf-{number}" for number, identifier in facts.select("item", "id").iter_rows()),
        titles=tuple(facts["title"]),
        categories=tuple(tuple(filter(None, names.split("|"))) for names in facts["genres"]),
    )


def _frame(
    path: Path,
    names: Sequence[str],
    types: Mapping[str, type[pl.DataType]] | None = None,
    *,
    separator: str = "\t",
    skip_header: bool = False,
) -> pl.DataFrame:
    """Reads a known file with columns by position; integers unless `types` says otherwise."""
    data = read_bounded(path, MAX_FILE_BYTES)
    if path.suffix == ".gz":
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except (OSError, EOFError, zlib.error):
            raise InputError(f"got {path.name}, which does not unpack, expected a gzip file") from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"got more than {MAX_FILE_BYTES} bytes in {path.name}")
    if separator != "\t":
        data = data.replace(separator.encode(), b"\t")
    defaults: dict[str, type[pl.DataType]] = {name: pl.Float64 if name == "rating" else pl.Int64 for name in names}
    if types is None and b"." in data[:4096]:
        defaults["time"] = pl.Float64
    try:
        return pl.read_csv(
            data,
            separator="\t",
            has_header=False,
            skip_rows=int(skip_header),
            new_columns=list(names),
            schema_overrides=[{**defaults, **(types or {})}[name] for name in names],
            quote_char=None,
        )
    except pl.exceptions.PolarsError:
        raise DataError(f"got {path.name} that does not parse, expected {len(names)} columns") from None
