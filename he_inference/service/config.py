"""The scoring server's configuration: one TOML file, read once at start into one frozen, checked object.

`deploy/scoring.toml` shows every key with a comment. Nothing is read from the environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from he_inference import parameters as sets
from he_inference.exchange import MOST_OFFERS
from he_inference.layouts.catalogue import KINDS, best_packing, layout_of, usual_kind
from he_inference.layouts.seam import Layout
from he_inference.parameters import Parameters
from he_inference.service.access import AccessSettings
from he_inference.service.audience import Audience, check_audiences
from he_inference.service.budget import BudgetSettings
from he_inference.service.canary_process import CanarySettings
from he_inference.service.limits import LimitSettings
from he_inference.service.metrics import MetricsSettings
from veil import settings
from veil.errors import ConfigError
from veil.jobs.spec import Name
from veil.settings import Address, Section

_EXAMPLE = "deploy/scoring.toml"
_OFFER = re.compile(r"(?:([a-z]{1,16}):)?([a-z0-9-]{1,32})(?:/([0-9]{1,4}))?")


class Load(Section):
    """How much work is taken on at a time."""

    # Threads that compute; 0: one for each core.
    threads: int = Field(default=0, ge=0, le=1024)
    # Queries that are computed together, so that each item is read from memory once for all of them.
    batch: int = Field(default=32, ge=1, le=32)
    # Queries that may wait; one more is refused with RESOURCE_EXHAUSTED.
    queue: int = Field(default=64, ge=1, le=900)
    # A batch that takes longer costs the compute process its place.
    timeout_s: float = Field(default=30.0, gt=0.1, le=600)
    # How long running queries may take to end when the server is told to stop.
    drain_s: float = Field(default=30.0, ge=0, le=3600)


class Ray(Section):
    """A Ray cluster; see `he_inference.engine.ray_settings`. Index files must be reachable by every node."""

    # "local" for a cluster on this machine that ends with the server, or host:port of the head node.
    address: str = Field(default="local", min_length=1, max_length=300)
    # Actors for each index, at most one for each block; threads of each.
    shards: int = Field(default=2, ge=1, le=1024)
    threads: int = Field(default=1, ge=1, le=1024)
    # Until actors answer first; of one batch.
    start_timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    timeout_s: float = Field(default=120.0, gt=0, le=3600)


class Cuda(Section):
    """A GPU of this machine; see `he_inference.engine.cuda`. The server does not start without it."""

    # Its number, as torch counts.
    device: int = Field(default=0, ge=0, le=127)


class Engine(Section):
    """Where the arithmetic runs."""

    # "process": on this machine; "cuda": there, products with items on a GPU; "ray": in shards on a Ray cluster.
    kind: Literal["process", "cuda", "ray"] = "process"
    cuda: Cuda = Cuda()
    ray: Ray = Ray()

    @property
    def cuda_device(self) -> int | None:
        """The number of the GPU when one is used."""
        return self.cuda.device if self.kind == "cuda" else None

    @property
    def ray_fields(self) -> dict[str, Any] | None:
        """The fields of `ray` when it is used."""
        return self.ray.model_dump() if self.kind == "ray" else None


class Keys(Section):
    """Evaluation keys that are kept for clients (110 to 220 KB each)."""

    max_bytes: int = Field(default=1 << 30, ge=1 << 20, le=1 << 40)
    max_per_client: int = Field(default=4, ge=1, le=64)
    # Since they were last used.
    lifetime_days: float = Field(default=30.0, gt=0, le=3650)


class Reload(Section):
    """Another model, or a changed index, without a restart; SIGHUP asks for it at once."""

    # How often the model's manifest and the index files are looked at; 0: only when SIGHUP comes.
    every_s: float = Field(default=5.0, ge=0, le=86_400)
    # How long queries that were made for the former model are still answered, from the former index.
    grace_s: float = Field(default=600.0, ge=0, le=86_400)


@dataclass(frozen=True, slots=True)
class OfferSpec:
    """One way to ask, as configured. packing 0: the one with the fewest bytes on the wire, where there is a choice."""

    kind: str
    parameters: Parameters
    packing: int

    @classmethod
    def parse(cls, text: str) -> OfferSpec:
        """Of "[LAYOUT:]PARAMETERS[/PACKING]", such as "pq", "keyless/8", "session:fast". Raises `ConfigError`."""
        match = _OFFER.fullmatch(text)
        if match is None:
            raise ConfigError(f"got offer {text[:64]!r}, expected [LAYOUT:]PARAMETERS[/PACKING], as pq or keyless/8")
        kind, name, packing = match.groups()
        parameters = sets.named(name)
        chosen = cls(kind or usual_kind(parameters), parameters, int(packing or 0))
        if chosen.kind not in KINDS:
            raise ConfigError(f"got layout {chosen.kind!r}, expected one of {', '.join(KINDS)}")
        # What no catalogue can have fails here, not when the model is there.
        chosen.layout(1, 4)
        if chosen.kind == "history" and chosen.packing:
            raise ConfigError(f"got offer {text[:64]!r}, expected no packing for a history: it follows from the model")
        return chosen

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of its index files: one, or two for a history."""
        name = f"{self.kind}-{self.parameters.name}-{self.packing}"
        return (f"{name}.fold-in.index", f"{name}.index") if self.kind == "history" else (f"{name}.index",)

    def layout(self, items: int, dimensions: int) -> Layout:
        """The layout for a catalogue. Raises `ConfigError`."""
        packing = self.packing or best_packing(self.kind, self.parameters, items, dimensions)
        if self.kind == "history":
            # That of the models of Veil's own trainers; the model has the last word.
            packing = self.packing or 3
        return layout_of(self.kind, self.parameters, items, dimensions, packing)


class ScoringConfig(Section):
    """Everything that the server needs. Relative paths are relative to the file."""

    # Address that is listened at.
    listen: Address
    # Directory with key.pem, cert.pem and authority.pem of this scoring server.
    credentials: Path
    # Directory of the published model; or of models on columns, one in each subfolder, named by it.
    model: Path
    # Models on columns that are more than linear (perceptron, towers): serve their linear part alone.
    linear_part: bool = False
    # Parties that must have signed the model, by name; none is an error, since anybody could have made such a model.
    require_signers: tuple[Name, ...] = Field(min_length=1)
    # Directory for index files and clients' evaluation keys. Mode 0700.
    state: Path
    # Ways in which clients may ask, the preferred one first; see `OfferSpec.parse`.
    offers: tuple[str, ...] = Field(default=("pq", "keyless"), min_length=1, max_length=MOST_OFFERS)
    # Lines of the log: "json" (events and numbers from fixed lists, nothing else) or "text".
    log: Literal["json", "text"] = "json"
    load: Load = Load()
    engine: Engine = Engine()
    keys: Keys = Keys()
    reload: Reload = Reload()
    access: AccessSettings = AccessSettings()
    limits: LimitSettings = LimitSettings()
    budget: BudgetSettings = BudgetSettings()
    metrics: MetricsSettings = MetricsSettings()
    # Clients that may know some of the items only.
    audiences: tuple[Audience, ...] = Field(default=(), max_length=64)
    # An own client that compares answers with plaintext scores; absent: none.
    canary: CanarySettings | None = None

    @property
    def offer_specs(self) -> tuple[OfferSpec, ...]:
        """The offers, parsed. Raises `ConfigError`."""
        specs = tuple(OfferSpec.parse(text) for text in self.offers)
        if len(set(specs)) != len(specs):
            raise ConfigError(f"got offers {', '.join(self.offers)}, expected each once")
        return specs


def load(path: Path) -> ScoringConfig:
    """Reads and checks the file. Raises `ConfigError` that names each wrong key."""
    return _anchored(settings.read(path, ScoringConfig, explained_in=_EXAMPLE), path.resolve().parent)


def check(document: dict[str, object], root: Path, *, source: str) -> ScoringConfig:
    """A checked configuration; relative paths become relative to `root`. Raises `ConfigError`."""
    return _anchored(settings.check(document, ScoringConfig, source=source, explained_in=_EXAMPLE), root)


def _anchored(config: ScoringConfig, root: Path) -> ScoringConfig:
    _ = config.offer_specs
    check_audiences(config.audiences)
    changes: dict[str, object] = {name: root / getattr(config, name) for name in ("credentials", "model", "state")}
    changes["audiences"] = tuple(
        one.model_copy(update={"index": root / one.index, "hidden": root / one.hidden}) for one in config.audiences
    )
    if config.access.tokens is not None:
        changes["access"] = config.access.model_copy(update={"tokens": root / config.access.tokens})
    if config.canary is not None:
        changes["canary"] = config.canary.model_copy(update={"credentials": root / config.canary.credentials})
    return config.model_copy(update=changes)
