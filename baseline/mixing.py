"""Mixing weights: how much each term of the score counts, fitted on held-out items.

Guarantee: deterministic for given inputs. Not private: it looks at held-out items in the clear, so it is for public
data sets (the constants in `veil.trainers.subspace.plan` come from MovieLens-100K) and for the plaintext baseline.

The score of a user u on an item i is linear in the weights w_j: sum_j w_j q_u . T_j[i]. With the held-out item and n
sampled negatives as candidates, `fit` minimises the mean softmax cross entropy plus a small ridge by L-BFGS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from veil.errors import InputError
from veil.recsys.interactions import Interactions
from veil.recsys.trained import Trained

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_RIDGE = 1e-3
_MASKED = -1e9
_USER_BLOCK = 1024


def columns(
    trained: Trained, train: Interactions, test_items: Int64, negatives: Int64
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """What each term gives each candidate: names and float32[users, 1 + n, terms], the held-out item first.

    test_items: int64[users] >= 0; negatives: int64[users, n]. A negative equal to the test item gets NaN.
    """
    if bool((test_items < 0).any()):
        raise InputError("got a user without a held-out item, expected one for each")
    candidates = np.concatenate([test_items[:, None], negatives], axis=1)
    terms = trained.terms()
    vectors = trained.model(dict.fromkeys(terms, 0.0)).user_vectors(train)
    out = np.empty((*candidates.shape, len(terms)), np.float32)
    for number, term in enumerate(terms.values()):
        own = vectors[:, term.first : term.first + term.factors.shape[1]]
        factors = term.factors.astype(np.float32)
        for start in range(0, len(own), _USER_BLOCK):
            part = slice(start, start + _USER_BLOCK)
            # Scores of all items, then the candidates: cheaper than gathering a vector for every candidate.
            out[part, :, number] = np.take_along_axis(own[part] @ factors.T, candidates[part], axis=1)
    out[:, 1:][negatives == test_items[:, None]] = np.nan
    return list(terms), out


def fit(names: Sequence[str], problems: Sequence[npt.NDArray[np.float32]]) -> dict[str, float]:
    """Weights by name, from one or more arrays of `columns` (several noise draws, say)."""
    stacked = np.concatenate(list(problems)).astype(np.float64)
    masked = np.isnan(stacked[..., 0])
    stacked[masked] = 0.0
    spread = stacked.std(axis=(0, 1))
    spread[spread < 1e-12] = 1.0
    stacked /= spread

    def loss(weights: Float64) -> tuple[float, Float64]:
        scores = np.where(masked, _MASKED, stacked @ weights)
        scores -= scores.max(axis=1, keepdims=True)
        likelihood = np.exp(scores)
        normaliser = likelihood.sum(axis=1, keepdims=True)
        likelihood /= normaliser
        value = float((np.log(normaliser[:, 0]) - scores[:, 0]).mean()) + _RIDGE * float(weights @ weights)
        likelihood[:, 0] -= 1.0
        gradient = np.tensordot(likelihood, stacked, axes=([0, 1], [0, 1])) / len(stacked)
        return value, gradient + 2.0 * _RIDGE * weights

    found = minimize(loss, np.zeros(stacked.shape[2]), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return {name: float(weight) for name, weight in zip(names, found.x / spread, strict=True)}
