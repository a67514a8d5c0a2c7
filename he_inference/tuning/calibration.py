"""What the primitives of encrypted scoring cost on this machine now: what `veil tune` predicts times from.

Guarantee: every figure is measured by running the evaluator and the client on two small layouts, one of one block and
one of several; nothing is looked up. A machine that is busy gives larger figures, as it would to queries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from he_inference.layouts.catalogue import layout_of, result_bytes, usual_kind
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.seam import Layout
from he_inference.parameters import Parameters
from he_inference.ring.moduli import TILE, Words
from he_inference.tuning import trial
from he_inference.tuning.stages import Evaluator, StagedCompute, StagedHistory
from he_inference.tuning.subjects import unit_rows
from veil.errors import ConfigError

# Ciphertexts of the larger history that is measured.
_MOST_FOLDED = 4


@dataclass(frozen=True)
class Line:
    """Milliseconds of n equal pieces of work, from two measurements (n, ms), the smaller first."""

    first: tuple[float, float]
    second: tuple[float, float]

    def __call__(self, count: float) -> float:
        (n, t), (m, u) = self.first, self.second
        if count <= n:
            return t * count / n
        return t + max(0.0, (u - t) / (m - n)) * (count - n)


@dataclass(frozen=True)
class Folding:
    """What folding a history in costs, milliseconds.

    baby: of one rotation of each of n ciphertexts, side by side. accumulation: of n bytes of fold-in rows. trace: of
    one rotation of a sum, the next one after it.
    """

    baby: Line
    accumulation: Line
    trace: float


@dataclass(frozen=True)
class Costs:
    """What primitives cost on this machine under one parameter set, milliseconds.

    baby: of one rotation of a query, the next one after it. giant: of one rotation of each of n sums, side by side.
    accumulation: of n bytes of index for one query. packing: of n results. reading, encryption: of n query ciphertexts.
    decryption: of n results. keys: of making a client's evaluation keys and reading them. folding: of histories alone.
    """

    baby: float
    giant: Line
    accumulation: Line
    packing: Line
    reading: Line
    encryption: Line
    decryption: Line
    keys: float
    folding: Folding | None = None

    def folding_ms(self, layout: HistoryLayout, size_bytes: int) -> float:
        """Of one history, with fold-in rows of so many bytes. Raises `ConfigError` where it was not measured."""
        if self.folding is None:
            raise ConfigError("got costs of vectors for a history, expected those of its own set")
        products = self.folding.accumulation(size_bytes)
        turned = (layout.rotations - 1) * self.folding.baby(layout.query_ciphertexts)
        return turned + products + _traced(layout) * self.folding.trace


def calibrate(sets: Iterable[Parameters], *, runs: int = 5, large_bytes: int = 64 << 20) -> dict[str, Costs]:
    """Costs by name of the set, from medians of `runs`; about a second a set. large_bytes: of the larger index."""
    found: dict[str, Costs] = {}
    alike: dict[tuple[object, ...], Costs] = {}
    for parameters in sets:
        shape = (parameters.degree, parameters.data_bits, parameters.special_bits)
        if shape not in alike:
            alike[shape] = _calibrated(parameters, runs, large_bytes)
        # Sets that differ in scales alone cost the same to the last instruction, but for decoding.
        found[parameters.name] = replace(alike[shape], decryption=_decryption(parameters, runs))
    return found


@dataclass(frozen=True)
class _Run:
    """Medians of one layout, milliseconds."""

    layout: Layout
    index_bytes: int
    fold_bytes: int
    seconds: dict[str, float]

    def point(self, stage: str, count: float, steps: int = 1) -> tuple[float, float]:
        """(count, milliseconds of a step)."""
        return float(count), 1000 * self.seconds[stage] / max(1, steps)


def _calibrated(parameters: Parameters, runs: int, large_bytes: int) -> Costs:
    kind = usual_kind(parameters)
    folds = kind == "history"
    packing = {"keyless": 8, "history": 1}.get(kind, 0)
    # One block, and as many as make an index of that size: of 64 and 128 dimensions, as real ones.
    n, share = parameters.degree, packing if kind == "keyless" else 1
    many = max(2, large_bytes // (4 * len(parameters.data_primes) * n * (8 if kind == "keyless" else 64)))
    many = min(many, _MOST_FOLDED) if folds else many
    small = _run(layout_of(kind, parameters, n // share, 32, packing), runs)
    large = _run(layout_of(kind, parameters, many * n // share, 64, packing), runs)

    def line(stage: str, count: Callable[[_Run], float]) -> Line:
        return Line(small.point(stage, count(small)), large.point(stage, count(large)))

    def folding() -> Folding:
        sides = [
            run.point("fold_baby", run.layout.query_ciphertexts, run.layout.rotations - 1) for run in (small, large)
        ]
        traces = [run.point("fold_trace", 1, _traced(run.layout))[1] for run in (small, large)]
        return Folding(Line(*sides), line("fold_accumulation", lambda run: run.fold_bytes), min(traces))

    def groups(run: _Run) -> tuple[float, float]:
        return run.point("giant", run.layout.blocks, run.layout.groups - 1)

    rotated = bool(parameters.special_bits)
    ciphertexts = [line(stage, lambda run: run.layout.query_ciphertexts) for stage in ("reading", "encryption")]
    if small.layout.query_ciphertexts == large.layout.query_ciphertexts:
        ciphertexts = [Line(one.first, (2 * one.first[0], 2 * one.first[1])) for one in ciphertexts]
    return Costs(
        baby=large.point("baby", 1, large.layout.rotations - 1)[1] if rotated else 0.0,
        giant=Line(groups(small), groups(large)) if rotated else Line((1, 0.0), (2, 0.0)),
        accumulation=line("accumulation", lambda run: run.index_bytes),
        packing=line("packing", lambda run: run.layout.blocks),
        reading=ciphertexts[0],
        encryption=ciphertexts[1],
        decryption=Line((1, 0.0), (2, 0.0)),
        keys=large.point("keys", 1)[1] if rotated else 0.0,
        folding=folding() if folds else None,
    )


def _traced(layout: Layout) -> int:
    """Rotations of sums while a history is folded in."""
    if not isinstance(layout, HistoryLayout):
        return 0
    return layout.groups - 1 + sum(layout.fold_in.trace_steps) - 2


def _evaluator(layout: Layout, rng: np.random.Generator) -> tuple[Evaluator, Words, int]:
    """With a random index, and the bytes of fold-in rows: what the numbers are makes no difference to the time that
    they take."""

    def words(*shape: int) -> Words:
        return rng.integers(0, min(layout.parameters.data_primes), shape, np.uint32)

    if isinstance(layout, HistoryLayout):
        n, fold = layout.parameters.degree, layout.fold_in
        rows = words(fold.blocks, len(layout.parameters.data_primes), n // TILE, fold.padded, TILE)
        history = StagedHistory(layout, rows)
        return history, words(layout.blocks, *history.block_shape), rows.nbytes
    compute = StagedCompute(layout)
    return compute, words(layout.blocks, *compute.block_shape), 0


def _run(layout: Layout, runs: int) -> _Run:
    rng = np.random.default_rng(0)
    compute, index, fold_bytes = _evaluator(layout, rng)
    entries = layout.items if layout.kind == "history" else layout.dimensions
    vectors = unit_rows(rng, runs + 1, entries)
    measured: dict[str, list[float]] = {}
    for number, vector in enumerate(vectors):
        started = time.perf_counter()
        client = trial.Client(compute)
        made = time.perf_counter()
        query = client.encrypt(vector)
        encrypted = time.perf_counter()
        compute.clock.forget()
        compute.answer(index, [query], [client.keys])
        if number:  # the first one compiles
            for stage, seconds in (
                *compute.clock.seconds.items(),
                ("keys", made - started),
                ("encryption", encrypted - made),
            ):
                measured.setdefault(stage, []).append(seconds)
    return _Run(
        layout, index.nbytes, fold_bytes, {stage: float(np.median(seconds)) for stage, seconds in measured.items()}
    )


def _decryption(parameters: Parameters, runs: int) -> Line:
    rng, points = np.random.default_rng(0), []
    kind = usual_kind(parameters)
    for blocks in (1, 8):
        layout = layout_of(kind, parameters, blocks * parameters.degree, 8, 0 if kind == "session" else 1)
        client = trial.Client(_evaluator(layout, rng)[0])
        results = [rng.bytes(result_bytes(layout)) for _ in range(blocks)]
        times = []
        for _ in range(runs + 1):
            started = time.perf_counter()
            client.decrypt(results)
            times.append(1000 * (time.perf_counter() - started))
        points.append((float(blocks), float(np.median(times[1:]))))
    return Line(points[0], points[1])
