"""Programs of the benchmarks on the engine: a step and an epoch of logistic regression on shared data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from veil.errors import StateError
from veil.mpc.seat import Seat

if TYPE_CHECKING:
    from veil.mpc.engine.correlations import Correlations
    from veil.mpc.engine.items import EngineItem
    from veil.mpc.engine.plan import Plan

_FEATURE_BITS = 16
_VELOCITY_BITS = 12
_LARGEST = 4.0


def step(seat: Seat) -> dict[str, Any]:
    """Single steps, each timed, after the correlated randomness of all of them was made."""
    return _descend(seat, ahead=True)


def epoch(seat: Seat) -> dict[str, Any]:
    """One pass over all rows, correlated randomness made alongside."""
    return _descend(seat, ahead=False)


def _descend(seat: Seat, *, ahead: bool) -> dict[str, Any]:
    from veil.mpc.engine.engine import Engine
    from veil.mpc.engine.plan import plan
    from veil.trainers.columns.logistic import Logistic

    program = Logistic(*_sizes(seat))
    steps, warmup = seat.number("steps"), seat.number("warmup")

    def everything(engine: Engine) -> None:
        descending = program.start(engine, None)
        for number in (*range(warmup), *range(steps)):
            descending.step(number)
        engine.combine(descending.weights())

    planned = plan(everything, seat.rank, seat.parties)
    own = _own(seat)
    made = {"dealer": _from_dealer, "he": _from_each_other}[seat.triples]
    with ExitStack() as stack:
        correlations, offline = made(seat, planned, ahead, stack)
        engine = Engine(seat.communicator, correlations)
        engine.start()
        held: list[Any] = []
        prepared = seat.measure(lambda _: held.append(program.start(engine, own)), 1)
        descending = held[0]
        for number in range(warmup):
            descending.step(number)
        descending.restart()
        measured = seat.measure(descending.step, steps)
        weights = engine.combine(descending.weights())
    return {
        **measured.document(),
        "weights": (weights.flatten().double() / 2.0**program.weight_bits).tolist(),
        "prepare_ms": prepared.total_ms,
        "prepare_bytes": prepared.bytes_sent,
        **{name: value / (steps + warmup) for name, value in offline.items()},
    }


def _from_dealer(seat: Seat, planned: Plan, ahead: bool, stack: ExitStack) -> tuple[Correlations, dict[str, float]]:
    from veil.mpc.engine.pool import PooledCorrelations

    if seat.seed is None:
        raise StateError("got no dealer, expected one")
    pool = PooledCorrelations(seat.rank, seat.parties, seat.seed, _fetch(seat), planned.items)
    started = time.perf_counter()
    stack.enter_context(pool)
    if ahead:
        pool.wait_full()
    offline_ms = 1000 * (time.perf_counter() - started) if ahead else 0.0
    return pool, {"offline_ms": offline_ms, "offline_bytes": planned.correction_bytes}


def _from_each_other(seat: Seat, planned: Plan, ahead: bool, stack: ExitStack) -> tuple[Correlations, dict[str, float]]:
    """Made by the parties before anything else, kept in a file as in a job, taken from there."""
    from veil.mpc.he.prepared import StoredCorrelations, prepare
    from veil.mpc.he.store import Store

    folder = stack.enter_context(TemporaryDirectory())
    path = Path(folder) / "correlations"

    def make(_: int) -> None:
        prepare(seat.communicator, path, planned.items)

    made = seat.measure(make, 1)
    stored = StoredCorrelations(stack.enter_context(Store(path)))
    stored.align(seat.communicator)
    return stored, {"offline_ms": made.total_ms, "offline_bytes": made.bytes_sent}


def _sizes(seat: Seat) -> tuple[Any, Any]:
    """Layout and descent: the first party has the features, the second the labels, as in every peer's run."""
    from veil.mpc.engine.waves import fit, sigmoid
    from veil.trainers.columns.descent import Descent
    from veil.trainers.columns.layout import Layout

    rows, features, batch = (seat.number(name) for name in ("rows", "features", "batch"))
    widths = (features, *(0 for _ in range(seat.parties - 1)))
    norm = _LARGEST * features**0.5
    shares = (int(norm * 2**_FEATURE_BITS), *(0 for _ in range(seat.parties - 1)))
    layout = Layout(rows, widths, 1, _FEATURE_BITS, norm=norm, shares=shares)
    # rate / 2^rate_bits is the learning rate over the batch; batches of 1024 make it a power of two.
    rate_bits = 24
    rate = round(seat.options["learning_rate"] / batch * 2**rate_bits)
    series = fit(sigmoid, reach=6, period=16, harmonics=8)
    descent = Descent(
        seat.number("steps"),
        batch,
        rate=rate,
        rate_bits=rate_bits,
        momentum=0,
        velocity_bits=_VELOCITY_BITS,
        sigmoid=series,
        precision_bits=14,
    )
    return layout, descent


def _own(seat: Seat) -> Any:
    import numpy as np
    import torch

    from veil.trainers.columns.layout import OwnColumns

    if seat.rank == 0:
        grid = np.rint(np.load(seat.folder / "features.npy") * 2.0**_FEATURE_BITS)
        return OwnColumns(torch.from_numpy(grid.astype(np.int64)))
    labels = None
    if seat.rank == 1:
        labels = torch.from_numpy(np.load(seat.folder / "labels.npy").astype(np.int64)).reshape(-1, 1)
    return OwnColumns(None, labels)


def _fetch(seat: Seat) -> Callable[[int, Sequence[EngineItem]], bytes] | None:
    from veil.mpc.engine import wire

    correct = seat.correct
    return None if correct is None else lambda first, items: correct(wire.to_wire(first, items))
