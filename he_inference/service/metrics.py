"""What the scoring server counts and times, for Prometheus, at an address of its own.

Guarantee: the number of time series is bounded when the process starts: labels are stages, outcomes, parameter sets
and layouts from fixed lists, never a client, a model or anything that a caller chose. Nothing here is per client, so
nothing here tells two clients apart. The endpoint gives out these metrics and nothing else. There is none unless the
configuration names its address, loopback in the example: it is plain HTTP and asks nobody who they are.

Metric names and units follow prometheus.io/docs/practices/naming: seconds, bytes, `_total` for counters.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from he_inference.layouts.seam import Layout
from he_inference.noise import noise_margin_bits
from veil.errors import BY_CODE, ConfigError, VeilError
from veil.settings import Address, Section
from veil.wire.limits import split_address

STAGES: Final = ("queue", "read", "compute", "reply")
CANCELLED: Final = "CANCELLED"
INTERNAL: Final = "INTERNAL"
OTHER: Final = "OTHER"
OK: Final = "OK"
OUTCOMES: Final = (OK, *sorted(BY_CODE), CANCELLED, INTERNAL, OTHER)

# From a tenth of a millisecond, below the cheapest stage, to the longest deadline.
_SECONDS: Final = (1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
_BATCH: Final = (1, 2, 4, 8, 16, 32)
_BYTES_PER_SCORE: Final = (5.0, 6.0, 7.0, 7.5, 8.0, 8.5, 9.0, 12.0, 16.0, 32.0, 64.0, 128.0)
_OFFER: Final = ("parameters", "layout")
_RECALL: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class MetricsSettings(Section):
    """Where Prometheus may ask."""

    # Address of the endpoint, plain HTTP: keep it on loopback or a private network. Absent: no endpoint.
    listen: Address | None = None


class Endpoint:
    """An endpoint that listens; as a context manager it closes at the end of the block."""

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        host, port = split_address(address)
        try:
            self._server: WSGIServer
            self._thread: threading.Thread
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise ConfigError(
                f"got no listening socket for metrics at {address}: {error.strerror}, expected a free address"
            ) from None
        bound = self._server.server_port
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Metrics:
    """The server's metrics, in a registry of their own. Threads may share it."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._stages = Histogram(
            "veil_scoring_stage_seconds",
            "Time of a query in a stage: waiting, being read and checked, arithmetic (of its batch), being sent.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Gauge("veil_scoring_queue_length", "Queries that wait for the arithmetic.", registry=registry)
        self._batch = Histogram(
            "veil_scoring_batch_queries", "Queries that were computed together.", buckets=_BATCH, registry=registry
        )
        self._keys = Counter(
            "veil_scoring_key_cache_lookups",
            "Evaluation keys that the worker had parsed in memory (hit) or was sent again (miss).",
            ["found"],
            registry=registry,
        )
        self._bytes_per_score = Histogram(
            "veil_scoring_bytes_per_score",
            "Bytes of a response for each item that it scores.",
            buckets=_BYTES_PER_SCORE,
            registry=registry,
        )
        self._query_bytes = Counter("veil_scoring_query_bytes", "Bytes of queries received.", registry=registry)
        self._response_bytes = Counter("veil_scoring_response_bytes", "Bytes of results sent.", registry=registry)
        self._outcomes = Counter(
            "veil_scoring_queries",
            "Queries by how they ended: OK or the code of the error.",
            ["code"],
            registry=registry,
        )
        self._lookups = Counter(
            "veil_scoring_lookups",
            "Calls of GetParameters and GetModelCard by how they ended: OK or the code of the error.",
            ["code"],
            registry=registry,
        )
        self._restarts = Counter(
            "veil_scoring_worker_restarts",
            "Compute workers that died or were late and were replaced.",
            registry=registry,
        )
        self._margin = Gauge(
            "veil_scoring_noise_margin_bits",
            "Estimate, in bits: how far the largest coefficient stays below where decryption would fail (modulus), and"
            " the standard deviation of a score's error below its stated bound (bound); of a history, of an output's.",
            ["parameters", "layout", "limit"],
            registry=registry,
        )
        for stage in STAGES:
            self._stages.labels(stage)
        for found in ("hit", "miss"):
            self._keys.labels(found)
        for code in OUTCOMES:
            self._outcomes.labels(code)
            self._lookups.labels(code)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block, also when it raises. name: one of `STAGES`; raises `ConfigError` for another."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stage_took(name, time.perf_counter() - start)

    def stage_took(self, name: str, seconds: float) -> None:
        """As `stage`, for a time that was measured elsewhere."""
        if name not in STAGES:
            raise ConfigError(f"got stage {name[:32]!r}, expected one of {', '.join(STAGES)}")
        self._stages.labels(name).observe(max(0.0, seconds))

    def queue_is(self, queries: int) -> None:
        """How many queries wait now."""
        self._queue.set(queries)

    def batch_was(self, queries: int) -> None:
        """How many queries were computed together."""
        self._batch.observe(queries)

    def keys_found(self, hit: bool) -> None:
        """Whether a query's keys were in the worker's memory."""
        self._keys.labels("hit" if hit else "miss").inc()

    def answered(self, items: int, response_bytes: int, query_bytes: int) -> None:
        """Sizes of one answered query."""
        self._bytes_per_score.observe(response_bytes / max(1, items))
        self._response_bytes.inc(response_bytes)
        self._query_bytes.inc(query_bytes)

    def outcome(self, code: str) -> None:
        """How a query ended; what `outcome_of` says. A code that is not listed counts as OTHER."""
        self._outcomes.labels(code if code in OUTCOMES else OTHER).inc()

    def looked_up(self, code: str) -> None:
        """How a look-up ended; as `outcome`."""
        self._lookups.labels(code if code in OUTCOMES else OTHER).inc()

    def worker_restarted(self) -> None:
        """A worker was replaced."""
        self._restarts.inc()

    def offers(self, layouts: Sequence[Layout]) -> None:
        """States the noise margins of what is served now, in place of what was stated before."""
        self._margin.clear()
        for layout in layouts:
            margin = noise_margin_bits(layout)
            for limit, bits in (("modulus", margin.modulus), ("bound", margin.bound)):
                self._margin.labels(layout.parameters.name, layout.kind, limit).set(bits)

    def serve(self, address: str) -> Endpoint:
        """Listens at `address`, host:port, port 0: any free one. Raises `ConfigError`."""
        return Endpoint(self.registry, address)


class CanaryMetrics:
    """What the canary measures (`he_inference.canary`), in a registry of its own process.

    Parameter set and layout are labels: each offer has a bound of its own, and one that fails is not hidden by another.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._queries = Counter("veil_canary_queries", "Canary queries by how they ended.", ["code"], registry=registry)

        def gauge(name: str, explained: str) -> Gauge:
            return Gauge(f"veil_canary_{name}", explained, _OFFER, registry=registry)

        self._recall = Histogram(
            "veil_canary_top10_recall",
            "Share of the ten best items by plaintext scores among the ten best by decrypted scores.",
            _OFFER,
            buckets=_RECALL,
            registry=registry,
        )
        self._seconds = Histogram(
            "veil_canary_query_seconds",
            "From encryption to decrypted scores.",
            _OFFER,
            buckets=_SECONDS,
            registry=registry,
        )
        self._last_recall = gauge("last_top10_recall", "The recall of the last query.")
        self._error = gauge("score_error_max", "Largest error of a score of the last query, unit vectors.")
        self._worst = gauge("score_error_worst", "Largest error since the start, unit vectors.")
        self._bound = gauge("score_error_bound", "The bound that is stated for these errors.")
        self._margin = gauge("noise_margin_bits", "log2 of the bound over the last query's error.")
        self._success = gauge("last_success_timestamp_seconds", "When a query last held its bound.")
        self._most: dict[tuple[str, str], float] = {}
        for code in OUTCOMES:
            self._queries.labels(code)

    def measured(
        self, layout: Layout, *, error: float, bound: float, recall: float, seconds: float, held: bool
    ) -> None:
        """One canary query that was answered. held: within the bound and with plaintext's ten best."""
        offer = (layout.parameters.name, layout.kind)
        self._most[offer] = max(self._most.get(offer, 0.0), error)
        self._error.labels(*offer).set(error)
        self._worst.labels(*offer).set(self._most[offer])
        self._bound.labels(*offer).set(bound)
        # an error that is not a number leaves no margin
        margin = math.log2(bound / error) if error > 0 else math.inf if error == 0 else -math.inf
        self._margin.labels(*offer).set(margin)
        self._recall.labels(*offer).observe(recall)
        self._last_recall.labels(*offer).set(recall)
        self._seconds.labels(*offer).observe(seconds)
        success = self._success.labels(*offer)
        if held:
            success.set_to_current_time()

    def outcome(self, code: str) -> None:
        """How a canary query ended."""
        self._queries.labels(code if code in OUTCOMES else OTHER).inc()

    def serve(self, address: str) -> Endpoint:
        """As `Metrics.serve`."""
        return Endpoint(self.registry, address)


def outcome_of(error: BaseException | None) -> str:
    """The outcome that an error stands for; OK for none."""
    if error is None:
        return OK
    if isinstance(error, VeilError):
        return error.code if error.code in OUTCOMES else OTHER
    return CANCELLED if isinstance(error, GeneratorExit) else INTERNAL
