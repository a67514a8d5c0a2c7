"""Published answers: answers.json under a manifest that all parties signed.

Guarantee: `load_answers` returns answers only when every required party has signed exactly this manifest, the file has
the listed SHA-256, and the answers are to the questions of the signed job, with the noise that its releases state.

answers.json is canonical JSON: {"schema": "veil.answers/1", "answers": [...]}, one `Answer` for each question in the
order of the job.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from veil.errors import ArtifactError
from veil.identity.names import Identity
from veil.jobs.spec import JobSpec, QueryTrainer, canonical
from veil.queries.intervals import NoiseOn
from veil.queries.question import MOST_GROUPS, UNIT, Question
from veil.recsys.manifest import OutcomeManifest
from veil.recsys.signed import check_job, job_facts, listed, manifest_bytes, parsed, verify_directory

SCHEMA: Final = "veil.answers/1"
_MAX_BYTES: Final = 2 * 1024**3
_CLOSE: Final = 1e-9


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class Answer(_Frozen):
    """The noised answer to one question, in counts.

    Attributes:
        question: what was asked, with the bounds on one user.
        groups: name of each group; `titles` beside them where groups are items, else empty.
        values: noised count of each group, unbiased for the bounded count; may be negative.
        sensitivity: what one user can change, L1 for Laplace, L2 for Gaussian.
        noise_scale: of one draw on each value: the Laplace scale, or the Gaussian's standard deviation.
        noise_draws: how many draws lie on each value: 1 from the dealer, one for each party otherwise.
        noise_sd: standard deviation of all the noise on a value.
        interval_95: the noise on one value lies within plus or minus this with probability 95%.
    """

    question: Question
    groups: tuple[str, ...] = Field(min_length=1, max_length=MOST_GROUPS)
    titles: tuple[str, ...] = Field(max_length=MOST_GROUPS)
    values: tuple[float, ...] = Field(min_length=1, max_length=MOST_GROUPS)
    sensitivity: float = Field(gt=0)
    noise_scale: float = Field(gt=0)
    noise_draws: int = Field(ge=1, le=16)
    noise_sd: float = Field(gt=0)
    interval_95: float = Field(gt=0)


class Answers(_Frozen):
    """All answers of a job."""

    schema_: Literal["veil.answers/1"] = Field(default=SCHEMA, alias="schema")
    answers: Annotated[tuple[Answer, ...], Field(min_length=1, max_length=64)]


@dataclass(frozen=True, eq=False)
class Published:
    """Verified answers. `digest`: SHA-256 of the manifest, 32 bytes."""

    answers: tuple[Answer, ...]
    manifest: OutcomeManifest
    digest: bytes
    spec: JobSpec


class AnswersPublication:
    """`veil.trainers.seam.Publication` of answers."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = Answers(answers=tuple(answers))

    def __repr__(self) -> str:
        return f"AnswersPublication({len(self.answers.answers)} answers)"

    def files(self, spec: JobSpec) -> dict[str, bytes]:
        """See `Publication.files`."""
        return {"job.json": spec.text().encode("ascii"), "answers.json": to_bytes(self.answers)}

    def manifest(self, spec: JobSpec, files: Mapping[str, bytes], *, created_s: int) -> bytes:
        """See `Publication.manifest`."""
        return manifest_bytes(OutcomeManifest(**job_facts(spec, files, created_s=created_s), kind="answers"))


def to_bytes(answers: Answers) -> bytes:
    """The bytes of answers.json."""
    return canonical(answers.model_dump(mode="json", by_alias=True)).encode("ascii")


def load_answers(
    directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None
) -> Published:
    """The answers in a published directory, verified first (`veil.recsys.signed.verify_directory`).

    Raises `ArtifactError` when anything does not fit.
    """
    manifest, digest = verify_directory(directory, authority_pem, require_signers=require_signers)
    if not isinstance(manifest, OutcomeManifest) or manifest.kind != "answers":
        raise ArtifactError("got a published model, expected answers", hint="`veil query show` shows answers only")
    spec = check_job(directory, manifest)
    data = listed(directory, manifest, "answers.json", _MAX_BYTES)
    answers: Answers = parsed(TypeAdapter(Answers), data, "answers.json")
    if not isinstance(spec.trainer, QueryTrainer):
        raise ArtifactError(f"got answers of a job of trainer {spec.trainer.kind!r}, expected query")
    if [one.question.text() for one in answers.answers] != list(spec.trainer.questions):
        raise ArtifactError("got answers to other questions than the job asks, expected those")
    for one in answers.answers:
        _check_fits(one, spec)
    return Published(answers.answers, manifest, digest, spec)


def _check_fits(answer: Answer, spec: JobSpec) -> None:
    release = spec.release(answer.question.name)
    noise = NoiseOn.release(spec, release)
    counts = {len(answer.groups), len(answer.values), len(answer.titles) or release.size, release.size}
    stated = (answer.noise_scale, answer.sensitivity, answer.noise_sd, answer.interval_95)
    true = (noise.scale, release.sensitivity / UNIT, noise.sd, noise.interval_95)
    close = all(math.isclose(a, b, rel_tol=_CLOSE) for a, b in zip(stated, true, strict=True))
    if len(counts) != 1 or answer.noise_draws != noise.draws or not close:
        raise ArtifactError(f"got an answer to {answer.question.name} that does not fit the job's release")
