"""The examples and `veil recommend`, as a reader types them, against the server in this process."""

from __future__ import annotations

import asyncio
import json
import re
import runpy
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.main import application
from tests.unit.he_inference.client.conftest import TOKEN
from tests.unit.he_inference.client.desk import ITEMS, Desk
from veil.wire.channel import RunningServer

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


@pytest.fixture
def member(consortium: Path) -> str:
    return str(consortium / "client-main")


@pytest.fixture
def token_folder(consortium: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "token"
    folder.mkdir()
    (folder / "authority.pem").write_bytes((consortium / "client-main" / "authority.pem").read_bytes())
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(TOKEN)
    return folder


def test_an_application(
    desk: Desk,
    running: RunningServer,
    member: str,
    token_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    application = example("score_from_app.py")
    keys = str(tmp_path / "keys")
    application["main"](running.address, member, keys, "1001", "1002")
    printed = capsys.readouterr().out
    assert printed.count("Title") == 10 and "31 more like this" in printed and "epsilon" in printed
    application["main"](running.token_address, str(token_folder), keys, "1001")
    assert "30 more like this" in capsys.readouterr().out and set(desk.tokens) == {TOKEN}
    asyncio.run(application["recommend_to_many"](running.address, member, keys, [["1001"], ["1002", "1003"]]))
    assert "2 items -> " in capsys.readouterr().out


def test_plain_grpc(desk: Desk, running: RunningServer, member: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = example("score_plain_grpc.py")
    plain["main"](running.address, member)
    printed = capsys.readouterr().out
    seen = desk.seen[0]
    assert printed.count("item ") == 10 and f"{len(seen.query)} of query" in printed
    assert f"{sum(map(len, seen.results))} of response" in printed and len(desk.keys) == 1


def test_a_walk_by_reflection(
    desk: Desk, running: RunningServer, member: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example("score_reflection.py")["main"](running.address, member)
    printed = capsys.readouterr().out
    assert "veil.wire.v1.InferenceService" in printed
    assert "rpc Score(ScoreRequest) returns (stream ScoreResponse)" in printed
    assert "rpc RegisterKeys(stream RegisterKeysRequest) returns (RegisterKeysResponse)" in printed
    assert "repeated Offer offers = 1;" in printed
    parameters = json.loads(printed.split("GetParameters: ")[1].split("GetModelCard: ")[0])
    assert [offer["parameters"] for offer in parameters["offers"]] == ["fast", "exact", "keyless"]
    assert json.loads(printed.split("GetModelCard: ")[1])["card"]["items"] == ITEMS


@pytest.mark.parametrize("options", [[], ["--one-shot"], ["--params", "exact"]])
def test_load(
    desk: Desk, running: RunningServer, member: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [running.address, member, "--clients", "2", "--seconds", "0.5", *options]
    example("score_load.py")["main"](arguments)
    printed = capsys.readouterr().out
    assert "queries/s" in printed and "latency ms: p50" in printed and "failures: none" in printed
    assert re.search(r"wrong answers: 0 of [1-9]", printed)
    assert len(desk.keys) == (0 if options == ["--one-shot"] else 2)
    assert len({seen.request_id for seen in desk.seen}) == len(desk.seen) > 2


def test_load_tells_failures(
    desk: Desk, running: RunningServer, member: str, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.faults = [(grpc.StatusCode.RESOURCE_EXHAUSTED, None)] * 3
    example("score_load.py")["main"]([running.address, member, "--clients", "1", "--seconds", "0.6"])
    assert "failures: RESOURCE_EXHAUSTED 3" in capsys.readouterr().out


def test_the_command(desk: Desk, running: RunningServer, member: str, token_folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    truth = desk.truth(desk.model.user_vector([5, 17]))
    truth[[5, 17]] = -np.inf
    best = [str(1000 + n) for n in np.argsort(-truth)[:3]]
    arguments = [
        "--server",
        running.address,
        "--keys",
        str(tmp_path / "keys"),
        "--history",
        "-",
        "-k",
        "3",
    ]

    def ask(*more: str) -> str:
        done = runner.invoke(application("recommend"), [*arguments, *more], input="1005\n1017\n")
        assert done.exit_code == 0, done.output
        return done.stdout

    assert [one["item_id"] for one in json.loads(ask("--credentials", member, "--json"))] == best
    assert [one["item_id"] for one in json.loads(ask("--credentials", member, "--json", "--one-shot"))] == best
    assert desk.seen[-1].offer.layout.kind == "keyless"
    exact = json.loads(ask("--credentials", member, "--json", "--params", "exact", "--released"))
    assert len(exact) == 3 and desk.seen[-1].offer.layout.parameters.name == "exact"
    shown = ask("--credentials", member, "--released", "--rotate-keys")
    assert "may be shown to anyone" in shown and "Title" in shown
    arguments[1] = str(running.token_address)
    assert [one["item_id"] for one in json.loads(ask("--credentials", str(token_folder), "--json"))] == best
