"""The dealer's configuration: one TOML file, read once at start, every value bounded.

[dealer]
credentials = "/etc/veil/dealer"   # folder with key.pem, cert.pem, authority.pem
listen = "0.0.0.0:7443"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dealer.sessions import Limits
from veil.errors import ConfigError, InputError
from veil.files import read_bounded
from veil.jobs.spec import describe
from veil.mpc.items import MAX_ELEMENTS, MAX_WORK

_MAX_FILE_BYTES = 64 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DealerSection(_Section):
    """Who the dealer is and where it listens."""

    credentials: Path
    listen: str = Field(min_length=3, max_length=256)
    workers: int = Field(default=16, ge=2, le=256)
    concurrent_corrections: int = Field(default=2, ge=1, le=64)
    grace_s: float = Field(default=10.0, ge=0, le=600)


class LimitsSection(_Section):
    """Bounds on what parties may ask."""

    sessions: int = Field(default=64, ge=1, le=10_000)
    sessions_of_a_party: int = Field(default=16, ge=1, le=10_000)
    items: int = Field(default=1_000_000, ge=1, le=2**32)
    elements: int = Field(default=MAX_ELEMENTS, ge=1, le=MAX_ELEMENTS)
    work: int = Field(default=MAX_WORK, ge=1, le=2**44)
    idle_s: float = Field(default=3600.0, ge=1, le=7 * 24 * 3600)


class LogSection(_Section):
    """How to log, to standard error."""

    format: Literal["plain", "json"] = "plain"
    level: Literal["debug", "info", "warning", "error"] = "info"


class DealerConfig(_Section):
    """The whole file."""

    dealer: DealerSection
    limits: LimitsSection = LimitsSection()
    log: LogSection = LogSection()

    def session_limits(self) -> Limits:
        """The limits as `dealer.sessions` takes them."""
        return Limits(**self.limits.model_dump())


def load(path: Path) -> DealerConfig:
    """Reads and checks the file. A relative `credentials` folder is taken from the file's own. Raises `ConfigError`."""
    try:
        document = tomllib.loads(read_bounded(path, _MAX_FILE_BYTES).decode("utf-8"))
    except InputError as error:
        raise ConfigError(error.message) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: {error}") from None
    try:
        config = DealerConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path.name}: {describe(error)}") from None
    credentials = path.parent / config.dealer.credentials
    return config.model_copy(update={"dealer": config.dealer.model_copy(update={"credentials": credentials})})
