"""Ids of users: kept only by a party that says so, in the order of its rows, and gone where it does not any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from party.config import PartyConfig
from party.rows import store
from party.rows.identifiers import FILE, forget, keep, load
from tests.unit.trainers.side.shops import catalogue
from veil.align.ids import check_ids
from veil.errors import DataError, StateError
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.reading import read_interactions

NAMES = ("alice-4711", "bob-1", "carol-2", "dora")


def config(folder: Path, *, align: bool, texts: bool = False) -> PartyConfig:
    ids = catalogue().ids
    (folder / "data.csv").write_text(
        "user,item\n" + "".join(f"{name},{ids[n]}\n{name},{ids[0]}\n" for n, name in enumerate(NAMES[:3], 1))
    )
    (folder / "texts.csv").write_text("user,text,labels\ndora,fine,a\nbob-1,good,b\n")
    document: dict[str, Any] = {
        "listen": "127.0.0.1:1",
        "advertise": "127.0.0.1:1",
        "credentials": folder,
        "state": folder / "state",
        "catalogue": folder,
        "coordinator": {"address": "127.0.0.1:1"},
        "dealer": {"address": "127.0.0.1:1"},
        "budget": {"epsilon": 1.0, "delta": 1e-6},
        "approval": {"max_epsilon_per_job": 1.0},
        "data": {
            "source": folder / "data.csv",
            "pseudonym_key": folder / "key",
            "align": align,
            "read": {"columns": {"user": "user", "item": "item"}},
        },
    }
    if texts:
        columns = {"user": "user", "text": "text", "labels": "labels"}
        document["texts"] = {"source": folder / "texts.csv", "labels": ("a", "b"), "read": {"columns": columns}}
    return PartyConfig.model_validate(document)


def test_each_row_has_the_id_of_its_user(tmp_path: Path) -> None:
    asked = config(tmp_path, align=True, texts=True)
    held = store.prepare(asked, catalogue()).identifiers
    assert held is not None
    assert (held.users, held.path.stat().st_mode & 0o777) == (3, 0o600)
    found = load(held.path)
    rows = store.load_rows(tmp_path / "state" / "rows" / "rows.safetensors", catalogue().digest).need_interactions()
    # who has texts alone has a row, and no id
    assert len(found) == rows.users == 4
    assert sorted(one for one in found if one) == sorted(NAMES[:3])
    key = PseudonymKey.load_or_create(tmp_path / "key")
    alone, _ = read_interactions(tmp_path / "data.csv", asked.data.read, catalogue().ids, key)  # type: ignore[union-attr]
    of_id = dict(zip(key.pseudonyms(NAMES), NAMES, strict=True))
    met = {of_id[one]: alone.history(n).tolist() for n, one in enumerate(alone.pseudonyms or ())}
    assert {name: rows.history(n).tolist() for n, name in enumerate(found) if name} == met
    held.check("shop", 3)
    with pytest.raises(DataError, match="more users than the 2"):
        held.check("shop", 2)


def test_without_a_word_in_the_configuration_no_id_is_kept(tmp_path: Path) -> None:
    store.prepare(config(tmp_path, align=True), catalogue())
    rows = tmp_path / "state" / "rows"
    (rows / f".{FILE}.abc.tmp").write_bytes(b"alice")  # as a crash leaves it
    forget(rows)
    assert not list(rows.glob(f"*{FILE}*"))
    prepared = store.prepare(config(tmp_path, align=False), catalogue())
    assert prepared.identifiers is None
    assert not (tmp_path / "state" / "rows" / FILE).exists()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert b"alice" not in kept


def test_an_id_that_no_alignment_takes_is_a_user_without_one(tmp_path: Path) -> None:
    # 200 characters of two bytes each: `align` would refuse them, and with them every job.
    known = {"a": "alice", "b": "\u00e9" * 200, "c": "e" * 256}
    held = keep(tmp_path, known, ["a", "b", "c", "d"])
    assert held.users == 2
    found = load(held.path)
    assert found == ["alice", None, "e" * 256, None]
    assert len(check_ids([one for one in found if one], 2)) == 2


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no parquet")
    pl.DataFrame({"name": ["x"]}).write_parquet(tmp_path / "b")
    for name in ("a", "b"):
        with pytest.raises(StateError, match="ids"):
            load(tmp_path / name)
