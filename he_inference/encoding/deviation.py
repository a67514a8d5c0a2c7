"""How large the error of a score is: the one place of formulas, for stated bounds, estimates and choices.

Guarantee: `stated_error` is the bound that is promised, and what clients, servers and tools quote. `session`,
`keyless`, `history` return an upper bound of the standard deviation of score - plaintext score for vectors of norm 1,
over the randomness of keys, ciphertexts and dither, of the CKKS sets: a stated bound is `SIGMAS` of them. `expected` is
the deviation for random vectors, which measured errors meet within a tenth. `wrong` is for the exact set that of a
coefficient's distance from the right one, in units in which 1/2 is a wrong answer; `log2_reached` bounds the chance of
such a distance in an answer. Tests compare all with measurements.

Letters: N the degree, S = N/2 slots; 2^x and 2^y the scales of query and items; Q, P the products of data and special
primes; e the deviation of SEAL's errors, a difference of two sums of 21 bits; 2/3 the mean square of the secret key's
coefficients; t1, t0 the bits of both halves of a result. A polynomial whose coefficients have deviation c has deviation
sqrt(S) c in each half (real, imaginary) of each slot.

    rotation   r^2 = N/12 e^2 (Q/P)^2 + (1 + 2N/3)/12                          (ring/switch.py)
    query      a ciphertext after k rotations carries e^2 + 1/12 + k r^2; both halves of a slot meet an item of norm 1
               each: N of it / 4^x. At most k = b - 1; on average over baby steps (b - 1)/2, and one half of a slot is
               empty where there are no more than S items
    items      rounding after dither has variance f(1 - f), at most 1/4 and 1/6 on average: N/8 or N/12, / 4^y
    answer     the second half, rounded to steps of Q/2^t1, times the key, and the first to Q/2^t0:
               S a (Q/2^x/2^y)^2, a = ((2N/3) 4^-t1 + 4^-t0)/12
    giant      S (g - 1) r^2 / 4^(x + y)

The exact set works on coefficients and not on slots: one of the answer, in units of Q/t, has the sum over D terms of
N coefficients each of a query's error, e^2 + 1/12 + (b - 1)/2 r^2 on average over baby steps, times an item's, whose
random lift (`encoding/slots.py`) has mean 0 and variance t^2 f(1 - f), at most t^2/4 and t^2/6 on average:

    wrong      N D (e^2 + 1/12 + (b - 1)/2 r^2) t^2/6 (t/Q)^2 + a t^2

Coefficient packing has no slots: a coefficient of the answer meets N/g items of norm 1 through the query's errors,
N/g e^2 / 4^x; the factor S of the answer falls away; items are rounded without dither, which is sqrt(d)/2 / 2^y at
most and added whole (2^-x of the query likewise), 1/12 / 4^y on average.

A history's user vector u (`he_inference.layouts.history`) has, before it is scored with, in each entry the errors

    weights    S (e^2 + 1/12 + (b - 1) r^2) / 4^x, for a column of fold-in rows of norm 1
    fold-in    rounding of both halves of a slot, counted twice by the trace: N/2 or N/3, / f^2, f the fold-in scale

and a rescaling's rounding, which is one rotation more in `query`. Whatever else happens under three primes has errors
that are divided by a prime of 27 bits. Rounded rows are multiplied by |u|, which is up to `USER_NORM` and not 1.
"""

from __future__ import annotations

import math
from fractions import Fraction

from he_inference.encoding.slots import Bfv
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.seam import Layout
from he_inference.parameters import HISTORY, HISTORY_SCORES, Parameters
from veil.errors import ConfigError

# Two-sided: 2.6e-12 of all scores of a normal distribution lie beyond.
SIGMAS = 7.0
# |u| that the stated error of a history's outputs is for.
USER_NORM = 2.0
# Of an item's polynomial after dither, whatever the values are, and on average; of the exact set in units of t^2.
_DITHERED_MOST, _DITHERED_MEAN = 1 / 4, 1 / 6
_UNIFORM = 1 / 12
_FRESH_VARIANCE = 21 / 2
_KEY_MEAN_SQUARE = 2 / 3


def stated_error(layout: Layout, user_norm: float | None = None) -> float:
    """The bound of |score - plaintext score| for unit vectors; of a history, of |output - plaintext output|.

    user_norm: |u| of a history, where it is known; `USER_NORM` otherwise. Without meaning for other layouts, whose
    vectors are never longer than 1.
    """
    bound = layout.parameters.score_error
    if user_norm is None or not isinstance(layout, HistoryLayout):
        return bound
    return bound * math.sqrt((1.0 + user_norm**2) / (1.0 + USER_NORM**2))


def exact_rounding(layout: Layout) -> float:
    """Bound of the exact set's |score - plaintext score| for any unit vectors, whatever their entries; 0 for others.

    `stated_error` is for entries that are rounded like random ones. Entries that are alike (one-hot features of a row,
    most of them at one small value each) are rounded to the same side, and their errors add up:

        |<u', v'> - <u, v>| <= |u' - u| + |v' - v| + |u' - u| |v' - v|, each |x' - x| at most sqrt(d) / 2 LEVELS
    """
    if layout.parameters.scheme != "bfv":
        return 0.0
    apart = math.sqrt(layout.dimensions) / (2 * Bfv.LEVELS)
    return 2 * apart + apart**2


def rotation(parameters: Parameters) -> float:
    """r: deviation of the error that one rotation adds to a coefficient."""
    n, (data, special) = parameters.degree, _products(parameters)
    ratio = float(Fraction(data, special))
    return math.sqrt(n / 12 * _FRESH_VARIANCE * ratio**2 + (1 + _KEY_MEAN_SQUARE * n) / 12)


def session(parameters: Parameters, rotations: int) -> float:
    """Deviation of a score in the session layout with `rotations` baby steps (CKKS), at most."""
    query = 2 * _query(parameters, rotations - 1)
    return math.sqrt(query + _slots(parameters, _DITHERED_MOST) + parameters.slots * _answer(parameters))


def keyless(parameters: Parameters, packing: int) -> float:
    """Deviation of a score with coefficient packing, the bound of rounding not included (`keyless_rounding`)."""
    query = parameters.degree / packing * _FRESH_VARIANCE / 4.0**parameters.query_scale_bits
    return math.sqrt(query + _answer(parameters))


def keyless_rounding(parameters: Parameters, dimensions: int) -> float:
    """Bound of what the rounding of items and query adds, whatever they are."""
    return math.sqrt(dimensions) / 2 * (2.0**-parameters.query_scale_bits + 2.0**-parameters.item_scale_bits)


def history(rotations: int, user_norm: float = USER_NORM) -> float:
    """Deviation of an output of a history with `rotations` baby steps and |u| of at most `user_norm`, for rows of
    norm 1, at most."""
    return _history(rotations, rotations, shared=2, dithered=_DITHERED_MOST, user_norm=user_norm)


def wrong(parameters: Parameters, rotations: int, terms: int) -> float:
    """Deviation of a decrypted coefficient of the exact set times t/Q; 1/2 is a wrong answer.

    For catalogues whose polynomials have coefficients uniform modulo t, which is most of them; `terms`: D.
    """
    return _wrong(parameters, rotations, terms, _DITHERED_MEAN)


def log2_reached(layout: Layout, distance: float) -> float:
    """log2 of a bound of the chance that any coefficient of one honest response of the exact set lies `distance` or
    more from its right value, in units of `wrong`; at most 0. Raises `ConfigError` for another set.

    For every catalogue: given the query's errors, a coefficient is a sum of independent numbers of mean 0 out of
    intervals of length t times those errors (the lifts; rounding and errors of the answer are such sums, too), so
    P(|sum| >= x) <= 2 exp(-x^2 / 2 s^2) with s^2 = `wrong` at t^2/4 (Hoeffding 1963, theorem 2). Left to estimate is
    the sum of squares of the query's errors, by its mean; it differs from key to key by 1.6 % (measured).
    """
    parameters = layout.parameters
    if parameters.scheme != "bfv":
        raise ConfigError(f"got parameter set {parameters.name}, expected an exact one")
    deviation = _wrong(parameters, layout.rotations, layout.groups * layout.rotations, _DITHERED_MOST)
    coefficients = layout.blocks * parameters.degree
    return min(0.0, 1.0 + math.log2(coefficients) - (distance / deviation) ** 2 / 2 * math.log2(math.e))


def expected(layout: Layout, user_norm: float = 1.0) -> float:
    """Deviation of score - plaintext score for random unit vectors; of a history, of its outputs for rows of norm 1.

    user_norm: |u| of the history. The exact set has the error of rounding vectors alone.
    """
    parameters = layout.parameters
    if parameters.scheme == "bfv":
        return math.sqrt(2 * _UNIFORM) / Bfv.LEVELS
    mean, slots = (layout.rotations - 1) / 2, parameters.slots
    if isinstance(layout, HistoryLayout):
        shared = 2 if layout.answers > slots else 1
        return _history(layout.rotations, mean + 1, shared=shared, dithered=_DITHERED_MEAN, user_norm=user_norm)
    if not layout.galois_elements:
        query = layout.block_items * _ciphertext(parameters, 0.0) / 4.0**parameters.query_scale_bits
        return math.sqrt(query + _UNIFORM / 4.0**parameters.item_scale_bits + _answer(parameters))
    query = (2 if layout.items > slots else 1) * _query(parameters, mean)
    giant = slots * (layout.groups - 1) * rotation(parameters) ** 2 / _scale(parameters) ** 2
    return math.sqrt(query + _slots(parameters, _DITHERED_MEAN) + slots * _answer(parameters) + giant)


def coefficient(layout: Layout) -> float:
    """Deviation of a coefficient of a decrypted result, where `expected` is that of a score (CKKS), in steps of one."""
    parameters = HISTORY_SCORES if isinstance(layout, HistoryLayout) else layout.parameters
    places = parameters.slots if layout.galois_elements else 1
    norm = USER_NORM if isinstance(layout, HistoryLayout) else 1.0
    return expected(layout, norm) * _scale(parameters) / math.sqrt(places)


def _wrong(parameters: Parameters, rotations: int, terms: int, lifted: float) -> float:
    """lifted: variance of an item's coefficient, in units of t^2."""
    n, t = parameters.degree, parameters.plain_modulus
    mean = _ciphertext(parameters, (rotations - 1) / 2)
    products = n * terms * mean * t**2 * lifted * (t / _products(parameters)[0]) ** 2
    return math.sqrt(products + _answer_variance(parameters) * t**2)


def _history(rotations: int, rounded: float, *, shared: int, dithered: float, user_norm: float) -> float:
    """rounded: rotations of u, its rescaling included."""
    scores = HISTORY_SCORES
    weights = _query(HISTORY, rotations - 1)
    # Diagonals are multiplied by half of the fold-in scale, and both halves of a slot meet: 4 of S.
    scale = HISTORY.data_primes[0] * 2.0 ** (scores.query_scale_bits - HISTORY.query_scale_bits)
    folded = 4 * scores.slots * dithered / scale**2
    turned = shared * scores.slots * rounded * rotation(scores) ** 2 / 4.0**scores.query_scale_bits
    rows = _slots(scores, dithered) * user_norm**2
    return math.sqrt(weights + folded + turned + rows + scores.slots * _answer(scores))


def _products(parameters: Parameters) -> tuple[int, int]:
    return math.prod(parameters.data_primes), math.prod(parameters.special_primes)


def _scale(parameters: Parameters) -> float:
    return 2.0 ** (parameters.query_scale_bits + parameters.item_scale_bits)


def _ciphertext(parameters: Parameters, rotated: float) -> float:
    """Variance of a coefficient of a query after so many rotations."""
    return _FRESH_VARIANCE + _UNIFORM + (rotated * rotation(parameters) ** 2 if rotated else 0.0)


def _query(parameters: Parameters, rotated: float) -> float:
    """Variance in one half of a slot after so many rotations."""
    return parameters.slots * _ciphertext(parameters, rotated) / 4.0**parameters.query_scale_bits


def _slots(parameters: Parameters, dithered: float) -> float:
    """Variance of a score for rounded items."""
    return parameters.slots * dithered / 4.0**parameters.item_scale_bits


def _answer_variance(parameters: Parameters) -> float:
    """Of a coefficient, by `response_bits`, in units of the modulus squared."""
    first, second = parameters.response_bits
    return (_KEY_MEAN_SQUARE * parameters.degree * 4.0**-second + 4.0**-first) / 12


def _answer(parameters: Parameters) -> float:
    """Of a coefficient, in units of scores squared."""
    return _answer_variance(parameters) * (_products(parameters)[0] / _scale(parameters)) ** 2
