"""`veil index`: from a published model to an index and through its changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli.index import app
from he_inference.index.build import RebuildRequired, build, scale_items
from he_inference.index.published_items import read_items
from he_inference.index.store import Index
from veil.errors import ArtifactError, ConfigError, InputError, StateError
from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, Noise, Privacy
from veil.recsys import artifact
from veil.recsys.catalogue import Catalogue
from veil.recsys.items import ItemTable
from veil.recsys.manifest import sign_manifest
from veil.recsys.model import Model
from veil.recsys.signed import save_directory
from veil.trainers.subspace.plan import plan_subspace

Publish = Callable[..., Path]
DIMENSIONS = 6


@pytest.fixture
def publish(tmp_path: Path, consortium: Path) -> Publish:
    """Writes a signed model directory of those item vectors; ids i0, i1, ... unless given."""

    def write(name: str, factors: np.ndarray, ids: Sequence[str] | None = None) -> Path:
        items = len(factors)
        names = tuple(ids or [f"i{number}" for number in range(items)])
        catalogue = Catalogue(
            table=ItemTable(ids=names, titles=names, categories=((),) * items),
            features=np.random.default_rng(1).standard_normal((items, 6)).astype(np.float32),
        )
        trainer, releases = plan_subspace(
            epsilon=3.0, delta=1e-5, noise_source="dealer", parties=2, items=items, features=6, overrides={"rounds": 0}
        )
        spec = JobSpec(
            name="films",
            nonce="0" * 32,
            consortium="trial",
            parties=("alpha", "beta"),
            dealer="main",
            catalogue=jobs.Catalogue(digest=catalogue.digest, items=items, features=6),
            privacy=Privacy(epsilon=3.0, delta=1e-5, noise=Noise(source="dealer")),
            trainer=trainer,
            releases=releases,
            versions={"veil": "0.1.0"},
        )
        model = Model(
            fold_in=np.zeros((items, DIMENSIONS), np.float32),
            norm_terms=np.zeros((items, 2), np.float32),
            collaborative=2,
            taste_centre=0.0,
            item_factors=factors.astype(np.float32),
            score_scale=1e6,
        )
        files = artifact.build_files(spec, catalogue, model)
        created_s = int(certificates.now().timestamp())
        manifest = artifact.build_manifest(spec, model, files, created_s=created_s)
        signers = {party: Credentials.load(consortium / f"party-{party}") for party in ("alpha", "beta")}
        signatures = [sign_manifest(manifest, party, one.certificate_pem, one.sign) for party, one in signers.items()]
        save_directory(tmp_path / name, files, manifest, signatures)
        return tmp_path / name

    return write


def factors(items: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((items, DIMENSIONS)).astype(np.float32)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def build_small(model: Path, out: Path, *more: object) -> str:
    return good("build", "--model", model, "--params", "keyless-small", "--packing", 64, "--out", out, *more)


def test_build_and_show(publish: Publish, tmp_path: Path, consortium: Path) -> None:
    model, out = publish("model", factors()), tmp_path / "items.index"
    authority = consortium / "party-alpha" / "authority.pem"
    said = good(
        "build", "--model", model, "--params", "fast", "--layout", "session", "--out", out, "--authority", authority
    )
    assert "generation 1, 50 items of 6 dimensions (0 removed), session layout, parameters fast" in said
    scaled = scale_items(factors())
    with Index.open(out) as index:
        digest = index.model_digest
        assert index.item_norm == scaled.norm and digest == read_items(model).digest
        build(
            tmp_path / "direct",
            index.layout,
            scaled.rows,
            item_norm=scaled.norm,
            model_digest=digest,
            item_ids_digest=index.item_ids_digest,
        )
    assert (tmp_path / "direct").read_bytes() == out.read_bytes()
    shown = good("show", out)
    assert f"sha256:{digest.hex()}" in shown and "all compared" in shown and "109 bits of 109" in shown
    assert "header only" in good("show", out, "--no-verify")


def test_show_fails_on_a_damaged_file(publish: Publish, tmp_path: Path) -> None:
    out = tmp_path / "items.index"
    build_small(publish("model", factors()), out)
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    assert isinstance(run("show", out).exception, ArtifactError)


def test_update_encodes_what_differs(publish: Publish, tmp_path: Path) -> None:
    out, vectors = tmp_path / "items.index", factors(100)
    build_small(publish("model", vectors), out, "--headroom", "1.5")
    changed = vectors.copy()
    changed[70] *= 1.1
    assert "encoded 1 of 4 blocks" in good("update", out, "--model", publish("next", changed))
    more = np.concatenate([changed, factors(1, seed=4)])
    next_model = publish("more", more)
    assert "encoded 1 of 4 blocks" in good("update", out, "--model", next_model)
    assert "encoded 0 of 4 blocks" in good("update", out, "--model", next_model)
    with Index.open(out) as index:
        assert index.generation == 3 and index.layout.items == 101
        assert index.model_digest == read_items(next_model).digest


def test_a_longer_item_is_refused_unless_all_are_built_anew(publish: Publish, tmp_path: Path) -> None:
    out, vectors = tmp_path / "items.index", factors()
    build_small(publish("model", vectors), out)
    good("remove", out, 3)
    before = out.read_bytes()
    longer = publish("longer", np.concatenate([vectors[:-1], 10 * vectors[-1:]]))
    result = run("update", out, "--model", longer)
    assert isinstance(result.exception, RebuildRequired) and "--rebuild" in str(result.exception)
    assert out.read_bytes() == before
    assert "encoded 2 of 2 blocks" in good("update", out, "--model", longer, "--rebuild")
    with Index.open(out) as index:
        assert index.item_norm == pytest.approx(10 * np.linalg.norm(vectors[-1])) and index.removed.tolist() == [3]


def test_removed_items_stay_out_and_come_back(publish: Publish, tmp_path: Path) -> None:
    out, vectors = tmp_path / "items.index", factors()
    model = publish("model", vectors)
    build_small(model, out)
    assert "(2 removed)" in good("remove", out, 7, 49)
    assert "2: 7, 49" in good("show", out)
    assert "encoded 0 of 2 blocks" in good("update", out, "--model", model)
    others = publish("others", vectors, [f"other{number}" for number in range(50)])
    refused = run("update", out, "--model", others)
    assert isinstance(refused.exception, StateError) and "--restore" in str(refused.exception)
    assert "encoded 2 of 2 blocks" in good("update", out, "--model", others, "--restore")
    assert isinstance(run("remove", out, 50).exception, InputError)


def test_an_index_without_rows_stays_without(publish: Publish, tmp_path: Path) -> None:
    out = tmp_path / "items.index"
    build_small(publish("model", factors()), out, "--no-rows")
    assert "not beside it" in good("show", out)
    assert "encoded 2 of 2 blocks" in good("update", out, "--model", publish("next", 0.5 * factors()))
    assert not out.with_name("items.index.rows").exists()
    assert isinstance(run("remove", out, 1).exception, StateError)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--params", "weak"], ConfigError),
        (["--params", "fast", "--layout", "other"], ConfigError),
        (["--params", "keyless", "--layout", "session"], ConfigError),
        (["--params", "keyless", "--packing", "3"], ConfigError),
        (["--params", "fast", "--packing", "4"], ConfigError),
        (["--headroom", "0.5"], ConfigError),
        (["--authority", "/no/such/file"], InputError),
    ],
)
def test_wrong_options_leave_nothing_behind(
    publish: Publish, tmp_path: Path, arguments: list[str], error: type[Exception]
) -> None:
    model = publish("model", factors())
    result = run("build", "--model", model, "--out", tmp_path / "items.index", *arguments)
    assert isinstance(result.exception, error)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_does_not_fit_is_refused(publish: Publish, tmp_path: Path) -> None:
    model, out = publish("model", factors()), tmp_path / "items.index"
    build_small(model, out)
    rows = np.zeros((50, 5))
    with Index.open(out) as index:
        from he_inference.layouts.catalogue import layout_of

        layout = layout_of("keyless", "keyless-small", 50, 5, 64)
        build(
            tmp_path / "five", layout, rows, item_norm=1.0, model_digest=index.model_digest, item_ids_digest=bytes(32)
        )
    assert isinstance(run("update", tmp_path / "five", "--model", model).exception, ConfigError)


@pytest.mark.parametrize("name", ["item_factors.safetensors", "items.jsonl", "manifest.json"])
def test_altered_models_are_refused(publish: Publish, tmp_path: Path, consortium: Path, name: str) -> None:
    model = publish("model", factors())
    altered = tmp_path / "altered"
    shutil.copytree(model, altered)
    data = bytearray((altered / name).read_bytes())
    data[-2] ^= 1
    (altered / name).write_bytes(data)
    authority = (consortium / "party-alpha" / "authority.pem").read_bytes()
    with pytest.raises(ArtifactError):
        read_items(altered, authority)
    with pytest.raises(ArtifactError):
        read_items(altered)
    (altered / name).unlink()
    with pytest.raises(ArtifactError):
        read_items(altered)


def test_signatures_are_checked_when_the_authority_is_given(publish: Publish, consortium: Path) -> None:
    model = publish("model", factors())
    authority = (consortium / "party-alpha" / "authority.pem").read_bytes()
    items = read_items(model, authority)
    np.testing.assert_array_equal(items.factors, factors())
    assert items.ids[:2] == ("i0", "i1")
    signatures = json.loads((model / "signatures.json").read_text())
    (model / "signatures.json").write_text(json.dumps(signatures[:1]))
    with pytest.raises(ArtifactError):
        read_items(model, authority)
    assert read_items(model).digest == items.digest
