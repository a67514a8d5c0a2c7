"""The scoring server's configuration: one TOML file, read once at start into one frozen, checked object.

`deploy/scoring.toml` shows every key with a comment. Nothing is read from the environment.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from he_inference import parameters
from veil.errors import ConfigError
from veil.files import read_bounded
from veil.jobs.spec import Name, describe

Address = Annotated[str, StringConstraints(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}$")]
_MAX_CONFIG_BYTES = 64 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Load(_Section):
    """How much work is taken on at a time."""

    # Processes that compute; each holds its own encoded items, 8 bytes for each item and (padded) dimension.
    workers: int = Field(default=1, ge=1, le=256)
    # Requests that may wait for a worker; one more is refused with RESOURCE_EXHAUSTED.
    queue: int = Field(default=32, ge=0, le=4096)
    # Queries of one client that may wait or run at a time.
    per_client: int = Field(default=8, ge=1, le=1024)
    # A worker that takes longer is replaced.
    timeout_s: float = Field(default=30.0, gt=0.1, le=600)


class Keys(_Section):
    """Evaluation keys that are kept for clients (about 250 KB each)."""

    max_bytes: int = Field(default=1 << 30, ge=1 << 20, le=1 << 40)
    max_per_client: int = Field(default=4, ge=1, le=64)
    # Since they were last used.
    lifetime_days: float = Field(default=30.0, gt=0, le=3650)


class ScoringConfig(_Section):
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
    try:
        document = tomllib.loads(read_bounded(path, _MAX_CONFIG_BYTES).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: got text that is not TOML: {error}") from None
    return check(document, path.resolve().parent, source=str(path))


def check(document: dict[str, object], root: Path, *, source: str) -> ScoringConfig:
    """A checked configuration; relative paths become relative to `root`. Raises `ConfigError`."""
    try:
        config = ScoringConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error)}", hint="deploy/scoring.toml explains every key") from None
    parameters.named(config.parameters)
    paths = {name: root / getattr(config, name) for name in ("credentials", "model", "state")}
    return config.model_copy(update=paths)
