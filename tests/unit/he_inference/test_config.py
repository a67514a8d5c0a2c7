"""The server's configuration file: the documented one is valid, wrong ones are named key by key."""

from __future__ import annotations

from pathlib import Path

import pytest

from he_inference.config import check, load
from veil.errors import ConfigError, InputError

EXAMPLE = Path(__file__).resolve().parents[3] / "deploy" / "scoring.toml"
NEEDED: dict[str, object] = {
    "listen": "0.0.0.0:7440",
    "credentials": "certs",
    "model": "model",
    "require_signers": ["alpha"],
    "state": "state",
}


def test_the_documented_file_is_valid_and_shows_the_defaults() -> None:
    config = load(EXAMPLE)
    bare = check(NEEDED, EXAMPLE.parent, source="test")
    assert config.model == EXAMPLE.parent / "model"
    assert (config.load, config.keys, config.parameters) == (bare.load, bare.keys, bare.parameters)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"listen": "anywhere"}, "listen"),
        ({"require_signers": []}, "require_signers"),
        ({"require_signers": ["Not A Name"]}, "require_signers"),
        ({"parameters": "session-2048"}, "session-8192"),
        ({"load": {"workers": 0}}, "load.workers"),
        ({"load": {"timeout_s": float("inf")}}, "load.timeout_s"),
        ({"keys": {"lifetime_days": 0}}, "keys.lifetime_days"),
        ({"insecure": True}, "insecure"),
    ],
)
def test_a_wrong_key_is_named(change: dict[str, object], names: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=names):
        check({**NEEDED, **change}, tmp_path, source="test")


def test_a_file_that_is_absent_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable file"):
        load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("listen = ")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "bad.toml")
