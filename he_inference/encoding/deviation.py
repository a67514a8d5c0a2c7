"""How large the error of a score is, by formula: what the stated bounds of parameter sets rest on.

Guarantee: `session`, `keyless` return an upper bound of the standard deviation of score - plaintext score for vectors
of norm 1, over the randomness of keys, ciphertexts and dither, of the CKKS sets; `wrong` for the exact set that of a
coefficient's distance from the right one, in units in which 1/2 is a wrong answer. A stated bound is `SIGMAS` of them.
Tests compare the formulas with measured errors.

Letters: N the degree; 2^x and 2^y the scales of query and items; Q, P the products of data and special primes; e the
deviation of SEAL's errors, a difference of two sums of 21 bits; 2/3 the mean square of the secret key's coefficients. A
polynomial whose coefficients have deviation c has deviation sqrt(N/2) c in each half (real, imaginary) of each slot.

    rotation   r^2 = N/12 e^2 (Q/P)^2 + (1 + 2N/3)/12                          (ring/switch.py)
    query      baby step k carries q^2 = e^2 + 1/12 + k r^2; both halves of a slot meet an item of norm 1 each:
               N q^2 / 4^x, at most k = b - 1
    items      rounding after dither has variance f(1 - f) <= 1/4: N/8 / 4^y
    answer     the second half, rounded to steps of Q/2^t1, times the key, and the first to Q/2^t0:
               N/2 ((2N/3) (Q/2^t1)^2 + (Q/2^t0)^2) / 12 / 4^(x + y)
    giant      N/2 (g - 1) r^2 / 4^(x + y), which is nothing beside the others

Coefficient packing has no slots: a coefficient of the answer meets N/g items of norm 1 through the query's errors,
N/g e^2 / 4^x; the factor N/2 of the answer falls away; items are rounded without dither, which is sqrt(d)/2 / 2^y at
most and added whole (2^-x of the query likewise).
"""

from __future__ import annotations

import math

from he_inference.parameters import Parameters

# Two-sided: 2.6e-12 of all scores of a normal distribution lie beyond.
SIGMAS = 7.0
_FRESH_VARIANCE = 21 / 2
_KEY_MEAN_SQUARE = 2 / 3


def _products(parameters: Parameters) -> tuple[float, float]:
    return float(math.prod(parameters.data_primes)), float(math.prod(parameters.special_primes))


def rotation(parameters: Parameters) -> float:
    """r: deviation of the error that one rotation adds to a coefficient."""
    n = parameters.degree
    data, special = _products(parameters)
    return math.sqrt(n / 12 * _FRESH_VARIANCE * (data / special) ** 2 + (1 + _KEY_MEAN_SQUARE * n) / 12)


def _answer_variance(parameters: Parameters) -> float:
    """Of a coefficient, by `response_bits`, in units of the modulus squared."""
    first, second = parameters.response_bits
    return (_KEY_MEAN_SQUARE * parameters.degree * 4.0**-second + 4.0**-first) / 12


def session(parameters: Parameters, rotations: int) -> float:
    """Deviation of a score in the session layout with `rotations` baby steps (CKKS)."""
    n = parameters.degree
    x, y = 2.0**parameters.query_scale_bits, 2.0**parameters.item_scale_bits
    query = n * (_FRESH_VARIANCE + 1 / 12 + (rotations - 1) * rotation(parameters) ** 2) / x**2
    answer = n / 2 * _answer_variance(parameters) * (_products(parameters)[0] / x / y) ** 2
    return math.sqrt(query + n / 8 / y**2 + answer)


def keyless(parameters: Parameters, packing: int) -> float:
    """Deviation of a score with coefficient packing, the bound of rounding not included (`keyless_rounding`)."""
    x, y = 2.0**parameters.query_scale_bits, 2.0**parameters.item_scale_bits
    query = parameters.degree / packing * _FRESH_VARIANCE / x**2
    answer = _answer_variance(parameters) * (_products(parameters)[0] / x / y) ** 2
    return math.sqrt(query + answer)


def keyless_rounding(parameters: Parameters, dimensions: int) -> float:
    """Bound of what the rounding of items and query adds, whatever they are."""
    return math.sqrt(dimensions) / 2 * (2.0**-parameters.query_scale_bits + 2.0**-parameters.item_scale_bits)


def wrong(parameters: Parameters, rotations: int, terms: int) -> float:
    """Deviation of a decrypted coefficient of the exact set times t/Q; 1/2 is a wrong answer.

    Baby steps carry e^2 + 1/12 + k r^2 with k = (b - 1)/2 on average; each meets `terms` / b item polynomials of
    coefficients uniform modulo t; the query's own rounding is within 1/12.
    """
    n, t = parameters.degree, parameters.plain_modulus
    mean = _FRESH_VARIANCE + 1 / 12 + (rotations - 1) / 2 * rotation(parameters) ** 2
    products = n * terms * mean * t**2 / 12 * (t / _products(parameters)[0]) ** 2
    return math.sqrt(products + _answer_variance(parameters) * t**2)
