"""The library as a group: products commute, inverses undo, order stays, and nothing but points gets in."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google import protobuf

from veil.align.curve import ORDER, POINT_BYTES, Curve, Scalar
from veil.align.ids import dummies
from veil.errors import InputError


def test_the_library_works_with_protobuf_7() -> None:
    assert int(protobuf.__version__.split(".")[0]) >= 7
    with Curve() as curve:
        assert curve.hash(dummies(3), Scalar.draw()).shape == (3, POINT_BYTES)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_chain_commutes_and_inverses_undo(workers: int) -> None:
    names, a, b = dummies(20), Scalar.draw(), Scalar.draw()
    with Curve(workers) as curve:
        plain = curve.hash(names, Scalar(1))
        both = curve.multiply(curve.hash(names, a), b)
        assert np.array_equal(both, curve.multiply(curve.hash(names, b), a))
        assert np.array_equal(both, curve.hash(names, a.times(b)))
        assert np.array_equal(curve.multiply(curve.multiply(both, a.inverse()), b.inverse()), plain)
        assert np.array_equal(curve.multiply(plain[::-1], a), curve.hash(names, a)[::-1])
        assert curve.multiply(plain[:0], a).shape == curve.hash(names[:0], a).shape == (0, POINT_BYTES)


def test_products_are_those_of_p256() -> None:
    """Against another implementation: k*G has the coordinates of k's public key."""
    generator = ec.derive_private_key(1, ec.SECP256R1()).public_key()
    point = generator.public_numbers()
    packed = bytes([2 + point.y % 2]) + point.x.to_bytes(32, "big")
    with Curve() as curve:
        for value in (1, 2, 3, 2**200 + 5, ORDER - 1):
            expected = ec.derive_private_key(value, ec.SECP256R1()).public_key().public_numbers()
            product = bytes(curve.multiply(np.frombuffer(packed, dtype=np.uint8)[None], Scalar(value))[0])
            assert product == bytes([2 + expected.y % 2]) + expected.x.to_bytes(32, "big")


def test_what_is_no_point_is_refused() -> None:
    with Curve() as curve:
        points = curve.hash(dummies(4), Scalar.draw())
        for wrong in (b"\x00" * 33, b"\xff" * 33, b"\x04" + b"\x01" * 32, b"\x02" + b"\xff" * 32, _off_the_curve()):
            spoiled = points.copy()
            spoiled[2] = np.frombuffer(wrong, dtype=np.uint8)
            with pytest.raises(InputError, match="no point of P-256") as caught:
                curve.multiply(spoiled, Scalar.draw())
            assert caught.value.__cause__ is None


def _off_the_curve() -> bytes:
    """An x whose y^2 is no square."""
    for x in range(1, 100):
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x02" + x.to_bytes(32, "big"))
        except ValueError:
            return b"\x02" + x.to_bytes(32, "big")
    raise AssertionError("every x is on the curve")


@pytest.mark.parametrize("value", [0, -1, ORDER, ORDER + 1])
def test_scalars_are_in_range(value: int) -> None:
    with pytest.raises(InputError, match="out of range"):
        Scalar(value)


def test_scalars_stay_secret() -> None:
    scalar = Scalar.draw()
    assert repr(scalar) == "Scalar(P-256)"
    with pytest.raises(TypeError):
        pickle.dumps(scalar)
    assert Scalar.draw().key() != scalar.key() and len(scalar.key()) == 32


def test_workers_are_bounded() -> None:
    for workers in (0, 1000):
        with pytest.raises(InputError):
            Curve(workers)
