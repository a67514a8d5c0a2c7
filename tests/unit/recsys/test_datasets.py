from __future__ import annotations

import gzip
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from veil.errors import ConfigError, DataError, InputError
from veil.recsys.datasets import LOADERS, Dataset, load_dataset, split_as_given, split_parties, write_party_csv
from veil.recsys.interactions import Interactions
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.reading import ReadConfig, read_interactions
from veil.recsys.synthetic import generate

Shared = Callable[[str], Path]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "users", "items", "train"),
    [
        ("ml-1m", 6040, 3706, 994_169),
        ("ml-1m-timed", 2998, 3706, 484_517),
        ("ml-100k", 943, 1682, 99_057),
        ("amazon-grocery", 14_681, 8_687, 107_211),
        ("retailrocket", 3_431, 8_885, None),
    ],
)
def test_loaders(shared_data: Shared, name: str, users: int, items: int, train: int | None) -> None:
    data = load_dataset(name, shared_data(name.removesuffix("-timed")))
    assert (data.train.users, data.train.items, len(data.table)) == (users, items, items)
    assert train is None or data.train.nnz == train
    held = data.test_items >= 0
    assert held.mean() > 0.99
    assert data.negatives is not None and data.negatives.shape == (users, 99)
    assert not data.train.contains(np.arange(users)[:, None], data.negatives).any()
    assert (data.train.time is not None) == (name in ("ml-1m-timed", "ml-100k", "amazon-grocery"))


@pytest.mark.data
def test_movielens_1m_is_the_ncf_split(shared_data: Shared) -> None:
    data = load_dataset(f"ml-1m:{shared_data('ml-1m')}")
    assert data.table.titles[0] == "One Flew Over the Cuckoo's Nest (1975)" and data.table.ids[0] == "1193"
    assert data.table.categories[1] == ("Animation", "Children's", "Musical")
    assert data.test_items[:3].tolist() == [25, 133, 207]
    assert data.negatives is not None
    assert int((data.negatives == data.test_items[:, None]).any(axis=1).sum()) == 156  # an upstream quirk
    timed = load_dataset("ml-1m-timed", shared_data("ml-1m"))
    same = data.train.rows(slice(0, 2998))
    assert timed.train.nnz > 0.999 * same.nnz
    assert bool(same.contains(timed.train.row_of(), timed.train.indices).all())


@pytest.mark.data
def test_the_last_by_time_is_held_out(shared_data: Shared) -> None:
    folder = shared_data("ml-100k")
    whole = load_dataset("ml-100k", folder)
    latest: dict[int, int] = {}
    held: dict[int, set[str]] = {}
    for line in gzip.decompress((folder / "ml-100k.inter.gz").read_bytes()).decode().splitlines()[1:]:
        user, item, _, time = line.split("\t")
        if int(time) >= latest.get(int(user), 0):
            held[int(user)] = {item} | (held[int(user)] if latest.get(int(user)) == int(time) else set())
            latest[int(user)] = int(time)
    for number, user in enumerate(sorted(held)):
        assert whole.table.ids[whole.test_items[number]] in held[user]
    assert whole.table.titles[:2] == ("Toy Story", "GoldenEye") and whole.table.years[:2] == (1995, 1995)
    assert whole.table.categories[0] == ("Animation", "Children's", "Comedy")


def test_names_and_folders_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("imdb", "ml-1m", f"ml-1m:{tmp_path}/absent"):
        with pytest.raises(ConfigError):
            load_dataset(name)
    for name in LOADERS:
        with pytest.raises(InputError):
            load_dataset(name, tmp_path)
    (tmp_path / "train.tsv.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError):
        load_dataset("ml-1m", tmp_path)


def test_parties_share_the_users_and_their_files_read_back(tmp_path: Path) -> None:
    data = generate(400, 300, seed=1)
    parts = split_parties(data, [0.6, 0.3, 0.1], seed=2)
    assert [part.data.train.users for part in parts] == [240, 120, 40]
    assert sorted(np.concatenate([part.users for part in parts]).tolist()) == list(range(400))
    for part in parts:
        assert np.array_equal(part.data.test_items, data.test_items[part.users])
        assert part.data.train.history(3).tolist() == data.train.history(int(part.users[3])).tolist()
    train = parts[1].data.train
    path = tmp_path / "rows.csv"
    ids = [f"customer {number}, Ltd" for number in range(train.users)]
    write_party_csv(path, train, data.table.ids, user_ids=ids)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = ReadConfig.model_validate({"columns": {"user": "user_id", "item": "item_id", "time": "time"}})
    key = PseudonymKey(bytes(32))
    back, report = read_interactions(path, config, data.table.ids, key)
    assert report.rows_kept == report.rows_read == train.nnz
    assert back.pseudonyms is not None and train.time is not None and back.time is not None
    place = {pseudonym: row for row, pseudonym in enumerate(back.pseudonyms)}
    same = back.rows([place[key.pseudonym(one)] for one in ids])
    assert np.array_equal(same.indices, train.indices) and np.array_equal(same.time, train.time)  # type: ignore[arg-type]


def test_given_parties_are_kept() -> None:
    data = generate(400, 300, seed=1)
    parts = split_as_given(data)
    assert len(parts) == 3 and len(parts[0].users) > len(parts[1].users) > len(parts[2].users) > 0
    assert sorted(np.concatenate([part.users for part in parts]).tolist()) == list(range(400))
    assert bool((data.extra["party_of"][parts[2].users] == 2).all())
    with pytest.raises(DataError, match="split_parties"):
        split_as_given(parts[0].data)


def test_without_times_the_column_is_left_out(tmp_path: Path) -> None:
    write_party_csv(tmp_path / "x.csv", Interactions.from_pairs([0, 1], [1, 0], users=2, items=2), ["a", "b"])
    assert (tmp_path / "x.csv").read_text() == "user_id,item_id\nuser-0,b\nuser-1,a\n"
    with pytest.raises(DataError):
        write_party_csv(tmp_path / "y.csv", Interactions.from_pairs([0], [0], users=1, items=1), ["a", "b"])


def test_a_test_item_that_is_trained_on_is_refused() -> None:
    data = generate(50, 250, seed=1, negatives=9)
    leaked = data.test_items.copy()
    leaked[7] = data.train.history(7)[0]
    with pytest.raises(DataError, match="test item"):
        Dataset("leak", data.train, leaked, data.negatives, data.table)
    with pytest.raises(DataError, match="negatives"):
        Dataset("short", data.train, data.test_items, data.negatives[:-1], data.table)  # type: ignore[index]
