"""The canary's own parts; what it asks is in test_canary_question.py,
tests/integration/test_scoring_policy.py lets it ask a real server."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from he_inference.canary import Asker, reachable
from he_inference.service.canary_process import CanaryProcess
from veil.errors import ConfigError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role


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
