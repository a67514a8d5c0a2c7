"""Terms on the wire: a client takes no numbers from a server that do not follow from a set it knows."""

from __future__ import annotations

import pytest

from he_inference.exchange import Gather, Terms, batches, chunks, key_digest, terms_from_wire, terms_to_wire
from he_inference.packing import SessionLayout
from he_inference.parameters import SESSION_4096, SESSION_8192
from veil.errors import ProtocolMismatch, WireError
from veil.wire.channel import CHUNK_BYTES

TERMS = Terms(SessionLayout(SESSION_8192, 3706, 128), 2.5, b"m" * 32)


def test_terms_survive_the_way() -> None:
    assert terms_from_wire(terms_to_wire(TERMS), "server") == TERMS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "session-2048"),
        ("name", "session-4096"),
        ("poly_modulus_degree", 2048),
        ("query_scale_bits", 10),
        ("items", 0),
        ("items", 3707 + 8192),
        ("dimensions", 0),
        ("dimensions", 5000),
        ("baby_steps", 4),
        ("response_ciphertexts", 2),
        ("max_query_bytes", 10**9),
        ("parameters_digest", b"x" * 32),
        ("manifest_digest", b"short"),
        ("item_norm", 0.0),
        ("item_norm", float("nan")),
        ("score_error", 0.5),
    ],
)
def test_a_server_cannot_choose_numbers(field: str, value: object) -> None:
    message = terms_to_wire(TERMS)
    setattr(message, field, value)
    with pytest.raises(ProtocolMismatch, match="server"):
        terms_from_wire(message, "server")


def test_a_server_cannot_choose_primes_or_elements() -> None:
    for field in ("coeff_modulus_bits", "galois_elements"):
        message = terms_to_wire(TERMS)
        getattr(message, field).append(17)
        with pytest.raises(ProtocolMismatch):
            terms_from_wire(message, "server")


def test_keys_outlive_a_model_of_the_same_layout_only() -> None:
    same = Terms(SessionLayout(SESSION_8192, 3000, 128), 1.0, b"n" * 32)
    assert same.parameters_digest == TERMS.parameters_digest
    for layout in (SessionLayout(SESSION_4096, 3706, 128), SessionLayout(SESSION_8192, 3706, 16)):
        assert Terms(layout, 2.5, b"m" * 32).parameters_digest != TERMS.parameters_digest
    assert key_digest(b"a" * 32, b"k") != key_digest(b"b" * 32, b"k") != key_digest(b"b" * 32, b"l")


def test_pieces_and_batches_put_together_give_the_whole() -> None:
    data = bytes(range(256)) * 10_000
    assert b"".join(chunks(data)) == data and max(map(len, chunks(data))) == CHUNK_BYTES
    assert list(chunks(b"")) == [b""]
    parts = [bytes([n]) * 400_000 for n in range(7)] + [b"z" * (CHUNK_BYTES + 1)]
    got = list(batches(parts))
    assert [part for _, batch in got for part in batch] == parts
    assert [first for first, _ in got] == [0, 2, 4, 6, 7]


def test_gathering_stops_at_the_limit() -> None:
    gather = Gather("keys", 10)
    gather.add(b"x" * 10)
    assert gather.whole() == b"x" * 10
    with pytest.raises(WireError, match="expected at most 10 bytes"):
        gather.add(b"x")
    with pytest.raises(WireError, match="piece"):
        Gather("keys", 1 << 30).add(b"x" * (CHUNK_BYTES + 1))
