"""A published joint model: loads only when everybody signed it and it fits the signed job; predicts as stated."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from cli.predict import read_tables
from tests.unit.trainers.columns.clicks import BANK, SHOP, job
from veil.errors import ArtifactError, ConfigError, InputError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.recsys.manifest import sign_manifest
from veil.recsys.signed import save_directory
from veil.tabular.grid import encode_rows
from veil.trainers.columns.publication import ColumnsModel, ColumnsPublication, load_columns
from veil.trainers.columns.terms import ColumnsTerms

SPEC = job()
TERMS = ColumnsTerms.of(SPEC)


def model() -> ColumnsModel:
    generator = np.random.default_rng(1)
    width = TERMS.layout.columns
    return ColumnsModel(
        TERMS.schema, generator.normal(size=(width, 1)), generator.uniform(0, 0.5, width), np.full(width, 0.4), -0.7
    )


class Signers:
    def __init__(self, folder: Path) -> None:
        members = make_consortium(folder / "certs", "trial", [BANK, SHOP])
        self.credentials = {
            name: Credentials.load(members[Identity("trial", Role.PARTY, name)]) for name in (BANK, SHOP)
        }
        self.authority = self.credentials[BANK].authority_pem

    def publish(
        self, folder: Path, changes: dict[str, bytes] | None = None, signers: tuple[str, ...] = (BANK, SHOP)
    ) -> None:
        publication = ColumnsPublication(model())
        files = {**publication.files(SPEC), **(changes or {})}
        manifest = publication.manifest(SPEC, files, created_s=int(time.time()))
        signatures = [
            sign_manifest(manifest, name, one.certificate_pem, one.sign)
            for name, one in self.credentials.items()
            if name in signers
        ]
        save_directory(folder, files, manifest, signatures)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Signers:
    return Signers(tmp_path_factory.mktemp("columns-signers"))


def test_what_is_published_is_what_loads(signers: Signers, tmp_path: Path) -> None:
    signers.publish(tmp_path / "model")
    loaded, made = load_columns(tmp_path / "model", signers.authority), model()
    for name in ("weights", "offset", "scale"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(made, name))
    assert (loaded.intercept, loaded.schema) == (made.intercept, made.schema)
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_bytes())
    assert manifest["kind"] == "columns" and manifest["catalogue_digest"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"weights.safetensors": b"no tensors"},
        {"weights.safetensors": save({"weights": np.zeros((3, 1))})},
        {"weights.safetensors": save({"weights": np.zeros(TERMS.layout.columns)})},
        {"weights.safetensors": save({"weights": np.full((TERMS.layout.columns, 1), np.nan)})},
        {"weights.safetensors": save({"weights": np.zeros((TERMS.layout.columns, 1)), "more": np.zeros(1)})},
        {"client.safetensors": save({name: np.zeros(3) for name in ("offset", "scale")})},
        {"client.safetensors": save({"offset": np.zeros(TERMS.layout.columns)})},
        {"columns.json": b"{}"},
        {"columns.json": b'{"intercept":1e9,"model":"logistic","schema":"veil.columns/1"}'},
        {"job.json": b"{}"},
    ],
)
def test_what_does_not_fit_the_job_is_refused_though_signed(
    signers: Signers, tmp_path: Path, changes: dict[str, bytes]
) -> None:
    signers.publish(tmp_path / "model", changes)
    with pytest.raises(ArtifactError):
        load_columns(tmp_path / "model", signers.authority)


@pytest.mark.parametrize(
    ("name", "value"), [("weights", np.nan), ("weights", 1e300), ("offset", 2.0), ("scale", -1.0), ("scale", np.inf)]
)
def test_numbers_that_training_cannot_give_are_refused_though_signed(
    signers: Signers, tmp_path: Path, name: str, value: float
) -> None:
    arrays = {one: getattr(model(), one).copy() for one in ("weights", "offset", "scale")}
    arrays[name][0] = value
    weights = {"weights": arrays.pop("weights")}
    changes = {"weights.safetensors": save(weights), "client.safetensors": save(arrays)}
    signers.publish(tmp_path / "model", changes)
    with pytest.raises(ArtifactError, match="in range"):
        load_columns(tmp_path / "model", signers.authority)


def test_rows_are_encoded_a_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "rows.csv"
    whole.write_text("user,income,region,item,visits\na,90,north,tea,9\nb,5,south,salt,\nc,7,south,tea,1\n")
    tables = read_tables(TERMS.schema, [str(whole)], "user")
    expected, sizes = model().predict(tables), []

    def encoding(schema: Any, table: Any, standardisation: Any) -> Any:
        sizes.append(table.rows)
        return encode_rows(schema, table, standardisation)

    monkeypatch.setattr("veil.tabular.reading._BLOCK_ENTRIES", 1)
    monkeypatch.setattr("veil.trainers.columns.publication.encode_rows", encoding)
    np.testing.assert_allclose(model().predict(tables), expected, rtol=1e-12)
    assert sizes == [1] * 3 * len(tables)


def test_a_missing_signature_or_an_altered_file_is_refused(signers: Signers, tmp_path: Path) -> None:
    signers.publish(tmp_path / "one", signers=(BANK,))
    with pytest.raises(ArtifactError, match="signature"):
        load_columns(tmp_path / "one", signers.authority)
    signers.publish(tmp_path / "two")
    path = tmp_path / "two" / "columns.json"
    path.write_bytes(path.read_bytes().replace(b"-0.7", b"-0.8"))
    with pytest.raises(ArtifactError, match="altered"):
        load_columns(tmp_path / "two", signers.authority)


def test_a_prediction_is_the_stated_formula_on_rows_of_any_order(tmp_path: Path) -> None:
    whole = tmp_path / "rows.csv"
    whole.write_text("user,income,region,item,visits\na,90,north,tea,9\nb,5,south,salt,\n")
    (tmp_path / "bank.csv").write_text("customer,income,region\nb,5,south\na,90,north\n")
    (tmp_path / "shop.csv").write_text("member,item,visits\na,tea,9\nb,salt,\n")
    made = model()
    tables = read_tables(TERMS.schema, [str(whole)], "user")
    found = made.predict(tables)
    # by hand: standardise, clip each party's part to its share on the grid, add up
    encoded = {
        "a": ([2 * 0.9 - 1, 1, 0, 0], [2 * 0.9 - 1]),
        "b": ([2 * 0.05 - 1, 0, 1, 0], [-1.0]),
    }
    from veil.tabular.encoding import bucket

    expected = []
    for user, item in (("a", "tea"), ("b", "salt")):
        one_hot = [float(bucket("item", item, 4) == number) for number in range(4)]
        score = made.intercept
        for place, features in ((slice(0, 4), encoded[user][0]), (slice(4, 9), one_hot + encoded[user][1])):
            row = (np.array(features) - made.offset[place]) * made.scale[place]
            row *= min(1.0, TERMS.schema.parties[0].norm_share / float(np.linalg.norm(row)))
            score += float(row @ made.weights[place, 0])
        expected.append(1 / (1 + np.exp(-score)))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    parts = read_tables(TERMS.schema, [f"{BANK}={tmp_path / 'bank.csv'}", f"{SHOP}={tmp_path / 'shop.csv'}"], "")
    assert parts[0].identifiers == ("b", "a")
    np.testing.assert_array_equal(made.predict(parts), found[::-1])
    with pytest.raises(ConfigError, match="PARTY=FILE"):
        read_tables(TERMS.schema, [f"{BANK}={whole}", f"club={whole}"], "user")
    (tmp_path / "shop.csv").write_text("member,item,visits\na,tea,9\nc,salt,\n")
    with pytest.raises(InputError, match="same users"):
        read_tables(TERMS.schema, [f"{BANK}={tmp_path / 'bank.csv'}", f"{SHOP}={tmp_path / 'shop.csv'}"], "")


@pytest.mark.parametrize("kind", ["perceptron", "towers"])
def test_hidden_units_add_what_is_stated(signers: Signers, tmp_path: Path, kind: str) -> None:
    spec = job(model=kind)
    terms = ColumnsTerms.of(spec)
    generator = np.random.default_rng(2)
    width = terms.layout.columns
    made = ColumnsModel(
        terms.schema,
        generator.normal(size=(width, terms.outputs)),
        np.zeros(width),
        np.full(width, 0.2),
        0.3,
        terms.trainer.hidden,
    )
    publication = ColumnsPublication(made)
    files = publication.files(spec)
    manifest = publication.manifest(spec, files, created_s=int(time.time()))
    signatures = [sign_manifest(manifest, n, one.certificate_pem, one.sign) for n, one in signers.credentials.items()]
    save_directory(tmp_path / "model", files, manifest, signatures)
    loaded = load_columns(tmp_path / "model", signers.authority)
    assert loaded.model == kind
    rows = generator.normal(size=(5, width)) / 4
    parts = [rows[:, terms.schema.place(party)] @ made.weights[terms.schema.place(party)] for party in (BANK, SHOP)]
    height = 1 / np.sqrt(8) if kind == "perceptron" else 1 / 8**0.25
    signs = np.array([1, -1] * 4)
    linear = 0.3 + rows @ made.weights[:, 0]
    if kind == "perceptron":
        expected = linear + height * np.tanh(rows @ made.weights[:, 1:]) @ signs
    else:
        # the label's party reads on the left
        expected = linear + height**2 * (np.tanh(parts[1][:, 1:]) * np.tanh(parts[0][:, 1:])) @ signs
    # the job's waves are within two hundredths of the function that they stand for
    np.testing.assert_allclose(loaded.score(parts), expected, atol=0.02 * 8 * height)
    assert np.abs(loaded.score(parts) - linear).max() > 0.1
