"""The canary's own parts; tests/integration/test_scoring_policy.py lets it ask a real server."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_inference.canary import Asker, compare, reachable
from he_inference.service.canary_process import CanaryProcess
from veil.errors import ConfigError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role

BOUND = 1e-3


def test_scores_within_the_bound_hold() -> None:
    generator = np.random.default_rng(1)
    expected = generator.uniform(-1, 1, 1000)
    found = compare(expected + generator.uniform(-BOUND, BOUND, 1000), expected, BOUND)
    assert found.held and 0 < found.error <= BOUND and found.recall >= 0.9


def test_one_score_out_of_bound_does_not() -> None:
    expected = np.linspace(-1, 1, 1000)
    scores = expected.copy()
    scores[3] += 1.01 * BOUND
    found = compare(scores, expected, BOUND)
    # the ten best are all there: the error alone tells
    assert not found.held and found.recall == 1.0 and found.error == pytest.approx(1.01 * BOUND)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_does_not(wrong: float) -> None:
    expected = np.linspace(-1, 1, 100)
    scores = expected.copy()
    scores[50] = wrong
    assert not compare(scores, expected, BOUND).held


def test_answers_to_another_query_do_not() -> None:
    generator = np.random.default_rng(2)
    found = compare(generator.uniform(-1, 1, 5000), generator.uniform(-1, 1, 5000), BOUND)
    assert not found.held and found.recall < 0.5


def test_places_that_scores_as_close_as_the_bound_change_are_no_failure() -> None:
    expected = np.concatenate([np.full(9, 1.0), [0.5, 0.5 - BOUND], np.zeros(100)])
    scores = expected.copy()
    scores[9] -= 0.9 * BOUND
    scores[10] += 0.9 * BOUND
    found = compare(scores, expected, BOUND)
    assert found.held and found.recall == 0.9


def test_a_best_item_that_is_gone_is_one_whatever_the_bound_says() -> None:
    expected = np.concatenate([[1.0], np.linspace(0, 0.5, 100)])
    scores = expected.copy()
    scores[0] = 0.0
    found = compare(scores, expected, bound=2.0)
    # with a bound this wide places may change; the recall shows it all the same
    assert found.recall == 0.9 and compare(scores, expected, bound=0.1).held is False


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_few_items_and_ties(items: int, seed: int) -> None:
    expected = np.random.default_rng(seed).integers(0, 3, items).astype(float)
    found = compare(expected.copy(), expected, BOUND)
    assert found.held and found.error == 0.0 and 0.0 <= found.recall <= 1.0


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("0.0.0.0:7440", "127.0.0.1:7440"),
        ("[::]:7440", "[::1]:7440"),
        ("10.0.0.5:7440", "10.0.0.5:7440"),
        ("[fd00::1]:7440", "[fd00::1]:7440"),
        ("scores.example.org:7440", "scores.example.org:7440"),
    ],
)
def test_where_a_server_on_this_machine_is_reached(listen: str, expected: str) -> None:
    assert reachable(listen) == expected


def test_a_port_that_nobody_knows_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="give --address"):
        reachable("127.0.0.1:0")


def test_it_asks_as_a_client_only(consortium: Path) -> None:
    with pytest.raises(ConfigError, match="expected client"):
        Asker("127.0.0.1:1", Credentials.load(consortium / "scoring-main"), Identity("trial", Role.SCORING, "main"))


def test_the_servers_side_of_it_imports_no_cryptography() -> None:
    """What the server may import of the canary must not bring SEAL into its process."""
    code = (
        "import sys, he_inference.service.canary_process, he_inference.service.config;"
        "bad = [m for m in sys.modules if m.startswith(('tenseal', 'he_inference.scheme', 'he_inference.canary'))];"
        "print(sorted(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


def test_a_canary_that_cannot_start_says_so_and_is_seen_to_have_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with CanaryProcess(tmp_path / "absent.toml", "127.0.0.1:1") as process:
        process._process.wait(60)
        assert not process.running
    assert "canary: got no readable file" in capfd.readouterr().err
