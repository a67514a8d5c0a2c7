"""`veil bench mpc` with real processes, real mutual TLS and a real dealer, in small; peers where they are installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.bench_mpc import Asked, measure
from cli.mpc_peers import ENVIRONMENTS, PEERS, Peer, run
from cli.mpc_processes import run_parties
from cli.mpc_run import CaseName, Plane, Sizes, run_case, write_inputs
from cli.mpc_workload import Logistic
from veil.errors import PeerLost

pytestmark = pytest.mark.integration
SMALL = Sizes(
    steps=3, warmup=1, batch=32, features=4, step_batches=2, epoch_rows=70, sum_elements=10_007, sum_repeats=2
)


@pytest.mark.parametrize("worker", [False, True])
def test_a_step_through_cryptens_operators(worker: bool) -> None:
    found = measure(Asked("step", 2, "dealer", "crypten", worker), SMALL, False)
    assert (found["case"], found["parties"], found["triples"]) == ("step", 2, "dealer")
    assert found["max_abs_error"] < 1e-3
    assert found["bars"]["max_abs_error after 3 steps"]["met"]
    assert found["rounds"] == 25
    assert found["bytes_per_party"] > 8 * 32 * 4  # at least the masked batch
    assert found["ms"] > 0
    assert found["peers"] == {}
    json.dumps(found, allow_nan=False)


def test_an_epoch_with_a_short_batch_and_its_ranking() -> None:
    found = measure(Asked("epoch", 2, "dealer", "crypten"), SMALL, False)
    assert found["steps"] == 3
    assert found["max_abs_error"] < 1e-3
    assert abs(found["auc"] - found["auc_plaintext"]) < 0.005
    assert found["auc"] > 0.5
    assert found["seconds"] * 1000 == found["ms"]


def test_a_sum_is_exact_and_sends_the_least() -> None:
    found = measure(Asked("sum", 3, "dealer"), SMALL, False)
    assert found["max_abs_error"] == 0.0
    assert found["bytes_least"] == -(-16 * 2 * 10_007 // 3)
    assert 1.0 <= found["bytes_ratio"] < 1.05
    assert found["rounds"] == 5


def test_a_party_that_fails_is_named_and_ends_the_others(tmp_path: Path) -> None:
    write_inputs("step", 2, SMALL, tmp_path)
    with pytest.raises(PeerLost, match=r"party-\d (failed|ended)"):
        # Without options the program fails at every party.
        run_parties("cli.mpc_cases:sum_by_parts", 2, "none", tmp_path, {}, 60.0)


def installed(peer: Peer) -> Path:
    python = ENVIRONMENTS.absolute() / peer.environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{peer.name} is not installed (veil bench mpc --peers does)")
    return python


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_computes_the_same(peer: Peer, tmp_path: Path) -> None:
    python = installed(peer)
    parties = peer.parties[-1]
    if peer.case == "sum":
        write_inputs("sum", parties, SMALL, tmp_path)
        found = run(peer, python, tmp_path, parties, {"elements": SMALL.sum_elements}, 150.0)
        assert found["seconds"] > 0
        assert found["max_abs_error"] < 1e-3
        assert found["bytes_per_party"] > 8 * SMALL.sum_elements // 2
        return
    work = Logistic(rows=64, features=4, batch=32, steps=2, warmup=1)
    work.write(tmp_path)
    found = run(peer, python, tmp_path, parties, work.options(), 150.0)
    assert found["ms"] > 0
    assert found["bytes_per_party"] > 0
    assert np.abs(np.asarray(found["weights"]) - work.plaintext(tmp_path, found["steps"])).max() < 1e-2


@pytest.mark.parametrize(("case", "parties", "plane"), [("step", 2, "grpc"), ("epoch", 3, "gloo")])
def test_the_engine_is_asked_for_by_name(case: CaseName, parties: int, plane: Plane, tmp_path: Path) -> None:
    write_inputs(case, parties, SMALL, tmp_path)
    result = run_case(case, parties, "dealer", SMALL, tmp_path, plane=plane)
    assert result.max_abs_error < 1e-3
    assert result.bytes_per_party > 0
