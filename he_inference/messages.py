"""Queries, evaluation keys and results as bytes: fixed lengths, no structure, nothing to deserialise.

    query     seed (32)  |  for each ciphertext, for each data prime:  N residues of the first half
    keys      seed (32)  |  for each Galois element, for each prime:   N residues of the first half
    result    N numbers of the second half  |  the numbers of the first half that travel

Residues are transformed (`he_inference.ring.moduli`) and packed in as many bits as their prime has, results are
coefficients and packed in `response_bits`. The second halves of queries and keys follow from the seed
(`he_inference.ring.expand`).

Guarantee: the length of each message is a function of parameter set and layout; anything of another length, or with a
residue that is not below its prime, raises `CiphertextError`. No message of any content does more than that: there are
no pointers, counts, versions or compressed parts in it.
"""

from __future__ import annotations

import numpy as np

from he_inference.parameters import Parameters
from he_inference.ring.bits import pack, packed_bytes, unpack
from he_inference.ring.expand import SEED_BYTES, uniform
from he_inference.ring.moduli import Words
from veil.errors import CiphertextError


def query_bytes(parameters: Parameters, ciphertexts: int) -> int:
    """Length of a query."""
    return SEED_BYTES + ciphertexts * _residue_bytes(parameters.degree, parameters.data_primes)


def key_bytes(parameters: Parameters, elements: int) -> int:
    """Length of evaluation keys."""
    return SEED_BYTES + elements * _residue_bytes(parameters.degree, parameters.primes)


def result_bytes(parameters: Parameters, used_coefficients: int) -> int:
    """Length of one result."""
    first, second = parameters.response_bits
    return packed_bytes(parameters.degree, second) + packed_bytes(used_coefficients, first)


def _residue_bytes(degree: int, primes: tuple[int, ...]) -> int:
    return sum(packed_bytes(degree, prime.bit_length()) for prime in primes)


def query_mask(parameters: Parameters, seed: bytes, ciphertext: int) -> Words:
    """uint32[data primes, N]: the second half of a query ciphertext."""
    primes = parameters.data_primes
    return np.stack([uniform(seed, f"query {ciphertext}", prime, parameters.degree) for prime in primes])


def key_mask(parameters: Parameters, seed: bytes, element: int) -> Words:
    """uint32[primes, N]: the second half of the key of a Galois element."""
    return np.stack([uniform(seed, f"key {element}", prime, parameters.degree) for prime in parameters.primes])


def write_query(parameters: Parameters, seed: bytes, first_halves: Words) -> bytes:
    """The query of uint32[ciphertexts, data primes, N]."""
    return seed + _pack_rows(first_halves, parameters.data_primes)


def write_keys(parameters: Parameters, seed: bytes, first_halves: Words) -> bytes:
    """The keys of uint32[elements, primes, N]."""
    return seed + _pack_rows(first_halves, parameters.primes)


def read_query(parameters: Parameters, data: bytes, ciphertexts: int) -> Words:
    """uint32[ciphertexts, 2, data primes, N]. Raises `CiphertextError`."""
    _sized(data, query_bytes(parameters, ciphertexts), "a query")
    first = _unpack_rows(data, ciphertexts, parameters.degree, parameters.data_primes, "a query")
    second = np.stack([query_mask(parameters, data[:SEED_BYTES], number) for number in range(ciphertexts)])
    return np.stack([first, second], axis=1)


def read_keys(parameters: Parameters, data: bytes, elements: tuple[int, ...]) -> Words:
    """uint32[elements, 2, primes, N]. Raises `CiphertextError`."""
    _sized(data, key_bytes(parameters, len(elements)), "evaluation keys")
    first = _unpack_rows(data, len(elements), parameters.degree, parameters.primes, "evaluation keys")
    if not elements:
        return np.empty((0, 2, *first.shape[1:]), np.uint32)
    second = np.stack([key_mask(parameters, data[:SEED_BYTES], element) for element in elements])
    return np.stack([first, second], axis=1)


def read_result(parameters: Parameters, data: bytes, used_coefficients: int) -> tuple[Words, Words]:
    """First half uint32[used_coefficients] and second half uint32[N] of a result. Raises `CiphertextError`."""
    _sized(data, result_bytes(parameters, used_coefficients), "a result")
    first_bits, second_bits = parameters.response_bits
    cut = packed_bytes(parameters.degree, second_bits)
    second = unpack(data[:cut], parameters.degree, second_bits, "a result")
    return unpack(data[cut:], used_coefficients, first_bits, "a result"), second


def _sized(data: bytes, expected: int, what: str) -> None:
    if len(data) != expected:
        raise CiphertextError(
            f"got {what} of {len(data)} bytes, expected {expected}",
            hint="made under other parameters? ask the server for its own and make it anew",
        )


def _pack_rows(rows: Words, primes: tuple[int, ...]) -> bytes:
    return b"".join(pack(row[p], prime.bit_length()) for row in rows for p, prime in enumerate(primes))


def _unpack_rows(data: bytes, rows: int, degree: int, primes: tuple[int, ...], what: str) -> Words:
    result = np.empty((rows, len(primes), degree), np.uint32)
    view, place = memoryview(data), SEED_BYTES
    for row in range(rows):
        for p, prime in enumerate(primes):
            size = packed_bytes(degree, prime.bit_length())
            result[row, p] = unpack(view[place : place + size], degree, prime.bit_length(), what)
            place += size
    if (result >= np.array(primes, np.uint32)[:, None]).any():
        raise not_residues(what)
    return result


def not_residues(what: str) -> CiphertextError:
    """What is raised for numbers that are not below their prime."""
    return CiphertextError(
        f"got {what} with numbers beyond its modulus, expected residues",
        hint="send the bytes that were made, unchanged",
    )
