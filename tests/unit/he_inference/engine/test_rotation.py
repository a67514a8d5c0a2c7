"""Rotations under any number of primes, against the automorphism of the plaintext, and against those of two and two."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from he_inference import messages
from he_inference.engine.rotation import Held, horner, images, rotations_of, steps
from he_inference.parameters import HISTORY, HISTORY_SCORES, PQ, Parameters
from he_inference.ring import plain
from he_inference.ring.moduli import Words, galois_places, moduli
from he_inference.scheme import SecretKey

Integers = NDArray[np.int64]
N = HISTORY.degree


def encrypted(key: SecretKey, numbers: Integers) -> Words:
    """uint32[rows, 2, data, N] in the order of kernels."""
    parameters = key.parameters
    read = messages.read_query(parameters, key.encrypt(numbers), len(numbers))
    return np.ascontiguousarray(read[..., moduli(N, parameters.data_primes).order])


def decrypted(key: SecretKey, ciphertexts: Words) -> Integers:
    """int64[rows, N]: what is encrypted modulo the first data prime of the given ones, centred."""
    parameters = key.parameters
    prime = parameters.data_primes[-1]
    ring = moduli(N, (prime,))
    place = np.argsort(ring.order)
    s = key._s[parameters.primes.index(prime)].astype(np.uint64)
    values = ciphertexts[..., -1, place].astype(np.uint64)
    total = (values[:, 0] + values[:, 1] * s) % np.uint64(prime)
    numbers = plain.inverse(total[:, None], ring)[:, 0].astype(np.int64)
    return np.where(numbers > prime // 2, numbers - prime, numbers)


def turned(numbers: Integers, element: int) -> Integers:
    """X -> X^element of int64[rows, N]."""
    out = np.zeros_like(numbers)
    for i in range(N):
        power = i * element % (2 * N)
        out[:, power % N] = numbers[:, i] if power < N else -numbers[:, i]
    return out


@pytest.fixture(scope="module")
def key() -> SecretKey:
    return SecretKey(HISTORY)


def keys_of(key: SecretKey, elements: tuple[int, ...]) -> Words:
    read = messages.read_keys(key.parameters, key.evaluation_keys(elements), elements)
    return rotations_of(N, key.parameters.data_primes, key.parameters.special_primes).prepared(read)


@pytest.mark.parametrize("element", [3, pow(3, 128, 2 * N), 2 * N - 1, 2 * N - pow(3, 256, 2 * N)])
def test_rotation_is_the_automorphism(key: SecretKey, element: int) -> None:
    turn = rotations_of(N, HISTORY.data_primes, HISTORY.special_primes)
    numbers = np.random.default_rng(0).integers(-(1 << 20), 1 << 20, (2, N))
    keys = np.repeat(keys_of(key, (element,)), 2, axis=0)
    held = turn.rotated(turn.held(encrypted(key, numbers)), turn.places(element), keys)
    error = decrypted(key, turn.divided(held)) - turned(numbers, element)
    # sqrt(N/12) 3.2 Q/P + sqrt(N/18) = 31, the fresh error and the rounding of it beside: 7 standard deviations.
    assert np.abs(error).max() < 7 * 35 and error.std() > 1


def test_keys_serve_for_fewer_data_primes(key: SecretKey) -> None:
    fewer = rotations_of(N, HISTORY_SCORES.data_primes, HISTORY_SCORES.special_primes)
    numbers = np.random.default_rng(1).integers(-(1 << 20), 1 << 20, (1, N))
    ciphertexts = np.ascontiguousarray(encrypted(key, numbers)[:, :, 1:])
    prepared = np.ascontiguousarray(keys_of(key, (3,))[:, :, 1:])
    held = fewer.rotated(fewer.held(ciphertexts), fewer.places(3), prepared)
    assert np.abs(decrypted(key, fewer.divided(held)) - turned(numbers, 3)).max() < 7 * 35


def test_chains_are_their_single_rotations(key: SecretKey) -> None:
    turn = rotations_of(N, HISTORY.data_primes, HISTORY.special_primes)
    numbers = np.random.default_rng(2).integers(-(1 << 16), 1 << 16, (3, 2, N))
    sums = np.stack([encrypted(key, rows) for rows in numbers])
    keys = np.repeat(keys_of(key, (3,)), 2, axis=0)
    places = turn.places(3)
    once, twice = (turned(numbers.reshape(-1, N), e).reshape(3, 2, N) for e in (3, 9))
    got = decrypted(key, turn.divided(horner(turn, sums, places, keys)))
    assert np.abs(got - (numbers[0] + once[1] + twice[2])).max() < 3 * 7 * 40
    got = decrypted(key, turn.divided(images(turn, turn.held(sums[0]), places, keys, 3)))
    assert np.abs(got - (numbers[0] + once[0] + twice[0])).max() < 3 * 7 * 40
    made = steps(turn, sums[0], places, keys, 3)
    np.testing.assert_array_equal(made[0], sums[0])
    for row, want in zip(made[1:], (once[0], twice[0]), strict=True):
        assert np.abs(decrypted(key, row) - want).max() < 2 * 7 * 40


@pytest.mark.parametrize("parameters", [PQ, HISTORY_SCORES])
def test_other_numbers_of_primes(parameters: Parameters) -> None:
    key = SecretKey(parameters)
    turn = rotations_of(N, parameters.data_primes, parameters.special_primes)
    numbers = np.random.default_rng(3).integers(-(1 << 20), 1 << 20, (1, N))
    held = turn.rotated(turn.held(encrypted(key, numbers)), turn.places(3), keys_of(key, (3,)))
    assert np.abs(decrypted(key, turn.divided(held)) - turned(numbers, 3)).max() < 7 * 60


def test_rows_do_not_depend_on_each_other(key: SecretKey) -> None:
    turn = rotations_of(N, HISTORY.data_primes, HISTORY.special_primes)
    rng = np.random.default_rng(4)
    q = np.array(HISTORY.data_primes)[:, None]
    anything = (rng.integers(0, 1 << 27, (3, 2, 3, N)) % q).astype(np.uint32)
    keys = keys_of(key, (3, 9, 27))
    places = turn.places(3)
    together = turn.rotated(turn.held(anything), places, keys)
    for row in range(3):
        alone = turn.rotated(turn.held(anything[row : row + 1]), places, keys[row : row + 1])
        np.testing.assert_array_equal(alone.first[0], together.first[row])
        np.testing.assert_array_equal(alone.second[0], together.second[row])
    assert isinstance(together, Held)
    np.testing.assert_array_equal(np.sort(galois_places(N, 3)), np.arange(N))
