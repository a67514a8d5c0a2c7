"""A Ray cluster as configured, and Ray itself, which is installed only where it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from veil.errors import ConfigError

LOCAL: Final = "local"


@dataclass(frozen=True)
class RaySettings:
    """A Ray cluster as configured. Raises `ConfigError`.

    address: "local" for a cluster in this machine that ends with this process, else host:port of its head node (as
    `ray start --address`). shards: actors for an index, at most one for each block. threads: of each actor.
    start_timeout_s: until actors answer first, with kernels to compile. timeout_s: of one batch.
    """

    address: str = LOCAL
    shards: int = 2
    threads: int = 1
    start_timeout_s: float = 600.0
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 1024 or not 1 <= self.threads <= 1024:
            raise ConfigError(f"got {self.shards} shards of {self.threads} threads, expected 1 to 1024 of each")
        if self.address != LOCAL and ("://" in self.address or ":" not in self.address):
            raise ConfigError(
                f"got Ray address {self.address[:64]!r}, expected {LOCAL!r} or host:port of the head node"
            )


def installed() -> Any:
    """The module of Ray. Raises `ConfigError`."""
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ConfigError(
            "got engine ray, but Ray is not installed here", hint='pip install "veil-recsys[ray]"'
        ) from None
    return ray
