"""Prepared rows: what the sources hold comes back as the worker sees it, and nothing that names a user."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from party.config import PartyConfig
from party.rows import store
from veil.errors import ConfigError, DataError, StateError
from veil.recsys import synthetic
from veil.recsys.catalogue import Catalogue
from veil.recsys.features import build_catalogue
from veil.recsys.pseudonyms import PseudonymKey
from veil.trainers.rows import PartyRows

SECRET = "alice-4711"
AGE = {"name": "age", "role": "quasi-identifier", "steps": [{"bin": [30]}]}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return build_catalogue(synthetic.generate(50, 260, seed=5, negatives=9).table)


@pytest.fixture
def make(tmp_path: Path, catalogue: Catalogue) -> Callable[..., PartyConfig]:
    """A configuration whose sources hold the given rows; None leaves the section out."""

    def made(data: str | None = None, texts: str | None = None, users: str | None = None, **more: Any) -> PartyConfig:
        document: dict[str, Any] = {
            "listen": "127.0.0.1:1",
            "advertise": "127.0.0.1:1",
            "credentials": tmp_path,
            "state": tmp_path / "state",
            "catalogue": tmp_path,
            "coordinator": {"address": "127.0.0.1:1"},
            "dealer": {"address": "127.0.0.1:1"},
            "budget": {"epsilon": 1.0, "delta": 1e-6},
            "approval": {"max_epsilon_per_job": 1.0},
        }
        key = tmp_path / "pseudonym.key"
        columns: dict[str, dict[str, str]] = {
            "data": {"user": "user", "item": "item"},
            "texts": {"user": "user", "text": "text", "labels": "labels"},
            "users": {"user": "user"},
        }
        for name, rows in (("data", data), ("texts", texts), ("users", users)):
            if rows is None:
                continue
            source = tmp_path / f"{name}.csv"
            source.write_text(",".join(columns[name].values()) + (",age" if name == "users" else "") + "\n" + rows)
            document[name] = {"source": source, "read": {"columns": columns[name]}}
        if data is not None:
            document["data"]["pseudonym_key"] = key
        elif texts is not None:
            document["texts"]["pseudonym_key"] = key
        if texts is not None:
            document["texts"] |= {"labels": ["red", "blue"], **more.get("texts_section", {})}
        if users is not None:
            document["users"] |= {"attribute": [AGE], "anonymity": {"k": 2}, **more.get("users_section", {})}
        return PartyConfig.model_validate(document)

    return made


def prepared(config: PartyConfig, catalogue: Catalogue) -> tuple[PartyRows, store.Prepared]:
    found = store.prepare(config, catalogue)
    return store.load_rows(found.path, catalogue.digest), found


def place(config: PartyConfig, users: list[str]) -> dict[str, int]:
    """The row number of each user."""
    key = PseudonymKey.load_or_create(config.pseudonym_key)
    ordered = sorted(key.pseudonyms(users))
    return {user: ordered.index(key.pseudonym(user)) for user in users}


def test_interactions_come_back(make: Callable[..., PartyConfig], catalogue: Catalogue) -> None:
    config = make(data=f"{SECRET},{catalogue.ids[3]}\nb,{catalogue.ids[5]}\n{SECRET},{catalogue.ids[1]}\n")
    rows, found = prepared(config, catalogue)
    assert [folder.stat().st_mode & 0o777 for folder in (config.state, found.path.parent)] == [0o700, 0o700]
    interactions, row = rows.need_interactions(), place(config, [SECRET, "b"])
    assert interactions.history(row[SECRET]).tolist() == [1, 3] and interactions.history(row["b"]).tolist() == [5]
    assert interactions.time is None and interactions.items == catalogue.items
    assert (rows.texts, rows.attributes, found.texts) == (None, None, None)
    assert found.report == found.interactions and found.report.rows_kept == 3
    for missing in (rows.need_texts, rows.need_attributes):
        with pytest.raises(ConfigError):
            missing()


def test_a_user_is_one_row_in_every_kind(make: Callable[..., PartyConfig], catalogue: Catalogue) -> None:
    items = catalogue.ids
    config = make(
        data=f"a,{items[3]}\nb,{items[5]}\na,{items[1]}\n",
        texts="b,blue sky,blue\nc,red rose,red\nb,both,red|blue\n",
        users="a,20\nc,25\nd,40\nb,70\n",
        users_section={"attribute": [{**AGE, "role": "insensitive"}]},
    )
    rows, found = prepared(config, catalogue)
    row = place(config, ["a", "b", "c"])
    interactions, texts, attributes = rows.need_interactions(), rows.need_texts(), rows.need_attributes()
    assert interactions.users == texts.users == attributes.users == 3
    assert {user: interactions.history(number).tolist() for user, number in row.items()} == {
        "a": [1, 3],
        "b": [5],
        "c": [],
    }
    of_user = {
        user: [(texts.text[one], texts.label[one].tolist()) for one in np.flatnonzero(texts.user == number)]
        for user, number in row.items()
    }
    assert of_user == {
        "a": [],
        "b": [("blue sky", [False, True]), ("both", [True, True])],
        "c": [("red rose", [True, False])],
    }
    assert texts.names == ("red", "blue")
    assert {user: attributes.codes[number].tolist() for user, number in row.items()} == {"a": [0], "b": [1], "c": [0]}
    counts = found.deidentification.attributes
    assert counts is not None and (counts.users_read, counts.users_left_out, counts.users_without_row) == (4, 1, 0)


def test_texts_alone(make: Callable[..., PartyConfig], catalogue: Catalogue) -> None:
    rows, found = prepared(make(texts="b,blühende Wiese 🌼,blue\na,x,red\nb,y,red\n"), catalogue)
    assert sorted(rows.need_texts().text) == ["blühende Wiese 🌼", "x", "y"]
    assert found.report.rows_kept == 3 and found.report.users == 2
    with pytest.raises(ConfigError, match=r"\[data\]"):
        rows.need_interactions()


def test_labels_are_the_catalogues_categories_by_default(
    make: Callable[..., PartyConfig], catalogue: Catalogue
) -> None:
    labels = store.labels_of(catalogue)
    assert list(labels) == sorted({name for names in catalogue.categories for name in names}) and len(labels) > 1
    rows, _ = prepared(make(texts=f"a,x,{labels[1]}\n", texts_section={"labels": None}), catalogue)
    assert rows.need_texts().names == labels and np.flatnonzero(rows.need_texts().label[0]).tolist() == [1]


def test_what_is_written_names_nobody_and_only_the_owner_may_read_it(
    make: Callable[..., PartyConfig], catalogue: Catalogue
) -> None:
    items = catalogue.ids
    users = [f"{SECRET}-{number}" for number in range(6)]
    config = make(
        data="".join(f"{user},{items[3]}\n" for user in users),
        texts="".join(f"{user},x,red\n" for user in users),
        users="".join(f"{user},{number}23456\n" for number, user in enumerate(users)),
    )
    folder = config.state / "rows"
    folder.mkdir(parents=True, mode=0o700)
    (folder / ".rows.safetensors.abc.tmp").write_text("half a file of a crash")
    _, found = prepared(config, catalogue)
    key = PseudonymKey.load_or_create(config.pseudonym_key)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["deidentification.json", "rows.safetensors"]
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        data = path.read_bytes()
        assert SECRET.encode() not in data and b"23456" not in data
        assert not any(pseudonym.encode() in data for pseudonym in key.pseudonyms(users))
    assert json.loads((folder / "deidentification.json").read_text()) == json.loads(found.deidentification.json())


def test_small_classes_may_stop_the_party(make: Callable[..., PartyConfig], catalogue: Catalogue) -> None:
    section = {"anonymity": {"k": 3, "small_classes": "stop"}}
    config = make(data=f"a,{catalogue.ids[3]}\n", users="a,20\n", users_section=section)
    with pytest.raises(DataError, match="1 users in classes of fewer than 3"):
        store.prepare(config, catalogue)
    assert not (config.state / "rows").exists()


def test_rows_of_another_catalogue_or_no_rows_are_refused(
    make: Callable[..., PartyConfig], catalogue: Catalogue
) -> None:
    found = store.prepare(make(data=f"a,{catalogue.ids[3]}\n", texts="a,x,red\n"), catalogue)
    with pytest.raises(StateError, match="prepared for catalogue"):
        store.load_rows(found.path, "sha256:" + "0" * 64)
    data = found.path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    arrays = load_arrays(data)
    broken = {
        "cut": data[: len(data) // 2],
        "nothing": b"",
        "noise": b"\xff" * 64,
        "no metadata": save_arrays(arrays),
        "no array": save_arrays({name: array for name, array in arrays.items() if name != "label"}, metadata),
        "users differ": save_arrays(arrays, {**metadata, "text_users": "7"}),
        "an item too many": save_arrays({**arrays, "indices": arrays["indices"] + 10_000}, metadata),
    }
    for wrong in broken.values():
        found.path.write_bytes(wrong)
        with pytest.raises(StateError):
            store.load_rows(found.path, catalogue.digest)
