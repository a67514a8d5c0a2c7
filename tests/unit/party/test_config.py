"""The party's TOML: the shipped example reads, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from party.config import load
from veil.errors import ConfigError

_EXAMPLE = Path(__file__).parents[3] / "deploy" / "party.toml"


def test_the_shipped_example_reads() -> None:
    config = load(_EXAMPLE)
    assert config.approval.mode == "manual"
    assert config.data.source == _EXAMPLE.parent.resolve() / "interactions.csv"
    assert config.state.is_absolute() and config.catalogue.is_absolute() and config.credentials.is_absolute()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('listen = "0.0.0.0:7100"', 'listen = "7100"', "listen"),
        ("epsilon = 10.0", "epsilon = -1.0", "budget.epsilon"),
        ('mode = "manual"', 'mode = "yes"', "approval.mode"),
        ("min_parties = 3", "min_partys = 3", "approval.min_partys"),
        ('state = "state"', "", "state"),
        ("[budget]", "[budget", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = _EXAMPLE.read_text()
    assert old in text
    file = tmp_path / "party.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as wrong:
        load(file)
    assert says in str(wrong.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    from veil.errors import InputError

    with pytest.raises(InputError, match="no readable file"):
        load(tmp_path / "absent.toml")
