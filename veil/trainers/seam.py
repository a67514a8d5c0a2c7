"""The seam between what is trained and how parties train it together.

Guarantee: a trainer touches rows in one place only, `Algorithm.contribution`, which returns an exact integer sum over
the given users, each of whose summands has a norm of at most the release's sensitivity. Everything else it does reads
openings and public data, and is post-processing (Dwork and Roth, "The Algorithmic Foundations of Differential Privacy",
proposition 2.1). Sharing, noise, ledger and signatures are the party's; a trainer knows nothing of them.

A job runs so, at every party (`party.worker.trainer.train`), or in one place (`central_state`):

    for each release, in the order of the job's list:
        own    = contribution(step, own rows, state)      the one place where rows count
        opened = sum over parties of own, plus noise      the party's part; paid for at the ledger first
        state  = advance(step, opened, state)             at the lead, then the same bytes everywhere
    publish(state)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError
from veil.jobs.spec import JobSpec, Mechanism, Release
from veil.recsys.catalogue import Catalogue
from veil.trainers.rows import PartyRows

Int64 = npt.NDArray[np.int64]
PublicState = dict[str, npt.NDArray[Any]]
"""Public arrays by name, float32 or int64: what the lead party broadcasts after an opening. Empty before the first."""


class Publication(Protocol):
    """What a finished job leaves behind: files that are equal at every party, and the manifest over them."""

    def files(self, spec: JobSpec) -> dict[str, bytes]:
        """Every file that the manifest lists, by name."""
        ...

    def manifest(self, spec: JobSpec, files: Mapping[str, bytes], *, created_s: int) -> bytes:
        """Canonical JSON over the files' digests: the same bytes wherever spec, files and `created_s` are."""
        ...


class Algorithm(Protocol):
    """One job's trainer. Steps are the names of the job's releases, in order."""

    @property
    def steps(self) -> Sequence[str]:
        """Names of the releases, in the order in which they open."""
        ...

    def contribution(self, step: str, rows: PartyRows, state: PublicState) -> Int64:
        """The exact sum over the users of `rows`, int64 of the release's shape, in grid steps."""
        ...

    def advance(self, step: str, opened: Int64, state: PublicState) -> PublicState:
        """The public state after an opening, noise included, in grid steps."""
        ...

    def publish(self, state: PublicState) -> Publication:
        """What is published, from the state after the last step."""
        ...


@dataclass(frozen=True)
class Expected:
    """What a trainer's release must look like for its sensitivity to be true."""

    name: str
    shape: tuple[int, ...]
    sensitivity: int
    mechanism: Mechanism = "rounded-gaussian"
    sampling: float = 1.0


def check_catalogue(spec: JobSpec, catalogue: Catalogue) -> None:
    """Raises `ConfigError` unless the catalogue is the one that the job names."""
    if (spec.items.digest, spec.items.items) != (catalogue.digest, catalogue.items):
        raise ConfigError(
            f"got catalogue {catalogue.digest} of {catalogue.items} items, expected {spec.items.digest}"
            f" of {spec.items.items}",
            hint="load the catalogue that the job names",
        )


def check_releases(spec: JobSpec, expected: Iterable[Expected]) -> None:
    """Raises `ConfigError` unless the job lists these releases, no more, no less, in this order.

    A job that claims less sensitivity than its mechanism has would claim less epsilon than it costs.
    """
    wanted = list(expected)
    listed = [release.name for release in spec.releases]
    if listed != [one.name for one in wanted]:
        raise ConfigError(
            f"got releases {', '.join(listed[:8])}, expected {', '.join(one.name for one in wanted[:8])}"
            + (f" ({len(wanted)} in all)" if len(wanted) > 8 else "")
        )
    for release, one in zip(spec.releases, wanted, strict=True):
        got = (release.shape, release.sensitivity, release.mechanism, release.sampling)
        if got != (one.shape, one.sensitivity, one.mechanism, one.sampling):
            raise ConfigError(
                f"got release {release.name} of shape {release.shape}, sensitivity {release.sensitivity},"
                f" {release.mechanism}, sampling {release.sampling:g}; expected {one.shape}, {one.sensitivity},"
                f" {one.mechanism}, {one.sampling:g}"
            )


def central_state(
    algorithm: Algorithm, spec: JobSpec, rows: PartyRows, noise: Callable[[Release], Int64]
) -> PublicState:
    """The same steps on all users in one place: for tests and for evaluation on data that one holds anyway.

    noise: called once for each release, in order; returns what is added to the sum, int64 of the release's shape (for
    the source "parties" the sum of all parties' draws). The result equals a joint run with the same noise.
    """
    state: PublicState = {}
    for step in algorithm.steps:
        total = algorithm.contribution(step, rows, state) + noise(spec.release(step))
        state = algorithm.advance(step, total, state)
    return state
