"""The server's configuration file: the documented one is valid, wrong ones are named key by key."""

from __future__ import annotations

from pathlib import Path

import pytest

from he_inference.layouts.catalogue import packing_of
from he_inference.service.config import OfferSpec, ScoringConfig, check, load
from veil.errors import ConfigError, InputError

EXAMPLE = Path(__file__).resolve().parents[4] / "deploy" / "scoring.toml"
NEEDED: dict[str, object] = {
    "listen": "0.0.0.0:7440",
    "credentials": "certs",
    "model": "model",
    "require_signers": ["alpha"],
    "state": "state",
}
AUDIENCE = {"name": "partners", "index": "p.index", "hidden": "h.txt", "clients": ["token/app"]}


def test_the_documented_file_is_valid_and_shows_the_defaults() -> None:
    config = load(EXAMPLE)
    bare = check(NEEDED, EXAMPLE.parent, source="test")
    assert config.model == EXAMPLE.parent / "model"
    own = {"listen", "credentials", "model", "require_signers", "state"}
    for name in set(ScoringConfig.model_fields) - own:
        assert getattr(config, name) == getattr(bare, name), name


def test_every_key_of_the_sections_is_documented() -> None:
    text = EXAMPLE.read_text()
    for name in ("load", "keys", "reload", "access", "limits", "metrics"):
        for key in getattr(load(EXAMPLE), name).__class__.model_fields:
            assert f"{key} = " in text, f"{name}.{key}"
    for name in ("cuda", "ray"):
        section = text.partition(f"[engine.{name}]")[2].partition("\n[")[0]
        for key in getattr(load(EXAMPLE).engine, name).__class__.model_fields:
            assert f"\n{key} = " in section, f"engine.{name}.{key}"


def test_an_engine_is_chosen_by_its_kind() -> None:
    for kind, device, ray in (("process", None, False), ("cuda", 2, False), ("ray", None, True)):
        engine = check(
            {**NEEDED, "engine": {"kind": kind, "cuda": {"device": 2}}}, EXAMPLE.parent, source="test"
        ).engine
        assert (engine.cuda_device, engine.ray_fields is not None) == (device, ray)
    assert check({**NEEDED, "engine": {"kind": "cuda"}}, EXAMPLE.parent, source="test").engine.cuda_device == 0


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"listen": "anywhere"}, "listen"),
        ({"require_signers": []}, "require_signers"),
        ({"require_signers": ["Not A Name"]}, "require_signers"),
        ({"offers": []}, "offers"),
        ({"offers": ["session-2048"]}, "keyless-small"),
        ({"offers": ["pq", "pq"]}, "each once"),
        ({"offers": ["pq", "session:pq"]}, "each once"),
        ({"offers": ["cluster:pq"]}, "session"),
        ({"offers": ["session:keyless"]}, "no rotations"),
        ({"offers": ["pq/8"]}, "packing"),
        ({"offers": ["keyless/3"]}, "power of two"),
        ({"offers": ["history/3"]}, "no packing"),
        ({"offers": ["history:pq"]}, "history"),
        ({"offers": ["keyless/8/8"]}, "PACKING"),
        ({"load": {"threads": -1}}, "load.threads"),
        ({"load": {"timeout_s": float("inf")}}, "load.timeout_s"),
        ({"load": {"batch": 33}}, "load.batch"),
        ({"keys": {"lifetime_days": 0}}, "keys.lifetime_days"),
        ({"reload": {"grace_s": -1}}, "reload.grace_s"),
        ({"access": {"tokens": "t.json"}}, "token_listen"),
        ({"engine": {"kind": "cpu"}}, "engine.kind"),
        ({"engine": {"kind": "cuda:0"}}, "engine.kind"),
        ({"engine": {"cuda": {"device": "cpu"}}}, "engine.cuda.device"),
        ({"engine": {"cuda": {"device": -1}}}, "engine.cuda.device"),
        ({"audiences": [AUDIENCE, {**AUDIENCE, "name": "others", "index": "o.index"}]}, "token/app"),
        ({"log": "xml"}, "log"),
        ({"insecure": True}, "insecure"),
    ],
)
def test_a_wrong_key_is_named(change: dict[str, object], names: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=names):
        check({**NEEDED, **change}, tmp_path, source="test")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    given = {**NEEDED, "access": {"tokens": "t.json", "token_listen": "[::1]:0"}, "audiences": [AUDIENCE]}
    given["canary"] = {"credentials": "own"}
    config = check(given, tmp_path, source="test")
    assert config.access.tokens == tmp_path / "t.json"
    assert config.canary is not None and config.canary.credentials == tmp_path / "own"
    assert (config.audiences[0].index, config.audiences[0].hidden) == (tmp_path / "p.index", tmp_path / "h.txt")
    again = check(config.model_dump(), Path("/elsewhere"), source="test")
    assert again == config, "what is absolute stays"


def test_offers_name_layouts() -> None:
    assert OfferSpec.parse("fast").kind == "session" and OfferSpec.parse("keyless").kind == "keyless"
    assert packing_of(OfferSpec.parse("keyless/8").layout(5000, 19)) == 8
    chosen = OfferSpec.parse("keyless").layout(5000, 19)
    assert packing_of(chosen) > 1
    texts = ("fast", "pq", "keyless", "keyless/8", "keyless-small", "history")
    names = [name for text in texts for name in OfferSpec.parse(text).file_names]
    assert len(set(names)) == len(names) == 7


def test_a_file_that_is_absent_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no readable file"):
        load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("listen = ")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "bad.toml")
