"""One case of `veil bench mpc` at Veil's own parties: inputs, processes, and what they found put together.

Guarantee: times are the slowest party's, bytes the most that one party sent; errors are against plaintext on the same
files that peers read.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cli.mpc_processes import run_parties
from cli.mpc_workload import Logistic, Numbers
from veil.errors import ConfigError, ProtocolMismatch

CaseName = Literal["step", "epoch", "sum"]
Triples = Literal["dealer", "he"]
Operators = Literal["engine", "crypten"]
Plane = Literal["grpc", "direct", "gloo"]

ENGINE = "cli.mpc_engine"
_OWN = "cli.mpc_cases"
_LIMIT_S = 900.0
_TOTAL_FILE = "total.npy"


@dataclass(frozen=True)
class CaseResult:
    """What a case shows. ms: one step's median, or the whole epoch or sum; bytes and rounds are of the same.

    max_abs_error: largest difference to plaintext, of weights or of sums. extra: whatever else, by name.
    """

    ms: float
    bytes_per_party: float
    rounds: float
    max_abs_error: float
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How large a case is; what is left out is as the issue of the benchmark has it."""

    steps: int = 100
    warmup: int = 8
    batch: int = 1024
    features: int = 64
    step_batches: int = 8
    epoch_rows: int = 100_000
    sum_elements: int = 10_000_000
    sum_repeats: int = 3

    def logistic(self, case: CaseName) -> Logistic:
        """The regression behind a step or an epoch; an epoch is one pass, without rows set aside for warming up."""
        if case == "step":
            return Logistic(self.batch * self.step_batches, self.features, self.batch, self.steps, self.warmup)
        batches = -(-self.epoch_rows // self.batch)
        return Logistic(self.epoch_rows, self.features, self.batch, batches, self.warmup)


def write_inputs(case: CaseName, parties: int, sizes: Sizes, folder: Path) -> None:
    """The case's files, for Veil and peers alike."""
    if case == "sum":
        Numbers(parties, sizes.sum_elements).write(folder)
    else:
        sizes.logistic(case).write(folder)


def run_case(
    case: CaseName,
    parties: int,
    triples: Triples,
    sizes: Sizes,
    folder: Path,
    operators: Operators = "engine",
    limit_s: float = _LIMIT_S,
    *,
    worker: bool = False,
    plane: Plane = "grpc",
) -> CaseResult:
    """Runs a case with real processes and mutual TLS on this machine. folder: has its inputs (`write_inputs`). worker:
    whether each party's program runs in a worker behind a relay, as jobs do, or in the process that has the streams.
    plane: what carries messages, gRPC with mutual TLS or gloo in the clear.

    The program at each party is `cli.mpc_engine:CASE` (or `cli.mpc_cases`, for sums and for CrypTen's own
    operators); it gets a `veil.mpc.seat.Seat` and returns a document: step_ms, total_ms, bytes_sent and rounds, all as
    `Seat.measure` has them, weights, and optionally prepare_ms and prepare_bytes, which a job needs once, and
    offline_ms and offline_bytes, which each step needs.
    """
    place: dict[str, Any] = {"worker": worker, "plane": plane}
    if case == "sum":
        found = run_parties(f"{_OWN}:sum_by_parts", parties, "none", folder, _sum_options(sizes), limit_s, **place)
        return _sum(found, sizes, folder)
    work = sizes.logistic(case)
    program = _program(case, triples, operators)
    found = run_parties(program, parties, triples, folder, work.options(), limit_s, **place)
    return _logistic(case, found, work, folder)


def _program(case: CaseName, triples: Triples, operators: Operators) -> str:
    from importlib.util import find_spec

    if operators == "crypten":
        if triples != "dealer":
            raise ConfigError("got triples he with CrypTen's operators, expected dealer")
        return f"{_OWN}:crypten_step"
    if find_spec(ENGINE) is None:
        raise ConfigError(f"got no module {ENGINE}, expected one", hint="use --operators crypten")
    return f"{ENGINE}:{case}"


def _logistic(case: CaseName, found: Sequence[Mapping[str, Any]], work: Logistic, folder: Path) -> CaseResult:
    import numpy as np

    weights = np.asarray(found[0]["weights"], dtype=np.float64).ravel()
    for rank, other in enumerate(found):
        if not np.array_equal(weights, np.asarray(other["weights"]).ravel()):
            raise ProtocolMismatch(f"got other weights at party {rank} than at the first, expected the same")
    truth = work.plaintext(folder, work.steps)
    error = float(np.abs(weights - truth).max())
    extra: dict[str, Any] = {
        "steps": work.steps,
        "mean_ms": max(float(party["total_ms"]) for party in found) / work.steps,
        "best_ms": max(min(party["step_ms"]) for party in found),
    }
    for name in ("prepare_ms", "prepare_bytes", "offline_ms", "offline_bytes"):
        if name in found[0]:
            extra[name] = max(float(party[name]) for party in found)
    sent, rounds = _most(found, "bytes_sent"), _most(found, "rounds")
    if case == "step":
        return CaseResult(_median_ms(found), sent, rounds, error, extra)
    extra |= {
        "seconds": (_most(found, "total_ms") + extra.get("prepare_ms", 0.0)) / 1000,
        "step_ms": _median_ms(found),
        "auc": work.ranking(folder, weights),
        "auc_plaintext": work.ranking(folder, truth),
    }
    whole_bytes = sent * work.steps + extra.get("prepare_bytes", 0.0)
    return CaseResult(1000 * extra["seconds"], whole_bytes, rounds * work.steps, error, extra)


def _sum(found: Sequence[Mapping[str, Any]], sizes: Sizes, folder: Path) -> CaseResult:
    import numpy as np

    from veil.mpc.reduce import least_bytes

    if len({party["digest"] for party in found}) != 1:
        raise ProtocolMismatch("got different sums at different parties, expected the same")
    numbers = Numbers(len(found), sizes.sum_elements)
    total = np.load(folder / _TOTAL_FILE) / 2.0**16
    error = float(np.abs(total - numbers.total(folder)).max())
    ms, sent, least = _median_ms(found), _most(found, "bytes_sent"), least_bytes(len(found), sizes.sum_elements)
    extra = {
        "elements": sizes.sum_elements,
        "seconds": ms / 1000,
        "bytes_least": least,
        "bytes_ratio": sent / least,
        # Everybody's masked numbers to everybody.
        "bytes_all_to_all": 8 * (len(found) - 1) * sizes.sum_elements,
    }
    return CaseResult(ms, sent, _most(found, "rounds"), error, extra)


def _sum_options(sizes: Sizes) -> dict[str, float]:
    return {"elements": sizes.sum_elements, "steps": sizes.sum_repeats}


def _median_ms(found: Sequence[Mapping[str, Any]]) -> float:
    return max(float(statistics.median(party["step_ms"])) for party in found)


def _most(found: Sequence[Mapping[str, Any]], name: str) -> float:
    return max(float(party[name]) for party in found)
