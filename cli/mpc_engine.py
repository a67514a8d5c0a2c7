"""Programs of the benchmarks on the engine: a step and an epoch of logistic regression on shared data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from veil.errors import StateError
from veil.mpc.seat import Seat

if TYPE_CHECKING:
    from veil.mpc.engine.items import EngineItem

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
    from veil.mpc.engine.pool import PooledCorrelations
    from veil.trainers.columns.logistic import Logistic

    program = Logistic(*_sizes(seat))
    steps, warmup = seat.number("steps"), seat.number("warmup")

    def everything(engine: Engine) -> None:
        descending = program.start(engine, None)
        for number in (*range(warmup), *range(steps)):
            descending.step(number)
        engine.combine(descending.weights())

    planned = plan(everything, seat.rank, seat.parties)
    if seat.seed is None:
        raise StateError("got no dealer, expected one")
    own, result = _own(seat), dict[str, Any]()
    with PooledCorrelations(seat.rank, seat.parties, seat.seed, _fetch(seat), planned.items) as pool:
        started = time.perf_counter()
        if ahead:
            pool.wait_full()
        offline_ms = 1000 * (time.perf_counter() - started)
        engine = Engine(seat.communicator, pool)
        engine.start()
        held: list[Any] = []
        prepared = seat.measure(lambda _: held.append(program.start(engine, own)), 1)
        descending = held[0]
        for number in range(warmup):
            descending.step(number)
        descending.restart()
        measured = seat.measure(descending.step, steps)
        weights = engine.combine(descending.weights())
    result["weights"] = (weights.flatten().double() / 2.0**program.weight_bits).tolist()
    return {
        **measured.document(),
        **result,
        "prepare_ms": prepared.total_ms,
        "prepare_bytes": prepared.bytes_sent,
        "offline_ms": offline_ms / (steps + warmup) if ahead else 0.0,
        "offline_bytes": planned.correction_bytes / (steps + warmup),
    }


def _sizes(seat: Seat) -> tuple[Any, Any]:
    """Layout and descent: the first party has the features, the second the labels, as in every peer's run."""
    from veil.mpc.engine.waves import fit, sigmoid
    from veil.trainers.columns.descent import Descent
    from veil.trainers.columns.layout import Layout

    rows, features, batch = (seat.number(name) for name in ("rows", "features", "batch"))
    widths = (features, *(0 for _ in range(seat.parties - 1)))
    layout = Layout(rows, widths, 1, _FEATURE_BITS, norm=_LARGEST * features**0.5)
    # rate / 2^rate_bits is the learning rate over the batch; batches of 1024 make it a power of two.
    rate_bits = 24
    rate = round(seat.options["learning_rate"] / batch * 2**rate_bits)
    series = fit(sigmoid, reach=7, period=16, harmonics=12)
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
