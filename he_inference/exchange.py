"""What server and client must compute alike: offers as they travel, digests of keys, how messages are cut.

Guarantee: a client accepts an offer only when it is of one of its own named sets and layouts and follows from them; a
server cannot choose weaker primes, other Galois elements or another packing of slots. This is the only file that reads
the fields of GetParametersResponse.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from he_inference import parameters as sets
from he_inference.encoding.deviation import stated_error
from he_inference.layouts.catalogue import (
    KINDS,
    MAX_QUERY_BYTES,
    key_bytes,
    layout_of,
    packing_of,
    query_bytes,
    result_bytes,
)
from he_inference.layouts.seam import Layout
from veil.errors import ConfigError, ProtocolMismatch, VeilError, WireError
from veil.wire.channel import CHUNK_BYTES
from veil.wire.v1 import inference_pb2

DIGEST_BYTES = 32
REQUEST_ID_BYTES = 16
MOST_OFFERS = 16
MOST_REMOVED = 65_536
_KEYS_DOMAIN = b"veil/evaluation-keys/v1\x00"
_REQUIREMENTS_DOMAIN = b"veil/key-requirements/v2\x00"
_OFFER_DOMAIN = b"veil/offer/v1\x00"


@dataclass(frozen=True)
class Offer:
    """One way to ask: the layout, the norm of the longest item, and which model answers. Raises `ConfigError`.

    removed: numbers of items that are not there any more, ascending; what decrypts for them is noise around zero.
    """

    layout: Layout
    item_norm: float
    manifest_digest: bytes
    removed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise(self.removed))
        if len(self.removed) > MOST_REMOVED or not rising or not all(0 <= n < self.layout.items for n in self.removed):
            raise ConfigError(
                f"got {len(self.removed)} removed items, expected at most {MOST_REMOVED} ascending numbers of items",
                hint="build the index anew without them",
            )
        if not (math.isfinite(self.item_norm) and self.item_norm > 0):
            raise ConfigError(f"got item norm {self.item_norm}, expected a positive one")
        if len(self.manifest_digest) != DIGEST_BYTES:
            raise ConfigError(f"got a manifest digest of {len(self.manifest_digest)} bytes, expected {DIGEST_BYTES}")
        if query_bytes(self.layout) > MAX_QUERY_BYTES:
            raise ConfigError(
                f"got a layout with queries of {query_bytes(self.layout)} bytes, expected at most {MAX_QUERY_BYTES}",
                hint="take a larger packing",
            )

    @cached_property
    def parameters_digest(self) -> bytes:
        """SHA-256 of what evaluation keys depend on, 32 bytes: the same for two models of one layout."""
        layout = self.layout
        elements = ",".join(map(str, layout.galois_elements)).encode()
        return hashlib.sha256(_REQUIREMENTS_DOMAIN + layout.parameters.digest + elements).digest()

    @cached_property
    def offer_digest(self) -> bytes:
        """SHA-256 of everything that a query depends on, 32 bytes."""
        layout = self.layout
        fields = [
            layout.kind,
            layout.parameters.digest.hex(),
            packing_of(layout),
            layout.items,
            layout.dimensions,
            float(self.item_norm).hex(),
            list(layout.galois_elements),
            query_bytes(layout),
            key_bytes(layout),
            layout.blocks,
            result_bytes(layout),
            self.manifest_digest.hex(),
            list(self.removed),
        ]
        return hashlib.sha256(_OFFER_DOMAIN + json.dumps(fields, separators=(",", ":")).encode()).digest()

    @property
    def score_error(self) -> float:
        """Bound of |score - plaintext score| for a user vector of norm 1; of a history, of an output's error, times the
        norm of items (`he_inference.layouts.tower.combined` states that of its scores)."""
        return stated_error(self.layout) * self.item_norm


def key_digest(parameters_digest: bytes, keys: bytes) -> bytes:
    """The name of evaluation keys, 32 bytes."""
    return hashlib.sha256(_KEYS_DOMAIN + parameters_digest + keys).digest()


def offer_to_wire(offer: Offer) -> inference_pb2.Offer:
    """Wire form of an offer."""
    layout = offer.layout
    return inference_pb2.Offer(
        parameters=layout.parameters.name,
        layout=layout.kind,
        packing=packing_of(layout),
        items=layout.items,
        dimensions=layout.dimensions,
        item_norm=offer.item_norm,
        galois_elements=layout.galois_elements,
        query_bytes=query_bytes(layout),
        key_bytes=key_bytes(layout),
        results=layout.blocks,
        result_bytes=result_bytes(layout),
        score_error=stated_error(layout),
        parameters_digest=offer.parameters_digest,
        offer_digest=offer.offer_digest,
        removed=offer.removed,
    )


def offers_from_wire(message: inference_pb2.GetParametersResponse, peer: str) -> list[Offer]:
    """Checked offers, in the server's order; those of sets or layouts unknown here are left out.

    Raises `ProtocolMismatch` that names `peer` when one differs from what follows from its first six fields, or none is
    known here.
    """
    if not 1 <= len(message.offers) <= MOST_OFFERS:
        raise _mismatch(peer, f"got {len(message.offers)} offers, expected 1 to {MOST_OFFERS}")
    found = [
        _offer_from_wire(offer, message.manifest_digest, peer)
        for offer in message.offers
        if offer.layout in KINDS and _known(offer.parameters)
    ]
    if not found:
        raise _mismatch(peer, "got no offer of a parameter set and layout known here, expected at least one")
    return found


def _offer_from_wire(message: inference_pb2.Offer, manifest_digest: bytes, peer: str) -> Offer:
    try:
        layout = layout_of(message.layout, message.parameters, message.items, message.dimensions, message.packing)
        offer = Offer(layout, message.item_norm, manifest_digest, tuple(message.removed))
    except VeilError as error:
        raise _mismatch(peer, str(error)) from None
    if offer_to_wire(offer) != message:
        raise _mismatch(peer, f"got an offer that differs from the set {message.parameters} known here")
    return offer


def _known(name: str) -> bool:
    try:
        sets.named(name)
    except ConfigError:
        return False
    return True


def _mismatch(peer: str, sentence: str) -> ProtocolMismatch:
    return ProtocolMismatch(f"{peer}: {sentence}", culprits=(peer,), hint="run the same version on both sides")


def chunks(data: bytes) -> Iterator[bytes]:
    """Pieces of at most 1 MiB; one empty piece for no data."""
    for start in range(0, len(data) or 1, CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def batches(results: Sequence[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Results in order, together at most 1 MiB, with the number of the first; a larger one travels alone."""
    batch: list[bytes] = []
    size = first = 0
    for number, result in enumerate(results):
        if batch and size + len(result) > CHUNK_BYTES:
            yield first, batch
            batch, size, first = [], 0, number
        batch.append(result)
        size += len(result)
    if batch:
        yield first, batch


class Gather:
    """Puts pieces together up to a limit: the only way that streamed bytes become one object here."""

    def __init__(self, what: str, limit_bytes: int) -> None:
        self._what = what
        self._limit = limit_bytes
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        """Raises `WireError` when a piece is larger than agreed, or the whole becomes so."""
        self._size += len(piece)
        if len(piece) > CHUNK_BYTES or self._size > self._limit:
            raise WireError(
                f"got {self._what} of {self._size} bytes or more, a piece of {len(piece)}; expected at most "
                f"{self._limit} bytes in pieces of at most {CHUNK_BYTES}"
            )
        self._pieces.append(piece)

    def whole(self) -> bytes:
        """Everything that was added."""
        return b"".join(self._pieces)
