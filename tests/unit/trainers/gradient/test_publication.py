"""Published modules: what was signed is what loads, with the file that it was trained with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from tests.unit.trainers.gradient.conftest import PARTIES, MakeAlgorithm, write
from tests.unit.trainers.gradient.module_files import BILINEAR
from veil.errors import ArtifactError
from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.recsys.catalogue import Catalogue
from veil.recsys.items import ItemTable
from veil.recsys.manifest import sign_manifest
from veil.recsys.signed import save_directory
from veil.trainers.gradient.algorithm import GradientAlgorithm
from veil.trainers.gradient.publication import load_module

Publish = Callable[..., Path]


@pytest.fixture
def algorithm(make_algorithm: MakeAlgorithm) -> GradientAlgorithm:
    return make_algorithm(BILINEAR)


@pytest.fixture
def publish(algorithm: GradientAlgorithm, consortium: Path, tmp_path: Path) -> Publish:
    """Signs and writes what the algorithm publishes; `files` may be replaced before they are signed."""

    def make(folder: str = "module", **replaced: bytes) -> Path:
        state = algorithm.advance("users", np.array([60 << 16]), {})
        opened = np.arange(algorithm.trainer.parameters, dtype=np.int64) << 20
        for step in algorithm.steps[1:]:
            state = algorithm.advance(step, opened, state)
        publication = algorithm.publish(state)
        files = publication.files(algorithm.spec)
        files.update({name.replace("_", "."): data for name, data in replaced.items()})
        manifest = publication.manifest(algorithm.spec, files, created_s=int(certificates.now().timestamp()))
        signatures = []
        for party in PARTIES:
            held = Credentials.load(consortium / f"party-{party}")
            signatures.append(sign_manifest(manifest, party, held.certificate_pem, held.sign))
        save_directory(tmp_path / folder, files, manifest, signatures)
        algorithm.published = algorithm.module(state)  # type: ignore[attr-defined]
        return tmp_path / folder

    return make


@pytest.fixture
def authority(consortium: Path) -> bytes:
    return Credentials.load(consortium / "party-alpha").authority_pem


def test_a_module_comes_back_as_it_was_trained(
    algorithm: GradientAlgorithm, publish: Publish, authority: bytes, catalogue: Catalogue, tmp_path: Path
) -> None:
    folder = publish()
    assert sorted(path.name for path in folder.iterdir()) == [
        "job.json",
        "manifest.json",
        "module.json",
        "signatures.json",
        "weights.safetensors",
    ]
    module = load_module(folder, authority, write(tmp_path, BILINEAR), catalogue)
    assert not module.training
    x = torch.randn(3, 5, 4)
    theirs = algorithm.published  # type: ignore[attr-defined]
    assert torch.equal(module(x), theirs(x))
    assert not torch.equal(module.first.weight, algorithm.code.build(algorithm.facts).first.weight)  # type: ignore[operator]
    # the frozen layer is not in the files and is the same all the same
    assert "frozen.weight" not in parse_safetensors((folder / "weights.safetensors").read_bytes())
    assert torch.equal(module.frozen.weight, theirs.frozen.weight)


def test_nothing_of_the_file_runs_before_the_signatures_are_checked(
    publish: Publish, authority: bytes, catalogue: Catalogue, tmp_path: Path
) -> None:
    folder = publish()
    mark = tmp_path / "was-executed"
    evil = write(tmp_path, f"open({str(mark)!r}, 'w').close()\n{BILINEAR}")
    with pytest.raises(ArtifactError, match="the module file that the job was run with"):
        load_module(folder, authority, evil, catalogue)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="altered"):
        load_module(folder, authority, evil, catalogue)
    assert not mark.exists()


def test_other_authorities_catalogues_and_missing_signatures(
    publish: Publish, authority: bytes, catalogue: Catalogue, tmp_path: Path
) -> None:
    folder, file = publish(), write(tmp_path, BILINEAR)
    empty = ItemTable(ids=("a",), titles=("b",), categories=((),))
    with pytest.raises(ArtifactError, match="catalogue"):
        load_module(folder, authority, file, Catalogue(table=empty, features=np.zeros((1, 2), np.float32)))
    (folder / "signatures.json").write_text("[]")
    with pytest.raises(ArtifactError, match="no signature"):
        load_module(folder, authority, file, catalogue)


@pytest.mark.parametrize("trouble", ["shape", "name", "nan", "kind", "module.json"])
def test_signed_files_that_do_not_fit_the_job(
    algorithm: GradientAlgorithm, publish: Publish, authority: bytes, catalogue: Catalogue, tmp_path: Path, trouble: str
) -> None:
    folder = publish()
    arrays = parse_safetensors((folder / "weights.safetensors").read_bytes())
    if trouble == "shape":
        arrays["last.bias"] = np.zeros(2, np.float32)
    if trouble == "name":
        arrays["frozen.bias"] = arrays.pop("first.bias")
    if trouble == "nan":
        arrays["last.bias"] = np.array([np.nan], np.float32)
    if trouble == "kind":
        arrays["last.bias"] = np.zeros(1)
    described = (folder / "module.json").read_bytes()
    if trouble == "module.json":
        described = described.replace(b'"parameters":49', b'"parameters":50')
    shutil.rmtree(folder)
    folder = publish(weights_safetensors=dump_safetensors(arrays), module_json=described)
    with pytest.raises(ArtifactError, match=r"weights|module\.json"):
        load_module(folder, authority, write(tmp_path, BILINEAR), catalogue)
