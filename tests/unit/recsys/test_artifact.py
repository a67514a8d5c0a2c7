"""Published models: what was signed is what loads, and nothing else does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as dump_safetensors

from veil.errors import ArtifactError, StateError
from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, Noise, Privacy, canonical
from veil.recsys import artifact
from veil.recsys.artifact import load_client, load_model, verify_manifest
from veil.recsys.catalogue import Catalogue
from veil.recsys.items import ItemTable
from veil.recsys.manifest import Signature, check_created, manifest_digest, sign_manifest
from veil.recsys.model import Model
from veil.recsys.signed import MAX_MANIFEST_BYTES, save_directory
from veil.trainers.subspace.algorithm import SubspaceAlgorithm
from veil.trainers.subspace.plan import plan_subspace

PARTIES = ("alpha", "beta")
ITEMS = 40


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Credentials]:
    """Of the parties, of gamma, which is not in the job, and of an alpha under another authority."""
    root = tmp_path_factory.mktemp("consortium")
    own = make_consortium(root / "trial", "trial", [*PARTIES, "gamma"])
    other = make_consortium(root / "other", "trial", ["alpha"])
    loaded = {identity.name: Credentials.load(path) for identity, path in own.items() if identity.role == Role.PARTY}
    return {**loaded, "impostor": Credentials.load(other[Identity("trial", Role.PARTY, "alpha")])}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    table = ItemTable(
        ids=tuple(f"i{number}" for number in range(ITEMS)),
        titles=tuple(f"Títle {number}" for number in range(ITEMS)),
        categories=((),) * ITEMS,
    )
    features = np.random.default_rng(1).standard_normal((ITEMS, 6)).astype(np.float32)
    return Catalogue(table=table, features=features)


@pytest.fixture(scope="module")
def spec(catalogue: Catalogue) -> JobSpec:
    trainer, releases = plan_subspace(
        epsilon=3.0, delta=1e-5, noise_source="dealer", parties=2, items=ITEMS, features=6, overrides={"rounds": 0}
    )
    return JobSpec(
        name="films",
        nonce="0" * 32,
        consortium="trial",
        parties=PARTIES,
        dealer="main",
        catalogue=jobs.Catalogue(digest=catalogue.digest, items=ITEMS, features=6),
        privacy=Privacy(epsilon=3.0, delta=1e-5, noise=Noise(source="dealer")),
        trainer=trainer,
        releases=releases,
        versions={"veil": "0.1.0"},
    )


@pytest.fixture(scope="module")
def model(spec: JobSpec, catalogue: Catalogue) -> Model:
    algorithm = SubspaceAlgorithm(spec, catalogue)
    opened = np.arange(1, ITEMS + 2, dtype=np.int64) << 22
    return algorithm.model(algorithm.advance("counts", opened, {}))


@pytest.fixture(scope="module")
def created_s() -> int:
    return int(certificates.now().timestamp())


@pytest.fixture(scope="module")
def manifest(spec: JobSpec, catalogue: Catalogue, model: Model, created_s: int) -> bytes:
    return artifact.build_manifest(spec, model, artifact.build_files(spec, catalogue, model), created_s=created_s)


Publish = Callable[..., Path]


@pytest.fixture
def publish(
    tmp_path: Path,
    spec: JobSpec,
    catalogue: Catalogue,
    model: Model,
    manifest: bytes,
    credentials: dict[str, Credentials],
) -> Publish:
    """Writes a model directory; manifest and signatures may be replaced."""

    def write(replaced: bytes = manifest, signatures: list[Signature] | None = None) -> Path:
        if signatures is None:
            signatures = [signed(replaced, credentials[party], party) for party in PARTIES]
        save_directory(tmp_path / "model", artifact.build_files(spec, catalogue, model), replaced, signatures)
        return tmp_path / "model"

    return write


def signed(manifest: bytes, credentials: Credentials, party: str) -> Signature:
    return sign_manifest(manifest, party, credentials.certificate_pem, credentials.sign)


def edited(manifest: bytes, **fields: Any) -> bytes:
    return canonical({**json.loads(manifest), **fields}).encode("ascii")


def test_round_trip(publish: Publish, model: Model, manifest: bytes, credentials: dict[str, Credentials]) -> None:
    directory = publish()
    loaded = load_model(directory, credentials["alpha"].authority_pem)
    for name in ("item_factors", "fold_in", "norm_terms"):
        np.testing.assert_array_equal(getattr(loaded.model, name), getattr(model, name))
    assert (loaded.model.score_scale, loaded.model.taste_centre) == (model.score_scale, model.taste_centre)
    assert loaded.ids[3] == "i3"
    assert loaded.titles[3] == "Títle 3"
    assert loaded.digest == manifest_digest(manifest)
    assert loaded.manifest.epsilon_micro <= 3_000_000
    assert loaded.manifest.neighbouring == "add-or-remove-one-user"
    assert [signer.name for signer in loaded.manifest.signers()] == list(PARTIES)


def test_every_party_builds_the_same_bytes(
    spec: JobSpec, catalogue: Catalogue, model: Model, manifest: bytes, created_s: int
) -> None:
    again = jobs.parse(spec.text())
    files = artifact.build_files(again, catalogue, model)
    assert artifact.build_manifest(again, model, files, created_s=created_s) == manifest


def test_the_client_needs_no_item_factors(publish: Publish, model: Model, credentials: dict[str, Credentials]) -> None:
    directory = publish()
    (directory / "item_factors.safetensors").unlink()
    (directory / "job.json").unlink()
    loaded = load_client(directory, credentials["alpha"].authority_pem)
    np.testing.assert_array_equal(loaded.fold_in.user_vector([1, 5]), model.user_vector([1, 5]))
    with pytest.raises(ArtifactError):
        load_model(directory, credentials["alpha"].authority_pem)


def test_a_published_directory_is_never_overwritten(publish: Publish) -> None:
    publish()
    with pytest.raises(StateError, match="exists"):
        publish()


@pytest.mark.parametrize(
    "name", ["job.json", "items.jsonl", "item_factors.safetensors", "client.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("change", ["flip", "truncate", "append", "empty", "remove"])
def test_any_altered_file_is_refused(
    publish: Publish, credentials: dict[str, Credentials], name: str, change: str
) -> None:
    path = publish() / name
    data = bytearray(path.read_bytes())
    if change == "flip":
        data[len(data) // 2] ^= 1
    elif change == "truncate":
        del data[-1:]
    elif change == "append":
        data += b"\n"
    elif change == "empty":
        data.clear()
    path.write_bytes(data)
    if change == "remove":
        path.unlink()
    with pytest.raises(ArtifactError):
        load_model(path.parent, credentials["alpha"].authority_pem)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"schema": "veil.model/2"}, "schema"),
        ({"schema": ["veil.model/1"]}, "schema"),
        ({"items": ITEMS + 1}, "items"),
        ({"dimensions": 129}, "dimensions"),
        ({"score_scale": 1e-9}, "score scale"),
        ({"collaborative": 100}, "collaborative"),
        ({"epsilon": 0.5}, "epsilon"),
        ({"delta": 1e-6}, "delta"),
        ({"job_digest": "sha256:" + "0" * 64}, "job_digest"),
        ({"training_text_digest": "sha256:" + "0" * 64}, "training_text_digest"),
        ({"versions": {}}, "versions"),
        ({"noise_source": "parties"}, "noise_source"),
        ({"extra": 1}, "extra"),
    ],
)
def test_wrong_claims_are_refused_even_when_signed(
    publish: Publish, manifest: bytes, credentials: dict[str, Credentials], fields: dict[str, Any], says: str
) -> None:
    directory = publish(edited(manifest, **fields))
    with pytest.raises(ArtifactError, match=says):
        load_model(directory, credentials["alpha"].authority_pem)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sub/job.json", "job.json\x00"])
def test_file_names_do_not_come_from_outside(
    publish: Publish, manifest: bytes, credentials: dict[str, Credentials], name: str
) -> None:
    files = json.loads(manifest)["files"]
    files[name] = files.pop("job.json")
    with pytest.raises(ArtifactError, match="files"):
        load_model(publish(edited(manifest, files=files)), credentials["alpha"].authority_pem)


def test_oversize_files_are_refused_before_they_are_read(
    publish: Publish, manifest: bytes, credentials: dict[str, Credentials]
) -> None:
    files = json.loads(manifest)["files"]
    files["item_factors.safetensors"]["size_bytes"] = 2**30
    with pytest.raises(ArtifactError, match="at most"):
        load_model(publish(edited(manifest, files=files)), credentials["alpha"].authority_pem)


def test_an_oversize_manifest_is_refused(publish: Publish, credentials: dict[str, Credentials]) -> None:
    directory = publish()
    (directory / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(ArtifactError, match="more than"):
        load_model(directory, credentials["alpha"].authority_pem)


def test_a_manifest_in_another_spelling_is_refused(
    publish: Publish, manifest: bytes, credentials: dict[str, Credentials]
) -> None:
    loose = json.dumps(json.loads(manifest), indent=1).encode()
    with pytest.raises(ArtifactError, match="canonical"):
        load_model(publish(loose), credentials["alpha"].authority_pem)


def test_bad_arrays_are_refused_even_when_signed(
    publish: Publish, model: Model, manifest: bytes, credentials: dict[str, Credentials]
) -> None:
    import hashlib

    for array, says in (
        (np.full_like(model.item_factors, np.nan), "finite"),
        (model.item_factors * np.float32(2), "score scale"),
        (model.item_factors.astype(np.float64), "other tensors|at most"),
        (np.ascontiguousarray(model.item_factors.T), "other tensors"),
    ):
        data = dump_safetensors({"item_factors": array})
        files = json.loads(manifest)["files"]
        files["item_factors.safetensors"] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        directory = publish(edited(manifest, files=files))
        (directory / "item_factors.safetensors").write_bytes(data)
        with pytest.raises(ArtifactError, match=says):
            load_model(directory, credentials["alpha"].authority_pem)
        shutil.rmtree(directory)


def test_who_must_have_signed(
    publish: Publish, manifest: bytes, credentials: dict[str, Credentials], tmp_path: Path
) -> None:
    authority_pem = credentials["alpha"].authority_pem
    alpha, beta = (signed(manifest, credentials[party], party) for party in PARTIES)
    other_text = signed(edited(manifest, created_s=1), credentials["beta"], "beta")
    for signatures, says in (
        ([alpha], "no signature of .*beta"),
        ([], "no signature of .*alpha"),
        ([alpha, alpha, beta], "two signatures"),
        ([alpha, signed(manifest, credentials["alpha"], "beta")], "beta"),
        ([signed(manifest, credentials["impostor"], "alpha"), beta], "alpha"),
        ([alpha, beta, signed(manifest, credentials["gamma"], "gamma")], "does not name"),
        ([alpha, other_text], "did not make"),
        ([alpha, beta.model_copy(update={"signature": "AAAA"})], "beta"),
        ([alpha, beta.model_copy(update={"signature": "not base64!"})], "malformed"),
        ([alpha, beta.model_copy(update={"certificate_pem": "é"})], "malformed"),
        ([alpha, beta.model_copy(update={"certificate_pem": "nothing"})], "beta"),
    ):
        directory = publish(manifest, signatures)
        with pytest.raises(ArtifactError, match=says):
            load_model(directory, authority_pem)
        shutil.rmtree(directory)
    with pytest.raises(ArtifactError):
        load_model(publish(), credentials["impostor"].authority_pem)


def test_required_signers(publish: Publish, credentials: dict[str, Credentials]) -> None:
    directory = publish()
    authority_pem = credentials["alpha"].authority_pem
    own = [Identity("trial", Role.PARTY, party) for party in PARTIES]
    assert load_model(directory, authority_pem, require_signers=own).ids[0] == "i0"
    for missing in (
        Identity("trial", Role.PARTY, "gamma"),
        Identity("elsewhere", Role.PARTY, "alpha"),
        Identity("trial", Role.DEALER, "alpha"),
    ):
        with pytest.raises(ArtifactError, match="no signature"):
            load_model(directory, authority_pem, require_signers=[*own, missing])


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"party": "alpha"}]', "[" * 100_000, '"' + "x" * 600_000 + '"'])
def test_malformed_signature_files(publish: Publish, credentials: dict[str, Credentials], text: str) -> None:
    directory = publish()
    (directory / "signatures.json").write_text(text)
    with pytest.raises(ArtifactError):
        verify_manifest(directory, credentials["alpha"].authority_pem)


def test_a_model_outlives_certificates(
    publish: Publish, manifest: bytes, created_s: int, credentials: dict[str, Credentials]
) -> None:
    authority_pem = credentials["alpha"].authority_pem
    directory = publish()
    later = certificates.now() + timedelta(days=20 * 365)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "now", lambda: later)
        load_model(directory, authority_pem)
    shutil.rmtree(directory)
    long_ago = publish(edited(manifest, created_s=1_000_000_000))
    with pytest.raises(ArtifactError, match="alpha"):
        load_model(long_ago, authority_pem)


def test_the_time_is_checked_before_signing() -> None:
    check_created(1_000, 1_000.0 + 3_600)
    for now_s in (1_000 + 3_601.0, -2_602.0):
        with pytest.raises(ArtifactError, match="clock"):
            check_created(1_000, now_s)


def test_a_directory_that_is_none(tmp_path: Path, credentials: dict[str, Credentials]) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load_model(tmp_path / "nothing", credentials["alpha"].authority_pem)


def test_a_model_of_another_catalogue_is_not_published(spec: JobSpec, model: Model) -> None:
    other = Catalogue(
        table=ItemTable(ids=("a",), titles=("",), categories=((),)), features=np.zeros((1, 1), np.float32)
    )
    with pytest.raises(ArtifactError, match="catalogue"):
        artifact.build_files(spec, other, model)


def test_one_signature_never_counts_for_two(
    publish: Publish, manifest: bytes, credentials: dict[str, Credentials]
) -> None:
    alone = edited(manifest, parties=["alpha", "alpha"])
    directory = publish(alone, [signed(alone, credentials["alpha"], "alpha")])
    for load in (load_client, load_model):
        with pytest.raises(ArtifactError, match="party twice"):
            load(directory, credentials["alpha"].authority_pem)


@pytest.mark.parametrize("name", ["manifest.json", "signatures.json", "job.json", "item_factors.safetensors"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(
    publish: Publish, credentials: dict[str, Credentials], name: str
) -> None:
    path = publish() / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArtifactError, match="no file"):
        load_model(path.parent, credentials["alpha"].authority_pem)
