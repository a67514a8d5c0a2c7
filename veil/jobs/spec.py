"""The job text: one canonical document that every party signs by digest.

A job names its parties, its data contract, its privacy parameters, its trainer and **every opening** that the runtime
may make. Nothing that influences what leaves a party is outside of it. The text is canonical JSON (sorted keys, no
white space, ASCII), so one job has exactly one digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from veil.errors import ConfigError
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.side import SideTrainer
from veil.jobs.trainers import AlsTrainer, Frozen, GradientTrainer, Name, QueryTrainer, Sha256, SubspaceTrainer

__all__ = [
    "MAX_TEXT_BYTES",
    "MOST_RELEASES",
    "NEIGHBOURING",
    "SCHEMA",
    "TRAINERS",
    "AlsTrainer",
    "Catalogue",
    "GradientTrainer",
    "JobSpec",
    "Mechanism",
    "Name",
    "Noise",
    "Privacy",
    "QueryTrainer",
    "Release",
    "Sha256",
    "SubspaceTrainer",
    "Trainer",
    "canonical",
    "describe",
    "digest",
    "parse",
]

SCHEMA = "veil.job/1"
MAX_TEXT_BYTES = 256 * 1024
MOST_RELEASES = 1024
_DIGEST_DOMAIN = b"veil/job-digest/v1\x00"

NEIGHBOURING: Literal["add-or-remove-one-user"] = "add-or-remove-one-user"

Mechanism = Literal["rounded-gaussian", "discrete-laplace"]


class Release(Frozen):
    """One noised opening: a sum over users, plus integer noise, all in grid steps.

    `sensitivity` bounds the norm of what one user contributes, `sigma` says how wide the noise on each entry is; both
    are integers on the grid on which the sum is taken, so that the bound is exact.

        rounded-gaussian   L2 norm; noise round(sigma Z), Z standard normal: sigma is its standard deviation
        discrete-laplace   L1 norm; noise k with probability proportional to e^(-|k| / sigma): sigma is its scale

    `sampling` is the probability with which each user takes part, decided by secret coins inside the user's party; 1
    means that all take part.
    """

    name: Name
    shape: tuple[int, ...]
    sensitivity: int = Field(gt=0, lt=2**52)
    sigma: int = Field(gt=0, lt=2**52)
    mechanism: Mechanism = "rounded-gaussian"
    sampling: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _shape_from_list(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("shape"), list):
            return {**data, "shape": tuple(data["shape"])}
        return data

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if not 1 <= len(self.shape) <= 4 or any(not 1 <= n <= 10_000_000 for n in self.shape):
            raise ValueError(f"got shape {self.shape}, expected 1 to 4 extents of 1 to 10,000,000")
        if self.sampling < 1 and self.mechanism != "rounded-gaussian":
            raise ValueError(f"got {self.mechanism} with sampling {self.sampling}, expected sampling 1")
        if self.size > 2**26:
            raise ValueError(f"got {self.size} entries, expected at most 67,108,864: one message of the mesh")
        return self

    @property
    def size(self) -> int:
        """Number of entries."""
        n = 1
        for extent in self.shape:
            n *= extent
        return n


class Noise(Frozen):
    """Who draws the noise.

    `dealer`: the dealer draws once and hands out shares; no party, nor any n-1 of them, knows any of it.
    `parties`: every party adds a draw of its own, so large that the sum still suffices when `colluding` of them pool
    theirs; all n-1 others when it is not given (`veil.privacy.sources`).
    """

    source: Literal["dealer", "parties"]
    colluding: int | None = Field(default=None, ge=0, le=15)

    @model_validator(mode="after")
    def _colluding_parties(self) -> Self:
        if self.colluding is not None and self.source != "parties":
            raise ValueError("got colluding for noise by the dealer, expected it for noise by the parties only")
        return self


class Privacy(Frozen):
    """What the job claims; every party recomputes it from `releases` before it signs."""

    unit: Literal["user"] = "user"
    neighbouring: Literal["add-or-remove-one-user"] = NEIGHBOURING
    epsilon: float = Field(gt=0, le=1000)
    delta: float = Field(gt=0, lt=0.01)
    noise: Noise


class Catalogue(Frozen):
    """The public item catalogue that every party must hold, by digest."""

    digest: Sha256
    items: int = Field(gt=0, le=10_000_000)
    features: int = Field(ge=0, le=65_536)


Trainer = Annotated[
    SubspaceTrainer | AlsTrainer | GradientTrainer | QueryTrainer | ColumnsTrainer | PredictionsTrainer | SideTrainer,
    Field(discriminator="kind"),
]
TRAINERS: tuple[str, ...] = ("subspace", "als", "gradient", "query", "columns", "predictions", "side")


class JobSpec(Frozen):
    """One job. `parties` are in rank order. `nonce` makes two submissions of the same plan two digests.

    `catalogue` is null for trainers "columns" and "predictions", whose users have columns and no items, and only for
    these. `privacy` is null and `releases` is empty for trainer "predictions", which releases nothing, and only for it.
    """

    schema_: Literal["veil.job/1"] = Field(default="veil.job/1", alias="schema")
    name: Name
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    consortium: Name
    parties: tuple[Name, ...] = Field(min_length=2, max_length=16)
    dealer: Name
    catalogue: Catalogue | None = None
    privacy_: Privacy | None = Field(default=None, alias="privacy")
    trainer: Trainer
    releases: tuple[Release, ...] = Field(max_length=MOST_RELEASES)
    versions: dict[str, str]

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _tuples_from_lists(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {k: tuple(v) if k in ("parties", "releases") and isinstance(v, list) else v for k, v in data.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.parties)) != len(self.parties):
            raise ValueError("got a party twice, expected each name once")
        names = [release.name for release in self.releases]
        if len(set(names)) != len(names):
            raise ValueError("got a release name twice, expected each name once")
        kind = self.trainer.kind
        if (self.catalogue is None) != (kind in ("columns", "predictions")):
            raise ValueError(f"got trainer {kind} with or without a catalogue, expected it otherwise")
        if isinstance(self.trainer, PredictionsTrainer):
            if self.privacy_ is not None or self.releases:
                raise ValueError("got privacy or releases for predictions, expected neither: nothing is noised")
            if self.trainer.recipient not in self.parties:
                raise ValueError(f"got recipient {self.trainer.recipient}, expected one of {', '.join(self.parties)}")
            return self
        if self.privacy_ is None or not self.releases:
            raise ValueError(f"got trainer {kind} without privacy or without releases, expected both")
        if (self.privacy.noise.colluding or 0) >= len(self.parties):
            raise ValueError(
                f"got {self.privacy.noise.colluding} colluding of {len(self.parties)} parties, expected fewer"
            )
        return self

    def text(self) -> str:
        """The canonical text."""
        return canonical(self.model_dump(mode="json", by_alias=True))

    @property
    def items(self) -> Catalogue:
        """The catalogue; raises `ConfigError` for a job without one."""
        if self.catalogue is None:
            raise ConfigError(f"got a job of trainer {self.trainer.kind} without a catalogue, expected one")
        return self.catalogue

    @property
    def privacy(self) -> Privacy:
        """What the job claims; raises `ConfigError` for a job that releases nothing."""
        if self.privacy_ is None:
            raise ConfigError(f"got a job of trainer {self.trainer.kind} without privacy terms, expected some")
        return self.privacy_

    def rank(self, party: str) -> int:
        """Rank of a party; raises `ConfigError` when the job does not name it."""
        try:
            return self.parties.index(party)
        except ValueError:
            raise ConfigError(
                f"got party {party!r}, expected one of {', '.join(self.parties)}",
                hint="the job does not name it",
            ) from None

    def release(self, name: str) -> Release:
        """The release of that name; raises `ConfigError` when the job does not list it."""
        for release in self.releases:
            if release.name == name:
                return release
        raise ConfigError(f"got release {name!r}, expected one that the job lists")


def canonical(document: object) -> str:
    """Canonical JSON: sorted keys, no white space, ASCII, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(text: str) -> bytes:
    """SHA-256 of the domain-separated job text, 32 bytes."""
    return hashlib.sha256(_DIGEST_DOMAIN + text.encode("ascii", "strict")).digest()


def parse(text: str) -> JobSpec:
    """Reads a job text and refuses anything that is not canonical. Raises `ConfigError`."""
    if len(text) > MAX_TEXT_BYTES:
        raise ConfigError(f"got a job text of {len(text)} bytes, expected at most {MAX_TEXT_BYTES}")
    if not text.isascii():
        raise ConfigError("got a job text with non-ASCII characters, expected canonical JSON")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        # ValueError and not only JSONDecodeError: integers of thousands of digits raise it
        raise ConfigError(f"got a job text that is not JSON: {error}") from None
    try:
        spec = JobSpec.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"job text: {describe(error)}") from None
    if spec.text() != text:
        raise ConfigError("got a job text that is not canonical, expected sorted keys and no white space")
    return spec


_MOST_DESCRIBED = 20
_PLAIN = {"missing": "got nothing, expected a value", "extra_forbidden": "got a key that is not known here"}


def describe(error: ValidationError) -> str:
    """What is wrong with each field, on one line: 20 fields at most, names and values cut to 60 characters.

    Names of keys may come from outside as well: what does not print is replaced, so that no log line can be forged.
    """
    lines = []
    found = error.errors(include_url=False)
    for item in found[:_MOST_DESCRIBED]:
        where = _plain(".".join(str(part)[:60] for part in item["loc"])) or "document"
        got = re.sub(r"\s+", " ", repr(item.get("input")))[:60]
        # What pydantic gives as the input of a missing key is its whole section.
        lines.append(f"{where}: " + _PLAIN.get(item["type"], f"{item['msg']} (got {got})"))
    if len(found) > _MOST_DESCRIBED:
        lines.append(f"and {len(found) - _MOST_DESCRIBED} more")
    return _plain("; ".join(lines))


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
