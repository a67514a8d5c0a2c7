"""Fast reading of queries equals the plain one, errors included."""

from __future__ import annotations

import numpy as np
import pytest

from he_inference import messages
from he_inference.engine.reading import read_query
from he_inference.parameters import FAST, HISTORY, KEYLESS, KEYLESS_SMALL, PQ, Parameters
from he_inference.ring.expand import keystream, uniform
from he_inference.ring.moduli import moduli
from veil.errors import CiphertextError


def made(parameters: Parameters, ciphertexts: int, seed: int = 1) -> bytes:
    generator = np.random.default_rng(seed)
    primes = parameters.data_primes
    rows = np.stack(
        [np.stack([generator.integers(0, q, parameters.degree) for q in primes]) for _ in range(ciphertexts)]
    )
    rows[0, 0, :2] = 0, primes[0] - 1
    rows[-1, -1, -1] = primes[-1] - 1
    return messages.write_query(parameters, generator.bytes(32), rows.astype(np.uint32))


@pytest.mark.parametrize(
    ("parameters", "ciphertexts"), [(FAST, 1), (PQ, 1), (KEYLESS, 5), (KEYLESS_SMALL, 3), (HISTORY, 2)]
)
def test_equals_the_plain_way(parameters: Parameters, ciphertexts: int) -> None:
    ring = moduli(parameters.degree, parameters.data_primes)
    data = made(parameters, ciphertexts)
    fast = read_query(parameters, ring, data, ciphertexts)
    plain = messages.read_query(parameters, data, ciphertexts)
    assert np.array_equal(fast, plain[..., ring.order])


@pytest.mark.parametrize("row", [0, 1, 3])
@pytest.mark.parametrize("place", [0, 1, 4095])
def test_a_number_that_is_not_below_its_prime_is_refused(row: int, place: int) -> None:
    ring = moduli(KEYLESS.degree, KEYLESS.data_primes)
    rows = np.zeros((2, 2, KEYLESS.degree), np.uint32)
    prime = KEYLESS.data_primes[row % 2]
    for value, refused in ((prime - 1, False), (prime, True), ((1 << prime.bit_length()) - 1, True)):
        rows[row // 2, row % 2, place] = value
        data = messages.write_query(KEYLESS, bytes(32), rows)
        if refused:
            with pytest.raises(CiphertextError, match="beyond its modulus"):
                read_query(KEYLESS, ring, data, 2)
        else:
            assert read_query(KEYLESS, ring, data, 2).max() < 1 << 28


@pytest.mark.parametrize("size", [0, 31, 32, -1, 1])
def test_another_length_is_refused(size: int) -> None:
    ring = moduli(KEYLESS.degree, KEYLESS.data_primes)
    whole = made(KEYLESS, 2)
    data = whole[:size] if size >= 0 and size != 1 else (whole[:-1] if size < 0 else whole + b"\x00")
    with pytest.raises(CiphertextError, match="bytes, expected"):
        read_query(KEYLESS, ring, data, 2)


def test_a_stream_that_runs_short_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if too many words had been rejected, which chance alone would take longer than anybody has."""
    ring = moduli(FAST.degree, FAST.data_primes)
    data = made(FAST, 1)
    whole = read_query(FAST, ring, data, 1)
    monkeypatch.setattr("he_inference.engine.reading.keystream", lambda *a: keystream(*a)[:4000])
    assert np.array_equal(read_query(FAST, ring, data, 1), whole)
    assert uniform(data[:32], "query 0", FAST.data_primes[0], FAST.degree).shape == (FAST.degree,)
