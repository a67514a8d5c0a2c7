"""Rows scored by a real server that has the weights, over mutual TLS: the scores are plaintext's, within the bound."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cli.main import application
from he_inference import canary
from he_inference.canary_question import judged, question
from he_inference.client import LinearClient, RowScores, ScoringClient, score_rows
from he_inference.service.budget import BudgetSettings
from he_inference.service.config import Reload, ScoringConfig
from he_inference.service.server import ScoringServer, start
from tests.unit.he_inference.columns_site import ROWS, ColumnsSite, linear_scores, tables_of
from tests.unit.trainers.columns.clicks import BANK, SHOP
from veil.errors import ArtifactError, ConfigError, DataError, InputError, StateError
from veil.identity.names import Identity, Role
from veil.tabular.reading import PartyTable
from veil.trainers.columns.publication import ColumnsModel

pytestmark = pytest.mark.integration

SERVER = Identity("trial", Role.SCORING, "main")
# Two of one standardisation, one of another; the last is more than its linear part.
MODELS = {"books": ("logistic", 1), "shoes": ("logistic", 1), "trips": ("perceptron", 2)}


class Running:
    """A site with models, a server of them, and the models in plaintext by name."""

    def __init__(self, folder: Path) -> None:
        self.site, self.folder = ColumnsSite(folder), folder
        self.models: dict[str, ColumnsModel] = {
            name: self.site.publish(folder / "models" / name, kind=kind, standard=standard, seed=number)
            for number, (name, (kind, standard)) in enumerate(MODELS.items())
        }
        self.server: ScoringServer | None = None

    def config(self, **changes: object) -> ScoringConfig:
        values: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "credentials": self.site.members[SERVER],
            "model": self.folder / "models",
            "linear_part": True,
            "require_signers": (BANK, SHOP),
            "state": self.folder / "state",
            "offers": ("keyless-small",),
            "reload": Reload(every_s=0),
            "budget": BudgetSettings(enabled=False),
        }
        return ScoringConfig.model_validate({**values, **changes})

    def client(self, **options: object) -> ScoringClient:
        assert self.server is not None
        credentials = self.site.credentials(Role.CLIENT)
        arguments: dict[str, object] = {"one_shot": True, **options}
        return ScoringClient(self.server.address, credentials, SERVER, None, **arguments)  # type: ignore[arg-type]

    def tables(self, folder: Path, rows: str = ROWS) -> list[PartyTable]:
        return tables_of(next(iter(self.models.values())), folder, rows)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    made = Running(tmp_path_factory.mktemp("encrypted-rows"))
    with start(made.config()) as server:
        made.server = server
        yield made


def check(found: RowScores, running: Running, tables: list[PartyTable]) -> None:
    for column, name in enumerate(found.names):
        truth = linear_scores(running.models[name], tables)
        assert (np.abs(found.scores[:, column] - truth) <= found.errors[:, column]).all()
        # not so loose that anything would do
        assert found.errors.max() < 1e-3 < np.ptp(truth)


def test_scores_are_plaintexts_within_the_stated_bound(running: Running, tmp_path: Path) -> None:
    tables = running.tables(tmp_path)
    with running.client(require_signers=[Identity("trial", Role.PARTY, BANK)]) as client:
        found = score_rows(client, tables, linear_part=True)
        check(found, running, tables)
        # one query for a row and a standardisation, each row's key its own, all queries of one length
        assert (found.queries, found.fresh_keys, found.whole) == (6, True, True)
        assert found.query_bytes == 6 * client.last_query.query_bytes  # type: ignore[union-attr]
        two = score_rows(client, tables, names=("shoes", "books"))
        assert two.names == ("shoes", "books") and two.queries == 3
        truth = np.stack([running.models[name].predict(tables) for name in two.names], axis=1)
        assert np.abs(two.probabilities - truth).max() <= two.probability_error < 1e-3
        assert (client.offer.layout.query_ciphertexts, client.offer.layout.galois_elements) == (1, ())


def test_parts_of_two_parties_add_up_and_are_no_probabilities(running: Running, tmp_path: Path) -> None:
    tables = running.tables(tmp_path)
    with running.client() as client:
        parts = [score_rows(client, [table], names=["books"]) for table in tables]
        with pytest.raises(InputError, match="bank alone"):
            _ = parts[0].probabilities
        fewer = running.tables(tmp_path, "".join(ROWS.splitlines(keepends=True)[:-1]))
        for wrong in ([], [tables[0], tables[0]], [fewer[0], tables[1]]):
            with pytest.raises(InputError):
                score_rows(client, wrong)
    total = sum(part.scores[:, 0] for part in parts) + running.models["books"].intercept
    bound = sum(part.errors[:, 0] for part in parts)
    assert (np.abs(total - linear_scores(running.models["books"], tables)) <= bound).all()


def test_a_linear_part_is_refused_unless_asked_for(running: Running, tmp_path: Path) -> None:
    tables = running.tables(tmp_path)
    with running.client() as client:
        with pytest.raises(ConfigError, match=r"more than linear: trips \(perceptron\)"):
            score_rows(client, tables)
        with pytest.raises(ConfigError, match="expected one of books, shoes, trips"):
            score_rows(client, tables, names=["hats"])
        assert "trips (linear part of a perceptron alone)" in client.card().name
        with pytest.raises(StateError, match=r"collection.json"):
            client.recommend(["1"])
    with pytest.raises(ConfigError, match="more than linear"):
        start(running.config(linear_part=False, state=tmp_path / "state"))
    with pytest.raises(ConfigError, match="history"):
        start(running.config(offers=("history",), state=tmp_path / "state"))


def test_what_parties_did_not_sign_is_neither_served_nor_believed(running: Running, tmp_path: Path) -> None:
    club = [Identity("trial", Role.PARTY, "club")]
    with running.client(require_signers=club) as client, pytest.raises(ArtifactError, match="signature"):
        _ = client.linear
    shutil.copytree(running.folder / "models", tmp_path / "models")
    running.site.publish(tmp_path / "models" / "hats", signers=(SHOP,))
    with pytest.raises(ArtifactError, match=r"hats: .*signature"):
        start(running.config(model=tmp_path / "models", state=tmp_path / "state"))


def test_the_command_prints_what_plaintext_says(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert running.server is not None
    tables = running.tables(tmp_path)
    client = running.site.members[Identity("trial", Role.CLIENT, "main")]
    base = ["--server", running.server.address, "--credentials", str(client), "--identifier", "user"]
    base += ["--data", str(tmp_path / "rows.csv"), "--signers", f"{BANK},{SHOP}"]
    command = application("score-rows")
    command(args=[*base, "--model", "books"], standalone_mode=False)
    printed = capsys.readouterr()
    rows = list(csv.reader(io.StringIO(printed.out)))
    assert rows[0] == ["identifier", "model", "probability"] and [row[0] for row in rows[1:]] == ["a", "b", "c"]
    truth = running.models["books"].predict(tables)
    np.testing.assert_allclose([float(row[2]) for row in rows[1:]], truth, atol=1e-3)
    assert "each probability within" in printed.err and "key of its own" in printed.err
    command(args=[*base, "--linear-part", "--out", str(tmp_path / "out.csv")], standalone_mode=False)
    written = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert written[0][2] == "linear_part_probability" and len(written) == 1 + 3 * len(MODELS)
    assert os.stat(tmp_path / "out.csv").st_mode & 0o777 == 0o600
    command(args=[*base, "--model", "shoes", "--party", SHOP], standalone_mode=False)
    assert capsys.readouterr().out.startswith("identifier,model,shop_log_odds\na,shoes,")
    (tmp_path / "rows.csv").write_text(ROWS.replace("90", "nan"))
    with pytest.raises(DataError, match="no finite numbers"):
        command(args=[*base, "--model", "books"], standalone_mode=False)


def test_another_model_is_taken_up_and_a_canary_finds_answers_right(running: Running, tmp_path: Path) -> None:
    assert running.server is not None
    tables = running.tables(tmp_path)
    with running.client() as client:
        before = client.linear
        running.models["hats"] = running.site.publish(running.folder / "models" / "hats", seed=9)
        assert running.server.reload()
        client.refresh()
        after: LinearClient = client.linear
        assert set(after.names) == {*before.names, "hats"}
        check(score_rows(client, tables, linear_part=True), running, tables)
    own = running.site.credentials(Role.CLIENT)
    asker = canary.Asker(running.server.address, own, SERVER)
    signers = [Identity("trial", Role.PARTY, name) for name in (BANK, SHOP)]
    plaintext = canary.Plaintext(running.folder / "models", own.authority_pem, signers, linear_part=True)
    for offer in asker.offers():
        asked = question(offer, plaintext.learned(offer))
        assert judged(offer, asked, asker.outputs(offer, asked.entries), plaintext.scores(offer, asked)).held
    asker.close()
