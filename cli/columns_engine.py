"""Program of a benchmark: logistic regression on split columns without noise, trained by the engine of joint jobs.

Guarantee: layout, descent and program are those that a columns job of the same terms would run, less its noise. Without
noise the weights say more about rows than a job may: this is for data that one holds anyway.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from veil.errors import StateError
from veil.files import read_bounded
from veil.mpc.seat import Seat

if TYPE_CHECKING:
    from veil.mpc.engine.engine import Engine
    from veil.trainers.columns.layout import Layout, OwnColumns

TRAINER_FILE = "trainer.json"
_MOST_TRAINER_BYTES = 2**20


def train(seat: Seat) -> dict[str, Any]:
    """Weights of all columns, as numbers in rank order, and what it took.

    The folder holds trainer.json (`veil.jobs.columns.ColumnsTrainer`), features-RANK.npy int64[rows, own width] and
    labels.npy int64[rows]; the option offset is what every score has on top, over 2^16.
    """
    from veil.jobs.columns import ColumnsTrainer
    from veil.mpc.engine import wire
    from veil.mpc.engine.engine import Engine
    from veil.mpc.engine.plan import plan
    from veil.mpc.engine.pool import PooledCorrelations
    from veil.trainers.columns.terms import ColumnsTerms, schema_of

    trainer = ColumnsTrainer.model_validate_json(read_bounded(seat.folder / TRAINER_FILE, _MOST_TRAINER_BYTES))
    names = tuple(party.party for party in schema_of(trainer.columns).parties)
    program = ColumnsTerms.of_trainer(trainer, names).program(offset=seat.number("offset"))
    correct = seat.correct
    if seat.seed is None:
        raise StateError("got no dealer, expected one")

    def everything(engine: Engine) -> None:
        engine.combine(program.run(engine, None))

    planned = plan(everything, seat.rank, seat.parties)
    fetch = None if correct is None else lambda first, items: correct(wire.to_wire(first, items))
    own, began = _own(seat, program.layout), time.perf_counter()
    with ExitStack() as stack:
        pool = stack.enter_context(PooledCorrelations(seat.rank, seat.parties, seat.seed, fetch, planned.items))
        engine = Engine(seat.communicator, pool)
        engine.start()
        held: list[Any] = []
        measured = seat.measure(lambda _: held.append(program.run(engine, own)), 1)
        weights = engine.combine(held[0])
    return {
        **measured.document(),
        "seconds": time.perf_counter() - began,
        "weights": (weights.double() / 2.0 ** held[0].bits).flatten().tolist(),
    }


def _own(seat: Seat, layout: Layout) -> OwnColumns:
    import numpy as np
    import torch

    from veil.trainers.columns.layout import OwnColumns

    labels = None
    if seat.rank == layout.label:
        labels = torch.from_numpy(np.load(seat.folder / "labels.npy")).reshape(-1, 1)
    own = OwnColumns(torch.from_numpy(np.load(seat.folder / f"features-{seat.rank}.npy")), labels)
    own.check(layout, seat.rank)
    return own
