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

The cluster itself, and what is said of its network: `he_inference.engine.ray_cluster`.

Sources: Ray's documentation, "Actor fault tolerance" and "Placement: SPREAD".
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from he_inference import messages
from he_inference.engine.ray_settings import RaySettings, installed
from he_inference.engine.seam import BLOCKS_AT_A_TIME
from he_inference.engine.shard import KEY_SLOTS, Part, ShardKeys, ShardProcess, index_digest, read_answer, write_request
from he_inference.index.store import Index
from he_inference.layouts.seam import Layout
from veil.errors import ConfigError, PeerError, PeerLost, ProtocolMismatch

# Layouts whose blocks can be scored apart from each other.
_KINDS: Final = ("session", "keyless")
# A request that ends this many actors after the first is given up: it may be what ends them.
_MOST_RETRIES: Final = 3
# Larger requests are put into Ray's store once for all actors of a node, smaller ones go along with the call.
_INLINE_BYTES: Final = 64 * 1024
# So little that actors of all offers and generations fit (one index is scored at a time), and more than nothing, so
# that Ray leaves nodes alone which the operator started without processors.
_RESERVED_CPUS: Final = 0.001
_log = logging.getLogger("veil.he_inference.ray")


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
    """An `Engine[bytes, ShardKeys]` over the actors of one index; made by `he_inference.engine.ray_cluster`."""

    def __init__(self, index: Index, path: Path, settings: RaySettings) -> None:
        layout = index.layout
        if layout.kind not in _KINDS:
            raise ConfigError(
                f"got a {layout.kind} layout for engine ray, expected one of {', '.join(_KINDS)}",
                hint="serve it with the engine of one process",
            )
        self._ray = installed()
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
