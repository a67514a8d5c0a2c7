"""Who may take part: the parties that this coordinator serves."""

from __future__ import annotations

from dataclasses import dataclass

from veil.errors import ConfigError, IdentityError
from veil.identity.names import Identity, Role
from veil.jobs.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Roster:
    """`names`: parties by name, or None for every party that holds a certificate of the consortium."""

    consortium: str
    names: frozenset[str] | None = None

    def admit(self, identity: Identity) -> str:
        """The party's name; raises `IdentityError` when it may not join."""
        if identity.consortium != self.consortium or identity.role is not Role.PARTY:
            raise IdentityError(f"got {identity}, expected a party of {self.consortium}")
        if self.names is not None and identity.name not in self.names:
            raise IdentityError(
                f"got party {identity.name!r}, expected one of the coordinator's roster",
                hint="add it to `parties` in the coordinator's config",
            )
        return identity.name

    def check(self, spec: JobSpec) -> None:
        """Raises `ConfigError` when a job is of another consortium or names a party that may not join."""
        if spec.consortium != self.consortium:
            raise ConfigError(f"got a job of consortium {spec.consortium!r}, expected {self.consortium!r}")
        strangers = [name for name in spec.parties if self.names is not None and name not in self.names]
        if strangers:
            raise ConfigError(
                f"got a job with {', '.join(strangers)}, expected parties of the coordinator's roster",
                hint="add them to `parties` in the coordinator's config, or name others",
            )
