"""The party's configuration: one TOML file, read once at start into one frozen, checked object.

`deploy/party.toml` shows every key with a comment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from veil import settings
from veil.jobs.spec import Name
from veil.recsys.reading import ReadConfig
from veil.settings import Address, Section


class Remote(Section):
    """Another program of the consortium: where it listens and the name that its certificate must carry."""

    address: Address
    name: Name = "main"


class Data(Section):
    """The party's own rows."""

    source: Path
    read: ReadConfig
    # 32 random bytes that turn user ids into pseudonyms; made on first use, mode 0600, never leaves this machine.
    pseudonym_key: Path


class Budget(Section):
    """What may be released over all jobs, for ever."""

    epsilon: float = Field(gt=0, le=1000)
    delta: float = Field(gt=0, lt=0.01)


class Approval(Section):
    """Who says yes to a job: these rules, or these rules and a person (`veil party approve`)."""

    mode: Literal["policy", "manual"] = "manual"
    max_epsilon_per_job: float = Field(gt=0, le=1000)
    min_parties: int = Field(default=2, ge=2, le=16)
    # Parties, by name, that a job may have, this one among them. Empty: every party of the consortium.
    parties: tuple[Name, ...] = Field(default=(), max_length=256)
    noise_sources: tuple[Literal["dealer", "parties"], ...] = ("dealer", "parties")


class PartyConfig(Section):
    """Everything that the daemon needs. Relative paths are relative to the file."""

    # Address that the one port is bound to, and the address at which peers reach it.
    listen: Address
    advertise: Address
    # Directory with key.pem, cert.pem and authority.pem.
    credentials: Path
    # Directory for the ledger, the prepared rows and the models. Mode 0700.
    state: Path
    # Directory of the public item catalogue.
    catalogue: Path
    coordinator: Remote
    dealer: Remote
    data: Data
    budget: Budget
    approval: Approval
    # Operators (by certificate name) who may ask for the status and decide on jobs.
    # Empty: the one that is named like the party.
    operators: tuple[Name, ...] = ()
    # Python files of the modules that gradient jobs may train here, by name; a job names one and its SHA-256.
    modules: dict[Name, Path] = Field(default_factory=dict, max_length=64)
    # How long a round may wait for a peer, seconds.
    peer_timeout_s: float = Field(default=120.0, gt=1, le=3600)


def load(path: Path) -> PartyConfig:
    """Reads and checks the file. Raises `ConfigError` that names each wrong key."""
    config = settings.read(path, PartyConfig, explained_in="deploy/party.toml")
    return _absolute(config, path.resolve().parent)


def _absolute(config: PartyConfig, root: Path) -> PartyConfig:
    def anchored(path: Path) -> Path:
        return path if path.is_absolute() else root / path

    data: dict[str, Any] = {
        "source": anchored(config.data.source),
        "pseudonym_key": anchored(config.data.pseudonym_key),
    }
    return config.model_copy(
        update={
            "credentials": anchored(config.credentials),
            "state": anchored(config.state),
            "catalogue": anchored(config.catalogue),
            "data": config.data.model_copy(update=data),
            "modules": {name: anchored(path) for name, path in config.modules.items()},
        }
    )
