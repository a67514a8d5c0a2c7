"""The attack of Li and Micciancio (eprint 2020/1533) against a client that shows its scores to the server.

It uses what the server has: the query and the response as they travelled, and what it is shown. A result is (y0, y1),
and the client's decryption is D = y0 + y1 s modulo 2^bits in Z[X] / (X^N + 1). Whoever knows D knows y1 s, and this
ring is local: y1 has an inverse when the sum of its coefficients is odd, which for half of all responses it is. Then

    s = y1^-1 (D - y0)    modulo 2^bits

by y1^(N-1) modulo 2 (f^N = f(X^N) = f(1) = 1 modulo 2) and Newton's iteration. Scores at full precision give D: they
are its transform, and the transform has an inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from he_inference import messages
from he_inference.encoding.slots import slot_codec
from he_inference.layouts.session import SessionLayout
from he_inference.ring import plain
from he_inference.ring.moduli import moduli

Integers = NDArray[np.int64]
_LIMB = 15


def product(a: Integers, b: Integers, bits: int) -> Integers:
    """a b in Z[X] / (X^N + 1) modulo 2^bits, exactly: limbs of 15 bits, so that sums stay below 2^43."""
    n = len(a)
    twist = np.exp(1j * np.pi * np.arange(n) / n)
    mask = (1 << bits) - 1
    limbs = -(-bits // _LIMB)
    parts = [
        [scipy.fft.fft(((x & mask) >> (_LIMB * k) & ((1 << _LIMB) - 1)) * twist) for k in range(limbs)] for x in (a, b)
    ]
    total = np.zeros(n, np.int64)
    for j in range(limbs):
        for k in range(limbs):
            if _LIMB * (j + k) < bits:
                term = np.rint((scipy.fft.ifft(parts[0][j] * parts[1][k]) * twist.conj()).real).astype(np.int64)
                total = (total + (term << (_LIMB * (j + k)))) & mask
    return total


def inverse(f: Integers, bits: int) -> Integers | None:
    """f^-1 modulo 2^bits; None when there is none."""
    if int(f.sum()) % 2 == 0:
        return None
    n = len(f)
    square, g = f & 1, np.zeros(n, np.int64)
    g[0] = 1
    exponent = n - 1
    while exponent:
        if exponent & 1:
            g = product(g, square, 1)
        square, exponent = product(square, square, 1), exponent >> 1
    precision = 1
    while precision < bits:
        precision = min(2 * precision, bits)
        correction = -product(f, g, precision)
        correction[0] += 2
        g = product(g, correction, precision)
    return g


def solve(layout: SessionLayout, result: bytes, decrypted: Integers) -> Integers | None:
    """s of y0 + y1 s = `decrypted` modulo 2^bits, centred; None when y1 has no inverse."""
    parameters = layout.parameters
    first_bits, bits = parameters.response_bits
    first, second = messages.read_result(parameters, result, parameters.degree)
    y0, y1 = first.astype(np.int64) << (bits - first_bits), second.astype(np.int64)
    inverted = inverse(y1, bits)
    if inverted is None:
        return None
    s = product(inverted, decrypted - y0, bits)
    half = 1 << (bits - 1)
    return ((s + half) & ((1 << bits) - 1)) - half


def polynomial_of(layout: SessionLayout, unit_scores: NDArray[np.floating]) -> Integers:
    """D, the decrypted polynomial, from the scores of one full block (approximate sets)."""
    parameters = layout.parameters
    rows = np.asarray(unit_scores, np.float64).reshape(1, 2, parameters.slots)
    coefficients = slot_codec(parameters).encode_query(rows)[0] / 2.0**parameters.query_scale_bits
    modulus = float(parameters.data_primes[0]) * float(parameters.data_primes[1])
    unit = modulus / 2.0 ** (parameters.response_bits[1] + parameters.query_scale_bits + parameters.item_scale_bits)
    return np.rint(coefficients / unit).astype(np.int64)


def recover_key(
    layout: SessionLayout, shown: Sequence[tuple[bytes, NDArray[np.floating]]]
) -> tuple[Integers | None, list[Integers]]:
    """The secret key from (result, unit scores of its items) pairs, as far as it is one; and every solution tried."""
    tried = []
    for result, unit_scores in shown:
        s = solve(layout, result, polynomial_of(layout, unit_scores))
        if s is not None:
            tried.append(s)
            if np.isin(s, (-1, 0, 1)).all():
                return s, tried
    return None, tried


def read_vector(layout: SessionLayout, query: bytes, s: Integers) -> NDArray[np.float64]:
    """The user vector in a query, by the key: what the attack is for."""
    parameters = layout.parameters
    ring = moduli(parameters.degree, parameters.data_primes)
    q = ring.q[:, None]
    c0, c1 = messages.read_query(parameters, query, 1)[0].astype(np.uint64)
    key = plain.forward(plain.residues(s, ring), ring).astype(np.uint64)
    low, high = plain.inverse((c0 + c1 * key % q) % q, ring).astype(np.int64)
    first, second = parameters.data_primes
    m = low + first * ((high - low) * pow(first, -1, second) % second)
    m = np.where(m > first * second // 2, m - first * second, m)
    n = parameters.degree
    places = [pow(3, j, 2 * n) for j in range(layout.dimensions)]
    values = [np.sum(m * np.exp(1j * np.pi * np.arange(n) * place / n)) for place in places]
    return np.array(values).real / 2.0**parameters.query_scale_bits
