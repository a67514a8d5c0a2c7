"""Rotations: right by decryption, as SEAL's are, with errors as small as stated."""

from __future__ import annotations

import numpy as np
import pytest

from he_inference import messages
from he_inference.encoding import deviation
from he_inference.parameters import FAST, PQ, Parameters
from he_inference.ring import plain
from he_inference.ring.accumulate import TILE
from he_inference.ring.moduli import Words, moduli
from he_inference.ring.rotations import baby_steps, giant_steps
from he_inference.ring.switch import Switching, places_of, prepared_keys, rotate, switching
from he_inference.scheme import SecretKey
from tests.unit.he_inference.ring.polynomials import KnownKey, centred, extreme_words, random_words, turned
from tests.unit.he_inference.ring.seal_twin import SealTwin


def _made(parameters: Parameters) -> tuple[Switching, KnownKey]:
    switch = switching(parameters.degree, parameters.data_primes, parameters.special_primes)
    return switch, KnownKey(switch.ring, 2)


def _untiled(tiled: Words, ring_place: np.ndarray) -> Words:
    """uint32[rotations, queries, 2, primes, N] in the order of messages."""
    primes, tiles, queries, rotations, halves, _ = tiled.shape
    return tiled.transpose(3, 2, 4, 0, 1, 5).reshape(rotations, queries, halves, primes, tiles * TILE)[..., ring_place]


@pytest.mark.parametrize("parameters", [FAST, PQ], ids=lambda p: p.name)
@pytest.mark.parametrize("power", [1, 8, 1000])
def test_a_rotation_decrypts_to_the_automorphism_within_the_stated_error(parameters: Parameters, power: int) -> None:
    switch, key = _made(parameters)
    element = parameters.element(power)
    order, place = switch.ring.order, switch.ring.place
    rows = 8
    messages = np.random.default_rng(power).integers(-(2**48), 2**48, (rows, parameters.degree))
    ciphertexts = np.stack([key.encrypt(message) for message in messages])[..., order]
    keys = prepared_keys(key.switching_key(element)[None], switch)
    rotated = rotate(
        np.ascontiguousarray(ciphertexts), places_of(switch.ring, element), keys, np.zeros(rows, np.int64), switch
    )
    errors = np.stack(
        [
            key.decrypt(got[..., place]) - turned(message, element)
            for got, message in zip(rotated, messages, strict=True)
        ]
    ).astype(np.float64)
    # 32,768 coefficients and more: the sample deviation is within 2 % of the true one, the key's norm within 3 %.
    assert errors.std() < 1.05 * deviation.rotation(parameters)
    assert errors.std() > 0.8 * deviation.rotation(parameters)
    assert abs(errors).max() < deviation.SIGMAS * deviation.rotation(parameters)


def test_rotations_agree_with_seals_by_decryption() -> None:
    twin, element = SealTwin(4096), FAST.element(5)
    key = SecretKey(FAST, twin.secret_bytes())
    switch = switching(4096, FAST.data_primes, FAST.special_primes)
    made = messages.read_keys(FAST, key.evaluation_keys([element]), (element,))
    generator = np.random.default_rng(0)
    original = twin.encrypt(twin.encode(generator.normal(size=2048) + 1j * generator.normal(size=2048)))
    words = np.ascontiguousarray(twin.cipher_residues(original)[None][..., switch.ring.order])
    ours = rotate(words, places_of(switch.ring, element), prepared_keys(made, switch), np.zeros(1, np.int64), switch)[0]
    theirs = twin.cipher_residues(twin.apply_galois(original, element))
    known = KnownKey(switch.ring, 2)
    known.values = key._s
    difference = known.decrypt(ours[..., switch.ring.place]) - known.decrypt(theirs)
    # SEAL has three small digits under one special prime: its error is of the same order.
    assert abs(difference).max() < 100 * deviation.rotation(FAST)
    assert abs(known.decrypt(theirs)).max() > 2**21


def test_baby_steps_are_rotations_in_a_row_and_queries_do_not_mix() -> None:
    switch, key = _made(FAST)
    element = FAST.element(1)
    places = places_of(switch.ring, element)
    message = np.random.default_rng(0).integers(-(2**40), 2**40, (3, 4096))
    ciphertexts = np.stack([key.encrypt(row) for row in message])[..., switch.ring.order]
    prepared = np.concatenate([prepared_keys(key.switching_key(element)[None], switch) for _ in range(3)])
    together = baby_steps(np.ascontiguousarray(ciphertexts), places, prepared, 6, switch)
    for query in range(3):
        alone = baby_steps(
            np.ascontiguousarray(ciphertexts[query : query + 1]), places, prepared[query : query + 1], 6, switch
        )
        assert np.array_equal(together[:, :, query], alone[:, :, 0])
    steps = _untiled(together, switch.ring.place)
    for query in range(3):
        expected = message[query]
        for step in range(6):
            error = (key.decrypt(steps[step, query]) - expected).astype(np.float64)
            assert error.std() <= 1.1 * np.sqrt(step) * deviation.rotation(FAST)
            expected = turned(expected, element)


def test_giant_steps_are_horners_rule() -> None:
    switch, key = _made(FAST)
    element = FAST.element(8)
    places, ring = places_of(switch.ring, element), switch.ring
    message = np.random.default_rng(0).integers(-(2**40), 2**40, (2, 4, 3, 4096))  # blocks, groups, queries
    sums = np.stack([key.encrypt(row) for row in message.reshape(-1, 4096)])[..., ring.order]
    sums = np.ascontiguousarray(sums.reshape(2, 4, 3, 2, 2, 4096))
    keys = np.concatenate([prepared_keys(key.switching_key(element)[None], switch) for _ in range(3)])
    together = giant_steps(sums, places, keys, switch)
    assert np.array_equal(together[1:, 2:], giant_steps(sums[1:, :, 2:].copy(), places, keys[2:], switch))
    for block in range(2):
        for query in range(3):
            expected = message[block, 3, query]
            for group in (2, 1, 0):
                expected = turned(expected, element) + message[block, group, query]
            error = (key.decrypt(together[block, query][..., ring.place]) - expected).astype(np.float64)
            assert error.std() <= 1.1 * np.sqrt(3) * deviation.rotation(FAST)


def test_any_residues_give_residues() -> None:
    """Hostile keys and ciphertexts are numbers like others: all results stay below their primes."""
    switch, _ = _made(FAST)
    data = moduli(4096, FAST.data_primes)
    places = places_of(switch.ring, FAST.element(1))
    top = np.array(FAST.data_primes, np.uint32)[:, None]
    wholes = extreme_words(switch.ring)
    keys = prepared_keys(np.stack([wholes[[i, 3 - i]] for i in range(4)]), switch)
    rows = np.stack([extreme_words(data)[[i, (i + 1) % 4]] for i in range(4)])
    for number in range(4):
        tiled = baby_steps(rows, places, keys[[number] * 4], 4, switch)
        assert (tiled < top[:, :, None, None, None, None]).all()
    assert (rotate(random_words(data, 4, 2), places, keys, np.arange(4), switch) < top).all()
    assert centred(plain.inverse(random_words(data), data), data).shape == (4096,)
