"""The dealer's configuration: one TOML file, read once at start, every value bounded.

[dealer]
credentials = "/etc/veil/dealer"   # folder with key.pem, cert.pem, authority.pem
listen = "0.0.0.0:7443"
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dealer.sessions import Limits
from veil import settings
from veil.mpc.items import MAX_ELEMENTS, MAX_WORK
from veil.settings import Section


class DealerSection(Section):
    """Who the dealer is and where it listens."""

    credentials: Path
    listen: str = Field(min_length=3, max_length=256)
    workers: int = Field(default=16, ge=2, le=256)
    concurrent_corrections: int = Field(default=2, ge=1, le=64)
    grace_s: float = Field(default=10.0, ge=0, le=600)


class LimitsSection(Section):
    """Bounds on what parties may ask."""

    sessions: int = Field(default=64, ge=1, le=10_000)
    sessions_of_a_party: int = Field(default=16, ge=1, le=10_000)
    items: int = Field(default=1_000_000, ge=1, le=2**32)
    elements: int = Field(default=MAX_ELEMENTS, ge=1, le=MAX_ELEMENTS)
    work: int = Field(default=MAX_WORK, ge=1, le=2**44)
    idle_s: float = Field(default=3600.0, ge=1, le=7 * 24 * 3600)


class LogSection(Section):
    """How to log, to standard error."""

    format: Literal["plain", "json"] = "plain"
    level: Literal["debug", "info", "warning", "error"] = "info"


class DealerConfig(Section):
    """The whole file."""

    dealer: DealerSection
    limits: LimitsSection = LimitsSection()
    log: LogSection = LogSection()

    def session_limits(self) -> Limits:
        """The limits as `dealer.sessions` takes them."""
        return Limits(**self.limits.model_dump())


def load(path: Path) -> DealerConfig:
    """Reads and checks the file. A relative `credentials` folder is taken from the file's own. Raises `ConfigError`."""
    config = settings.read(path, DealerConfig, explained_in="deploy/dealer.toml")
    credentials = path.parent / config.dealer.credentials
    return config.model_copy(update={"dealer": config.dealer.model_copy(update={"credentials": credentials})})
