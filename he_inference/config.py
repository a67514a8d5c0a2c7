"""The scoring server's configuration: one TOML file, read once at start into one frozen, checked object.

`deploy/scoring.toml` shows every key with a comment. Nothing is read from the environment.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from he_inference import parameters
from veil import settings
from veil.jobs.spec import Name
from veil.settings import Address, Section

_EXAMPLE = "deploy/scoring.toml"


class Load(Section):
    """How much work is taken on at a time."""

    # Processes that compute; each holds its own encoded items, 8 bytes for each item and (padded) dimension.
    workers: int = Field(default=1, ge=1, le=256)
    # Requests that may wait for a worker; one more is refused with RESOURCE_EXHAUSTED.
    queue: int = Field(default=32, ge=0, le=4096)
    # Queries of one client that may wait or run at a time.
    per_client: int = Field(default=8, ge=1, le=1024)
    # A worker that takes longer is replaced.
    timeout_s: float = Field(default=30.0, gt=0.1, le=600)


class Keys(Section):
    """Evaluation keys that are kept for clients (about 250 KB each)."""

    max_bytes: int = Field(default=1 << 30, ge=1 << 20, le=1 << 40)
    max_per_client: int = Field(default=4, ge=1, le=64)
    # Since they were last used.
    lifetime_days: float = Field(default=30.0, gt=0, le=3650)


class ScoringConfig(Section):
    """Everything that the server needs. Relative paths are relative to the file."""

    # Address that is listened at.
    listen: Address
    # Directory with key.pem, cert.pem and authority.pem of this scoring server.
    credentials: Path
    # Directory of the published model.
    model: Path
    # Parties that must have signed the model, by name; none is an error, since anybody could have made such a model.
    require_signers: tuple[Name, ...] = Field(min_length=1)
    # Directory for clients' evaluation keys. Mode 0700.
    state: Path
    # Name of the parameter set.
    parameters: str = parameters.DEFAULT.name
    load: Load = Load()
    keys: Keys = Keys()


def load(path: Path) -> ScoringConfig:
    """Reads and checks the file. Raises `ConfigError` that names each wrong key."""
    return _anchored(settings.read(path, ScoringConfig, explained_in=_EXAMPLE), path.resolve().parent)


def check(document: dict[str, object], root: Path, *, source: str) -> ScoringConfig:
    """A checked configuration; relative paths become relative to `root`. Raises `ConfigError`."""
    return _anchored(settings.check(document, ScoringConfig, source=source, explained_in=_EXAMPLE), root)


def _anchored(config: ScoringConfig, root: Path) -> ScoringConfig:
    parameters.named(config.parameters)
    paths = {name: root / getattr(config, name) for name in ("credentials", "model", "state")}
    return config.model_copy(update=paths)
