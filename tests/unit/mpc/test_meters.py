"""Counts by phase, operation and peer, against what the parties are known to exchange."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from veil.mpc.communicator import TensorCommunicator
from veil.mpc.loopback import loopback
from veil.mpc.meters import REPORT_SCHEMA

NAMES = ("alpha", "beta", "gamma")
HEADER_BYTES = 16


def act(communicator: TensorCommunicator) -> TensorCommunicator:
    eight = torch.ones(8, dtype=torch.int64)
    communicator.barrier()
    with communicator.phase("train"):
        for _ in range(5):
            communicator.all_reduce(eight)
        with communicator.phase("open"):
            communicator.all_reduce(eight)
        communicator.broadcast(eight.clone(), 0)
    communicator.reset_communication_stats()
    if communicator.rank == 1:
        communicator.send(eight, 2)
    if communicator.rank == 2:
        communicator.recv(eight, 1)
    return communicator


def reports() -> list[Any]:
    parties = [TensorCommunicator(transport, NAMES, timeout_s=10) for transport in loopback(3)]
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(act, parties))


def test_rows_by_phase_operation_and_peer() -> None:
    alpha, beta, gamma = (communicator.report() for communicator in reports())
    assert alpha.party == "alpha"
    rounds = {(row.phase, row.operation): row.rounds for row in alpha.operations}
    assert rounds == {
        ("", "barrier"): 1,
        ("train", "all_reduce"): 5,
        ("train/open", "all_reduce"): 1,
        ("train", "broadcast"): 1,
    }
    vector = HEADER_BYTES + 8 + 64
    peers = {(row.phase, row.operation, row.peer): row for row in beta.peers}
    row = peers["train", "all_reduce", "gamma"]
    assert (row.rounds, row.bytes_sent, row.messages_sent) == (5, 5 * vector, 5)
    assert (row.bytes_received, row.messages_received) == (5 * vector, 5)
    row = peers["train", "broadcast", "alpha"]
    assert (row.rounds, row.bytes_sent, row.bytes_received) == (1, 0, vector)
    assert ("train", "broadcast", "gamma") not in peers  # nothing passes between those two
    row = peers["", "send", "gamma"]
    assert (row.rounds, row.bytes_sent, row.bytes_received) == (1, vector, 0)
    assert {row.operation for row in gamma.peers if row.phase == ""} == {"barrier", "recv"}
    for report in (alpha, beta, gamma):
        for own in report.operations:
            waited_s = sum(r.waited_s for r in report.peers if (r.phase, r.operation) == (own.phase, own.operation))
            assert 0 <= own.waited_s <= own.seconds
            assert abs(waited_s - own.waited_s) < 1e-9


def test_what_one_party_sends_the_other_receives() -> None:
    by_party = {report.party: report for report in (communicator.report() for communicator in reports())}
    for name, report in by_party.items():
        for peer in set(NAMES) - {name}:
            sent = sum(row.bytes_sent for row in report.peers if row.peer == peer)
            received = sum(row.bytes_received for row in by_party[peer].peers if row.peer == name)
            assert sent == received > 0


def test_the_report_is_a_document_and_outlasts_a_reset_of_the_counters() -> None:
    communicator = reports()[1]
    assert communicator.get_communication_stats()["rounds"] == 1
    document = json.loads(json.dumps(communicator.report().document(), allow_nan=False))
    assert document["schema"] == REPORT_SCHEMA and document["party"] == "beta"
    assert {"phase", "operation", "rounds", "seconds", "waited_s"} == set(document["operations"][0])
    assert len(document["peers"][0]) == 9
