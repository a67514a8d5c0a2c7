"""The transform: values where the guarantee says, exact at the extremes, there and back, short ones among long ones."""

from __future__ import annotations

import numpy as np
import pytest

from veil.mpc.he import ntt
from veil.mpc.he.ring import Ring, Words, find_primes, ring
from veil.number_theory import reversed_bits

DEGREE = 8192


def _ring() -> Ring:
    primes = (find_primes(DEGREE, bits, 1)[0] for bits in (25, 29, 30))
    return ring(DEGREE, tuple(primes))


def _words(kind: str, shape: tuple[int, ...]) -> Words:
    highest = _ring().q[:, None] - 1
    if kind == "highest":
        return np.broadcast_to(highest, shape).astype(np.uint32)
    drawn = np.random.default_rng(1).integers(0, 2**32, shape, dtype=np.uint32)
    return (drawn % (highest + 1)).astype(np.uint32)


@pytest.mark.parametrize("kind", ["uniform", "highest"])
def test_places_hold_the_values_that_the_guarantee_names(kind: str) -> None:
    made, values = _ring(), _words(kind, (2, 3, DEGREE))
    out = values.copy()
    ntt.forward(out, made)
    for p, prime in enumerate(made.primes):
        root = int(made.forward[p, DEGREE // 2])  # psi^brv(N/2) = psi
        assert pow(root, DEGREE, prime) == prime - 1
        for place in (0, 1, 63, 64, 4097, DEGREE - 1):
            point = pow(root, int(2 * reversed_bits(DEGREE)[made.transposed[place]] + 1), prime)
            value = 0
            for coefficient in values[1, p, ::-1].tolist():
                value = (value * point + coefficient) % prime
            assert out[1, p, place] == value


@pytest.mark.parametrize("kind", ["uniform", "highest"])
def test_the_inverse_takes_back(kind: str) -> None:
    made, values = _ring(), _words(kind, (3, 3, DEGREE))
    out = values.copy()
    ntt.forward(out, made)
    assert not np.array_equal(out, values)
    ntt.inverse(out, made)
    assert np.array_equal(out, values)


@pytest.mark.parametrize("length", [1, 2, 64, 128, 512, DEGREE])
def test_short_transforms_are_those_of_polynomials_in_a_power(length: int) -> None:
    made = _ring()
    short = _words("uniform", (2, 3, length))
    long = np.zeros((2, 3, DEGREE), np.uint32)
    long[..., :: DEGREE // length] = short
    ntt.forward_short(short, made)
    ntt.forward(long, made)
    assert np.array_equal(np.repeat(short, DEGREE // length, axis=-1)[..., made.transposed], long)


def test_arrays_of_another_shape_are_refused() -> None:
    made = _ring()
    for wrong in (np.zeros((3, 64), np.uint32), np.zeros((3, DEGREE), np.int32), np.zeros((2, DEGREE), np.uint32)):
        with pytest.raises(ValueError, match="expected"):
            ntt.forward(wrong, made)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power of two"):
        ntt.forward_short(np.zeros((3, 3), np.uint32), made)
