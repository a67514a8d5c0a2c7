"""From opened sums to item factors of side information: public numbers alone, so nothing here costs privacy.

With the opened, noised S = sum_u y_u g_u^T (items x width) and M = sum_u g_u g_u^T of one party, both over users:

    S'   S less most of its noise (`veil.recsys.postprocess.denoised_sum`)
    A    (M + M^T) / 2, negative eigenvalues at 0
    O    S' (A + (ridge B^2 + 2 t sqrt(width)) I)^-1        what a row of columns says of the user's row of items, by
         ridge regression; t the noise of an entry of (M + M^T) / 2, so that directions of noise alone count little
    V    O / (D sqrt(c)) by item, D the recommender's item weights, c its counts: O is in the units of rows y, whose
         spread grows with an item's popularity, as that of counts does
    W    weight V / s, s the root of the mean over items of v_i^T (A / N) v_i: how far V's scores lie apart over users

`weight` follows from the share of noise in S, noise^2 entries / |S|^2, itself an opened number (`mixing_weight`).

Several parties' parts are added as they come: what two parties' columns say alike is counted twice.

What was chosen on what. The form of V, ridge and weights: on the last training items by time of the 2,998 users of
MovieLens-1M whose times are known, and of MovieLens-100K, with their users' gender, age and occupation as columns and
no item text; no test item, and no privacy paid for it.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.jobs.side import MixingTerms
from veil.recsys import postprocess

Float64 = npt.NDArray[np.float64]

_LEAST_SPREAD: Final = 1e-12
_MOST_RATIO: Final = 1.0


def moment_matrix(opened: Float64) -> Float64:
    """The nearest symmetric matrix without negative eigenvalues, float64[width, width], of an opened moment."""
    values, vectors = np.linalg.eigh((opened + opened.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def noise_ratio(outer: Float64, noise_sd: float) -> float:
    """Share of the opened matrix's squared norm that noise alone would have, in (0, 1]."""
    total = float(np.square(outer).sum())
    if noise_sd <= 0 or total <= 0:
        return _MOST_RATIO if total <= 0 else 1e-9
    return min(max(noise_sd**2 * outer.size / total, 1e-9), _MOST_RATIO)


def mixing_weight(terms: MixingTerms, ratio: float) -> float:
    """How far side scores lie apart, in units of the item factors: linear in the ratio's logarithm between its ends."""
    weak, strong = math.log(terms.ratio_weak), math.log(terms.ratio_strong)
    if weak <= strong:
        return terms.weak
    share = min(max((math.log(ratio) - strong) / (weak - strong), 0.0), 1.0)
    return share * terms.weak + (1.0 - share) * terms.strong


def side_factors(
    outer: Float64,
    outer_sd: float,
    moment: Float64,
    moment_sd: float,
    *,
    users: float,
    norm: float,
    counts: Float64,
    power: float,
    directions: postprocess.Directions,
    ridge: float,
    mixing: MixingTerms,
) -> Float64:
    """W, float64[items, width].

    outer: float64[items, width], moment: float64[width, width], opened; `_sd`: noise of each entry. users: noised
    number of rows; norm: the party's norm_share; counts: float64[items] > 0; power: a in D = c^-a; ridge in users.
    """
    width = outer.shape[1]
    cleaned = postprocess.denoised_sum(outer, outer_sd, counts, directions)
    second = moment_matrix(moment)
    prior = ridge * norm**2 + 2.0 * moment_sd / math.sqrt(2.0) * math.sqrt(width)
    regressed = np.linalg.solve(second + prior * np.eye(width), cleaned.T).T
    weight, _ = postprocess.item_weights(counts, power)
    scaled = regressed / (weight * np.sqrt(counts))[:, None]
    covariance = second / max(users, 1.0)
    spread = math.sqrt(max(float(((scaled @ covariance) * scaled).sum(axis=1).mean()), 0.0))
    if spread < _LEAST_SPREAD:
        return np.zeros_like(scaled)
    return np.asarray(scaled * (mixing_weight(mixing, noise_ratio(outer, outer_sd)) / spread))
