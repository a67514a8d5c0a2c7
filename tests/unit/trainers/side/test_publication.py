"""A published recommender with side information is believed only when everything fits the signed job."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from tests.unit.trainers.side.shops import SHOP, World, catalogue
from tests.unit.trainers.side.test_model import model
from veil.errors import ArtifactError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs.spec import JobSpec
from veil.recsys.manifest import sign_manifest
from veil.recsys.signed import save_directory
from veil.trainers.side.publication import SidePublication, load_side


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Credentials]:
    folders = make_consortium(tmp_path_factory.mktemp("certs"), "trial", list(World().parties))
    return {name: Credentials.load(folders[Identity("trial", Role.PARTY, name)]) for name in World().parties}


def written(folder: Path, members: dict[str, Credentials], spec: JobSpec, change: dict[str, bytes]) -> Path:
    """Signed by all, whatever it says."""
    publication = SidePublication(model(), catalogue())
    files = {**publication.files(spec), **change}
    manifest = publication.manifest(spec, files, created_s=1_700_000_000)
    manifest = manifest.replace(b"1700000000", str(int(folder.stat().st_mtime)).encode())
    signatures = [sign_manifest(manifest, name, own.certificate_pem, own.sign) for name, own in members.items()]
    save_directory(folder / "model", files, manifest, signatures)
    return folder / "model"


def test_what_is_published_is_what_is_loaded(tmp_path: Path, members: dict[str, Credentials]) -> None:
    spec = World(epsilon=100.0).spec(rounds=1)
    authority = members[SHOP].authority_pem
    found = load_side(written(tmp_path, members, spec, {}), authority)
    assert (found.ids, found.titles) == (catalogue().ids, catalogue().titles)
    np.testing.assert_array_equal(found.model.item_vectors(), model().item_vectors())
    np.testing.assert_array_equal(found.model.offset, model().offset)
    assert found.model.score_scale == model().score_scale
    assert found.manifest.releases == list(spec.releases)


def test_what_does_not_fit_the_job_is_refused_although_all_have_signed_it(
    tmp_path: Path, members: dict[str, Credentials]
) -> None:
    spec, authority = World(epsilon=100.0).spec(rounds=1), members[SHOP].authority_pem
    files = SidePublication(model(), catalogue()).files(spec)
    arrays = load(files["side.safetensors"])
    facts = json.loads(files["side.json"])
    changes = {
        "narrow": ({"side.safetensors": save({**arrays, "factors": arrays["factors"][:, 1:].copy()})}, "other arrays"),
        "nan": ({"side.safetensors": save({**arrays, "scale": np.full_like(arrays["scale"], np.nan)})}, "scale"),
        "broken": ({"side.safetensors": b"?"}, "does not parse"),
        "facts": ({"side.json": json.dumps({**facts, "more": 1}).encode()}, "side.json"),
        "scale": ({"side.json": json.dumps({**facts, "score_scale": 1e-3}).encode()}, "score scale"),
        "columns": ({"side.json": json.dumps({**facts, "collaborative": 3}).encode()}, "3 of them collaborative"),
        "items": ({"items.jsonl": files["items.jsonl"][:-10]}, "items.jsonl"),
    }
    for name, (change, says) in changes.items():
        (tmp_path / name).mkdir()
        with pytest.raises(ArtifactError, match=says):
            load_side(written(tmp_path / name, members, spec, change), authority)
    (tmp_path / "sound").mkdir()
    folder = written(tmp_path / "sound", members, spec, {})
    data = bytearray((folder / "side.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "side.safetensors").write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="altered"):
        load_side(folder, authority)
