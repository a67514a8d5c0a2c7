"""A small service on a real server with real mutual TLS, and callers of every kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.identity.names import Role
from veil.identity.trial import make_consortium
from veil.wire.channel import RunningServer, Service, caller, serve

ECHO = "test.v1.EchoService"
Behaviour = Callable[[str, grpc.ServicerContext], str]


def echo_service(behave: Behaviour, roles: frozenset[Role], name: str = ECHO) -> Service:
    """Four methods, one of each shape, that answer every request with what `behave` makes of it."""

    def unary(request: StringValue, context: grpc.ServicerContext) -> StringValue:
        return StringValue(value=behave(request.value, context))

    def down(request: StringValue, context: grpc.ServicerContext) -> Iterator[StringValue]:
        yield StringValue(value="first")
        yield StringValue(value=behave(request.value, context))

    def up(requests: Iterator[StringValue], context: grpc.ServicerContext) -> StringValue:
        return StringValue(value="|".join(behave(request.value, context) for request in requests))

    def both(requests: Iterator[StringValue], context: grpc.ServicerContext) -> Iterator[StringValue]:
        for request in requests:
            yield StringValue(value=behave(request.value, context))

    def size(request: BytesValue, context: grpc.ServicerContext) -> BytesValue:
        return BytesValue(value=b"\x00" * int(behave(str(len(request.value)), context)))

    parse, write = StringValue.FromString, StringValue.SerializeToString
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary, parse, write),
        "Down": grpc.unary_stream_rpc_method_handler(down, parse, write),
        "Up": grpc.stream_unary_rpc_method_handler(up, parse, write),
        "Both": grpc.stream_stream_rpc_method_handler(both, parse, write),
        "Size": grpc.unary_unary_rpc_method_handler(size, BytesValue.FromString, BytesValue.SerializeToString),
    }

    def add(server: grpc.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    return Service(name, add, roles)


class Echo:
    """Calls the four methods; every method returns the list of answers."""

    def __init__(self, channel: grpc.Channel, name: str = ECHO) -> None:
        write, parse = StringValue.SerializeToString, StringValue.FromString
        self._unary: Any = channel.unary_unary(f"/{name}/Unary", write, parse)
        self._down: Any = channel.unary_stream(f"/{name}/Down", write, parse)
        self._up: Any = channel.stream_unary(f"/{name}/Up", write, parse)
        self._both: Any = channel.stream_stream(f"/{name}/Both", write, parse)
        self._size: Any = channel.unary_unary(f"/{name}/Size", BytesValue.SerializeToString, BytesValue.FromString)
        self._raw: Any = channel.unary_unary(f"/{name}/Unary")

    def unary(self, text: str, **options: Any) -> list[str]:
        return [self._unary(StringValue(value=text), **options).value]

    def future(self, text: str, **options: Any) -> list[str]:
        return [self._unary.future(StringValue(value=text), **options).result().value]

    def down(self, text: str, **options: Any) -> list[str]:
        return [answer.value for answer in self._down(StringValue(value=text), **options)]

    def up(self, text: str, **options: Any) -> list[str]:
        return [self._up(iter([StringValue(value=text)]), **options).value]

    def both(self, text: str, **options: Any) -> list[str]:
        return [answer.value for answer in self._both(iter([StringValue(value=text)]), **options)]

    def size(self, size_bytes: int, **options: Any) -> int:
        return len(self._size(BytesValue(value=b"\x00" * size_bytes), **options).value)

    def raw(self, payload: bytes, **options: Any) -> bytes:
        answer: bytes = self._raw(payload, **options)
        return answer


@pytest.fixture(scope="session")
def aged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Credentials]]:
    """A consortium "trial" of its own; the credentials in the dictionary, by folder, have expired since they loaded."""
    folder = tmp_path_factory.mktemp("aged")
    past = certificates.now() - timedelta(days=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "now", lambda: past)
        made = make_consortium(folder, "trial", ["alpha", "beta"])
        expired = {identity.folder: Credentials.load(path) for identity, path in made.items()}
        for path in made.values():
            shutil.rmtree(path)
    make_consortium(folder, "trial", ["alpha", "beta"])
    return folder, expired


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium that calls itself "trial" too, under another authority."""
    folder = tmp_path_factory.mktemp("another")
    make_consortium(folder, "trial", ["alpha", "beta"])
    return folder


@pytest.fixture(scope="session")
def party(consortium: Path) -> Callable[[str], Credentials]:
    """Credentials by folder, such as "party-alpha"."""
    return lambda name: Credentials.load(consortium / name)


def answer(text: str, context: grpc.ServicerContext) -> str:
    """What the shared server does: says who called, or how long the call may last, or repeats."""
    if text == "who":
        return caller(context).uri
    if text == "deadline":
        return str(context.time_remaining())
    return text


@pytest.fixture(scope="module")
def server(party: Callable[[str], Credentials]) -> Iterator[RunningServer]:
    """Party alpha's server, whose echo service admits parties and the coordinator."""
    services = [echo_service(answer, frozenset({Role.PARTY, Role.COORDINATOR}))]
    with serve("127.0.0.1:0", party("party-alpha"), services) as running:
        yield running


@pytest.fixture(scope="session")
def echo_of() -> type[Echo]:
    """The caller's side of the service."""
    return Echo


@pytest.fixture(scope="session")
def offering() -> Callable[..., Service]:
    """The server's side of the service."""
    return echo_service
