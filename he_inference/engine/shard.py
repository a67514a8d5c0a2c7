"""A range of an index's blocks, scored by a process of its own: bytes in, bytes out, no object of any other kind.

    request   queries, keys (u32 each)  |  32 bytes for each query: SHA-256 of its keys, zeros without  |
              the queries  |  keys that the shard may lack
    answer    status, first block, last block + 1, queries, microseconds (u32 each), generation (u64),
              digest of the index (32 bytes), digest of the request (32 bytes)  |  body
    body      SCORES: the results, [query][block] | LACKING: digests of keys that must be sent | REFUSED: JSON

All numbers are big-endian; lengths of queries, keys and results follow from the layout.

Guarantee: an answer names what it was computed from: the generation and the digest of the index (which covers the
checksum of every block), the range of blocks, and the request, byte for byte. `read_answer` returns nothing that
differs from what was asked in any of these. A shard opens a file only when it is the index that it was told of, and
checks its own blocks against their checksums before the first score. The rotated queries, 64 KB for each rotation,
stay in the shard: 28 KB of query come in, and results go out.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import struct
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from he_inference.index.format import Front, front_bytes
from he_inference.index.store import Index
from he_inference.layouts.catalogue import key_bytes, query_bytes, result_bytes
from he_inference.layouts.seam import Layout
from veil.errors import BY_CODE, ProtocolMismatch, StateError, VeilError, WireError

if TYPE_CHECKING:
    from he_inference.engine.compute import Compute
    from he_inference.ring.moduli import Words

DIGEST_BYTES: Final = 32
KEY_SLOTS: Final = 256
_REQUEST: Final = struct.Struct(">II")
_ANSWER: Final = struct.Struct(f">IIIIIQ{DIGEST_BYTES}s{DIGEST_BYTES}s")
_MOST_US: Final = 2**32 - 1
# As many as `he_inference.service.pool.MOST_TOGETHER`, and some.
_MOST_QUERIES: Final = 256
_NO_KEYS: Final = bytes(DIGEST_BYTES)


class Status(IntEnum):
    """What the body of an answer is."""

    SCORES = 1
    LACKING = 2
    REFUSED = 3


@dataclass(frozen=True)
class Part:
    """Blocks `first` to `last` - 1 of one index."""

    layout: Layout
    generation: int
    index_digest: bytes
    first: int
    last: int


@dataclass(frozen=True)
class ShardKeys:
    """Evaluation keys, named by their digest."""

    data: bytes = field(repr=False)
    digest: bytes

    @classmethod
    def of(cls, data: bytes) -> ShardKeys:
        """Keys as they came from a client."""
        return cls(data, hashlib.sha256(data).digest())


@dataclass(frozen=True)
class ShardAnswer:
    """Results [query][block] of a part, or the digests of keys that it lacks; and how long the arithmetic took."""

    results: list[list[bytes]] = field(repr=False)
    lacking: frozenset[bytes]
    compute_us: int


def index_digest(front: Front) -> bytes:
    """32 bytes that name an index: of all that stands in front of the blocks, their checksums among it."""
    return hashlib.sha256(front_bytes(front)).digest()


def write_request(
    queries: Sequence[bytes], keys: Sequence[ShardKeys | None], send: Mapping[bytes, ShardKeys] | None = None
) -> bytes:
    """A request for the scores of `queries`; `send`: keys that go along, by digest."""
    sent = list((send or {}).values())
    names = [_NO_KEYS if one is None else one.digest for one in keys]
    return b"".join([_REQUEST.pack(len(queries), len(sent)), *names, *queries, *(one.data for one in sent)])


def read_answer(answer: bytes, request: bytes, part: Part, queries: int) -> ShardAnswer:
    """The answer of the shard of `part` to `request`, whose queries are `queries`.

    Raises `ProtocolMismatch` when it is one of another index, range or request, and what the shard refused it with.
    """
    if len(answer) < _ANSWER.size:
        raise ProtocolMismatch(f"got an answer of {len(answer)} bytes from a shard, expected at least {_ANSWER.size}")
    status, first, last, count, compute_us, generation, index, asked = _ANSWER.unpack_from(answer)
    # A request that was refused before it was read is one of no queries.
    expected_count = 0 if status == Status.REFUSED and count == 0 else queries
    got = (first, last, count, generation, index, asked)
    digest = hashlib.sha256(request).digest()
    expected = (part.first, part.last, expected_count, part.generation, part.index_digest, digest)
    for name, one, other in zip(
        ("first block", "last block", "query count", "generation", "index", "request"), got, expected, strict=True
    ):
        if one != other:
            raise ProtocolMismatch(f"got scores of another {name} from a shard, expected what it was asked for")
    body = memoryview(answer)[_ANSWER.size :]
    if status == Status.REFUSED:
        raise _refusal(bytes(body))
    if status == Status.LACKING and len(body) and len(body) % DIGEST_BYTES == 0:
        digests = (bytes(body[at : at + DIGEST_BYTES]) for at in range(0, len(body), DIGEST_BYTES))
        return ShardAnswer([], frozenset(digests), compute_us)
    size, blocks = result_bytes(part.layout), part.last - part.first
    if status != Status.SCORES or len(body) != queries * blocks * size:
        raise ProtocolMismatch(f"got {len(body)} bytes of results from a shard, expected {queries * blocks * size}")
    places = range(0, blocks * size, size)
    rows = [body[query * blocks * size :] for query in range(queries)]
    return ShardAnswer([[bytes(row[at : at + size]) for at in places] for row in rows], frozenset(), compute_us)


def _refusal(body: bytes) -> VeilError:
    try:
        document = json.loads(body)
        kind, message, hint = BY_CODE[document["code"]], document["message"], document["hint"]
    except (ValueError, KeyError, TypeError):
        return ProtocolMismatch("got a refusal from a shard that says nothing, expected a reason")
    return kind(str(message), hint=None if hint is None else str(hint))


@dataclass(frozen=True)
class _Open:
    """An index that was found to be the right one."""

    index: Index
    compute: Compute


class Shard:
    """The blocks `first` to `last` - 1 of the index at `path`, whose digest and generation are known.

    The file is mapped whole, which takes addresses, not memory: only pages of these blocks are ever read.
    """

    def __init__(self, path: str, digest: bytes, generation: int, first: int, last: int) -> None:
        self._path = Path(path)
        self._digest = digest
        self._generation = generation
        self._first = first
        self._last = last
        self._keys: OrderedDict[bytes, Words] = OrderedDict()
        self._opened: _Open | None = None

    def ready(self) -> bytes:
        """Opens and checks the file; an answer without results to a request of no bytes."""
        try:
            self._open()
        except VeilError as error:
            return self._refused(b"", 0, error)
        return self._answer(Status.SCORES, b"", 0, [])

    def score(self, request: bytes) -> bytes:
        """The answer to a request."""
        count = 0
        try:
            opened = self._open()
            names, queries, sent = _parsed(request, opened.compute.layout)
            count = len(names)
            for data in sent:
                self._hold(ShardKeys.of(data).digest, opened.compute.read_keys(data))
            lacking = sorted({name for name in names if name != _NO_KEYS and name not in self._keys})
            if lacking:
                return self._answer(Status.LACKING, request, count, lacking)
            return self._scores(opened, request, names, queries)
        except VeilError as error:
            return self._refused(request, count, error)

    def _scores(self, opened: _Open, request: bytes, names: Sequence[bytes], queries: Sequence[bytes]) -> bytes:
        import numpy as np

        compute = opened.compute
        read = [compute.read_query(query) for query in queries]
        none: Words = np.empty(0, np.uint32)
        keys = [none if name == _NO_KEYS else self._held(name) for name in names]
        started = time.perf_counter_ns()
        results: list[list[bytes]] = [[] for _ in queries]
        for run in compute.score(opened.index.blocks[self._first : self._last], read, keys):
            for gathered, one in zip(results, run, strict=True):
                gathered.extend(one)
        compute_us = (time.perf_counter_ns() - started) // 1000
        parts = [block for blocks in results for block in blocks]
        return self._answer(Status.SCORES, request, len(names), parts, compute_us)

    def _open(self) -> _Open:
        # Tried again with every request until it works: shared storage may come back.
        if self._opened is None:
            # Here, and not above: who only talks to shards needs no compiler.
            from he_inference.engine.compute import Compute

            index = Index.open(self._path, verify=False)
            try:
                if index_digest(index.front) != self._digest or index.generation != self._generation:
                    raise StateError(
                        f"got index {self._path.name} of generation {index.generation}, expected {self._generation}:"
                        " it was replaced",
                        hint="ask for the parameters and make the query anew",
                    )
                index.verify(range(self._first, self._last))
                self._opened = _Open(index, Compute(index.layout))
            except BaseException:
                index.close()
                raise
        return self._opened

    def _hold(self, name: bytes, keys: Words) -> None:
        self._keys[name] = keys
        self._keys.move_to_end(name)
        while len(self._keys) > KEY_SLOTS:
            self._keys.popitem(last=False)

    def _held(self, name: bytes) -> Words:
        self._keys.move_to_end(name)
        return self._keys[name]

    def _refused(self, request: bytes, count: int, error: VeilError) -> bytes:
        text = json.dumps({"code": error.code, "message": error.message, "hint": error.hint})
        return self._answer(Status.REFUSED, request, count, [text.encode()])

    def _answer(self, status: Status, request: bytes, count: int, body: Sequence[bytes], compute_us: int = 0) -> bytes:
        asked = hashlib.sha256(request).digest()
        head = _ANSWER.pack(
            status, self._first, self._last, count, min(compute_us, _MOST_US), self._generation, self._digest, asked
        )
        return b"".join([head, *body])


class ShardProcess(Shard):
    """A shard that has its process for itself."""

    def __init__(self, path: str, digest: bytes, generation: int, first: int, last: int) -> None:
        # An undisclosed memory image stays undisclosed.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        super().__init__(path, digest, generation, first, last)

    def pid(self) -> int:
        """Its process id, on its machine."""
        return os.getpid()


def _parsed(request: bytes, layout: Layout) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Names of keys, queries, and keys sent along. Raises `WireError`."""
    if len(request) < _REQUEST.size:
        raise WireError(f"got a request of {len(request)} bytes, expected at least {_REQUEST.size}")
    queries, keys = _REQUEST.unpack_from(request)
    if not 1 <= queries <= _MOST_QUERIES or keys > queries:
        raise WireError(f"got a request of {queries} queries and {keys} keys, expected 1 to {_MOST_QUERIES} queries")
    sizes = [DIGEST_BYTES] * queries + [query_bytes(layout)] * queries + [key_bytes(layout)] * keys
    if len(request) != _REQUEST.size + sum(sizes):
        raise WireError(f"got a request of {len(request)} bytes, expected {_REQUEST.size + sum(sizes)}")
    pieces = []
    at = _REQUEST.size
    for size in sizes:
        pieces.append(request[at : at + size])
        at += size
    if not layout.galois_elements and any(name != _NO_KEYS for name in pieces[:queries]):
        raise WireError("got keys for a layout without them, expected none")
    if layout.galois_elements and any(name == _NO_KEYS for name in pieces[:queries]):
        raise WireError("got a query without keys, expected keys for each")
    return pieces[:queries], pieces[queries : 2 * queries], pieces[2 * queries :]
