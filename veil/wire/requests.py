"""Requests as bytes from the network, read and parsed by whoever has looked at who calls.

Guarantee: a call that sends no request is ended after a while, and one whose bytes are no message of its method gets a
`WireError`, nothing of which gRPC would write to a log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from veil.errors import WireError
from veil.wire.cutoff import Cutoff

_REQUEST_WITHIN_S = 20.0
patience = Cutoff()
"""The one of a server's door: all its calls share a thread that waits."""


def only_request(raw: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    """The request of a call that has one; the call ends when none comes within `_REQUEST_WITHIN_S`."""
    with patience.after(_REQUEST_WITHIN_S, context.cancel):
        request = next(raw, None)
    if request is None:
        raise WireError("got a call without its request, expected one message")
    return request


class Parsed:
    """A stream of requests, each parsed when it is asked for; may be read from any thread, as gRPC's own."""

    def __init__(self, raw: Iterator[bytes], deserialize: Callable[[bytes], Any] | None) -> None:
        self._raw = raw
        self._deserialize = deserialize

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return parsed_request(next(self._raw), self._deserialize)


def parsed_request(raw: bytes, deserialize: Callable[[bytes], Any] | None) -> Any:
    """A message from its bytes, or these where a method takes bytes. Raises `WireError`."""
    if deserialize is None:
        return raw
    try:
        return deserialize(raw)
    except DecodeError:
        raise WireError(f"got {len(raw)} bytes that are no message of this method, expected Protocol Buffers") from None
