"""Primes, roots and automorphisms."""

from __future__ import annotations

import numpy as np
import pytest
import tenseal.sealapi as seal

from he_inference.ring import plain
from he_inference.ring.moduli import find_primes, galois_places
from tests.unit.he_inference.ring.polynomials import DEGREES, ring_of, turned
from veil.errors import ConfigError


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("bits", [(27, 27), (27, 27, 27, 28), (20, 28, 24, 20), (25, 25, 25, 25)])
def test_primes_are_those_that_seal_takes(degree: int, bits: tuple[int, ...]) -> None:
    assert find_primes(degree, bits) == tuple(prime.value() for prime in seal.CoeffModulus.Create(degree, list(bits)))


def test_sizes_beyond_the_family_are_refused() -> None:
    for degree, bits in ((1024, (27,)), (4096, (29,)), (4096, (19,)), (8192, (20,) * 80)):
        with pytest.raises(ConfigError):
            find_primes(degree, bits)


@pytest.mark.parametrize("element", [3, 9, 3**7 % 8192, 8191])
def test_an_automorphism_only_moves_values(element: int) -> None:
    ring = ring_of(4096)
    polynomial = np.random.default_rng(0).integers(-1000, 1000, ring.degree)
    moved = plain.forward(plain.residues(polynomial, ring), ring)[:, galois_places(ring.degree, element)]
    assert np.array_equal(moved, plain.forward(plain.residues(turned(polynomial, element), ring), ring))
