"""One run of a private mechanism under audit: the real integer sums and the real noise, with everything on record.

Guarantee: what runs is the trainer's own `contribution` and `advance` and the exact sampler, as in a joint run;
canaries stand as a party of their own beside the other users, so that their sum is added as another party's sum is. The
record holds exact sums and draws: it is for whoever holds the data anyway, and it is as private as the data.

Joint runs: `audited_run(..., opener=...)` takes the openings from anywhere, for instance from parties that share and
open for real; the rest is the same. Single draws are then unknown, and the checks that need them are left out.

Scores of the canaries. For release t let V_t be the matrix of what each canary adds (by the trainer itself, in the
state of the run), sigma_t the noise, and R_t what is left of the opening when the known users, and all canaries at half
weight, are subtracted. With coins b of mean 1/2,

    c = sum_t V_t R_t / sigma_t^2 = G (b - 1/2) + N(0, G),   G = sum_t V_t V_t^T / sigma_t^2,
    x = (G + 4 I)^-1 c,                                      score_i = x_i / sd(x_i given b_i)

where x is the best linear estimate of b - 1/2 (Kay 1993, "Fundamentals of Statistical Signal Processing: Estimation
Theory", section 12.5): canaries that resemble each other are told apart as well as the noise lets them. A score is
normal but for the other canaries' coins, with variance 1 and means that differ by at most the canary's mu = sqrt(G_ii).
Canaries whose contributions together do not fit in memory are taken in blocks; between blocks they count as noise.

With noise source "parties" scores are taken in the view that the claim is about: the colluding parties (n - 1 of them,
unless the job says fewer) subtract their own draws and face the others', other parties in each run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, InputError
from veil.jobs.spec import JobSpec, Release
from veil.privacy import noise_of
from veil.privacy.audit.bounds import EpsilonBounds, epsilon_bounds
from veil.privacy.audit.gaussian import Regression
from veil.privacy.composition import squared_mu
from veil.privacy.noise import keyed_source
from veil.privacy.sources import colluding, draws, party_release, total_sd
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.trainers.registry import Recommender, recommender_of
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_DOMAIN = b"veil/audit/noise/v1"
_BLOCK_ENTRIES = 1 << 26

Draws = Callable[[int, Release], list[Int64]]
"""(run, release) -> the noise that each drawer adds: one array for "dealer", one a party for "parties"."""


@dataclass(frozen=True)
class Mechanism:
    """What is audited. `spec` is the claim; `algorithm` and `draws` are what really runs."""

    spec: JobSpec
    algorithm: Recommender
    draws: Draws

    def __post_init__(self) -> None:
        """Raises `ConfigError` for releases that the audit has no theory for."""
        for release in self.spec.releases:
            if release.mechanism != "rounded-gaussian" or release.sampling != 1:
                raise ConfigError(
                    f"got release {release.name} with {release.mechanism} and sampling {release.sampling:g}, expected"
                    " rounded-gaussian without sampling",
                    hint="audit a job of trainer subspace or als",
                )

    @property
    def drawers(self) -> int:
        """How many draws lie on an opened total."""
        return draws(self.spec.privacy.noise, len(self.spec.parties))

    @property
    def honest(self) -> int:
        """How many of them are left to those who collude: what the claim rests on."""
        return self.drawers - colluding(self.spec.privacy.noise, len(self.spec.parties)) if self.drawers > 1 else 1

    @property
    def mu(self) -> float:
        """The job as one Gaussian mechanism: sqrt of the sum of (sensitivity / sigma)^2."""
        return math.sqrt(sum(squared_mu(release) for release in self.spec.releases) / 2.0**128)


def honest(spec: JobSpec, catalogue: Catalogue, key: bytes) -> Mechanism:
    """The mechanism as it is. key: 16 bytes or more; every (run, release, drawer) gets a keystream of its own."""

    def drawn(run: int, release: Release) -> list[Int64]:
        count = draws(spec.privacy.noise, len(spec.parties))
        labels = [b"%s/%d/%s/%d" % (_DOMAIN, run, release.name.encode(), drawer) for drawer in range(count)]
        return [noise_of.draw(drawer_release(spec, release), keyed_source(key, label)) for label in labels]

    return Mechanism(spec, recommender_of(spec, catalogue), drawn)


def drawer_release(spec: JobSpec, release: Release) -> Release:
    """What one drawer draws: the release itself for the source "dealer", a party's part for "parties"."""
    noise = spec.privacy.noise
    return release if noise.source == "dealer" else party_release(release, noise, len(spec.parties))


class Opener(Protocol):
    """Opens one release over parties: for audits of joint runs."""

    def __call__(self, release: Release, sums: Sequence[Int64]) -> Int64:
        """The noised total of the parts' sums, int64 of the release's shape."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Opening:
    """One release of one run.

    Attributes:
        release: as in the job.
        residual: opened minus exact sum.
        sigma: of one draw, as claimed.
        draws: what each drawer added; known in central runs only.
    """

    release: Release
    residual: Int64
    sigma: int
    draws: tuple[Int64, ...]

    def views(self, honest: int) -> list[Int64]:
        """What is left when all but `honest` parties subtract their own draws, for each run of neighbouring parties.

        [] where single draws are unknown, or where there is one only.
        """
        count = len(self.draws)
        if count < 2:
            return []
        known = [[self.draws[(first + k) % count] for k in range(honest, count)] for first in range(count)]
        return [self.residual - sum(others, np.zeros(self.release.shape, np.int64)) for others in known]


@dataclass(frozen=True, eq=False, repr=False)
class RunRecord:
    """One audited run. Holds what only the auditor may know.

    Attributes:
        scores: float64[m], one a canary; see the module's docstring.
        regression: c, G and the coins, for the parametric bound.
        strengths: float64[m], each canary's mu as a share of the job's mu; at most 1 if sensitivities are right.
        included: bool[m], the coins.
        openings: one for each release, in order.
        states: the public state before each step, then the last one.
        apart: by step, whether the canaries' own contributions add up to their party's sum, exactly.
    """

    number: int
    scores: Float64
    regression: Regression
    strengths: Float64
    included: Bool
    openings: list[Opening]
    states: list[PublicState]
    apart: dict[str, int] = field(default_factory=dict)

    def bounds(self, delta: float, significance: float) -> EpsilonBounds:
        """Lower bounds on epsilon from this run."""
        return epsilon_bounds(self.scores, self.included, delta, significance, self.regression)


def audited_run(
    mechanism: Mechanism,
    rest: Interactions,
    canaries: Interactions,
    included: Bool,
    *,
    number: int = 0,
    opener: Opener | None = None,
) -> RunRecord:
    """Runs the job on `rest` and the included canaries. opener: for joint runs; central by default."""
    if included.shape != (canaries.users,) or included.dtype != np.bool_:
        raise InputError(f"got coins {included.dtype}{included.shape}, expected bool({canaries.users},)")
    spec, algorithm = mechanism.spec, mechanism.algorithm
    present = PartyRows(canaries.rows(included))
    correlation, gram = np.zeros(canaries.users), np.zeros((canaries.users, canaries.users))
    state: PublicState = {}
    states, openings, apart = [state], [], {}
    for step in algorithm.steps:
        release = spec.release(step)
        others = algorithm.contribution(step, PartyRows(rest), state)
        own = algorithm.contribution(step, present, state)
        drawn: tuple[Int64, ...] = ()
        if opener is None:
            drawn = tuple(mechanism.draws(number, release))
            opened = others + own + sum(drawn, np.zeros(release.shape, np.int64))
        else:
            opened = opener(release, [others, own])
        one_draw = drawer_release(spec, release).sigma
        opening = Opening(release, opened - others - own, one_draw, drawn)
        openings.append(opening)
        # The auditor's side: what it sees, less what it knows, less what it expects of canaries whose coins it forgot.
        views = opening.views(mechanism.honest)
        noise = views[number % len(views)] if views else opening.residual
        scale = math.sqrt(mechanism.honest) * one_draw if views else total_sd(spec, release)
        everybody = algorithm.contribution(step, PartyRows(canaries), state)
        left = (((noise + own) - 0.5 * everybody).reshape(-1) / scale).astype(np.float32)
        added = np.zeros(release.shape, np.int64)
        for users in _blocks(canaries.users, release.size):
            vectors = np.empty((len(users), release.size), np.float32)
            for row, user in enumerate(users):
                one = algorithm.contribution(step, PartyRows(canaries.rows(np.array([user]))), state)
                if included[user]:
                    added += one
                vectors[row] = one.reshape(-1) / scale
            correlation[users] += vectors @ left
            gram[np.ix_(users, users)] += vectors @ vectors.T
        apart[step] = int(np.count_nonzero(added != own))
        state = algorithm.advance(step, opened, state)
        states.append(state)
    strengths = np.sqrt(np.diag(gram)) / mechanism.mu
    regression = Regression.of(correlation, gram, included)
    return RunRecord(number, _scores(correlation, gram), regression, strengths, included, openings, states, apart)


def _blocks(canaries: int, size: int) -> list[list[int]]:
    step = max(1, _BLOCK_ENTRIES // size)
    return [list(range(start, min(start + step, canaries))) for start in range(0, canaries, step)]


def _scores(correlation: Float64, gram: Float64) -> Float64:
    weights = np.linalg.inv(gram + 4 * np.eye(len(gram)))
    response = weights @ gram  # of x to b - 1/2
    others = np.square(response).sum(axis=1) - np.square(np.diag(response))
    variance = 0.25 * others + np.einsum("ij,ij->i", response, weights)
    sound = variance > 0
    scores: Float64 = np.divide(
        weights @ correlation, np.sqrt(np.where(sound, variance, 1.0)), out=np.zeros(len(gram)), where=sound
    )
    return scores
