"""Slot codecs: there and back, as SEAL's encoder has it, and slots under automorphisms."""

from __future__ import annotations

import numpy as np
import pytest

from he_inference.encoding.slots import Bfv, Ckks, slot_codec
from he_inference.parameters import EXACT, FAST, PQ, Parameters
from he_inference.ring import plain
from he_inference.ring.moduli import moduli
from tests.unit.he_inference.ring.polynomials import turned
from tests.unit.he_inference.ring.seal_twin import SealTwin


def _negacyclic(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    full = np.convolve(f, g)
    full[: len(f) - 1] -= full[len(f) :]
    return full[: len(f)]


def test_slots_are_those_of_seals_encoder() -> None:
    twin, codec = SealTwin(4096), Ckks(FAST)
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(2, 2048))
    residues = twin.plain_residues(twin.encode(rows[0] + 1j * rows[1]))
    ring = moduli(4096, FAST.data_primes)
    first = plain.inverse(residues, ring)[0].astype(np.int64)
    theirs = np.where(first > ring.primes[0] // 2, first - ring.primes[0], first)
    ours = codec._coefficients(rows) * twin.scale
    assert abs(theirs - ours).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("parameters", [FAST, PQ, EXACT], ids=lambda p: p.name)
def test_automorphisms_rotate_both_rows_and_products_go_slot_by_slot(parameters: Parameters) -> None:
    codec, slots = slot_codec(parameters), parameters.slots
    generator = np.random.default_rng(1)
    query = generator.uniform(-0.5, 0.5, (2, slots))
    if parameters.scheme == "ckks":
        query[1] = 0.0
    item = generator.uniform(-0.5, 0.5, (2, slots))
    q, p = codec.encode_query(query), codec.encode_items(item, generator)
    if parameters.scheme == "bfv":
        # one modulo t stands for Q / t; the product is exact modulo t, and so is its scaling to 2^40
        q = codec._coefficients(query)  # type: ignore[attr-defined]
        t = parameters.plain_modulus
        number = _negacyclic(turned(q, parameters.element(5)), p) % t
        product = codec.decode(((number << 40) // t).astype(np.int64), 40)
        quantised = codec.quantised
        expected = np.roll(quantised(query), -5, axis=-1) * quantised(item)
        assert abs(product - expected).max() < 1e-9
        return
    modulus = parameters.data_primes[0] * parameters.data_primes[1]
    # in two halves, so that 64 bits hold the sums
    high, low = p >> 11, p & 2047
    rolled = turned(q, parameters.element(5))
    exact = _negacyclic(rolled.astype(np.float64), high.astype(np.float64)) * 2048.0
    exact += _negacyclic(rolled.astype(np.float64), low.astype(np.float64))
    product = codec.decode(np.rint(exact * (2.0**60 / modulus)).astype(np.int64), 60)
    expected = np.roll(query[0], -5) * item
    assert abs(product - expected).max() < 2e-4


def test_dither_leaves_nothing_unencoded_and_zero_alone() -> None:
    codec = slot_codec(FAST)
    generator = np.random.default_rng(2)
    assert not codec.encode_items(np.zeros((3, 2, 2048)), generator).any()
    rows = np.zeros((2, 2048))
    rows[0, 0] = 1.0  # smooth coefficients, whose rounding errors would add up without dither
    value = 2.0**22 * codec._coefficients(rows)  # type: ignore[attr-defined]
    errors = np.stack([codec.encode_items(rows, generator) - value for _ in range(400)])
    assert abs(errors).max() <= 1.0
    assert errors.var() <= 0.25 * 1.05
    assert abs(errors.mean(axis=0)).max() <= 6 * 0.5 / np.sqrt(400)


def test_lifts_of_exact_items_are_the_same_plaintext_and_have_mean_zero() -> None:
    codec, t = slot_codec(EXACT), EXACT.plain_modulus
    generator = np.random.default_rng(2)
    assert not codec.encode_items(np.zeros((3, 2, 2048)), generator).any()
    row = generator.normal(size=(2, 2048)) / 8
    lifts = np.stack([codec.encode_items(row, generator) for _ in range(400)])
    assert (np.mod(lifts, t) == np.mod(lifts[0], t)).all() and abs(lifts).max() < t
    # t^2 f(1 - f), a quarter of t^2 at most; coefficients uniform modulo t have a sixth on average
    assert abs(lifts.mean(axis=0)).max() < 6 * t / 2 / np.sqrt(400)
    assert lifts.var() == pytest.approx(t**2 / 6, rel=0.05)


def test_quantised_inner_products_stay_below_half_of_the_plain_modulus() -> None:
    assert EXACT.plain_modulus / 2 > (Bfv.LEVELS + 16) ** 2
    codec = slot_codec(EXACT)
    for d in (1, 2, 3, 1000, 1024):
        flat = np.full(d, 1 / np.sqrt(d))
        assert float(codec.quantised(flat) @ codec.quantised(flat)) * Bfv.LEVELS**2 < EXACT.plain_modulus / 2
