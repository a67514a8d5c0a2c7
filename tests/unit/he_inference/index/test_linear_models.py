"""Models on columns as items: vectors and files are those of signed directories; what does not fit is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from he_inference.collection import COLLECTION, PART, PART_FILES, Collection, parse_collection
from he_inference.index.linear_models import holds_columns, manifests_of, read_linear
from he_inference.index.published_items import read_items
from tests.unit.he_inference.columns_site import ColumnsSite
from tests.unit.trainers.columns.clicks import BANK
from veil.errors import ArtifactError, ConfigError
from veil.identity.names import Identity, Role


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> ColumnsSite:
    return ColumnsSite(tmp_path_factory.mktemp("columns-site"))


@pytest.fixture(scope="module")
def models(site: ColumnsSite) -> Path:
    for number, name in enumerate(("shoes", "books")):
        site.publish(site.folder / "models" / name, seed=number)
    return site.folder / "models"


def test_items_are_the_signed_weights_under_the_folders_names(site: ColumnsSite, models: Path) -> None:
    found = read_linear(models, site.authority, [Identity("trial", Role.PARTY, BANK)])
    assert [member.name for member in found.collection.models] == ["books", "shoes"]
    expected = [np.random.default_rng(seed).normal(size=(9, 1))[:, 0] * 5 for seed in (1, 0)]
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-6)
    assert (found.collection.items, found.collection.dimensions, found.collection.pieces) == (2, 9, 1)
    items = read_items(models, site.authority)
    assert items.ids == ("books", "shoes") and items.digest == found.collection.digest
    np.testing.assert_array_equal(items.factors, found.vectors)
    # a published directory by itself is called by its job
    alone = read_items(models / "books", site.authority)
    assert (alone.name, alone.ids) == ("clicks", ("clicks",)) and alone.digest != items.digest


def test_clients_get_everything_but_the_weights(site: ColumnsSite, models: Path) -> None:
    found = read_linear(models, site.authority)
    assert set(found.files) == {COLLECTION, PART} and "weights.safetensors" not in PART_FILES
    collection = parse_collection(found.files[COLLECTION], found.collection.digest)
    assert collection == found.collection
    for member, files in collection.split(found.files[PART]):
        for name, data in files.items():
            assert (models / member.name / name).read_bytes() == data
        weights = (models / member.name / "weights.safetensors").read_bytes()
        assert weights[-72:] not in found.files[PART]
    broken = bytearray(found.files[PART])
    broken[-1] ^= 1
    for wrong in (bytes(broken), found.files[PART][:-1], found.files[PART] + b"\x00"):
        with pytest.raises(ArtifactError, match=r"altered|bytes of model files"):
            list(collection.split(wrong))
    with pytest.raises(ArtifactError, match="another collection"):
        parse_collection(found.files[COLLECTION] + b" ", found.collection.digest)


def test_what_is_not_signed_or_does_not_fit_is_refused(site: ColumnsSite, models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without the authority"):
        read_items(models)
    shutil.copytree(models, tmp_path / "unsigned")
    site.publish(tmp_path / "unsigned" / "hats", signers=(BANK,))
    with pytest.raises(ArtifactError, match=r"hats: .*signature"):
        read_linear(tmp_path / "unsigned", site.authority)
    with pytest.raises(ArtifactError, match="signature"):
        read_linear(models, site.authority, [Identity("trial", Role.PARTY, "club")])
    shutil.copytree(models, tmp_path / "altered")
    path = tmp_path / "altered" / "books" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ArtifactError, match=r"books: .*altered"):
        read_linear(tmp_path / "altered", site.authority)
    shutil.copytree(models, tmp_path / "named")
    (tmp_path / "named" / "books").rename(tmp_path / "named" / "Books; drop")
    with pytest.raises(ConfigError, match="a model's name"):
        read_linear(tmp_path / "named", site.authority)


def test_models_of_other_columns_are_refused_and_of_other_outcomes_are_not(
    site: ColumnsSite, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path / "outcomes")
    site.publish(tmp_path / "outcomes" / "hats", renamed=("bought", "opened"))
    assert len(read_linear(tmp_path / "outcomes", site.authority).collection.models) == 3
    shutil.copytree(models, tmp_path / "columns")
    site.publish(tmp_path / "columns" / "hats", renamed=("income", "wealth"))
    with pytest.raises(ConfigError, match="hats on other columns than books"):
        read_linear(tmp_path / "columns", site.authority)


def test_more_than_a_linear_model_is_taken_only_when_asked_for(site: ColumnsSite, tmp_path: Path) -> None:
    made = site.publish(tmp_path / "model", kind="perceptron")
    with pytest.raises(ConfigError, match=r"more than linear: clicks \(perceptron\)") as refused:
        read_linear(tmp_path / "model", site.authority)
    assert "linear part alone" in str(refused.value.hint)
    found = read_linear(tmp_path / "model", site.authority, linear_part=True)
    np.testing.assert_allclose(found.vectors[0], made.weights[:, 0], rtol=1e-6)
    assert found.collection.models[0].model == "perceptron"


def test_wide_rows_lie_in_pieces(site: ColumnsSite, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("he_inference.collection.MAX_DIMENSIONS", 4)
    found = read_linear(models, site.authority)
    collection = found.collection
    assert (collection.pieces, collection.dimensions, collection.items) == (3, 3, 6)
    assert collection.ids()[:4] == ("books#0", "books#1", "books#2", "shoes#0")
    whole = np.random.default_rng(1).normal(size=(9, 1))[:, 0] * 5
    np.testing.assert_allclose(found.vectors[:3].reshape(-1), whole, rtol=1e-6)


def test_widths_of_every_schema_fit() -> None:
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    for features in (1, 572, 1024, 1025, 4096, 65_536):
        member = {"name": "m", "model": "logistic", "files": [entry] * len(PART_FILES)}
        made = Collection.model_validate({"features": features, "models": [member]})
        assert made.dimensions <= 1024 and made.pieces * made.dimensions >= features
        assert (made.pieces - 1) * made.dimensions < features


def test_folders_are_told_apart(site: ColumnsSite, models: Path, tmp_path: Path) -> None:
    assert holds_columns(models) and holds_columns(models / "books")
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / "manifest.json").write_text("{}")
    assert manifests_of(tmp_path) == [tmp_path / "manifest.json"] and not holds_columns(tmp_path)
    for text in ('{"schema":"veil.model/1"}', "[]", "no", "[" * 100_000):
        (tmp_path / "manifest.json").write_text(text)
        assert not holds_columns(tmp_path)
    assert not holds_columns(tmp_path / "absent")
