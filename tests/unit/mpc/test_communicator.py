"""Collectives among threads, and what a peer must not get through: other steps, shapes, sizes, kinds, objects."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from veil.errors import InputError, PeerLost, ProtocolMismatch, StateError
from veil.mpc import objects
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.header import Header, Operation, pack, to_tensor, unpack
from veil.mpc.loopback import loopback

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")


def together(size: int, act: Callable[[TensorCommunicator], Any]) -> list[Any]:
    """The same program at every party, each in a thread."""
    parties = [TensorCommunicator(transport, NAMES[:size], timeout_s=10) for transport in loopback(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(act, parties))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_all_reduce_wraps_and_xors(size: int) -> None:
    big = 2**63 - 1

    def act(c: TensorCommunicator) -> Any:
        own = torch.tensor([big, c.rank])
        batch = [torch.full((2, 2), c.rank), torch.tensor(c.rank), torch.empty(0, dtype=torch.int64)]
        return (
            c.all_reduce(own),
            c.all_reduce(own, op="bxor"),
            c.all_reduce(own, op=torch.distributed.ReduceOp.SUM),
            c.all_reduce(own, op=torch.distributed.ReduceOp.BXOR),
            c.all_reduce(batch, batched=True),
            c.reduce(own, 1),
            own,
        )

    ranks = sum(range(size))
    wrapped = (big * size + 2**63) % 2**64 - 2**63
    xored = 0
    for rank in range(size):
        xored ^= rank
    for rank, (added, mixed, again, mixed_again, batch, reduced, own) in enumerate(together(size, act)):
        assert added.tolist() == again.tolist() == [wrapped, ranks]
        assert mixed.tolist() == mixed_again.tolist() == [big if size % 2 else 0, xored]
        assert [part.tolist() for part in batch] == [[[ranks] * 2] * 2, ranks, []]
        assert (reduced.tolist() if rank == 1 else reduced) == ([wrapped, ranks] if rank == 1 else None)
        assert own.tolist() == [big, rank]  # inputs stay as they were


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_other_collectives(size: int) -> None:
    def act(c: TensorCommunicator) -> Any:
        own = torch.tensor([c.rank])
        target = torch.zeros(2, dtype=torch.float64) if c.rank else torch.tensor([0.25, -1.0], dtype=torch.float64)
        following, previous = (c.rank + 1) % size, (c.rank - 1) % size
        received = torch.zeros(1, dtype=torch.int64)
        requests = [c.isend(own, following), c.irecv(received, previous)]
        for request in requests:
            request.wait()
        c.barrier()
        c.agree(b"same")
        return {
            "gather": [part if part is None else part.item() for part in c.gather(own, 0)],
            "all_gather": [part.item() for part in c.all_gather(own)],
            "broadcast": c.broadcast(target, 0).tolist(),
            "batched": [part.tolist() for part in c.broadcast([own.clone(), own.clone()], 1, batched=True)],
            "scatter": c.scatter([torch.tensor([10 + i]) for i in range(size)] if c.rank == 1 else None, 1, size=(1,)),
            "ring": received.item(),
            "object": c.broadcast_obj(
                {"size": torch.Size([3, 4]), "n": [1, "a", True, None]} if not c.rank else None, 0
            ),
            "objects": c.gather_obj(c.rank, 1),
            "all_objects": c.all_gather_obj(str(c.rank)),
            "public": c.broadcast_public(torch.ones(3, 2) if c.rank == 1 else None, 1).shape,
            "bytes": c.all_gather_bytes(b"x" * c.rank),
            "stats": c.get_communication_stats(),
        }

    for rank, result in enumerate(together(size, act)):
        assert result["gather"] == (list(range(size)) if rank == 0 else [None])
        assert result["all_gather"] == list(range(size))
        assert result["broadcast"] == [0.25, -1.0]
        assert result["batched"] == [[1], [1]]
        assert result["scatter"].item() == 10 + rank
        assert result["ring"] == (rank - 1) % size
        assert result["object"] == {"size": torch.Size([3, 4]), "n": [1, "a", True, None]}
        assert result["objects"] == (list(range(size)) if rank == 1 else [None])
        assert result["all_objects"] == [str(peer) for peer in range(size)]
        assert result["public"] == (3, 2)
        assert result["bytes"] == [b"x" * peer for peer in range(size)]
        assert result["stats"]["messages"] > 0 and result["stats"]["rounds"] > 10


def pair() -> tuple[Any, TensorCommunicator]:
    """A bare transport that plays "alpha", and the communicator of "beta"."""
    first, second = loopback(2)
    return first, TensorCommunicator(second, NAMES[:2], timeout_s=0.2)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (pack(Operation.SEND, 0, torch.zeros(3, dtype=torch.int64)), r"int64\[3\].*expected send int64\[2\]"),
        (pack(Operation.SEND, 0, torch.zeros(2, 1, dtype=torch.int64)), r"\[2, 1\]"),
        (pack(Operation.SEND, 0, torch.zeros(2, dtype=torch.int32)), "int32"),
        (pack(Operation.SEND, 1, torch.zeros(2, dtype=torch.int64)), "as message 1.*as message 0"),
        (pack(Operation.GATHER, 0, torch.zeros(2, dtype=torch.int64)), "gather"),
        (pack(Operation.SEND, 0, torch.zeros(2, dtype=torch.int64))[:-1], "15 bytes of data"),
        (pack(Operation.SEND, 0, torch.zeros(2, dtype=torch.int64)) + b"x", "17 bytes of data"),
        (b"", "message of 0 bytes"),
        (b"GARBAGE" * 10, "mark"),
        (b"VMT1\x63\x01\x00\x00" + bytes(8), "operation 99"),
        (b"VMT1\x01\x01\xff\x00" + bytes(8), "255 dimensions"),
        (b"VMT1\x01\x01\x02\x00" + bytes(8), "header of 32"),
        (b"VMT1\x01\x01\x02\x00" + bytes(8) + b"\xff" * 16, "bytes of data"),
    ],
)
def test_whatever_is_not_the_expected_message_names_the_peer(message: bytes, expected: str) -> None:
    peer, communicator = pair()
    peer.send(1, message)
    with pytest.raises(ProtocolMismatch, match=expected) as caught:
        communicator.recv(torch.zeros(2, dtype=torch.int64), 0)
    assert caught.value.culprits == ("alpha",)


def test_silence_and_departure_name_the_peer() -> None:
    peer, communicator = pair()
    with pytest.raises(PeerLost, match=r"alpha in 0.2 s") as caught:
        communicator.barrier()
    assert caught.value.culprits == ("alpha",)
    peer.close()
    with pytest.raises(PeerLost) as caught:
        communicator.barrier()
    assert caught.value.culprits == ("alpha",)


def test_disagreement_names_the_party_that_differs() -> None:
    def act(c: TensorCommunicator) -> Any:
        try:
            c.agree(b"other" if c.rank == 2 else b"same")
        except ProtocolMismatch as error:
            return error.culprits
        return ()

    assert together(3, act) == [("gamma",), ("gamma",), ("alpha", "beta")]


@pytest.mark.parametrize("bad", [1.5, b"x", {1: 2}, object(), 2**70, [[[[[[[[[1]]]]]]]]], "x" * 70_000, {"$size": 1}])
def test_only_small_plain_objects_travel(bad: object) -> None:
    with pytest.raises(InputError):
        objects.dumps(bad)


@pytest.mark.parametrize(
    "bad", [b"1.5", b"{", b"\xff", b"1e5", b'{"$size":[-1]}', b'{"$size":"x"}', b"[" * 5000, b"9" * 40, b"NaN"]
)
def test_malformed_objects_name_the_peer(bad: bytes) -> None:
    with pytest.raises(ProtocolMismatch) as caught:
        objects.loads(bad, "alpha")
    assert caught.value.culprits == ("alpha",)


def test_bytes_from_a_peer_are_bounded() -> None:
    peer, communicator = pair()
    peer.send(1, pack(Operation.BYTES, 0, torch.zeros(100, dtype=torch.uint8)))
    with pytest.raises(ProtocolMismatch, match="at most 99 bytes"):
        communicator.all_gather_bytes(b"", limit_bytes=99)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool, torch.float32, torch.float64]
)
def test_every_dtype_round_trips(dtype: torch.dtype) -> None:
    for tensor in (torch.tensor([[0, 1], [1, 0]]).to(dtype), torch.tensor(1).to(dtype), torch.empty(0, 3, dtype=dtype)):
        header, data = unpack(pack(Operation.PUBLIC, 3, tensor), "alpha")
        assert header == Header(Operation.PUBLIC, 3, dtype, tuple(tensor.shape))
        assert torch.equal(to_tensor(header, data), tensor)


def test_misuse_is_refused() -> None:
    _, communicator = pair()
    with pytest.raises(InputError, match="complex64"):
        communicator.send(torch.zeros(1, dtype=torch.complex64), 0)
    with pytest.raises(InputError, match="rank 1"):
        communicator.send(torch.zeros(1), 1)
    with pytest.raises(InputError, match="product"):
        communicator.all_reduce(torch.zeros(1), op="product")
    with pytest.raises(InputError):
        TensorCommunicator(communicator.transport, NAMES[:3])
    with pytest.raises(StateError):
        communicator.get_ttp_rank()
    assert (communicator.get_rank(), communicator.get_world_size(), communicator.get_name()) == (1, 2, "beta")
    assert communicator.get() is communicator and communicator.is_initialized()
    assert communicator.get_distributed_backend() == "veil/LoopbackTransport"
