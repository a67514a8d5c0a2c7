"""Questions as a trainer: joint equals central, answers carry their noise, and what is published verifies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.queries.conftest import CATEGORIES, PARTIES, MakeSpec
from veil.errors import ArtifactError, ConfigError, StateError
from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs.spec import JobSpec, Release, canonical
from veil.privacy import noise_of
from veil.privacy.noise import keyed_source
from veil.queries.algorithm import QueryAlgorithm
from veil.queries.answers import AnswersPublication, load_answers
from veil.queries.question import UNIT
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.manifest import sign_manifest
from veil.recsys.signed import save_directory
from veil.trainers.registry import algorithm_of, check_job
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState, central_state

HISTOGRAM: dict[str, Any] = {"name": "histogram", "by": "category", "groups_per_user": 2}
ITEMS: dict[str, Any] = {"name": "items", "by": "item", "groups_per_user": 5, "mechanism": "gaussian"}
BOTH = (HISTOGRAM, ITEMS)


def noise(release: Release) -> np.ndarray[Any, np.dtype[np.int64]]:
    return noise_of.draw(release, keyed_source(b"\x03" * 32, release.name.encode()))


def published(spec: JobSpec, catalogue: Catalogue, interactions: Interactions) -> AnswersPublication:
    algorithm = QueryAlgorithm(spec, catalogue)
    return algorithm.publish(central_state(algorithm, spec, PartyRows(interactions), noise))


def test_joint_equals_central_bit_for_bit(
    catalogue: Catalogue, interactions: Interactions, make_spec: MakeSpec
) -> None:
    spec = make_spec(*BOTH)
    parts = [interactions.rows(slice(start, start + 70)) for start in (0, 70, 140)]
    algorithms = [algorithm_of(spec, catalogue) for _ in PARTIES]
    state: PublicState = {}
    for step in algorithms[0].steps:
        sums = [one.contribution(step, PartyRows(part), state) for one, part in zip(algorithms, parts, strict=True)]
        state = algorithms[0].advance(step, sum(sums[1:], sums[0]) + noise(spec.release(step)), state)
    joint = algorithms[2].publish(state).files(spec)
    assert joint == published(spec, catalogue, interactions).files(spec)


def test_answers_are_the_bounded_counts_plus_the_noise(
    catalogue: Catalogue, interactions: Interactions, make_spec: MakeSpec
) -> None:
    spec = make_spec({**HISTOGRAM, "groups_per_user": 4}, ITEMS, source="parties")
    histogram, items = published(spec, catalogue, interactions).answers.answers
    assert histogram.groups == CATEGORIES
    users = [
        sum(
            any(name in catalogue.categories[item] for item in interactions.history(user).tolist())
            for user in range(interactions.users)
        )
        for name in CATEGORIES
    ]
    assert list(histogram.values) == [
        count + drawn / UNIT for count, drawn in zip(users, noise(spec.release("histogram")).tolist(), strict=True)
    ]
    assert (items.groups[3], items.titles[3]) == ("i3", "Title 3")
    assert (histogram.noise_draws, histogram.noise_scale) == (3, spec.release("histogram").sigma / UNIT)
    assert histogram.noise_sd == pytest.approx(histogram.noise_scale * 6**0.5)
    assert histogram.interval_95 > 1.9 * histogram.noise_sd


def test_answers_say_what_each_party_draws_when_few_may_collude(
    catalogue: Catalogue, interactions: Interactions, make_spec: MakeSpec
) -> None:
    spec = make_spec(*BOTH, source="parties", colluding=0)
    histogram, items = published(spec, catalogue, interactions).answers.answers
    # Gaussian draws share the noise, Laplace draws are whole ones
    assert items.noise_sd == pytest.approx(spec.release("items").sigma / UNIT, rel=1e-4)
    assert items.noise_scale == pytest.approx(items.noise_sd / 3**0.5, rel=1e-9)
    assert histogram.noise_scale == spec.release("histogram").sigma / UNIT


def test_a_job_that_claims_another_sensitivity_is_refused(catalogue: Catalogue, make_spec: MakeSpec) -> None:
    spec = make_spec(*BOTH)
    check_job(spec, catalogue)
    first, second = spec.releases
    for change in (
        {"sensitivity": first.sensitivity - 1},
        {"shape": (5,)},
        {"mechanism": "rounded-gaussian"},
        {"name": "other"},
    ):
        wrong = spec.model_copy(update={"releases": (first.model_copy(update=change), second)})
        with pytest.raises(ConfigError, match="expected"):
            check_job(wrong, catalogue)
    with pytest.raises(ConfigError, match="expected histogram, items"):
        check_job(spec.model_copy(update={"releases": (first,)}), catalogue)


def test_a_job_about_what_the_catalogue_lacks_is_refused(catalogue: Catalogue, make_spec: MakeSpec) -> None:
    spec = make_spec({**HISTOGRAM, "groups": ["western"]})
    with pytest.raises(ConfigError, match="western"):
        check_job(spec, catalogue)
    twice = make_spec(HISTOGRAM)
    trainer = twice.trainer.model_copy(update={"questions": twice.trainer.questions * 2})  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="one name"):
        check_job(twice.model_copy(update={"trainer": trainer}), catalogue)
    elsewhere = twice.catalogue.model_copy(update={"digest": "sha256:" + "0" * 64})
    with pytest.raises(ConfigError, match="catalogue"):
        check_job(twice.model_copy(update={"catalogue": elsewhere}), catalogue)


def test_an_unfinished_job_publishes_nothing(catalogue: Catalogue, make_spec: MakeSpec) -> None:
    algorithm = QueryAlgorithm(make_spec(*BOTH), catalogue)
    with pytest.raises(StateError, match="histogram"):
        algorithm.publish({})
    with pytest.raises(StateError, match="expected one of the job's"):
        algorithm.contribution("other", PartyRows(), {})


@pytest.fixture
def directory(
    catalogue: Catalogue, interactions: Interactions, make_spec: MakeSpec, consortium: Path, tmp_path: Path
) -> Callable[..., Path]:
    """Writes answers as the parties would, `change` applied to answers.json on the way."""

    def write(change: Callable[[dict[str, Any]], None] = lambda document: None) -> Path:
        spec = make_spec(*BOTH)
        publication = published(spec, catalogue, interactions)
        files = publication.files(spec)
        document = json.loads(files["answers.json"])
        change(document)
        files["answers.json"] = canonical(document).encode()
        manifest = publication.manifest(spec, files, created_s=int(certificates.now().timestamp()))
        signatures = []
        for party in PARTIES:
            own = Credentials.load(consortium / f"party-{party}")
            signatures.append(sign_manifest(manifest, party, own.certificate_pem, own.sign))
        folder = tmp_path / "published"
        save_directory(folder, files, manifest, signatures)
        return folder

    return write


def authority(consortium: Path) -> bytes:
    return (consortium / "party-alpha" / "authority.pem").read_bytes()


def test_published_answers_come_back_verified(directory: Callable[..., Path], consortium: Path) -> None:
    folder = directory()
    signers = [Identity("trial", Role.PARTY, party) for party in PARTIES]
    found = load_answers(folder, authority(consortium), require_signers=signers)
    assert [answer.question.name for answer in found.answers] == ["histogram", "items"]
    assert found.manifest.kind == "answers"
    assert found.manifest.epsilon_micro <= 2_000_000
    stranger = Identity("trial", Role.PARTY, "delta")
    with pytest.raises(ArtifactError, match="delta"):
        load_answers(folder, authority(consortium), require_signers=[*signers, stranger])


def test_an_altered_file_is_refused(directory: Callable[..., Path], consortium: Path) -> None:
    folder = directory()
    file = folder / "answers.json"
    file.write_bytes(file.read_bytes().replace(b"comedy", b"comedx", 1))
    with pytest.raises(ArtifactError, match="altered"):
        load_answers(folder, authority(consortium))


def _change(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["answers"][0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_change("interval_95", 0.5), "does not fit"),
        (_change("noise_scale", 0.5), "does not fit"),
        (_change("noise_draws", 3), "does not fit"),
        (_change("values", [1.0]), "does not fit"),
        (_change("titles", ["a"]), "does not fit"),
        (_change("values", []), "values"),
        (_change("colour", 1), "colour"),
        (lambda document: document["answers"].reverse(), "other questions"),
        (lambda document: document["answers"][0]["question"].update(groups_per_user=3), "other questions"),
        (lambda document: document["answers"].pop(), "other questions"),
    ],
)
def test_signed_answers_that_contradict_their_job_are_refused(
    directory: Callable[..., Path], consortium: Path, change: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    with pytest.raises(ArtifactError, match=complaint):
        load_answers(directory(change), authority(consortium))
