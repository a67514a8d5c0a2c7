"""What server and client must compute alike: parameters as they travel, digests of keys, how responses are cut.

Guarantee: a client accepts parameters only when they are one of its own named sets and follow from the layout of that
set; a server cannot choose weaker primes, other Galois elements or another packing. This is the only file that reads
the fields of GetParametersResponse.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from he_inference import parameters as sets
from he_inference.packing import SessionLayout
from veil.errors import ProtocolMismatch, VeilError, WireError
from veil.wire.channel import CHUNK_BYTES
from veil.wire.v1 import inference_pb2

DIGEST_BYTES = 32
_KEYS_DOMAIN = b"veil/evaluation-keys/v1\x00"
_REQUIREMENTS_DOMAIN = b"veil/key-requirements/v1\x00"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a server asks of a query: the layout, the norm of its longest item, and which model answers."""

    layout: SessionLayout
    item_norm: float
    manifest_digest: bytes

    @property
    def parameters_digest(self) -> bytes:
        """SHA-256 of what evaluation keys depend on, 32 bytes: the same for two models of one layout."""
        layout = self.layout
        elements = ",".join(map(str, layout.galois_elements)).encode()
        return hashlib.sha256(_REQUIREMENTS_DOMAIN + layout.parameters.digest + elements).digest()

    @property
    def score_error(self) -> float:
        """Bound of |score - plaintext score| for a user vector of norm 1."""
        return self.layout.parameters.score_error * self.item_norm


def key_digest(parameters_digest: bytes, keys: bytes) -> bytes:
    """The name of evaluation keys, 32 bytes."""
    return hashlib.sha256(_KEYS_DOMAIN + parameters_digest + keys).digest()


def terms_to_wire(terms: Terms) -> inference_pb2.GetParametersResponse:
    """Wire form of the terms."""
    layout = terms.layout
    chosen = layout.parameters
    return inference_pb2.GetParametersResponse(
        name=chosen.name,
        poly_modulus_degree=chosen.poly_modulus_degree,
        coeff_modulus_bits=chosen.coeff_modulus_bits,
        query_scale_bits=chosen.query_scale_bits,
        item_scale_bits=chosen.item_scale_bits,
        galois_elements=layout.galois_elements,
        items=layout.items,
        dimensions=layout.dimensions,
        baby_steps=layout.baby_steps,
        response_ciphertexts=layout.blocks,
        max_query_bytes=chosen.max_query_bytes,
        max_key_bytes=layout.max_key_bytes,
        parameters_digest=terms.parameters_digest,
        item_norm=terms.item_norm,
        manifest_digest=terms.manifest_digest,
        score_error=chosen.score_error,
    )


def terms_from_wire(message: inference_pb2.GetParametersResponse, peer: str) -> Terms:
    """Checked terms; raises `ProtocolMismatch` that names `peer` when they are not those of a set known here."""
    try:
        layout = SessionLayout(sets.named(message.name), message.items, message.dimensions)
    except VeilError as error:
        raise ProtocolMismatch(f"{peer}: {error}", culprits=(peer,), hint="one of the two sides is older") from None
    if not (math.isfinite(message.item_norm) and message.item_norm > 0):
        raise ProtocolMismatch(f"{peer}: got item norm {message.item_norm}, expected a positive one", culprits=(peer,))
    if len(message.manifest_digest) != DIGEST_BYTES:
        raise ProtocolMismatch(f"{peer}: got a manifest digest that is not 32 bytes", culprits=(peer,))
    terms = Terms(layout, message.item_norm, message.manifest_digest)
    if terms_to_wire(terms) != message:
        raise ProtocolMismatch(
            f"{peer}: got parameters that differ from the set {message.name} known here",
            culprits=(peer,),
            hint="run the same version on both sides",
        )
    return terms


def chunks(data: bytes) -> Iterator[bytes]:
    """Pieces of at most 1 MiB; one empty piece for no data."""
    for start in range(0, len(data) or 1, CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def batches(ciphertexts: Sequence[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Ciphertexts in order, together at most 1 MiB, with the number of the first; a larger one travels alone."""
    batch: list[bytes] = []
    size = first = 0
    for number, ciphertext in enumerate(ciphertexts):
        if batch and size + len(ciphertext) > CHUNK_BYTES:
            yield first, batch
            batch, size, first = [], 0, number
        batch.append(ciphertext)
        size += len(ciphertext)
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
