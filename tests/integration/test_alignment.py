"""Aligning records as jobs do: a process for each party, mutual TLS between them."""

from __future__ import annotations

import pytest

from cli import bench_psi

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("mode", "parties"), [("reveal", 3), ("hidden", 2), ("join", 3)])
def test_over_mutual_tls(mode: bench_psi.Mode, parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`measure` raises when the parties together find another number of common ids than they were given."""
    monkeypatch.setattr(bench_psi, "_SAMPLE", 100)
    figures = bench_psi.measure(parties, 60, mode, 0.5, workers=2, columns=5)
    assert figures["common"] == 30 and figures["mode"] == mode and figures["parties"] == parties
    # Nothing of the figures is zero, and lists of 60 points of 33 bytes went to a neighbour.
    assert figures["bytes_per_party"] > 60 * 33 and figures["messages"] > 5 and figures["cpu_s"] > 0
