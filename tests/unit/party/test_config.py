"""The party's TOML: the shipped example reads, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from party.config import load
from veil.deidentify.steps import Generalise
from veil.errors import ConfigError

_EXAMPLE = Path(__file__).parents[3] / "deploy" / "party.toml"


def test_the_shipped_example_reads() -> None:
    config = load(_EXAMPLE)
    assert config.approval.mode == "manual"
    assert config.data is not None and config.data.source == _EXAMPLE.parent.resolve() / "interactions.csv"
    assert config.state.is_absolute() and config.catalogue.is_absolute() and config.credentials.is_absolute()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('listen = "0.0.0.0:7100"', 'listen = "7100"', "listen"),
        ("epsilon = 10.0", "epsilon = -1.0", "budget.epsilon"),
        ('mode = "manual"', 'mode = "yes"', "approval.mode"),
        ("min_parties = 3", "min_partys = 3", "approval.min_partys"),
        ('state = "state"', "", "state"),
        ('plane = "grpc"', 'plane = "gloo"', "gloo_host"),
        ('# gloo_host = "10.0.0.5"', 'gloo_host = "10.0.0.5"', "gloo_host"),
        ('plane = "grpc"', 'plane = "tcp"', "mesh.plane"),
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


def _uncommented(text: str) -> str:
    """The example with its optional sections switched on."""
    begin, end = text.index("# [users]"), text.index("# What may be released over all jobs")
    lines = [line[2:] if line.startswith("# ") else line.removeprefix("#") for line in text[begin:end].splitlines()]
    # Prose between the two sections is no TOML; comments within them had a second number sign.
    kept = [line for line in lines if line.startswith(("[", "#")) or " = " in line or not line]
    return text[:begin] + "\n".join(kept) + "\n" + text[end:]


def test_the_optional_sections_of_the_example_read(tmp_path: Path) -> None:
    file = tmp_path / "party.toml"
    text = _uncommented(_EXAMPLE.read_text()).replace("groups = { health", 'file = "jobs.csv" } }]\n# {')
    file.write_text(text)
    config = load(file)
    assert config.users is not None and config.texts is not None and config.data is not None
    assert [rule.name for rule in config.users.attribute] == ["age", "region", "occupation", "membership", "household"]
    assert config.users.source == tmp_path / "users.csv" and config.texts.source == tmp_path / "texts.csv"
    occupation = config.users.attribute[2].steps[0]
    assert isinstance(occupation, Generalise) and occupation.hierarchy.file == tmp_path / "jobs.csv"
    assert config.users.anonymity.k == 10
    assert config.pseudonym_key == config.data.pseudonym_key == tmp_path / "state" / "pseudonym.key"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('role = "sensitive"', 'role = "secret"', "users.attribute.2.role"),
        ("[{ pseudonym = true, buckets = 64 }]", '[{ values = ["1"] }]', "got an identifier"),
        ("k = 10", "k = 1", "users.anonymity.k"),
        ("bin = [18, 25, 35, 45, 55]", "bins = [18]", "no known step"),
        ('mask = ["email", "url", "number"]', 'mask = ["name"]', "texts.read.mask"),
        ('labels = ["Comedy", "Drama"]', 'labels = ["Comedy", "Drama"]\npseudonym_key = "k"', "one pseudonym_key"),
    ],
)
def test_what_is_wrong_in_an_optional_section_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = _uncommented(_EXAMPLE.read_text())
    assert old in text
    file = tmp_path / "party.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as wrong:
        load(file)
    assert says in str(wrong.value)


def test_a_party_may_hold_texts_alone_and_must_hold_something(tmp_path: Path) -> None:
    text = _uncommented(_EXAMPLE.read_text())
    begin, end = text.index("[data]"), text.index("[users]")
    file = tmp_path / "party.toml"
    file.write_text(text[:begin] + text[end:])
    with pytest.raises(ConfigError, match="one pseudonym_key"):
        load(file)
    file.write_text((text[:begin] + text[end:]).replace("[texts]", '[texts]\npseudonym_key = "key"', 1))
    config = load(file)
    assert config.data is None and config.pseudonym_key == tmp_path / "key"
    begin, end = text.index("[data]"), text.index("# What may be released over all jobs")
    file.write_text(text[:begin] + text[end:])
    with pytest.raises(ConfigError, match="neither"):
        load(file)
