"""The user tower of a published model, split into what a server computes from an encrypted history and what is left.

A user vector (`veil.recsys.model`, L = d - 3) is not linear in the history H of n items: its directions are divided by
their length r, and its last places are functions of n and of a mean, one of them clipped. All of it derives, by plain
formulas without a model, from sums over H, which are linear:

    z = sum of fold_in[i, :L],   N0, N1 = sums of norm_terms[i],   T = sum of (fold_in[i, L + 2] - taste centre)

    score of item j  =  <item_factors[j, :L], z> / r  +  sum over k of  basis[j, k] <mixing[k], (1, f, g)>
    r^2 = N0 - N1^2     f = the length term of n     g = the taste term of T / n     item_factors[:, L:] = basis mixing

The server returns for each item the answers <item_factors[j, :L], z> and basis[j, k], and some readouts. The basis has
rank k = 2 for models of Veil's trainers (two of their three user terms weigh the same property of an item). So a client
needs the number of items of its history and this file. What it learns is the same as with a model: the scores; from the
answers one by one it sees how a score is made up, which two histories of different length would show as well.

With weights x = 1/sqrt(n), sigma the largest singular value of fold_in[:, :L], tau = 2 |norm_terms[:, 1]|:

    user vector u    z / (sqrt(n) sigma)  |  h = 1 + N1 / (sqrt(n) tau)  |  w = p N0 / (sqrt(n) sigma^2)
                     |  t T / sqrt(n)
    answers          <item_factors[:, :L] / item norm, u[:L]>,   h basis / (1.5 largest of basis)
    readouts         h,   (tau / sigma) h,   w,   w / p,   T / sqrt(n),   1.5 largest * mixing[k] h

Every bound holds for any set of items as a history, by Cauchy and Schwarz: |u[:L]| <= 1 since |x| = 1, 1/2 <= h <= 3/2.
The 1 in h is the server's constant (`he_inference.engine.history`): multiplied by it, numbers that do not depend on the
client travel as the others do.

Guarantee: `combined` gives the scores of the model's own formulas, clipping included, up to the error that it states. A
model without user terms (`linear_tower`) has one answer for each item, and its scores need no readout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from he_inference.encoding.deviation import stated_error
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.history_parts import READOUTS
from he_inference.layouts.seam import Floats
from he_inference.parameters import HISTORY
from veil.errors import CiphertextError, ConfigError, InputError
from veil.recsys.postprocess import LENGTH_CENTRE, LENGTH_SCALE, TASTE_SCALE, USER_TERM_LIMIT, USER_TERMS

# Singular values of the user terms below this share of the largest are rounding of float32.
_RANK_SHARE = 1e-5
# The columns of N0 and T are brought to about 1 for histories of 1,024 and 4,096 items: their size adds to the error of
# all outputs, and their readouts multiply the error of their own by what they were divided by.
_WEIGHT_ROOT = 32.0
_TASTE_ROOT = 64.0
_DEGENERATE = 1e-9
_MOST_GAIN = 1e6


@dataclass(frozen=True, eq=False)
class Tower:
    """What a server's index is made of.

    fold_in: float64[items, d], for `HistoryLayout.fold_in_polynomials`. rows: float64[outputs, d], for
    `item_polynomials`. item_norm: what the offer states.
    """

    layout: HistoryLayout
    fold_in: Floats = field(repr=False)
    rows: Floats = field(repr=False)
    item_norm: float


@dataclass(frozen=True, eq=False)
class Combined:
    """Scores float64[items], and the bound of |score - plaintext score| for them."""

    scores: Floats = field(repr=False)
    error: float


def split(
    fold_in: NDArray[np.floating], norm_terms: NDArray[np.floating], factors: NDArray[np.floating], taste_centre: float
) -> Tower:
    """The server's part of a model (`veil.recsys.model.Model`: fold_in, norm_terms, item_factors, taste_centre)."""
    items, d = fold_in.shape
    linear = d - USER_TERMS
    if factors.shape != (items, d) or norm_terms.shape != (items, 2) or linear < 0:
        raise ConfigError(
            f"got fold-in {fold_in.shape}, norm terms {norm_terms.shape} and factors {factors.shape}, expected ones of"
            " the same items"
        )
    basis, mixing = _factored(factors[:, linear:].astype(np.float64))
    fold, rows = fold_in.astype(np.float64).copy(), factors.astype(np.float64).copy()
    sigma, norm = _spectral_norm(fold[:, :linear]), _longest(rows[:, :linear])
    terms = norm_terms.astype(np.float64)
    tau = 2.0 * float(np.linalg.norm(terms[:, 1])) or 1.0
    weight = 1.0 / (_WEIGHT_ROOT * (float(terms[:, 0].mean()) / sigma**2 or 1.0))
    fold[:, :linear] /= sigma
    fold[:, linear] = terms[:, 1] / tau
    fold[:, linear + 1] = terms[:, 0] / sigma**2 * weight
    fold[:, linear + 2] = (fold_in[:, linear + 2].astype(np.float64) - taste_centre) / _TASTE_ROOT
    rows[:, :linear] /= norm
    rows[:, linear:] = 0.0
    largest = 1.5 * (float(np.abs(basis).max()) or 1.0)
    readouts = np.zeros((READOUTS + mixing.size, d))
    readouts[0, linear] = 1.0
    readouts[1, linear] = tau / sigma
    readouts[2, linear + 1] = 1.0
    readouts[3, linear + 1] = 1.0 / weight
    readouts[4, linear + 2] = _TASTE_ROOT
    readouts[READOUTS:, linear] = largest * mixing.ravel()
    answers = [rows]
    for column in basis.T:
        answer = np.zeros((items, d))
        answer[:, linear] = column / largest
        answers.append(answer)
    layout = HistoryLayout(HISTORY, items, d, 1 + basis.shape[1])
    return Tower(layout, fold, layout.arranged(np.concatenate(answers), readouts), norm)


def linear_tower(fold_in: NDArray[np.floating], factors: NDArray[np.floating]) -> Tower:
    """The server's part of a linear model, float[items, d] each: scores = factors (sum of fold_in over a history)."""
    if fold_in.shape != factors.shape or fold_in.ndim != 2:
        raise ConfigError(f"got fold-in {fold_in.shape} and factors {factors.shape}, expected the same shape")
    sigma, norm = _spectral_norm(fold_in.astype(np.float64)), _longest(factors.astype(np.float64))
    layout = HistoryLayout(HISTORY, fold_in.shape[0], fold_in.shape[1], 1)
    return Tower(layout, fold_in / np.float64(sigma), factors / np.float64(norm), norm * sigma)


def weights(history: NDArray[np.integer] | list[int], items: int) -> tuple[Floats, int]:
    """(x float64[items], n): 1/sqrt(n) at each distinct item of the history. Raises `InputError`."""
    met = np.unique(np.asarray(history, dtype=np.int64).reshape(-1))
    if len(met) and (met[0] < 0 or met[-1] >= items):
        raise InputError(f"got an item number outside 0 to {items - 1}, expected items of this catalogue")
    result = np.zeros(items)
    result[met] = 1.0 / math.sqrt(max(len(met), 1))
    return result, len(met)


def combined(layout: HistoryLayout, outputs: Floats, history_items: int, item_norm: float) -> Combined:
    """Scores from outputs float64[outputs] (`HistoryLayout.scores`) of a history of so many items. Raises
    `CiphertextError`, also when the outputs cannot be those of such a history."""
    if outputs.shape != (layout.outputs,) or not np.isfinite(outputs).all():
        raise CiphertextError(f"got outputs of shape {outputs.shape}, expected {layout.outputs} finite numbers")
    root = math.sqrt(history_items)
    answers, readouts = layout.parted(outputs)
    if layout.packing == 1:
        return Combined(answers[0] * (item_norm * root), item_norm * root * stated_error(layout, 1.0))
    constant, popular, small_weight, weight, taste = (float(value) for value in readouts[:READOUTS])
    mixing = readouts[READOUTS:].reshape(-1, USER_TERMS)
    if not 0.499 <= constant <= 1.501:
        raise CiphertextError("got an answer whose constant is out of range, expected one of this server's index")
    user_norm = math.sqrt(1.0 + constant**2 + small_weight**2 + (taste / _TASTE_ROOT) ** 2)
    noise = stated_error(layout, user_norm)
    # r^2 / sigma^2, from the part of h that is not the constant
    popular *= (constant - 1.0) / constant
    squared = root * weight - history_items * popular**2
    # What the rows of readouts multiply the error of their column by.
    weight_gain = max(1.0, abs(weight / small_weight)) if small_weight > noise else _MOST_GAIN
    largest_gain = max(1.0, abs(float(readouts[1])) / constant, float(np.abs(mixing).max()) / constant)
    squared_error = noise * (root * weight_gain + 2.0 * history_items * abs(popular) * largest_gain)
    scale, bound = 0.0, 0.0
    if history_items and squared > max(_DEGENERATE * root * weight, 2.0 * squared_error):
        scale = item_norm * root / math.sqrt(squared)
        bound = scale * (noise + float(np.abs(answers[0]).max()) * squared_error / squared)
    elif history_items:
        # No longer than the noise: a model says 0 for directions of no length; no score has a larger part of them.
        bound = math.sqrt(2.0) * item_norm
    length = _term(math.log(max(history_items, 1)) - LENGTH_CENTRE, LENGTH_SCALE)
    liking = _term(taste / root, TASTE_SCALE) if history_items else 0.0
    liking_error = _TASTE_ROOT * noise / max(root, 1.0) / (TASTE_SCALE * USER_TERM_LIMIT)
    # Both the answers and the mixing were multiplied by h.
    mixing = mixing / constant**2
    strength = mixing @ np.array([1.0, length, liking])
    scores = scale * answers[0] + strength @ answers[1:]
    for own, row, answer in zip(strength, mixing, answers[1:], strict=True):
        largest = float(np.abs(answer).max())
        relative = 2.0 * noise / constant
        of_strength = abs(float(row[2])) * liking_error + noise * largest_gain * 3.0 / constant**2 + abs(own) * relative
        bound += abs(own) * noise + largest * of_strength
    return Combined(scores, bound)


def _term(value: float, scale: float) -> float:
    return min(max(value / scale, -USER_TERM_LIMIT), USER_TERM_LIMIT) / USER_TERM_LIMIT


def _factored(terms: Floats) -> tuple[Floats, Floats]:
    """(basis [items, k], mixing [k, 3]), whose product is `terms`, for the least k of at least 1."""
    left, values, right = np.linalg.svd(terms, full_matrices=False)
    rank = max(1, int((values > _RANK_SHARE * max(float(values[0]), 1e-30)).sum()))
    return left[:, :rank] * values[:rank], right[:rank]


def _spectral_norm(rows: Floats) -> float:
    if not rows.shape[1]:
        return 1.0
    return float(np.sqrt(max(float(np.linalg.eigvalsh(rows.T @ rows)[-1]), 0.0))) * (1.0 + 1e-9) or 1.0


def _longest(rows: Floats) -> float:
    if not rows.shape[1]:
        return 1.0
    return float(np.linalg.norm(rows, axis=1).max()) * (1.0 + 1e-9) or 1.0
