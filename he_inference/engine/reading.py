"""Queries as kernels want them, read fast: unpacked, expanded, checked and put in order in one pass.

Guarantee: `read_query` gives what `he_inference.messages.read_query` gives, in the order of kernels, and raises the
same errors; it differs in speed alone (a test compares them). For keyless queries, which have dozens of ciphertexts,
reading costs as much as scoring otherwise.
"""

from __future__ import annotations

import numba
import numpy as np

from he_inference import messages
from he_inference.parameters import Parameters
from he_inference.ring.expand import SEED_BYTES, keystream, uniform
from he_inference.ring.jit import parallel_kernel
from he_inference.ring.moduli import Moduli, Words

u32 = np.uint32
u64 = np.uint64


@parallel_kernel
def _read(packed, words, order, q, bits, first, second, bad, short) -> None:  # type: ignore[no-untyped-def]
    """packed: uint32[rows, N bits / 32]; words: uint32[rows, more than N]; see `read_query` for the rest."""
    n = first.shape[1]
    for row in numba.prange(first.shape[0]):
        p = row % q.size
        size = bits[p]
        prime = q[p]
        mask = u64((1 << size) - 1)
        values = np.empty(n, np.uint32)
        last = packed.shape[1] - 1
        largest = u32(0)
        for i in range(n):
            start = i * size
            word = start >> 5
            pair = u64(packed[row, word]) | (u64(packed[row, min(word + 1, last)]) << u64(32))
            value = u32((pair >> u64(start & 31)) & mask)
            largest = max(largest, value)
            values[i] = value
        bad[row] = largest >= prime
        for i in range(n):
            first[row, i] = values[order[i]]
        taken = 0
        place = 0
        while taken < n and place < words.shape[1]:
            value = words[row, place] >> u32(32 - size)
            place += 1
            values[taken] = value
            taken += value < prime
        short[row] = taken < n
        for i in range(n):
            second[row, i] = values[order[i]]


def read_query(parameters: Parameters, ring: Moduli, data: bytes, ciphertexts: int) -> Words:
    """uint32[ciphertexts, 2, data primes, N] in the order of kernels. Raises `CiphertextError`."""
    primes, n = parameters.data_primes, parameters.degree
    bits = np.array([prime.bit_length() for prime in primes], np.int64)
    if len(data) != messages.query_bytes(parameters, ciphertexts) or (bits != bits[0]).any():
        # The plain way says what is wrong with the length; the fast one wants rows of one length.
        return np.ascontiguousarray(messages.read_query(parameters, data, ciphertexts)[..., ring.order])
    rows = ciphertexts * len(primes)
    # N bits are a whole number of words, as N is a multiple of 32.
    packed = np.frombuffer(data, "<u4", offset=SEED_BYTES).reshape(rows, -1)
    seed = data[:SEED_BYTES]
    words = np.stack(
        [keystream(seed, f"query {number}", prime, n) for number in range(ciphertexts) for prime in primes]
    )
    first, second = np.empty((rows, n), np.uint32), np.empty((rows, n), np.uint32)
    bad, short = np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
    _read(packed, words, ring.order, np.array(primes, np.uint32), bits, first, second, bad, short)
    if bad.any():
        raise messages.not_residues("a query")
    for row in np.flatnonzero(short):  # by chance, once in a lifetime
        number, p = divmod(int(row), len(primes))
        second[row] = uniform(seed, f"query {number}", primes[p], n)[ring.order]
    shape = (ciphertexts, len(primes), n)
    return np.stack([first.reshape(shape), second.reshape(shape)], axis=1)
