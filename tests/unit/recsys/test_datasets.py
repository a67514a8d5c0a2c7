from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from veil.errors import ConfigError, InputError
from veil.recsys.datasets import LOADERS, load_dataset

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
