"""The client's cryptography: right, fresh each time, and silent about the key."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from he_inference import messages
from he_inference.parameters import EXACT, FAST, KEYLESS_SMALL, PQ, Parameters
from he_inference.ring import plain
from he_inference.ring.bits import pack
from he_inference.ring.moduli import galois_places, moduli
from he_inference.scheme import SecretKey
from tests.unit.he_inference.ring.polynomials import centred
from veil.errors import CiphertextError

_SETS = pytest.mark.parametrize("parameters", [FAST, PQ, EXACT, KEYLESS_SMALL], ids=lambda p: p.name)


def _errors(key: SecretKey, query: bytes, message: np.ndarray) -> np.ndarray:
    """What decryption gives beyond the message, as integers."""
    ring = moduli(key.parameters.degree, key.parameters.data_primes)
    read = messages.read_query(key.parameters, query, len(message)).astype(np.uint64)
    s, q = key._s[: len(ring.primes)], ring.q[:, None]
    found = centred(plain.inverse((read[:, 0] + read[:, 1] * s) % q, ring), ring)
    result: np.ndarray = (found - message).astype(np.int64)
    return result


@_SETS
def test_a_query_holds_the_message_and_seals_errors(parameters: Parameters) -> None:
    key = SecretKey(parameters)
    message = np.random.default_rng(0).integers(-(2**50), 2**50, (5, parameters.degree))
    errors = _errors(key, key.encrypt(message), message)
    assert abs(errors).max() <= 21  # a difference of two sums of 21 bits
    assert abs(errors.var() - 10.5) < 1.0
    assert abs(errors.mean()) < 0.3
    # One error for each ciphertext: none is used twice, which would give differences of messages away.
    again = _errors(key, key.encrypt(message), message)
    rows = [row.tobytes() for row in (*errors, *again)]
    assert len(set(rows)) == 10
    for first in range(5):
        for second in range(first):
            correlation = np.corrcoef(errors[first], errors[second])[0, 1]
            assert abs(correlation) < 6 / np.sqrt(parameters.degree)


def test_evaluation_keys_hide_the_turned_key_under_fresh_errors() -> None:
    key, elements = SecretKey(FAST), (FAST.element(1), FAST.element(8))
    made = messages.read_keys(FAST, key.evaluation_keys(elements), elements).astype(np.uint64)
    ring = moduli(FAST.degree, FAST.primes)
    product, q = FAST.special_primes[0] * FAST.special_primes[1], ring.q[:, None]
    factor = np.array([product % prime for prime in FAST.primes], np.uint64)[:, None]
    for (b, a), element in zip(made, elements, strict=True):
        target = factor * key._s[:, galois_places(FAST.degree, element)] % q
        error = centred(plain.inverse((b + a * key._s % q + q - target) % q, ring), ring)
        assert 5 <= abs(error).max() <= 21


def test_every_call_takes_a_new_seed() -> None:
    key, message = SecretKey(FAST), np.zeros((1, FAST.degree), np.int64)
    seeds = {key.encrypt(message)[:32] for _ in range(8)} | {key.evaluation_keys((3,))[:32] for _ in range(8)}
    assert len(seeds) == 16
    seed = b"s" * 32
    # The same seed would still give other masks to queries and keys.
    assert (messages.query_mask(FAST, seed, 3)[0] == messages.key_mask(FAST, seed, 3)[0]).mean() < 0.01


@_SETS
def test_a_key_goes_to_bytes_and_back(parameters: Parameters) -> None:
    key = SecretKey(parameters)
    again = SecretKey(parameters, key.secret_bytes())
    assert np.array_equal(key._s, again._s)
    message = np.random.default_rng(1).integers(-1000, 1000, (1, parameters.degree))
    assert abs(_errors(again, key.encrypt(message), message)).max() <= 21
    assert not np.array_equal(key._s, SecretKey(parameters)._s)


def test_bytes_that_are_no_key_of_the_set_are_refused() -> None:
    good = SecretKey(FAST).secret_bytes()
    for wrong in (b"", b"x", good[:-1], good[:100], SecretKey(PQ).secret_bytes(), b"\x00" * len(good)):
        with pytest.raises(CiphertextError) as caught:
            SecretKey(FAST, wrong)
        assert caught.value.__cause__ is None


def test_results_decrypt_from_their_leading_bits() -> None:
    key, generator = SecretKey(FAST), np.random.default_rng(2)
    first_bits, bits = FAST.response_bits
    n = FAST.degree
    second = generator.integers(0, 1 << bits, n).astype(np.uint32)
    first = generator.integers(0, 1 << first_bits, n).astype(np.uint32)
    data = pack(second, bits) + pack(first, first_bits)
    numbers, got_bits = key.decrypt([data], None)
    assert got_bits == bits and numbers.shape == (1, n)
    # y1 s by the schoolbook, modulo X^N + 1 and 2^bits
    s = plain.inverse(key._s, moduli(n, FAST.primes))[0].astype(np.int64)
    s = np.where(s > 1, s - FAST.primes[0], s)
    full = np.convolve(second.astype(np.int64), s)
    full[: n - 1] -= full[n:]
    expected = full[:n] + (first.astype(np.int64) << (bits - first_bits))
    assert ((expected - numbers[0]) % (1 << bits) == 0).all()
    assert numbers.min() >= -(1 << (bits - 1)) and numbers.max() < 1 << (bits - 1)
    for wrong in (data[:-1], data + b"\x00", b""):
        with pytest.raises(CiphertextError):
            key.decrypt([wrong], None)


def test_threads_share_a_key() -> None:
    key, message = SecretKey(FAST), np.zeros((1, FAST.degree), np.int64)
    with ThreadPoolExecutor(4) as pool:
        queries = list(pool.map(lambda _: key.encrypt(message), range(16)))
    errors = [_errors(key, query, message) for query in queries]
    assert len({error.tobytes() for error in errors}) == 16
    assert max(abs(error).max() for error in errors) <= 21


def test_a_key_prints_its_kind_only() -> None:
    assert repr(SecretKey(FAST)) == "SecretKey(fast)"
