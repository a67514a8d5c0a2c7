"""An operator's wish (job.toml) and the job text that it becomes.

Guarantee: a `JobRequest` is checked field by field, unknown keys included; `resolve` adds everything that the parties
sign (catalogue digest, releases, versions, nonce), so that one `JobSpec` has no open end. The planner is handed in, so
that reading a request needs no numerical library.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from veil import __version__, settings
from veil.errors import ConfigError
from veil.jobs.columns import AlignmentTerms
from veil.jobs.spec import Catalogue, JobSpec, Name, Noise, Privacy, Release, Trainer, describe
from veil.settings import Section

# Packages whose behaviour a model depends on; every party must run the same.
VERSIONED = ("torch", "crypten", "dp-accounting")

_Override = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


class CatalogueSection(Section):
    """Where the operator's copy of the public catalogue lies; its digest and sizes go into the job."""

    path: Path


class PrivacySection(Section):
    """What the job may cost each user, over all its releases together."""

    epsilon: float = Field(gt=0, le=1000)
    delta: float = Field(gt=0, lt=0.01)
    noise: Literal["dealer", "parties"] = "dealer"
    # How many parties may pool their draws, for noise by the parties; all others when not given.
    colluding: int | None = Field(default=None, ge=0, le=15)


class TrainerSection(Section):
    """Which trainer, and what it shall not choose by itself: any key of the trainer, as a number.

    For "gradient", `module` names the module and `module_file` is the operator's copy of its source. For "query",
    `questions` are what `veil.queries` explains. For "columns", `schema_file` (TOML or JSON) says what the parties'
    columns mean, `alignment` how their records are aligned, `triples` where correlated randomness comes from, `left`
    which parties' columns the left one of two towers reads (the label's by default). For "side" these, but `left`, and
    `items`: the party that holds interactions. For "predictions", `published` is the directory of the model (any copy;
    its manifest and job text are read), `recipient` the party that learns the scores; `alignment`, `triples` as above.
    """

    kind: Literal["subspace", "als", "gradient", "query", "columns", "predictions", "side"] = "subspace"
    module: Name | None = None
    module_file: Path | None = None
    questions: tuple[dict[str, Any], ...] = Field(default=(), max_length=64)
    model: Literal["logistic", "perceptron", "towers"] = "logistic"
    left: tuple[Name, ...] = Field(default=(), max_length=16)
    items: Name | None = None
    published: Path | None = None
    recipient: Name | None = None
    schema_file: Path | None = None
    alignment: AlignmentTerms | None = None
    triples: Literal["dealer", "he"] = "dealer"
    overrides: dict[_Override, float] = Field(default_factory=dict, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _gather_overrides(cls, data: object) -> object:
        if not isinstance(data, dict) or "overrides" in data:
            return data
        own = {"kind", "module", "module_file", "questions", "model", "schema_file", "alignment", "triples", "left"}
        own |= {"items", "published", "recipient"}
        return {
            **{key: value for key, value in data.items() if key in own},
            "overrides": {key: value for key, value in data.items() if key not in own},
        }

    @model_validator(mode="after")
    def _only_what_the_kind_has(self) -> Self:
        if self.questions and self.kind != "query":
            raise ValueError(f'got questions for trainer "{self.kind}", expected them for "query" only')
        if (self.module or self.module_file) and self.kind != "gradient":
            raise ValueError(f'got a module for trainer "{self.kind}", expected it for "gradient" only')
        if (self.kind in ("columns", "side")) != (self.schema_file is not None):
            raise ValueError(f'got trainer "{self.kind}", expected schema_file for "columns", "side" only')
        if (self.kind in ("columns", "side", "predictions")) != (self.alignment is not None):
            raise ValueError(f'got trainer "{self.kind}", expected alignment for "columns", "side", "predictions" only')
        scores = self.kind == "predictions"
        if scores != (self.published is not None) or scores != (self.recipient is not None):
            raise ValueError(f'got trainer "{self.kind}", expected published and recipient for "predictions" only')
        if (self.kind == "side") != (self.items is not None):
            raise ValueError(f'got trainer "{self.kind}", expected items for "side" only')
        return self


class JobRequest(Section):
    """What an operator writes. `parties` are in rank order; `path` is absolute after `load`."""

    name: Name
    parties: tuple[Name, ...] = Field(min_length=2, max_length=16)
    dealer: Name = "main"
    catalogue: CatalogueSection | None = None
    privacy_: PrivacySection | None = Field(default=None, alias="privacy")
    trainer: TrainerSection = TrainerSection()

    @model_validator(mode="after")
    def _each_party_once(self) -> Self:
        if len(set(self.parties)) != len(self.parties):
            raise ValueError("got a party twice, expected each name once")
        kind = self.trainer.kind
        if (self.catalogue is None) != (kind in ("columns", "predictions")):
            raise ValueError('expected [catalogue] for every trainer but "columns" and "predictions", which have none')
        if (self.privacy_ is None) != (kind == "predictions"):
            raise ValueError('expected [privacy] for every trainer but "predictions", which releases nothing')
        return self

    @property
    def privacy(self) -> PrivacySection:
        """What the job may cost; raises `ConfigError` for a request of a job that releases nothing."""
        if self.privacy_ is None:
            raise ConfigError(f"got a request for trainer {self.trainer.kind} without [privacy], expected one")
        return self.privacy_


class Planner(Protocol):
    """From a request to a trainer and its releases: `veil.trainers.registry.plan`."""

    def __call__(self, request: JobRequest, catalogue: CatalogueFacts | None) -> tuple[Trainer, tuple[Release, ...]]:
        """Raises `ConfigError` when the budget or an override cannot be met."""
        ...


@dataclass(frozen=True, slots=True)
class CatalogueFacts:
    """What a job says of the catalogue: `sha256:` digest, number of items, number of feature columns.

    `categories`: number of different categories; only questions by category need it.
    """

    digest: str
    items: int
    features: int
    categories: int = 0

    def terms(self) -> Catalogue:
        """As it stands in the job."""
        return Catalogue(digest=self.digest, items=self.items, features=self.features)


def load(path: Path) -> JobRequest:
    """Reads a job.toml. Raises `ConfigError` that names each wrong key."""
    request = settings.read(path, JobRequest, explained_in="deploy/job.toml")
    root = path.resolve().parent
    catalogue = request.catalogue
    anchored = None if catalogue is None else CatalogueSection(path=root / catalogue.path)
    files = {name: getattr(request.trainer, name) for name in ("module_file", "schema_file", "published")}
    trainer = request.trainer.model_copy(update={name: file and root / file for name, file in files.items()})
    return request.model_copy(update={"catalogue": anchored, "trainer": trainer})


def resolve(request: JobRequest, *, consortium: str, catalogue: CatalogueFacts | None, planner: Planner) -> JobSpec:
    """The job that the parties will be asked to sign. Raises `ConfigError` when the request cannot be met."""
    trainer, releases = planner(request, catalogue)
    try:
        return JobSpec(
            name=request.name,
            nonce=secrets.token_hex(16),
            consortium=consortium,
            parties=request.parties,
            dealer=request.dealer,
            catalogue=None if catalogue is None else catalogue.terms(),
            privacy=None if request.privacy_ is None else _terms(request.privacy_),
            trainer=trainer,
            releases=releases,
            versions=versions(),
        )
    except ValidationError as error:
        raise ConfigError(f"job: {describe(error)}") from None


def _terms(section: PrivacySection) -> Privacy:
    noise = Noise(source=section.noise, colluding=section.colluding)
    return Privacy(epsilon=section.epsilon, delta=section.delta, noise=noise)


def versions() -> dict[str, str]:
    """Versions of Veil and of what the result depends on, as installed here. Raises `ConfigError` without one."""
    found = {"veil": __version__}
    for name in VERSIONED:
        try:
            # a build tag ("+cpu", "+cu128") differs between machines that compute the same
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            raise ConfigError(f"got no installed {name}, expected one", hint="run `make setup`") from None
    return found
