"""Requests, answers, and what is left of the noise: flooded, and still far from where decryption fails."""

from __future__ import annotations

import hashlib
import math
import secrets

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.unit.mpc.he.numbers import Integers, uniform
from veil.errors import ProtocolMismatch
from veil.mpc.he import bits, keys, ntt, residues
from veil.mpc.he.ring import Words
from veil.mpc.he.spaces import CLASSICAL_128_BITS, DEGREE, RING, Space, kept, slots, whole
from veil.mpc.randomness import KEY_BYTES, RingStream

PLACES = np.arange(DEGREE)
LOWEST = np.full(DEGREE, -(2**63))


def _stream() -> RingStream:
    return RingStream(secrets.token_bytes(KEY_BYTES), b"test")


def _scaled(message: Integers, space: Space) -> Words:
    exact = [int(m) * space.factor % space.modulus for m in message]
    centred = [x - space.modulus if x > space.modulus // 2 else x for x in exact]
    return space.scaled(np.array([(x + 2**63) % 2**64 - 2**63 for x in centred], np.int64))


def _noise(key: keys.SecretKey, pair: Words, space: Space, places: slice = slice(0, 64)) -> list[int]:
    """c0 + c1 s less the nearest multiple of Q / t, at some coefficients, by Python's integers: times t, over Q."""
    made = whole()
    total = pair[0].copy()
    residues.plus_product(total, np.ascontiguousarray(pair[1]), key._s, made)
    ntt.inverse(total, made)
    units = [made.modulus // q * pow(made.modulus // q, -1, q) for q in made.primes]
    noise = []
    for column in total[:, places].T:
        number = sum(int(r) * u for r, u in zip(column, units, strict=True)) % made.modulus
        rest = number * space.modulus % made.modulus
        noise.append(min(rest, made.modulus - rest) // space.modulus)
    return noise


def test_the_modulus_is_within_the_table() -> None:
    assert whole().modulus.bit_length() <= CLASSICAL_128_BITS[DEGREE]
    assert whole().primes[:3] == kept().primes
    primes = {prime for space in slots() for prime in space.primes}
    assert len(primes) == 6
    assert not primes & set(whole().primes)


def test_requests_hold_their_message_and_differ() -> None:
    key = keys.SecretKey()
    message = uniform(1, DEGREE)
    scaled = _scaled(message, RING)[None]
    first, second = (key.encrypt(scaled, "x") for _ in range(2))
    assert first[keys.SEED_BYTES :] != second[keys.SEED_BYTES :]
    assert first[: keys.SEED_BYTES] != second[: keys.SEED_BYTES]
    assert len(first) == keys.request_bytes(1)
    pair = keys.open_request(first, 1, "x", peer="p", what="it")[0]
    assert max(_noise(key, pair, RING)) <= 21 + 1
    # Under another label, or another key, nothing fits.
    other = keys.open_request(first, 1, "y", peer="p", what="it")[0]
    assert max(_noise(key, other, RING)) > 2**100
    assert max(_noise(keys.SecretKey(), pair, RING)) > 2**100


def test_the_half_that_does_not_travel_follows_from_its_seed() -> None:
    # Word by word, as the format says: both ends must agree, in every version.
    seed = bytes(range(32))
    key = hashlib.sha256(b"veil/he-uniform/v1\x00" + seed + b"vector 3").digest()
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    out = keys.uniform(seed, "vector 3", whole())
    for row, prime in zip(out, whole().primes, strict=True):
        words = np.frombuffer(stream.update(bytes(4 * (DEGREE + DEGREE // 64 + 64))), "<u4")
        leading = words >> np.uint32(32 - prime.bit_length())
        assert np.array_equal(row, leading[leading < prime][:DEGREE])
    assert not np.array_equal(out, keys.uniform(seed, "vector 4", whole()))


def test_residues_of_a_request_are_uniform() -> None:
    key = keys.SecretKey()
    data = key.encrypt(np.zeros((2, len(whole().primes), DEGREE), np.uint32), "x")
    rows = keys.open_request(data, 2, "x", peer="p", what="it")
    for half in range(2):
        for p, prime in enumerate(whole().primes):
            counts = np.histogram(rows[:, half, p], bins=16, range=(0, prime))[0]
            mean = counts.sum() / 16
            assert (np.abs(counts - mean) < 7 * math.sqrt(mean)).all()


@pytest.mark.parametrize("which", ["ring", "slots"])
@pytest.mark.parametrize("factor", ["lowest", "uniform"])
def test_the_flood_covers_the_noise_and_leaves_decryption_room(which: str, factor: str) -> None:
    key, made = keys.SecretKey(), whole()
    public = keys.PublicKey(key.hello(), peer="p")
    space = RING if which == "ring" else slots()[0]
    message = uniform(2, DEGREE) if space is RING else uniform(2, DEGREE) % space.modulus
    pair = keys.open_request(key.encrypt(_scaled(message, space)[None], "x"), 1, "x", peer="p", what="it")[0]
    # N products for each coefficient, of the longest factors that there are.
    half = space.modulus // 2
    multiplier = LOWEST // (2**63 // half) if factor == "lowest" else uniform(3, DEGREE) // (2**63 // half)
    transformed = residues.of_signed(multiplier, made)
    ntt.forward(transformed, made)
    product = np.zeros_like(pair)
    residues.plus_product(product, pair, transformed, made)
    noise = max(_noise(key, product, space))
    assert math.log2(max(noise, 1)) <= space.flood_bits - 50

    nothing = np.zeros((len(made.primes), DEGREE), np.uint32)
    data = public.hide(product, nothing, PLACES, space, _stream())
    assert len(data) == keys.answer_bytes(DEGREE)
    second, first = keys.read_answers(memoryview(data), DEGREE, 1, peer="p")
    values, furthest = key.decrypt(second, first, PLACES, space)
    # Flood reaches 0.256 and fills it; rounding adds eight of its standard deviations, 0.011 each, at most; 1/2 fails.
    assert 0.25 < furthest < 0.256 + 8 * 0.011
    expected = _negacyclic(message, multiplier, places := (0, 1, 5, 4096, DEGREE - 1))
    for place, exact in zip(places, expected, strict=True):
        for value, modulus in zip(values[0][:, place], space.primes or (2**64,), strict=True):
            assert int(value) % modulus == exact % modulus


def _negacyclic(left: Integers, right: Integers, places: tuple[int, ...]) -> list[int]:
    first, second = left.tolist(), right.tolist()
    return [
        sum(first[i] * (second[place - i] if i <= place else -second[DEGREE + place - i]) for i in range(DEGREE))
        for place in places
    ]


def test_answers_to_the_same_are_unlike_and_hide_what_was_multiplied() -> None:
    # One product by 0 and one by 1 of a request for 0: the same message, noise of 0 and of e. Both halves of the
    # answers must look the same: uniform.
    key, made = keys.SecretKey(), whole()
    public = keys.PublicKey(key.hello(), peer="p")
    zero = np.zeros((1, len(made.primes), DEGREE), np.uint32)
    pair = keys.open_request(key.encrypt(zero, "x"), 1, "x", peer="p", what="it")[0]
    answers = []
    for product in (np.zeros_like(pair), pair.copy(), pair.copy()):
        data = public.hide(product, zero[0], PLACES, RING, _stream())
        second, first = keys.read_answers(memoryview(data), DEGREE, 1, peer="p")
        values, furthest = key.decrypt(second, first, PLACES, RING)
        assert not values.any()
        assert furthest > 0.25
        answers.append((second, first))
    for halves in zip(*answers, strict=True):
        for half in halves:
            for p, prime in enumerate(kept().primes):
                counts = np.histogram(half[0, p], bins=16, range=(0, prime))[0]
                assert (np.abs(counts - DEGREE / 16) < 7 * math.sqrt(DEGREE / 16)).all()
        assert not np.array_equal(halves[0], halves[1])
        assert not np.array_equal(halves[1], halves[2])


def test_only_residues_of_one_length_are_read() -> None:
    key = keys.SecretKey()
    hello = key.hello()
    assert len(hello) == keys.hello_bytes()
    for wrong in (b"", hello[:31], hello[:-1], hello + b"\x00", hello[: keys.SEED_BYTES] + b"\xff" * (len(hello) - 32)):
        with pytest.raises(ProtocolMismatch) as caught:
            keys.PublicKey(wrong, peer="mallory")
        assert caught.value.culprits == ("mallory",)
    with pytest.raises(ProtocolMismatch) as caught:
        keys.read_answers(memoryview(b"\x00" * 7), 5, 1, peer="mallory")
    assert caught.value.culprits == ("mallory",)
    assert bits.rows_bytes(1, DEGREE, whole()) + keys.SEED_BYTES == keys.request_bytes(1)


def test_nothing_secret_is_printed() -> None:
    key = keys.SecretKey()
    assert repr(key) == "SecretKey()"
    assert repr(keys.PublicKey(key.hello(), peer="beta")) == "PublicKey(beta)"
