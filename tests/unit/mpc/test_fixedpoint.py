"""Exact decoding, also where CrypTen 0.4.1 is off by one."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from veil.errors import InputError
from veil.mpc.fixedpoint import decode, encode


def test_decode_where_crypten_is_off_by_one() -> None:
    # crypten.cryptensor([-9.9999]).get_plain_text() is -10.9999 in version 0.4.1.
    ring = encode(torch.tensor([-9.9999]), 16)
    assert abs(float(decode(ring, 16)[0]) + 9.9999) < 2**-16


def test_decode_is_exact_for_every_ring_value_near_zero_and_at_the_ends() -> None:
    values = [*range(-70_000, 70_001, 7), 2**52 + 1, -(2**52) - 1, 2**62, -(2**63)]
    decoded = decode(torch.tensor(values), 16)
    assert all(Fraction(float(got)) == Fraction(value, 2**16) for got, value in zip(decoded, values, strict=True))


def test_encode_rounds_to_nearest_and_round_trips() -> None:
    values = torch.linspace(-1000, 1000, 4001, dtype=torch.float64)
    assert float((decode(encode(values, 20), 20) - values).abs().max()) <= 2**-21
    assert encode(torch.tensor([0.5, 1.5, 2.5, -0.5]), 0).tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**47])
def test_encode_refuses_what_does_not_fit(value: float) -> None:
    with pytest.raises(InputError):
        encode(torch.tensor([value], dtype=torch.float64), 16)


def test_decode_refuses_other_types() -> None:
    with pytest.raises(InputError):
        decode(torch.tensor([1.0]), 16)
    with pytest.raises(InputError):
        decode(torch.tensor([1]), 60)
