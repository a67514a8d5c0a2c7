"""Free post-processing: what becomes of the opened, noised sums, none of which costs any more privacy.

Guarantee: every function here is deterministic and reads only public things: openings, their noise level, the public
catalogue and constants. By post-processing (Dwork and Roth, "The Algorithmic Foundations of Differential Privacy",
proposition 2.1) the result is as private as the openings are.

Three estimators and one assembly:

- `posterior_counts`: empirical Bayes for the counts; log-normal prior whose mean is a regression on public features.
- `public_directions`: the item directions that the public features span, weighted as the training weights items.
- `denoised_sum`, `shrink_sum`: the noised matrix toward its own features-explained part, by marginal likelihood, then a
  Wiener step in bins of popularity.
- `factor_terms`: the item factors as a linear combination of named terms, so that mixing weights can be fitted.

Letters: c counts, D = c^-a item weights, mu the unit popularity direction, U S the public directions and their
spectrum, F the feature design, s a noise standard deviation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Root mean square of a row of the scaled features; beside the constant column's 1 and the ridge of 3 below.
ROW_NORM = 1.5
_RIDGE = 3.0
_LEAST_COUNT = 0.05
_GRID_POINTS = 160
_EM_STEPS = 15
_ITEM_BLOCK = 65_536
_BINS = 8
_LEAST_SIGNAL_SHARE = 0.02
# Where the content spectrum is cut softly: the square of this singular value, or of the last if there are fewer.
_PIVOT = 30
_FACTOR_SOFTNESS = 0.3
_START_DOMAIN = b"veil/start-directions/v1\x00"

# How much more a match counts for a rare item: e^-0.4 for each standard deviation of log count, of which 3 at most,
# unless a trainer says otherwise.
RARITY = 0.4
_RARITY_LIMIT = 3.0

# User terms: how a user's own history length and mean log count are brought to order 1 (see `veil.recsys.model`).
# Beyond the limit, which is where the fit's users end, they count no further: weights must not be extrapolated.
LENGTH_CENTRE, LENGTH_SCALE = 4.6, 0.95
TASTE_SCALE = 0.5
USER_TERM_LIMIT = 2.0
USER_TERMS = 3
"""Entries of a user vector after the directions: constant, length, mean log count."""

TERMS = ("collaborative", "content", "popularity-root", "popularity-log", "length-log", "taste-log")
"""Every name that a mixing weight may have."""


def feature_design(features: Float32) -> Float64:
    """Columns centred, the whole scaled so that the mean squared row norm is 2.25, and a column of ones; F + 1 wide.

    features: float32[items, F], F may be 0. Columns that do not vary are dropped.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    spread = np.square(centred).sum(axis=0)
    centred = centred[:, spread > 1e-12 * max(1.0, float(spread.sum()))]
    if centred.shape[1]:
        centred *= ROW_NORM / math.sqrt(float(np.square(centred).sum(axis=1).mean()))
    return np.concatenate([centred, np.ones((len(features), 1))], axis=1)


def posterior_counts(noisy: Float64, noise_sd: float, design: Float64) -> Float64:
    """Posterior mean of each count under N(count, noise_sd^2); float64[items] >= 0.05.

    noisy: float64[items], any sign. Prior: log count normal about a ridge regression on `design` with one common
    variance, both by expectation maximisation over a grid of log counts. With noise_sd 0 the counts themselves.
    """
    if noise_sd <= 0:
        return np.maximum(noisy, _LEAST_COUNT)
    grid = np.linspace(math.log(_LEAST_COUNT), math.log(max(float(noisy.max()), 0.0) * 1.3 + 1.0), _GRID_POINTS)
    counts_of_grid = np.exp(grid)
    normal = design.T @ design + _RIDGE * np.eye(design.shape[1])
    centre = np.full(len(noisy), math.log(max(float(noisy.mean()), 0.5)))
    spread, out = 1.5, np.empty(len(noisy))
    for _ in range(_EM_STEPS):
        mean, variance = np.empty(len(noisy)), np.empty(len(noisy))
        for start in range(0, len(noisy), _ITEM_BLOCK):
            part = slice(start, start + _ITEM_BLOCK)
            log_posterior = -0.5 * np.square((noisy[part, None] - counts_of_grid) / noise_sd)
            log_posterior -= 0.5 * np.square((grid - centre[part, None]) / spread)
            posterior = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
            posterior /= posterior.sum(axis=1, keepdims=True)
            mean[part] = posterior @ grid
            variance[part] = posterior @ np.square(grid) - np.square(mean[part])
            out[part] = posterior @ counts_of_grid
        centre = design @ np.linalg.solve(normal, design.T @ mean)
        # Not below one grid step: a narrower prior would fall between the points.
        spread = max(math.sqrt(float((np.square(mean - centre) + variance).mean())), float(grid[1] - grid[0]))
    return np.maximum(out, _LEAST_COUNT)


def item_weights(counts: Float64, power: float) -> tuple[Float64, Float64]:
    """(D, mu): weights c^-power, float64[items], and the unit direction of c D, float64[items]."""
    weight = counts**-power
    direction = counts * weight
    return weight, direction / np.linalg.norm(direction)


@dataclass(frozen=True, eq=False)
class Directions:
    """Public item directions. `vectors`: float64[items, K], orthonormal, orthogonal to mu; `values`: float64[K] > 0,
    falling. K is the rank of the features, 0 without features."""

    vectors: Float64
    values: Float64

    def start(self, dimensions: int) -> Float64:
        """float64[items, dimensions] orthonormal: the first directions, filled up with fixed pseudo-random ones.

        The filling depends on its shape alone (SHAKE-256 of a constant), as without features there is nothing public
        to start from.
        """
        items, rank = self.vectors.shape
        if rank >= dimensions:
            return self.vectors[:, :dimensions]
        fill = dimensions - rank
        stream = np.frombuffer(hashlib.shake_256(_START_DOMAIN).digest((items * fill + 7) // 8), dtype=np.uint8)
        signs = 2.0 * np.unpackbits(stream)[: items * fill].reshape(items, fill) - 1.0
        return np.asarray(np.linalg.qr(np.concatenate([self.vectors, signs], axis=1))[0])


def public_directions(design: Float64, counts: Float64, weight: Float64, direction: Float64) -> Directions:
    """Left singular vectors of diag(sqrt(c) D) F less its mu part: where users would vary if features said all.

    Through the F x F Gram matrix; what is below 1e-5 of the largest singular value is dropped as rank deficiency.
    """
    scaled = design[:, :-1] * (np.sqrt(counts) * weight)[:, None]
    scaled -= np.outer(direction, direction @ scaled)
    values, right = np.linalg.eigh(scaled.T @ scaled)
    values, right = values[::-1], right[:, ::-1]
    kept = values > 1e-10 * max(float(values[0]), 1e-30) if len(values) else np.zeros(0, bool)
    kept[len(design) - 1 :] = False
    roots = np.sqrt(values[kept])
    return Directions(vectors=scaled @ (right[:, kept] / roots), values=roots)


def shrink_sum(noisy: Float64, noise_sd: float, counts: Float64, directions: Directions) -> tuple[Float64, Float64]:
    """Denoises Y = sum_u y_u h_u^T + noise (`denoised_sum`) and returns its left singular vectors and values.

    noisy: float64[items, d]; noise_sd: of each entry. Returns (float64[items, d] orthonormal, float64[d] falling).
    """
    left, values, _ = np.linalg.svd(denoised_sum(noisy, noise_sd, counts, directions), full_matrices=False)
    return left, values


def denoised_sum(noisy: Float64, noise_sd: float, counts: Float64, directions: Directions) -> Float64:
    """sum_u y_u h_u^T + noise, float64[items, d], without most of the noise; noise_sd: of each entry.

    Columns are rotated by the singular value decomposition; for each, the part within the public directions gets the
    prior N(0, alpha U S^2 U^T) with alpha by marginal likelihood, and what is left a Wiener step in 8 bins of
    popularity.
    """
    if noise_sd <= 0:
        return noisy
    left, values, right = np.linalg.svd(noisy, full_matrices=False)
    rotated, variance = left * values, noise_sd**2  # (items, d)
    prior_mean = np.zeros_like(rotated)
    if len(directions.values):
        inside = directions.vectors.T @ rotated  # (K, d)
        shape = (np.square(directions.values) / np.square(directions.values).mean())[:, None]
        alphas = np.exp(np.linspace(math.log(1e-3), math.log(1e3), 40)) * variance
        marginal = alphas[:, None, None] * shape + variance  # (40, K, 1)
        likelihood = -0.5 * (np.log(marginal) + np.square(inside)[None] / marginal).sum(axis=1)  # (40, d)
        prior = alphas[likelihood.argmax(axis=0)] * shape  # (K, d)
        prior_mean = directions.vectors @ (inside * prior / (prior + variance))
    out = np.empty_like(rotated)
    for members in np.array_split(np.argsort(-counts, kind="stable"), _BINS):
        if not len(members):
            continue
        residual = rotated[members] - prior_mean[members]
        power = np.square(residual).mean(axis=0)
        signal = np.maximum(power - variance, _LEAST_SIGNAL_SHARE * power)
        out[members] = prior_mean[members] + signal / (signal + variance) * residual
    return np.asarray(out @ right)


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of the item factors: `factors` float64[items, width], in the columns `first` to `first + width`."""

    first: int
    factors: Float64


def factor_terms(
    counts: Float64,
    directions: Directions,
    content_dimensions: int,
    basis: Float64 | None,
    strength: Float64 | None,
    rarity: float = RARITY,
) -> dict[str, Term]:
    """The item factors' summands by name; columns are (d collaborative, content, constant, length, mean log count).

    basis: float64[items, d] and strength: float64[d] of the last round, None without rounds. Entries are of order 1.

        collaborative     E diag(w / (w + 0.3 mean w)) g        w the strength, g = e^(-r l) the rarity of an item
        content           U diag(S^2 / (S^2 + S_31^2)) g        soft cut of the public spectrum
        popularity-root   standardised square root of the count, for everyone alike
        popularity-log    l, the standardised log count
        length-log        l, times the user's standardised log history length
        taste-log         l, times how popular the user's items are
    """
    items = len(counts)
    log_count = _standardised(np.log(counts))
    rare = np.exp(-rarity * np.clip(log_count, -_RARITY_LIMIT, _RARITY_LIMIT))[:, None] * math.sqrt(items)
    terms: dict[str, Term] = {}
    dimensions = 0
    if basis is not None and strength is not None:
        dimensions = basis.shape[1]
        share = strength / (strength + _FACTOR_SOFTNESS * max(float(strength.mean()), 1e-300))
        terms["collaborative"] = Term(0, basis * share * rare)
    rank = min(content_dimensions, len(directions.values))
    if rank:
        squared = np.square(directions.values)
        share = (squared / (squared + squared[min(_PIVOT, len(squared) - 1)]))[:rank]
        terms["content"] = Term(dimensions, directions.vectors[:, :rank] * share * rare)
    constant = dimensions + rank
    terms["popularity-root"] = Term(constant, _standardised(np.sqrt(counts))[:, None])
    terms["popularity-log"] = Term(constant, log_count[:, None])
    # The user's entry is divided by the limit to stay within [-1, 1]; the item's makes up for it.
    terms["length-log"] = Term(constant + 1, USER_TERM_LIMIT * log_count[:, None])
    terms["taste-log"] = Term(constant + 2, USER_TERM_LIMIT * log_count[:, None])
    return terms


def combine(terms: Mapping[str, Term], weights: Mapping[str, float], columns: int) -> Float64:
    """Item factors, float64[items, columns]: the weighted sum. Raises `ConfigError` when a weight is missing."""
    missing = sorted(set(terms) - set(weights))
    if missing:
        raise ConfigError(f"got no mixing weight for {', '.join(missing)}, expected one for each term")
    items = len(next(iter(terms.values())).factors)
    out = np.zeros((items, columns))
    for name, term in terms.items():
        out[:, term.first : term.first + term.factors.shape[1]] += weights[name] * term.factors
    return out


def _standardised(values: Float64) -> Float64:
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 1e-12 else np.zeros_like(values)
