"""The coordinator's TOML file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from coordinator.config import load
from veil.errors import ConfigError, InputError
from veil.identity.names import Identity, Role

ROOT = Path(__file__).parents[3]
SMALL = 'listen = "127.0.0.1:0"\ncredentials = "c"\nstore = "s.sqlite"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "coordinator.toml"
    path.write_text(text)
    return path


def test_the_example_states_the_defaults(tmp_path: Path) -> None:
    example = load(ROOT / "deploy" / "coordinator.toml")
    assert example.parties == ("alpha", "beta", "gamma")
    small = load(write(tmp_path, SMALL))
    assert (example.deadlines, example.limits) == (small.deadlines, small.limits)
    assert small.parties == "any"
    assert small.rules.grace_ms == 20_000
    assert small.bounds.heartbeat_interval_ms == 5_000


def test_every_line_of_the_example_is_explained() -> None:
    lines = (ROOT / "deploy" / "coordinator.toml").read_text().splitlines()
    bare = [line for before, line in itertools.pairwise(lines) if line[:1].isalpha() and before[:1] != "#"]
    assert bare == []


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load(write(tmp_path, SMALL))
    assert config.store == tmp_path / "s.sqlite"
    assert load(write(tmp_path, SMALL.replace('"c"', '"/absolute"'))).credentials == Path("/absolute")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SMALL + "lisen = 1\n", "lisen"),
        (SMALL + "[limits]\nopen_jobs = 0\n", "limits.open_jobs"),
        (SMALL + "[deadlines]\ngrace_s = 5.0\n", "twice heartbeat_interval_s"),
        (SMALL + "[deadlines]\nrunning_h = nan\n", "running_h"),
        (SMALL + 'parties = "some"\n', "parties"),
        (SMALL + 'parties = ["Alpha"]\n', "parties"),
        (SMALL.replace("127.0.0.1:0", "unix:/tmp/x"), "listen"),
        ("listen = ", "not TOML"),
        ("", "credentials"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(write(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable file"):
        load(tmp_path / "none.toml")


def test_roster(tmp_path: Path) -> None:
    anyone = load(write(tmp_path, SMALL)).roster("trial")
    assert anyone.admit(Identity("trial", Role.PARTY, "zeta")) == "zeta"
    named = load(write(tmp_path, SMALL + 'parties = ["alpha"]\n')).roster("trial")
    assert named.admit(Identity("trial", Role.PARTY, "alpha")) == "alpha"
