from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from veil.errors import DataError
from veil.recsys.interactions import Interactions
from veil.recsys.parties import split_as_given, split_parties, write_party_csv
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.reading import ReadConfig, read_interactions
from veil.recsys.synthetic import generate


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
