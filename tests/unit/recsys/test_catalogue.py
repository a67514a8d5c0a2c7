from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as dump_safetensors

from veil.errors import ArtifactError, DataError, StateError
from veil.recsys.catalogue import Block, Catalogue, ItemTable

_NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10).filter(str.isprintable)
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


def small() -> Catalogue:
    table = ItemTable(("a", "b"), ("A (1999)", ""), (("x", "y"), ()), years=(1999, 0), texts=("", "about b"))
    return Catalogue(
        table, np.eye(2, 3, dtype=np.float32), (Block(name="one", size=3, scaling="none"),), "enc", "generic"
    )


@given(st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    ids = data.draw(st.lists(_NAME, min_size=1, max_size=6, unique=True))
    one_each = lambda kind: tuple(data.draw(kind) for _ in ids)  # noqa: E731
    table = ItemTable(
        tuple(ids),
        one_each(_TEXT),
        tuple(map(tuple, one_each(st.lists(_NAME, max_size=3, unique=True)))),
        years=one_each(st.integers(1900, 2026)),
        texts=tuple(f"{text}." for text in one_each(_TEXT)),
    )
    width = data.draw(st.integers(0, 4))
    features = np.random.default_rng(0).standard_normal((len(ids), width)).astype(np.float32)
    made = Catalogue(table, features)
    directory = tmp_path_factory.mktemp("round") / "catalogue"
    assert made.save(directory) == made.digest
    loaded = Catalogue.load(directory, expect_digest=made.digest)
    assert loaded.table == table and np.array_equal(loaded.features, features) and loaded.digest == made.digest


def test_the_digest_is_that_of_the_head_and_depends_on_everything(tmp_path: Path) -> None:
    made = small()
    made.save(tmp_path / "c")
    head = (tmp_path / "c" / "catalogue.json").read_bytes()
    assert made.digest == "sha256:" + hashlib.sha256(head).hexdigest()
    loaded = Catalogue.load(tmp_path / "c")
    assert (loaded.encoder, loaded.phrasing, loaded.blocks) == ("enc", "generic", made.blocks)
    assert loaded.block("one").shape == (2, 3)
    other_feature = made.features.copy()
    other_feature[0, 0] = 2
    variants = [
        Catalogue(made.table, other_feature, made.blocks, "enc", "generic"),
        Catalogue(made.table, made.features, made.blocks, "other", "generic"),
        Catalogue(made.table, made.features, made.blocks, "enc", "movies"),
        Catalogue(ItemTable(("a", "c"), made.titles, made.categories), made.features, made.blocks, "enc", "generic"),
    ]
    assert len({made.digest, *(variant.digest for variant in variants)}) == 5


def test_another_catalogue_than_expected_is_refused(tmp_path: Path) -> None:
    small().save(tmp_path / "c")
    with pytest.raises(ArtifactError, match="expected sha256:00"):
        Catalogue.load(tmp_path / "c", expect_digest="sha256:" + "0" * 64)
    with pytest.raises(StateError):
        small().save(tmp_path / "c")


@pytest.mark.parametrize("name", ["items.jsonl", "features.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_damage_is_found(tmp_path: Path, name: str, damage: str) -> None:
    small().save(tmp_path / "c")
    path = tmp_path / "c" / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        changed = {"flip": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:], "cut": data[:-1], "grow": data + b"\n"}
        path.write_bytes(changed[damage])
    with pytest.raises(ArtifactError):
        Catalogue.load(tmp_path / "c")


def forged(directory: Path, **files: bytes) -> Path:
    """A catalogue whose head lists the given files rightly, whatever they hold."""
    small().save(directory)
    head = json.loads((directory / "catalogue.json").read_bytes())
    for stem, data in files.items():
        name = {"items": "items.jsonl", "features": "features.safetensors"}[stem]
        (directory / name).write_bytes(data)
        head["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (directory / "catalogue.json").write_text(json.dumps(head))
    return directory


_ITEM = b'{"categories":[],"id":"a","title":"t"}\n'


@pytest.mark.parametrize(
    "files",
    [
        {"items": b""},
        {"items": _ITEM},
        {"items": _ITEM * 2},  # the same id twice
        {"items": _ITEM + b"nonsense\n"},
        {"items": _ITEM + b'{"categories":[],"id":"","title":"t"}\n'},
        {"items": _ITEM + b'{"categories":[],"id":"b","title":"t","more":1}\n'},
        {"items": _ITEM + b'{"categories":["x","x"],"id":"b","title":"t"}\n'},
        {"features": b""},
        {"features": b"\xff" * 100},
        {"features": dump_safetensors({"features": np.zeros((2, 3))})},
        {"features": dump_safetensors({"features": np.zeros((3, 2), np.float32)})},
        {"features": dump_safetensors({"other": np.zeros((2, 3), np.float32)})},
        {"features": dump_safetensors({"features": np.full((2, 3), np.nan, np.float32)})},
        {"features": dump_safetensors({"features": np.zeros((2, 3), np.float32), "more": np.zeros(2)})},
    ],
)
def test_rightly_listed_nonsense_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(ArtifactError):
        Catalogue.load(forged(tmp_path / "c", **files))


@pytest.mark.parametrize(
    "head", [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"schema":"veil.catalogue/2"}', b'{"items":-1}', b"9" * 5000]
)
def test_heads_that_are_none(tmp_path: Path, head: bytes) -> None:
    small().save(tmp_path / "c")
    (tmp_path / "c" / "catalogue.json").write_bytes(head)
    with pytest.raises(ArtifactError):
        Catalogue.load(tmp_path / "c")
    with pytest.raises(ArtifactError, match="catalogue build"):
        Catalogue.load(tmp_path / "absent")


def test_a_file_outside_the_directory_cannot_be_listed(tmp_path: Path) -> None:
    directory = forged(tmp_path / "c")
    head = json.loads((directory / "catalogue.json").read_bytes())
    head["files"]["../secret"] = head["files"].pop("items.jsonl")
    (directory / "catalogue.json").write_text(json.dumps(head))
    with pytest.raises(ArtifactError):
        Catalogue.load(directory)


def test_inconsistent_catalogues_are_refused() -> None:
    table = small().table
    for features, blocks in [
        (np.zeros((3, 1)), ()),
        (np.zeros(2), ()),
        (np.array([[np.inf], [0]]), ()),
        (np.zeros((2, 2)), (Block(name="one", size=1, scaling=""),)),
    ]:
        with pytest.raises(DataError):
            Catalogue(table, features.astype(np.float32), blocks)
    with pytest.raises(DataError, match="block 'two'"):
        small().block("two")


def test_features_are_read_only() -> None:
    own = np.zeros((2, 1), np.float32)
    made = Catalogue(ItemTable(("a", "b"), ("", ""), ((), ())), own)
    own[0] = 1
    assert made.features[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        made.features[0, 0] = 1
