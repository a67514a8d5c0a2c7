"""Programs of the benchmarks that need no engine: a step through CrypTen's own operators, and the sum by parts."""

from __future__ import annotations

import hashlib
from typing import Any

from veil.errors import StateError
from veil.mpc.seat import Seat

_GRID_BITS = 16


def crypten_step(seat: Seat) -> dict[str, Any]:
    """Logistic regression over a Veil session with CrypTen's operators as they are: the first party's features, the
    second party's labels."""
    import numpy as np
    import torch

    from cli.mpc_workload import batch_rows
    from veil.mpc.provider import DealerProvider
    from veil.mpc.session import Session

    if seat.seed is None:
        raise StateError("got no dealer, expected one: CrypTen's operators take their triples from it")
    rows, features, batch = (seat.number(name) for name in ("rows", "features", "batch"))
    scale = seat.options["learning_rate"] / batch
    own: Any = None
    if seat.rank < 2:
        own = torch.from_numpy(np.load(seat.folder / ("labels.npy" if seat.rank else "features.npy")))
    provider = DealerProvider(seat.rank, seat.seed, seat.correct)
    openings = {"weights": (features, 1)}
    with Session(seat.communicator, provider, job_digest=seat.job_digest, openings=openings) as session:
        state: dict[str, Any] = {}

        def prepare(_: int) -> None:
            state["x"] = session.share(own if seat.rank == 0 else None, 0, (rows, features))
            state["y"] = session.share(own.reshape(-1, 1) if seat.rank == 1 else None, 1, (rows, 1))

        def start() -> None:
            zeros = torch.zeros(features, 1) if seat.rank == 0 else None
            state["w"] = session.share(zeros, 0, (features, 1))

        def step(number: int) -> None:
            part = batch_rows(number, rows, batch)
            x, y, w = state["x"][part], state["y"][part], state["w"]
            state["w"] = w - x.t().matmul(x.matmul(w).sigmoid() - y) * scale

        prepared = seat.measure(prepare, 1)
        start()
        for number in range(seat.number("warmup")):
            step(number)
        start()
        measured = seat.measure(step, seat.number("steps"))
        weights = session.open("weights", state["w"])
    return {
        **measured.document(),
        "prepare_ms": prepared.total_ms,
        "prepare_bytes": prepared.bytes_sent,
        "weights": weights.flatten().tolist(),
    }


def sum_by_parts(seat: Seat) -> dict[str, Any]:
    """Everybody's numbers summed at every party (`veil.mpc.reduce`), exactly, without noise; the bytes of the opening,
    keys and agreements included."""
    import numpy as np
    import torch

    from veil.mpc.keys import agree_on_streams
    from veil.mpc.policy import RevealPolicy
    from veil.mpc.reduce import ROUNDS, open_sum

    elements, repeats = seat.number("elements"), seat.number("steps")
    numbers = torch.from_numpy(np.load(seat.folder / f"numbers-{seat.rank}.npy"))
    own = (numbers.to(torch.float64) * 2**_GRID_BITS).to(torch.int64)
    policy = RevealPolicy((), {f"sum-{number}": (elements,) for number in range(repeats)})
    totals: list[torch.Tensor] = []

    def act(number: int) -> None:
        streams = agree_on_streams(seat.communicator, hashlib.sha256(seat.job_digest + bytes([number])).digest())
        total, _ = open_sum(seat.communicator, policy, f"sum-{number}", own, (streams["prev"], streams["next"]))
        totals[:] = [total]

    document = seat.measure(act, repeats).document()
    # Of the protocol: keys, agreement, two of the sum, comparison. The communicator counts each message.
    document["rounds"] = 3 + ROUNDS
    if seat.rank == 0:
        np.save(seat.folder / "total.npy", totals[0].numpy())
    document["digest"] = hashlib.sha256(totals[0].numpy().tobytes()).hexdigest()
    return document
