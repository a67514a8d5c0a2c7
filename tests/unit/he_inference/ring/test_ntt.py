"""The compiled transform: the plain one's twin, exact at the extremes, and a ring of negacyclic convolutions."""

from __future__ import annotations

import numpy as np
import pytest

from he_inference.ring import ntt, plain
from he_inference.ring.moduli import moduli
from tests.unit.he_inference.ring.polynomials import DEGREES, centred, extreme_words, random_words, ring_of


@pytest.mark.parametrize("degree", DEGREES)
def test_compiled_and_plain_transforms_agree_residue_for_residue(degree: int) -> None:
    ring = ring_of(degree)
    for values in (random_words(ring, 3), extreme_words(ring)):
        compiled = values.copy()
        ntt.forward(compiled, ring)
        assert np.array_equal(compiled, plain.forward(values, ring)[..., ring.order])
        assert np.array_equal(plain.inverse(compiled[..., ring.place], ring), values)
        ntt.inverse(compiled, ring)
        assert np.array_equal(compiled, values)


def test_places_hold_the_values_that_the_guarantee_names() -> None:
    degree, prime = 2048, ring_of(2048).primes[3]
    ring = moduli(degree, (prime,))
    values = random_words(ring)
    out = plain.forward(values, ring)[0]
    root = int(ring.forward[0, 1])  # psi^brv(1) = psi^(N/2): a fourth root of unity
    assert pow(root, 2, prime) == prime - 1
    psi = int(ring.forward[0, degree // 2])  # psi^brv(N/2) = psi
    for place in (0, 1, 2, 777, degree - 1):
        exponent = 2 * int(format(place, "011b")[::-1], 2) + 1
        point, value = pow(psi, exponent, prime), 0
        for coefficient in values[0, ::-1].tolist():
            value = (value * point + coefficient) % prime
        assert out[place] == value


@pytest.mark.parametrize("degree", DEGREES)
def test_products_of_values_are_negacyclic_convolutions(degree: int) -> None:
    ring = ring_of(degree)
    generator = np.random.default_rng(3)
    f, g = generator.integers(-(2**18), 2**18, (2, degree))
    # Schoolbook, exactly: f g = low part - high part
    full = np.convolve(f, g)  # below 2^49
    expected = full[:degree].copy()
    expected[: degree - 1] -= full[degree:]
    a, b = plain.residues(f, ring), plain.residues(g, ring)
    ntt.forward(a, ring)
    ntt.forward(b, ring)
    product = (a.astype(np.uint64) * b % ring.q[:, None]).astype(np.uint32)
    ntt.inverse(product, ring)
    assert np.array_equal(centred(product, ring), expected)


def test_arrays_that_do_not_fit_are_refused() -> None:
    ring = ring_of(2048, 2)
    values = random_words(ring, 2)
    for wrong in (values.astype(np.uint64), values[:, :1], values[..., ::2], np.asfortranarray(values)):
        with pytest.raises(ValueError, match="expected"):
            ntt.forward(wrong, ring)  # type: ignore[arg-type]
