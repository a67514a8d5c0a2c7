"""Offers on the wire: a client takes no numbers from a server that do not follow from a set and a layout it knows."""

from __future__ import annotations

import pytest

from he_inference.exchange import (
    MOST_OFFERS,
    Gather,
    Offer,
    batches,
    chunks,
    key_digest,
    offer_to_wire,
    offers_from_wire,
)
from he_inference.layouts.catalogue import MAX_QUERY_BYTES, best_packing, layout_of, query_bytes
from he_inference.parameters import FAST, KEYLESS, PQ
from veil.errors import ConfigError, ProtocolMismatch, WireError
from veil.wire.channel import CHUNK_BYTES
from veil.wire.v1 import inference_pb2

SESSION = Offer(layout_of("session", PQ, 3706, 128), 2.5, b"m" * 32)
ONE_SHOT = Offer(layout_of("keyless", KEYLESS, 3706, 128, 16), 2.5, b"m" * 32)


def response(*offers: inference_pb2.Offer) -> inference_pb2.GetParametersResponse:
    return inference_pb2.GetParametersResponse(offers=offers, manifest_digest=b"m" * 32)


def test_offers_survive_the_way_in_their_order() -> None:
    message = response(offer_to_wire(ONE_SHOT), offer_to_wire(SESSION))
    found = offers_from_wire(inference_pb2.GetParametersResponse.FromString(message.SerializeToString()), "server")
    assert found == [ONE_SHOT, SESSION]
    assert [offer.offer_digest for offer in found] == [ONE_SHOT.offer_digest, SESSION.offer_digest]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parameters", "fast"),
        ("layout", "keyless"),
        ("packing", 2),
        ("items", 0),
        ("items", 3707),
        ("items", 3707 + 8192),
        ("dimensions", 0),
        ("dimensions", 64),
        ("dimensions", 5000),
        ("item_norm", 0.0),
        ("item_norm", 2.6),
        ("item_norm", float("nan")),
        ("item_norm", float("inf")),
        ("query_bytes", 10**9),
        ("key_bytes", 0),
        ("results", 2),
        ("result_bytes", 1),
        ("score_error", 0.5),
        ("parameters_digest", b"x" * 32),
        ("offer_digest", b"x" * 32),
        ("offer_digest", b""),
    ],
)
def test_a_server_cannot_choose_numbers(field: str, value: object) -> None:
    message = offer_to_wire(SESSION)
    setattr(message, field, value)
    with pytest.raises(ProtocolMismatch, match="server"):
        offers_from_wire(response(message), "server")


def test_a_server_cannot_choose_galois_elements_or_exchange_models() -> None:
    message = offer_to_wire(SESSION)
    message.galois_elements.append(17)
    with pytest.raises(ProtocolMismatch):
        offers_from_wire(response(message), "server")
    for digest in (b"n" * 32, b"short"):
        whole = response(offer_to_wire(SESSION))
        whole.manifest_digest = digest
        with pytest.raises(ProtocolMismatch):
            offers_from_wire(whole, "server")


def test_offers_of_a_newer_server_are_left_out() -> None:
    newer = [offer_to_wire(SESSION) for _ in range(2)]
    newer[0].parameters, newer[1].layout = "faster", "cluster"
    assert offers_from_wire(response(*newer, offer_to_wire(ONE_SHOT)), "server") == [ONE_SHOT]
    with pytest.raises(ProtocolMismatch, match="known here"):
        offers_from_wire(response(*newer), "server")
    for count in (0, MOST_OFFERS + 1):
        with pytest.raises(ProtocolMismatch, match=f"got {count} offers"):
            offers_from_wire(response(*[offer_to_wire(SESSION)] * count), "server")


def test_every_field_and_the_model_change_the_digest_of_an_offer() -> None:
    others = [
        Offer(layout_of("session", PQ, 3707, 128), 2.5, b"m" * 32),
        Offer(layout_of("session", PQ, 3706, 127), 2.5, b"m" * 32),
        Offer(layout_of("session", FAST, 3706, 128), 2.5, b"m" * 32),
        Offer(layout_of("keyless", KEYLESS, 3706, 128, 8), 2.5, b"m" * 32),
        Offer(SESSION.layout, 2.5000001, b"m" * 32),
        Offer(SESSION.layout, 2.5, b"n" * 32),
        Offer(SESSION.layout, 2.5, b"m" * 32, (7,)),
        ONE_SHOT,
        SESSION,
    ]
    assert len({offer.offer_digest for offer in others}) == len(others)


def test_keys_outlive_a_model_of_the_same_layout_only() -> None:
    same = Offer(layout_of("session", PQ, 3000, 128), 1.0, b"n" * 32)
    assert same.parameters_digest == SESSION.parameters_digest
    for layout in (layout_of("session", FAST, 3706, 128), layout_of("session", PQ, 3706, 16)):
        assert Offer(layout, 2.5, b"m" * 32).parameters_digest != SESSION.parameters_digest
    assert key_digest(b"a" * 32, b"k") != key_digest(b"b" * 32, b"k") != key_digest(b"b" * 32, b"l")


def test_the_packing_that_is_chosen_is_the_smallest_on_the_wire_and_fits_a_message() -> None:
    for items, dimensions in ((100, 4), (4096, 128), (100_000, 64), (1_000_000, 1024), (4_000_000, 9)):
        packing = best_packing("keyless", KEYLESS, items, dimensions)
        layout = layout_of("keyless", KEYLESS, items, dimensions, packing)
        assert query_bytes(layout) <= MAX_QUERY_BYTES
    assert best_packing("session", PQ, 4096, 128) == 0
    with pytest.raises(ConfigError, match="larger packing"):
        Offer(layout_of("keyless", KEYLESS, 4096, 128, 1), 1.0, b"m" * 32)


@pytest.mark.parametrize(("kind", "packing"), [("cluster", 0), ("session", 4), ("keyless", 0), ("keyless", 3)])
def test_layouts_that_do_not_exist_are_refused(kind: str, packing: int) -> None:
    with pytest.raises(ConfigError):
        layout_of(kind, KEYLESS if kind == "keyless" else PQ, 100, 8, packing)


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
