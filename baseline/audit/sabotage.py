"""Mechanisms that break their promise in one known way each: what an audit must catch.

None of it is reachable from production code, and production code has no switch for it: each sabotage wraps the trainer
or replaces the draws, here in the audit's own harness. A job's spec, the claim, stays as it is.

    noise-off            nobody adds noise
    clipping-off         each interaction counts in full: the bound holds for one of 16 pieces of a history, not for all
    party-noise-missing  source "parties": the first party adds no draw of its own
    party-noise-split    source "parties": each party adds a share of the noise, so that the total has one draw's worth
    noise-reused         one position of the keystream serves every release of every run
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from baseline.audit.mechanism import Int64, Mechanism, honest
from veil.errors import ConfigError
from veil.jobs.spec import JobSpec, Release
from veil.privacy import noise_of
from veil.privacy.noise import keyed_source
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.model import Model
from veil.trainers.registry import Recommender
from veil.trainers.rows import PartyRows
from veil.trainers.seam import Publication, PublicState

_PIECES: Final = 16

NoiseSource = Literal["dealer", "parties"]
Claim = Callable[[NoiseSource], JobSpec]
"""The job that is claimed, for either source of noise."""


@dataclass(frozen=True)
class Sabotage:
    """One way to break the promise. `build(claim, catalogue, key)` makes the broken mechanism.

    `shows_in`: the kind of check that is there to see it. Another one that fails has not seen what was done.
    """

    name: str
    title: str
    build: Callable[[Claim, Catalogue, bytes], Mechanism]
    shows_in: str


class Unclipped:
    """A trainer in which each piece of a user's history is bounded, instead of the history as a whole."""

    def __init__(self, inner: Recommender) -> None:
        self._inner = inner

    @property
    def steps(self) -> Sequence[str]:
        """As the trainer's."""
        return self._inner.steps

    def contribution(self, step: str, rows: PartyRows, state: PublicState) -> Int64:
        """The sum over pieces of histories: up to 16 times what one user may add."""
        return self._inner.contribution(step, PartyRows(_pieces(rows.need_interactions())), state)

    def advance(self, step: str, opened: Int64, state: PublicState) -> PublicState:
        """As the trainer's."""
        return self._inner.advance(step, opened, state)

    def publish(self, state: PublicState) -> Publication:
        """As the trainer's."""
        return self._inner.publish(state)

    def model(self, public_state: PublicState) -> Model:
        """As the trainer's."""
        return self._inner.model(public_state)


def _pieces(interactions: Interactions) -> Interactions:
    place = np.arange(interactions.nnz) - np.repeat(interactions.indptr[:-1], interactions.lengths())
    piece = interactions.row_of() * _PIECES + place % _PIECES
    kept, number = np.unique(piece, return_inverse=True)
    return Interactions.from_pairs(number, interactions.indices, users=len(kept), items=interactions.items)


def _noise_off(claim: Claim, catalogue: Catalogue, key: bytes) -> Mechanism:
    mechanism = honest(claim("dealer"), catalogue, key)
    return replace(mechanism, draws=lambda run, release: [np.zeros(release.shape, np.int64)])


def _clipping_off(claim: Claim, catalogue: Catalogue, key: bytes) -> Mechanism:
    mechanism = honest(claim("dealer"), catalogue, key)
    return replace(mechanism, algorithm=Unclipped(mechanism.algorithm))


def _party_missing(claim: Claim, catalogue: Catalogue, key: bytes) -> Mechanism:
    mechanism = honest(claim("parties"), catalogue, key)

    def draws(run: int, release: Release) -> list[Int64]:
        first, *others = mechanism.draws(run, release)
        return [np.zeros_like(first), *others]

    return replace(mechanism, draws=draws)


def _party_split(claim: Claim, catalogue: Catalogue, key: bytes) -> Mechanism:
    mechanism = honest(claim("parties"), catalogue, key)

    def draws(run: int, release: Release) -> list[Int64]:
        share = math.sqrt(mechanism.drawers / mechanism.honest)
        return mechanism.draws(run, release.model_copy(update={"sigma": max(1, round(release.sigma / share))}))

    return replace(mechanism, draws=draws)


def _reused(claim: Claim, catalogue: Catalogue, key: bytes) -> Mechanism:
    mechanism = honest(claim("dealer"), catalogue, key)
    return replace(
        mechanism, draws=lambda run, release: [noise_of.draw(release, keyed_source(key, b"veil/audit/one-label"))]
    )


_ALL: Final = (
    Sabotage("noise-off", "noise switched off", _noise_off, "noise spread"),
    Sabotage("clipping-off", "clipping switched off", _clipping_off, "sensitivity"),
    Sabotage("party-noise-missing", "one party's noise missing", _party_missing, "noise spread"),
    Sabotage(
        "party-noise-split", "parties share out one draw instead of a full draw each", _party_split, "noise spread"
    ),
    Sabotage("noise-reused", "one random position used for every release", _reused, "noise reuse"),
)
SABOTAGES: Final[Mapping[str, Sabotage]] = {one.name: one for one in _ALL}


def sabotage(name: str) -> Sabotage:
    """The sabotage of that name; raises `ConfigError`."""
    if name not in SABOTAGES:
        raise ConfigError(f"got sabotage {name!r}, expected one of {', '.join(SABOTAGES)}")
    return SABOTAGES[name]
