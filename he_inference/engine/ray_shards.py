"""The engine of several machines: each Ray actor scores a range of the index's blocks; results are joined in order.

    this process        28 KB for each query, keys (110 KB and more) once            ->  every actor
    actor k, its node   maps the index file, checks its own blocks, rotates, sums    ->  results of its blocks
    this process        checks what each answer was computed from, joins in block order

Each actor rotates the query by itself: a rotated query is 64 KB for every rotation, the query 28 KB in all. The index
file is on storage that every node reaches under the same path; item vectors travel by no other way.

Ray places the actors (SPREAD), restarts one that ends (`max_restarts`) and sends it again what it was asked
(`max_task_retries`). An actor that came back has no keys; it says so, and gets them again.

Guarantee: the same bytes as `he_inference.engine.local`. Every answer names the generation and digest of its index, its
range of blocks and the request it is for; it is joined only when all of these are right (`he_inference.engine.shard`).
Otherwise, or when an actor does not come back in time, `score` raises, and no result is made up.

What it does not guarantee: Ray's own messages are pickled Python objects, and who reaches a Ray port can run code on
every node. So a cluster belongs inside one operator's network, with Ray's own TLS (RAY_USE_TLS) and token
authentication (RAY_AUTH_MODE) where that is shared; a local cluster always asks for a token. Only bytes and small
integers are passed here, to an address from the operator's configuration; nothing secret is among them, since no secret
key exists on this side. The dashboard and Ray's usage statistics are off.

Sources: Ray's documentation, "Actor fault tolerance" and "Placement: SPREAD".
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from he_inference import messages
from he_inference.engine.pinned import pin
from he_inference.engine.seam import BLOCKS_AT_A_TIME
from he_inference.engine.shard import KEY_SLOTS, Part, ShardKeys, ShardProcess, index_digest, read_answer, write_request
from he_inference.index.store import Index
from he_inference.layouts.seam import Layout
from veil.errors import ConfigError, PeerError, PeerLost, ProtocolMismatch

LOCAL: Final = "local"
# Layouts whose blocks can be scored apart from each other.
_KINDS: Final = ("session", "keyless")
# A request that ends this many actors after the first is given up: it may be what ends them.
_MOST_RETRIES: Final = 3
# Larger requests are put into Ray's store once for all actors of a node, smaller ones go along with the call.
_INLINE_BYTES: Final = 64 * 1024
# So little that actors of all offers and generations fit (one index is scored at a time), and more than nothing, so
# that Ray leaves nodes alone which the operator started without processors.
_RESERVED_CPUS: Final = 0.001
# Of a cluster that exists in this process's machine only; Ray asks for at least 75 MiB.
_LOCAL_STORE_BYTES: Final = 512 * 1024 * 1024
_log = logging.getLogger("veil.he_inference.ray")


@dataclass(frozen=True)
class RaySettings:
    """A Ray cluster as configured. Raises `ConfigError`.

    address: "local" for a cluster in this machine that ends with this process, else host:port of its head node (as
    `ray start --address`). shards: actors for an index, at most one for each block. threads: of each actor.
    start_timeout_s: until actors answer first, with kernels to compile. timeout_s: of one batch.
    """

    address: str = LOCAL
    shards: int = 2
    threads: int = 1
    start_timeout_s: float = 600.0
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= 1024 or not 1 <= self.threads <= 1024:
            raise ConfigError(f"got {self.shards} shards of {self.threads} threads, expected 1 to 1024 of each")
        if self.address != LOCAL and ("://" in self.address or ":" not in self.address):
            raise ConfigError(
                f"got Ray address {self.address[:64]!r}, expected {LOCAL!r} or host:port of the head node"
            )


class RayCluster:
    """A connection to Ray, one in a process; a context manager that gives it up, and ends a local cluster.

    When this process is killed, actors and a local cluster end with it, but for two agents of Ray, a minute later.
    """

    def __init__(self, settings: RaySettings) -> None:
        """Connects. Raises `ConfigError` when Ray is not installed, `PeerLost` when no cluster answers."""
        # Read by Ray when it starts a cluster.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if settings.address == LOCAL:
            # Ray listens on all interfaces, and asks who comes for a token, which it would write to the home folder.
            # This one stays in the memory of this process and its children.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # Clients wait for actors; Ray runs them behind everything else (niceness 15).
            os.environ.setdefault("RAY_worker_niceness", "0")
            if "ray" not in sys.modules:
                # Ray looks when it is imported; later it does the same by itself, since version 2.59.
                os.environ.setdefault("RAY_AUTH_MODE", "token")
        ray = _ray()
        self.settings = settings
        options: dict[str, Any] = {"address": settings.address}
        if settings.address == LOCAL:
            options |= {
                "num_cpus": 1,
                "num_gpus": 0,
                "include_dashboard": False,
                "object_store_memory": _LOCAL_STORE_BYTES,
            }
        try:
            ray.init(**options, namespace="veil-scoring", log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, TimeoutError) as error:
            raise PeerLost(
                f"got no Ray cluster at {settings.address}: {str(error).partition(chr(10))[0]}",
                hint="is it started there (ray start --head), and is its token known here?",
            ) from None
        self._engines: list[RayShards] = []

    def engines(self, indexes: Sequence[tuple[Index, Path]]) -> list[RayShards]:
        """An engine for each open index and its path, which every node must reach; raises `VeilError`.

        The indexes stay the caller's and may be closed. Each engine's actors have opened the file and checked their
        blocks. Index files at the same paths that are not among these are given up (`he_inference.engine.pinned`).
        """
        made: list[RayShards] = []
        try:
            for (index, _), path in zip(indexes, pin(indexes), strict=True):
                made.append(RayShards(index, path, self.settings))
            for engine in made:
                engine.start()
        except BaseException:
            for engine in made:
                engine.close()
            raise
        self._engines += made
        return made

    def close(self) -> None:
        """Ends the actors and the connection; may be called again."""
        for engine in self._engines:
            engine.close()
        self._engines.clear()
        _ray().shutdown()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The frames of an error hold references to answers. Those must not outlive the connection: Ray crashes then.
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        self.close()


@dataclass
class _Actor:
    """An actor, its part of the index, and keys that it was sent."""

    handle: Any
    part: Part
    known: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def lacks(self, keys: Sequence[ShardKeys | None]) -> dict[bytes, ShardKeys]:
        """Those of `keys` that it was not sent, by digest."""
        return {one.digest: one for one in keys if one is not None and one.digest not in self.known}

    def learns(self, keys: Sequence[ShardKeys | None]) -> None:
        """Notes keys that it holds now; it forgets in the same order."""
        for one in keys:
            if one is not None:
                self.known[one.digest] = None
                self.known.move_to_end(one.digest)
        while len(self.known) > KEY_SLOTS:
            self.known.popitem(last=False)


class RayShards:
    """An `Engine[bytes, ShardKeys]` over the actors of one index; made by `RayCluster.engines`."""

    def __init__(self, index: Index, path: Path, settings: RaySettings) -> None:
        layout = index.layout
        if layout.kind not in _KINDS:
            raise ConfigError(
                f"got a {layout.kind} layout for engine ray, expected one of {', '.join(_KINDS)}",
                hint="serve it with the engine of one process",
            )
        self._ray = _ray()
        self._layout = layout
        self._settings = settings
        self.compute_us = 0
        """Of the last batch: the longest arithmetic of an actor."""
        digest, count = index_digest(index.front), min(settings.shards, layout.blocks)
        bounds = [number * layout.blocks // count for number in range(count + 1)]
        threads = str(settings.threads)
        kind = self._ray.remote(ShardProcess).options(
            num_cpus=_RESERVED_CPUS,
            scheduling_strategy="SPREAD",
            max_restarts=-1,
            max_task_retries=_MOST_RETRIES,
            # One pool of threads in each actor, whatever number of cores its node has.
            runtime_env={
                "env_vars": {"NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"}
            },
        )
        self._actors = []
        for first, last in pairwise(bounds):
            part = Part(layout, index.generation, digest, first, last)
            handle = kind.remote(str(path.absolute()), digest, index.generation, first, last)
            self._actors.append(_Actor(handle, part))

    @property
    def layout(self) -> Layout:
        """The layout of the index."""
        return self._layout

    @property
    def parts(self) -> list[Part]:
        """The part of each actor, in block order."""
        return [actor.part for actor in self._actors]

    def start(self) -> None:
        """Returns when every actor has opened and checked its blocks; raises why one has not."""
        deadline = time.monotonic() + self._settings.start_timeout_s
        answers = [actor.handle.ready.remote() for actor in self._actors]
        for actor, answer in zip(self._actors, answers, strict=True):
            read_answer(self._get(answer, deadline), b"", actor.part, 0)

    def pids(self) -> list[int]:
        """Process ids of the actors on their machines, in block order."""
        deadline = time.monotonic() + self._settings.timeout_s
        return [self._get(actor.handle.pid.remote(), deadline) for actor in self._actors]

    def read_query(self, data: bytes) -> bytes:
        """The query, which is residues of the right number. Raises `CiphertextError`."""
        messages.read_query(self._layout.parameters, data, self._layout.query_ciphertexts)
        return data

    def read_keys(self, data: bytes) -> ShardKeys:
        """The keys, which are residues of the right number. Raises `CiphertextError`."""
        messages.read_keys(self._layout.parameters, data, self._layout.galois_elements)
        return ShardKeys.of(data)

    def score(self, queries: Sequence[bytes], keys: Sequence[ShardKeys | None]) -> Iterator[list[list[bytes]]]:
        """Results of all blocks, some at a time: [query][block]; queries and keys are from `read_query`, `read_keys`.

        Raises `PeerLost` when an actor does not come back in time or ends over this request again and again,
        `ProtocolMismatch` when one answers with scores of something else, and what an actor refuses with.
        """
        deadline = time.monotonic() + self._settings.timeout_s
        pending = [(actor, *self._ask(actor, queries, keys)) for actor in self._actors]
        self.compute_us = 0
        for actor, request, reference in pending:
            answer = read_answer(self._get(reference, deadline), request, actor.part, len(queries))
            if answer.lacking:
                # It came back in the meantime, with nothing.
                actor.known.clear()
                request, reference = self._ask(actor, queries, keys)
                answer = read_answer(self._get(reference, deadline), request, actor.part, len(queries))
            if answer.lacking:
                raise ProtocolMismatch("a shard lacks keys that it was sent")
            actor.learns(keys)
            self.compute_us = max(self.compute_us, answer.compute_us)
            for start in range(0, actor.part.last - actor.part.first, BLOCKS_AT_A_TIME):
                yield [results[start : start + BLOCKS_AT_A_TIME] for results in answer.results]

    def close(self) -> None:
        """Ends the actors; may be called again."""
        actors, self._actors = self._actors, []
        if self._ray.is_initialized():
            for actor in actors:
                self._ray.kill(actor.handle, no_restart=True)

    def _ask(self, actor: _Actor, queries: Sequence[bytes], keys: Sequence[ShardKeys | None]) -> tuple[bytes, Any]:
        request = write_request(queries, keys, actor.lacks(keys))
        sent = self._ray.put(request) if len(request) > _INLINE_BYTES else request
        return request, actor.handle.score.remote(sent)

    def _get(self, reference: Any, deadline: float) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=max(0.001, deadline - time.monotonic()))
        except errors.GetTimeoutError:
            raise PeerLost(
                "a shard did not answer in time", hint="are the cluster's nodes alive? its address: engine.ray.address"
            ) from None
        except errors.RayTaskError as error:
            # A mistake of ours; only its kind is told, since Ray's text quotes the actor's.
            kind = type(error.cause).__name__
            raise PeerError(f"a shard failed over a request: {kind}", hint="Ray's log on its node says where") from None
        except errors.RayError as error:
            _log.warning("a shard is lost: %s", type(error).__name__)
            raise PeerLost(
                "a shard ended over a request, as often as it came back",
                hint="has every node this version of Veil, and memory for its shard?",
            ) from None


def _ray() -> Any:
    """Ray, which is installed only where it is used. Raises `ConfigError`."""
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ConfigError(
            "got engine ray, but Ray is not installed here", hint='pip install "veil-recsys[ray]"'
        ) from None
    return ray
