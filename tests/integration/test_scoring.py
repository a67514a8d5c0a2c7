"""Encrypted scoring end to end: a signed model, real mutual TLS, worker processes, commands and examples."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from he_inference.server import ScoringServer
from tests.integration.scoring_site import ANNA, DIMENSIONS, ITEMS, SERVER, Connect, Site
from veil.errors import InputError

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def test_scores_are_those_of_the_model(site: Site, server: ScoringServer, connect: Connect) -> None:
    client = connect()
    for seed in range(3):
        history = np.random.default_rng(seed).choice(ITEMS, 20, replace=False)
        vector = site.model.user_vector(history)
        truth = site.model.scores(vector[None])[0]
        found = client.score(vector)
        assert found.dtype == np.float32 and found.shape == (ITEMS,)
        bound = client.terms.score_error * float(np.linalg.norm(vector))
        assert np.abs(found - truth).max() < bound
        assert set(np.argsort(-found)[:10]) == set(np.argsort(-truth)[:10])
    report = client.last_query
    assert report is not None and 0 < report.server_s < report.total_s
    assert report.query_bytes < 34_000 and client.key_bytes < 130_000
    assert report.response_bytes < server.terms.layout.blocks * 66_000


def test_recommendations_carry_ids_and_titles_and_skip_what_was_seen(site: Site, connect: Connect) -> None:
    client = connect()
    numbers = [5, 17, 4999]
    history = [str(1000 + number) for number in numbers]
    truth = site.model.scores(site.model.user_vector(numbers)[None])[0]
    best = [str(1000 + n) for n in np.argsort(-truth)]
    found = client.recommend(history, k=10)
    assert [one.item_id for one in found] == [item for item in best if item not in history][:10]
    assert all(one.title == f"Title {one.item_id}" for one in found)
    everything = client.recommend(history, k=ITEMS + 5, exclude_seen=False)
    assert len(everything) == ITEMS
    assert len(client.recommend(history, k=ITEMS)) == ITEMS - 3
    assert client.recommend([], k=1), "an empty history gets the model's general favourites"
    with pytest.raises(InputError, match=r"entries 2 of") as refused:
        client.recommend([history[0], "no-such-item"])
    assert "no-such-item" not in str(refused.value)
    assert client.recommend([history[0], "no-such-item"], skip_unknown=True)
    for wrong in ({"k": 0}, {"history": "1005"}):
        with pytest.raises(InputError):
            client.recommend(**{"history": history, **wrong})  # type: ignore[arg-type]


def test_vectors_that_do_not_fit_are_refused_before_they_leave(connect: Connect) -> None:
    client = connect()
    for vector in (np.zeros(3), np.full(DIMENSIONS, np.nan), np.zeros((2, DIMENSIONS))):
        with pytest.raises(InputError):
            client.score(vector)
    np.testing.assert_array_equal(client.score(np.zeros(DIMENSIONS)), 0.0)


def test_keys_and_model_are_kept_between_runs(server: ScoringServer, connect: Connect, tmp_path: Path) -> None:
    first = connect(keys=tmp_path / "kept", passphrase=b"word")
    first.recommend(["1001"])
    stored = {file: file.read_bytes() for file in (tmp_path / "kept").rglob("*") if file.is_file()}
    connect(keys=tmp_path / "kept", passphrase=b"word").recommend(["1001"])
    assert {file: file.read_bytes() for file in (tmp_path / "kept").rglob("*") if file.is_file()} == stored
    assert not any("item_factors" in file.name for file in stored)


def test_rotated_keys_are_registered_by_themselves(connect: Connect) -> None:
    client = connect()
    before = client.recommend(["1001"])
    client.rotate_keys()
    assert [one.item_id for one in client.recommend(["1001"])] == [one.item_id for one in before]


def test_the_card_says_what_the_model_cost(site: Site, connect: Connect) -> None:
    client = connect()
    card = client.card()
    assert (card.items, card.dimensions, list(card.signers)) == (ITEMS, DIMENSIONS, ["alpha", "beta"])
    assert card.epsilon_micro == client.model.manifest.epsilon_micro > 0
    assert card.manifest_digest == client.terms.manifest_digest


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_the_two_commands(site: Site, tmp_path: Path) -> None:
    """`veil serve` and `veil recommend` as a user types them, in processes of their own."""
    veil = [sys.executable, "-c", "from cli.main import main; main()"]
    config = tmp_path / "scoring.toml"
    config.write_text(
        f'listen = "127.0.0.1:0"\ncredentials = "{site.members[SERVER]}"\nmodel = "{site.published}"\n'
        'require_signers = ["alpha", "beta"]\nstate = "state"\nparameters = "session-4096"\n'
    )
    serving = subprocess.Popen(
        [*veil, "serve", "--config", str(config)], stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert serving.stderr is not None
        line = serving.stderr.readline()
        address = re.search(r"at (127\.0\.0\.1:\d+)", line)
        assert address is not None, line + serving.stderr.read()
        arguments = ["recommend", "--server", address[1], "--credentials", str(site.members[ANNA]), "-k", "3"]
        arguments += ["--keys", str(tmp_path / "keys"), "--history"]
        asked = subprocess.run(
            [*veil, *arguments, "-", "--json"],
            input="1005\n1017\n",
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
        assert asked.returncode == 0, asked.stderr
        truth = site.model.scores(site.model.user_vector([5, 17])[None])[0]
        truth[[5, 17]] = -np.inf
        assert [one["item_id"] for one in json.loads(asked.stdout)] == [str(1000 + n) for n in np.argsort(-truth)[:3]]
        wrong = subprocess.run(
            [*veil, *arguments, "-"], input="nothing\n", capture_output=True, text=True, env=environment(), check=False
        )
        assert wrong.returncode == 1 and "catalogue does not have" in wrong.stderr and "Traceback" not in wrong.stderr
    finally:
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0
        assert serving.stderr is not None
        serving.stderr.close()


def test_the_examples_run_as_written(
    site: Site, server: ScoringServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = runpy.run_path(str(ROOT / "examples" / "score_plain_grpc.py"))
    plain["main"](server.address, str(site.members[ANNA]))
    assert "bytes of keys once" in capsys.readouterr().out
    application = runpy.run_path(str(ROOT / "examples" / "score_from_app.py"))
    application["main"](server.address, str(site.members[ANNA]), str(tmp_path / "keys"), "1001", "1002")
    assert "epsilon" in capsys.readouterr().out
