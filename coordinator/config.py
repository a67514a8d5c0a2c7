"""The coordinator's configuration: one TOML file, read once at start into one frozen, checked object.

`deploy/coordinator.toml` shows every key with a comment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from coordinator.roster import Roster
from coordinator.states import Rules
from coordinator.switchboard import Limits
from veil import settings
from veil.jobs.spec import Name
from veil.settings import Address, Section


class Deadlines(Section):
    """Waiting times."""

    heartbeat_interval_s: float = Field(default=5.0, ge=0.1, le=600)
    grace_s: float = Field(default=20.0, ge=0.2, le=3600)
    signing_h: float = Field(default=24.0, gt=0, le=24 * 365)
    running_h: float = Field(default=6.0, gt=0, le=24 * 365)
    settling_s: float = Field(default=2.0, ge=0, le=60)

    @model_validator(mode="after")
    def _grace_covers_heartbeats(self) -> Self:
        if self.grace_s < 2 * self.heartbeat_interval_s:
            raise ValueError(f"got grace_s {self.grace_s:g}, expected twice heartbeat_interval_s or more")
        return self


class Most(Section):
    """How much the coordinator takes on."""

    open_jobs: int = Field(default=32, ge=1, le=1000)
    members: int = Field(default=64, ge=2, le=256)
    watchers: int = Field(default=32, ge=1, le=256)


class CoordinatorConfig(Section):
    """Everything that the coordinator needs. Relative paths are relative to the file."""

    listen: Address
    # Directory with key.pem, cert.pem and authority.pem.
    credentials: Path
    # SQLite file of jobs and histories. Mode 0600.
    store: Path
    # Names of the parties that may join, or "any" for each party certificate of the consortium.
    parties: Literal["any"] | tuple[Name, ...] = "any"
    deadlines: Deadlines = Deadlines()
    limits: Most = Most()

    @property
    def rules(self) -> Rules:
        """For the state machine."""
        return Rules(
            grace_ms=round(self.deadlines.grace_s * 1000),
            signing_ms=round(self.deadlines.signing_h * 3_600_000),
            running_ms=round(self.deadlines.running_h * 3_600_000),
            settling_ms=round(self.deadlines.settling_s * 1000),
        )

    @property
    def bounds(self) -> Limits:
        """For the switchboard."""
        return Limits(
            open_jobs=self.limits.open_jobs,
            members=self.limits.members,
            watchers=self.limits.watchers,
            heartbeat_interval_ms=round(self.deadlines.heartbeat_interval_s * 1000),
        )

    @property
    def workers(self) -> int:
        """Threads of the server: each stream that stays open occupies one, and unary calls need some."""
        return self.limits.members + self.limits.watchers + 16

    def roster(self, consortium: str) -> Roster:
        """Who may join."""
        return Roster(consortium, None if self.parties == "any" else frozenset(self.parties))


def load(path: Path) -> CoordinatorConfig:
    """Reads and checks the file. Raises `ConfigError` that names each wrong key."""
    config = settings.read(path, CoordinatorConfig, explained_in="deploy/coordinator.toml")
    root = path.resolve().parent
    return config.model_copy(update={"credentials": root / config.credentials, "store": root / config.store})
