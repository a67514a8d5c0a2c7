"""The engine's items as they travel to the dealer: many in one request, their corrections in one stream of bytes."""

from __future__ import annotations

from collections.abc import Sequence

from veil.errors import WireError
from veil.mpc.engine.items import SHARED, EngineItem, Kind
from veil.wire.v1 import dealer_pb2

MOST_ITEMS = 4096
# Corrections that one request may ask for; one message of the relay holds them.
MOST_CORRECTION_BYTES = 64 * 2**20

_KINDS: dict[Kind, dealer_pb2.EngineItemKind.ValueType] = {
    "mask": dealer_pb2.ENGINE_ITEM_KIND_MASK,
    "product": dealer_pb2.ENGINE_ITEM_KIND_PRODUCT,
    "truncation": dealer_pb2.ENGINE_ITEM_KIND_TRUNCATION,
    "waves": dealer_pb2.ENGINE_ITEM_KIND_WAVES,
    "noise": dealer_pb2.ENGINE_ITEM_KIND_NOISE,
}
_NAMES: dict[int, Kind] = {number: kind for kind, number in _KINDS.items()}


def to_wire(first: int, items: Sequence[EngineItem]) -> dealer_pb2.CorrectRequest:
    """A request for the corrections of `items`, the first of which has number `first`."""
    wired = [
        dealer_pb2.EngineItem(
            kind=_KINDS[item.kind],
            shape=dealer_pb2.Shape(extents=item.shape),
            owner=item.owner - SHARED,
            elementwise=item.operation == "mul",
            left=item.left,
            right=item.right,
            first_row=item.first_row,
            rows=item.rows,
            transposed=item.transposed,
            shift=item.shift,
            period_bits=item.period_bits,
            harmonics=item.harmonics,
            precision_bits=item.precision_bits,
            release=item.release,
        )
        for item in items
    ]
    return dealer_pb2.CorrectRequest(index=first, engine_items=dealer_pb2.EngineItems(items=wired))


def from_wire(batch: dealer_pb2.EngineItems) -> list[EngineItem]:
    """The items of a request, not yet checked against bounds. Raises `WireError`."""
    if not 1 <= len(batch.items) <= MOST_ITEMS:
        raise WireError(f"got {len(batch.items)} items, expected 1 to {MOST_ITEMS}")
    return [_item(wired) for wired in batch.items]


def _item(wired: dealer_pb2.EngineItem) -> EngineItem:
    kind = _NAMES.get(wired.kind)
    if kind is None:
        raise WireError(f"got item kind {wired.kind}, expected a known one")
    if len(wired.shape.extents) > 4:
        raise WireError(f"got {len(wired.shape.extents)} extents, expected at most 4")
    return EngineItem(
        kind,
        tuple(wired.shape.extents),
        owner=wired.owner + SHARED,
        operation="mul" if wired.elementwise else "matmul",
        left=wired.left,
        right=wired.right,
        first_row=wired.first_row,
        rows=wired.rows,
        transposed=wired.transposed,
        shift=wired.shift,
        period_bits=wired.period_bits,
        harmonics=wired.harmonics,
        precision_bits=wired.precision_bits,
        release=wired.release,
    )
