"""Streams under real mutual TLS: who may dial, what a hello must say, bounds, order, ends and their culprits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest

from veil.errors import IdentityError, InputError, PeerLost, ProtocolMismatch, StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.mpc.grpc_mesh import PROTOCOL_VERSION, GrpcMesh, MeshServicer
from veil.mpc.link import PIECE_BYTES
from veil.wire.channel import RunningServer, open_channel, serve
from veil.wire.status import translated
from veil.wire.v1 import mesh_pb2, mesh_pb2_grpc

NAMES = ("alpha", "beta", "gamma")
DIGEST = bytes(32)
SESSION = bytes(range(16))


class Site:
    """One party's server and, for each job, its mesh."""

    def __init__(self, name: str, credentials: Credentials) -> None:
        self.name, self.credentials = name, credentials
        self.servicer = MeshServicer()
        self.server: RunningServer = serve("127.0.0.1:0", credentials, [self.servicer.service()])
        self.address = f"127.0.0.1:{self.server.port}"

    def mesh(self, roster: dict[str, str], digest: bytes = DIGEST, **options: Any) -> GrpcMesh:
        return GrpcMesh("job", digest, self.name, roster, self.credentials, self.servicer, **options)


@pytest.fixture
def sites(credentials: dict[str, Credentials]) -> Iterator[dict[str, Site]]:
    found = {name: Site(name, credentials[f"party-{name}"]) for name in NAMES}
    yield found
    for site in found.values():
        site.server.stop(0)


def connected(sites: dict[str, Site], names: tuple[str, ...] = NAMES, **options: Any) -> list[GrpcMesh]:
    roster = {name: sites[name].address for name in names}
    meshes = [sites[name].mesh(roster, **options) for name in names]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda mesh: mesh.connect(20), meshes))
    return meshes


def close_all(meshes: list[GrpcMesh]) -> None:
    with ThreadPoolExecutor(len(meshes)) as pool:
        list(pool.map(lambda mesh: mesh.close(), meshes))


def test_messages_between_all_pairs_both_ways(sites: dict[str, Site]) -> None:
    meshes = connected(sites)
    payloads = {
        (a, b): bytes([16 * a + b]) * size for a in range(3) for b in range(3) if a != b for size in [5 * 2**20 + a]
    }
    for (source, target), payload in payloads.items():
        meshes[source].transport().send(target, payload)
        meshes[source].transport().send(target, b"")
    for (source, target), payload in payloads.items():
        assert meshes[target].recv(source, 20) == payload
        assert meshes[target].recv(source, 20) == b""
    assert meshes[0].meter.total().bytes_sent == 2 * 5 * 2**20
    assert meshes[0].meter.peers()[2].messages_received == 2
    close_all(meshes)


def test_the_last_message_of_a_party_that_leaves_arrives(sites: dict[str, Site]) -> None:
    for leaver, stayer in ((0, 1), (1, 0)):
        meshes = connected(sites, NAMES[:2])
        meshes[leaver].send(stayer, b"x" * 3_000_000)
        meshes[leaver].close()
        assert len(meshes[stayer].recv(leaver, 10)) == 3_000_000
        with pytest.raises(PeerLost, match="closed") as caught:
            meshes[stayer].recv(leaver, 10)
        assert caught.value.culprits == (NAMES[leaver],)
        with pytest.raises(PeerLost):
            meshes[stayer].send(leaver, b"x")
        meshes[stayer].close()


def test_a_party_that_dies_is_named_also_by_those_who_wait_for_another(sites: dict[str, Site]) -> None:
    meshes = connected(sites)
    sites["alpha"].server.stop(0)  # all streams that alpha accepted break

    def leave_on_error() -> None:
        with pytest.raises(PeerLost):
            meshes[1].recv(0, 10)
        meshes[1].close()

    leaver = threading.Thread(target=leave_on_error)
    leaver.start()
    with pytest.raises(PeerLost) as caught:
        meshes[2].recv(1, 20)  # beta leaves because of alpha
    assert caught.value.culprits == ("alpha",)
    leaver.join()
    close_all(meshes)


def test_who_is_missing_is_named(sites: dict[str, Site]) -> None:
    roster = {name: site.address for name, site in sites.items()}
    mesh = sites["beta"].mesh(roster)
    with pytest.raises(PeerLost) as caught:
        mesh.connect(1.5)
    assert set(caught.value.culprits) <= {"alpha", "gamma"} and "alpha" in caught.value.culprits
    with pytest.raises(StateError):
        mesh.transport()


def test_another_digest_is_refused_by_name(sites: dict[str, Site]) -> None:
    roster = {name: sites[name].address for name in NAMES[:2]}
    meshes = [sites["alpha"].mesh(roster), sites["beta"].mesh(roster, digest=b"\x01" * 32)]
    outcomes: list[VeilError] = []

    def connect(mesh: GrpcMesh) -> None:
        with pytest.raises(VeilError) as caught:
            mesh.connect(3)
        outcomes.append(caught.value)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(connect, meshes))
    assert any(isinstance(error, ProtocolMismatch) and "digest" in str(error) for error in outcomes)
    assert {error.culprits for error in outcomes if isinstance(error, PeerLost)} == {("beta",)}


def test_another_data_plane_is_refused_by_name(sites: dict[str, Site]) -> None:
    roster = {name: sites[name].address for name in NAMES[:2]}
    meshes = [sites["alpha"].mesh(roster, plane="gloo"), sites["beta"].mesh(roster)]
    outcomes: list[VeilError] = []

    def connect(mesh: GrpcMesh) -> None:
        with pytest.raises(VeilError) as caught:
            mesh.connect(2)
        outcomes.append(caught.value)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(connect, meshes))
    refusals = [str(error) for error in outcomes if isinstance(error, ProtocolMismatch)]
    assert len(refusals) == 1 and "data plane 'grpc'" in refusals[0] and "'gloo'" in refusals[0]


def raw(
    site: Site, credentials: Credentials, requests: Callable[[], Iterator[mesh_pb2.ExchangeRequest]]
) -> list[mesh_pb2.ExchangeResponse]:
    """Speaks the wire protocol by hand; raises what the server's status says."""
    expect = Identity("trial", Role.PARTY, site.name)
    with open_channel(site.address, credentials, expect) as channel, translated(site.name):
        return list(mesh_pb2_grpc.MeshServiceStub(channel).Exchange(requests(), timeout=10))


def hello(
    job: str = "job",
    digest: bytes = DIGEST,
    version: int = PROTOCOL_VERSION,
    session: bytes = SESSION,
    peer_session: bytes = b"",
    received: int = 0,
) -> mesh_pb2.ExchangeRequest:
    body = mesh_pb2.MeshHello(
        job_id=job,
        job_digest=digest,
        protocol_version=version,
        session=session,
        peer_session=peer_session,
        received=received,
    )
    return mesh_pb2.ExchangeRequest(hello=body)


@pytest.fixture
def waiting(sites: dict[str, Site]) -> Iterator[GrpcMesh]:
    """Beta's mesh: alpha never comes, gamma is expected to dial."""
    mesh = sites["beta"].mesh({name: site.address for name, site in sites.items()})
    sites["beta"].servicer.register(mesh)
    yield mesh
    mesh.close()


@pytest.mark.parametrize(
    ("who", "first", "error", "says"),
    [
        ("party-gamma", hello(job="other"), StateError, "does not run here"),
        ("party-gamma", hello(digest=b"\x01" * 32), ProtocolMismatch, "another job digest"),
        ("party-gamma", hello(version=1), ProtocolMismatch, "mesh protocol 1"),
        ("party-gamma", hello(session=b"short"), ProtocolMismatch, "a session of 5 bytes"),
        ("party-gamma", hello(peer_session=SESSION), ProtocolMismatch, "resumes another run"),
        ("party-gamma", hello(received=1), ProtocolMismatch, "resumes at frame 1"),
        ("party-gamma", mesh_pb2.ExchangeRequest(frame=mesh_pb2.Frame()), ProtocolMismatch, "no hello"),
        ("party-gamma", mesh_pb2.ExchangeRequest(), ProtocolMismatch, "no hello"),
        ("party-alpha", hello(), IdentityError, "expected gamma to dial"),
        ("party-beta", hello(), IdentityError, "expected gamma to dial"),
        ("party-stranger", hello(), IdentityError, "expected gamma to dial"),
        ("coordinator-main", hello(), IdentityError, "role"),
        ("dealer-main", hello(), IdentityError, "role"),
    ],
)
def test_strangers_and_wrong_hellos_are_refused(
    sites: dict[str, Site],
    waiting: GrpcMesh,
    credentials: dict[str, Credentials],
    who: str,
    first: mesh_pb2.ExchangeRequest,
    error: type[VeilError],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        raw(sites["beta"], credentials[who], lambda: iter([first]))


def frame(sequence: int, payload: bytes = b"x", last: bool = True) -> mesh_pb2.ExchangeRequest:
    return mesh_pb2.ExchangeRequest(frame=mesh_pb2.Frame(sequence=sequence, payload=payload, last=last))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (frame(1), "frame 1 .* frame 0"),
        (frame(0, bytes(PIECE_BYTES + 1)), "1048577 bytes"),
        (frame(0, b"", last=False), "empty frame"),
        (hello(), "no frame"),
        (mesh_pb2.ExchangeRequest(), "no frame"),
        (
            mesh_pb2.ExchangeRequest(acknowledgement=mesh_pb2.Acknowledgement(received=1)),
            "acknowledgement of 1 frames .* at most 0",
        ),
        (mesh_pb2.ExchangeRequest(goodbye=mesh_pb2.Goodbye(frames=3)), "goodbye after 3 frames .* expected 0"),
    ],
)
def test_malformed_frames_end_the_stream_and_name_the_peer(
    sites: dict[str, Site],
    waiting: GrpcMesh,
    credentials: dict[str, Credentials],
    bad: mesh_pb2.ExchangeRequest,
    says: str,
) -> None:
    raw(sites["beta"], credentials["party-gamma"], lambda: iter([hello(), bad]))
    with pytest.raises(ProtocolMismatch, match=says) as caught:
        waiting.recv(2, 5)
    assert caught.value.culprits == ("gamma",)


def test_a_second_stream_of_a_pair_is_refused(
    sites: dict[str, Site], waiting: GrpcMesh, credentials: dict[str, Credentials]
) -> None:
    raw(sites["beta"], credentials["party-gamma"], lambda: iter([hello(), frame(0)]))
    with pytest.raises(ProtocolMismatch, match="second stream"):
        raw(sites["beta"], credentials["party-gamma"], lambda: iter([hello()]))
    assert waiting.recv(2, 5) == b"x"


def test_a_first_hello_may_be_repeated_whose_answer_was_lost(
    sites: dict[str, Site], waiting: GrpcMesh, credentials: dict[str, Credentials]
) -> None:
    for _ in range(2):
        (answer,) = raw(sites["beta"], credentials["party-gamma"], lambda: iter([hello()]))
        assert answer.hello.peer_session == SESSION
    with pytest.raises(ProtocolMismatch, match="another run"):  # but not by a process that has started anew
        raw(sites["beta"], credentials["party-gamma"], lambda: iter([hello(session=bytes(16))]))
    raw(sites["beta"], credentials["party-gamma"], lambda: iter([hello(), frame(0)]))
    assert waiting.recv(2, 5) == b"x"


def test_a_resumed_stream_takes_the_place_of_one_that_looks_alive_and_repeats_are_dropped(
    sites: dict[str, Site], waiting: GrpcMesh, credentials: dict[str, Credentials]
) -> None:
    """As after a failure that only the dialling side has noticed."""
    stop = threading.Event()

    def held(*requests: mesh_pb2.ExchangeRequest) -> Iterator[mesh_pb2.ExchangeRequest]:
        yield from requests
        stop.wait(30)

    expect = Identity("trial", Role.PARTY, "beta")
    with open_channel(sites["beta"].address, credentials["party-gamma"], expect) as channel:
        stub = mesh_pb2_grpc.MeshServiceStub(channel)
        first = stub.Exchange(held(hello(), frame(0, b"a"), frame(1, b"b")))
        theirs = next(iter(first)).hello
        assert (len(theirs.session), theirs.peer_session, theirs.received) == (16, SESSION, 0)
        assert [waiting.recv(2, 5) for _ in range(2)] == [b"a", b"b"]
        waiting.send(2, b"lost on the way")

        again = hello(peer_session=theirs.session)
        second = stub.Exchange(held(again, frame(0, b"a"), frame(1, b"b"), frame(2, b"c")))
        responses = iter(second)
        assert next(responses).hello.received == 2
        lost = mesh_pb2.Frame(sequence=0, payload=b"lost on the way", last=True)
        assert next(responses).frame == lost
        assert waiting.recv(2, 5) == b"c"
        with suppress(grpc.RpcError):
            assert {response.frame.SerializeToString() for response in first} <= {lost.SerializeToString()}

        for wrong in (hello(peer_session=bytes(16)), hello(session=b"x" * 16, peer_session=theirs.session)):
            with pytest.raises(ProtocolMismatch, match="another run"):
                raw(sites["beta"], credentials["party-gamma"], lambda wrong=wrong: iter([wrong]))  # type: ignore[misc]
        with pytest.raises(ProtocolMismatch, match=r"resumes at frame 5 .* expected 0 to 1"):
            raw(
                sites["beta"],
                credentials["party-gamma"],
                lambda: iter([hello(peer_session=theirs.session, received=5)]),
            )
        stop.set()


def test_a_party_holds_few_streams_whatever_it_leaves_unsaid(
    sites: dict[str, Site], waiting: GrpcMesh, credentials: dict[str, Credentials]
) -> None:
    stop = threading.Event()

    def silent() -> Iterator[mesh_pb2.ExchangeRequest]:
        stop.wait(30)
        yield from ()

    with open_channel(
        sites["beta"].address, credentials["party-stranger"], Identity("trial", Role.PARTY, "beta")
    ) as one:
        calls = [mesh_pb2_grpc.MeshServiceStub(one).Exchange(silent()) for _ in range(20)]
        try:
            # the server has 16 workers; gamma is served all the same
            raw(sites["beta"], credentials["party-gamma"], lambda: iter([hello(), frame(0)]))
            assert waiting.recv(2, 5) == b"x"
        finally:
            stop.set()
            for call in calls:
                call.cancel()


def test_what_waits_for_a_slow_party_is_bounded(sites: dict[str, Site]) -> None:
    limit = 4 * 2**20
    meshes = connected(sites, NAMES[:2], queue_limit_bytes=limit)
    for number in range(40):
        meshes[1].send(0, bytes([number]) * 2**20)
    arrived = threading.Event()
    arrived.wait(1.0)  # long enough for all 40 MiB, were they not held back
    inbox = meshes[0]._pairs[1].inbox
    assert inbox._queued_bytes <= limit + 2**20
    assert [meshes[0].recv(1, 10)[0] for _ in range(40)] == list(range(40))
    close_all(meshes)


def test_misuse_is_refused(sites: dict[str, Site], credentials: dict[str, Credentials]) -> None:
    roster = {name: site.address for name, site in sites.items()}
    with pytest.raises(InputError):
        GrpcMesh("job", DIGEST, "delta", roster, credentials["party-alpha"], MeshServicer())
    with pytest.raises(IdentityError):
        GrpcMesh("job", DIGEST, "alpha", roster, credentials["party-beta"], MeshServicer())
    servicer = MeshServicer()
    mesh = GrpcMesh("job", DIGEST, "alpha", roster, credentials["party-alpha"], servicer)
    servicer.register(mesh)
    with pytest.raises(StateError, match="second time"):
        servicer.register(GrpcMesh("job", DIGEST, "alpha", roster, credentials["party-alpha"], servicer))
    with pytest.raises(StateError, match="not connected"):
        mesh.transport()
    assert "alpha" not in repr(mesh)
