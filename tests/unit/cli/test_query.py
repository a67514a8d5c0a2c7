"""`veil query`: plans that send nothing, answers that are shown only when they verify."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.job_client import plan_job
from cli.query import app, label, ranked
from veil.errors import ArtifactError, ConfigError
from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.jobs.spec import JobSpec
from veil.privacy import noise_of
from veil.privacy.noise import keyed_source
from veil.queries.algorithm import QueryAlgorithm
from veil.queries.answers import AnswersPublication
from veil.recsys.catalogue import Catalogue, ItemTable
from veil.recsys.interactions import Interactions
from veil.recsys.manifest import sign_manifest
from veil.recsys.signed import save_directory
from veil.trainers.rows import PartyRows
from veil.trainers.seam import central_state

RUNNER = CliRunner()
PARTIES = ("alpha", "beta")
HEAD = (
    'name = "figures"\nparties = ["alpha", "beta"]\n[catalogue]\npath = "catalogue"\n'
    '[privacy]\nepsilon = 1.0\ndelta = 1e-6\nnoise = "parties"\n[trainer]\nkind = "query"\n'
)
QUESTIONS = """
[[trainer.questions]]
name = "categories"
by = "category"
groups_per_user = 2
share = 3
[[trainer.questions]]
name = "items"
by = "item"
groups_per_user = 4
mechanism = "gaussian"
"""


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    table = ItemTable(
        ids=tuple(f"i{number}" for number in range(40)),
        titles=tuple(f"[bold]{number} $x" for number in range(40)),
        categories=tuple(("comedy", "drama")[: 1 + number % 2] for number in range(40)),
    )
    return Catalogue(table, np.random.default_rng(1).standard_normal((40, 3)).astype(np.float32))


@pytest.fixture
def query_file(catalogue: Catalogue, tmp_path: Path) -> Path:
    catalogue.save(tmp_path / "catalogue")
    path = tmp_path / "query.toml"
    path.write_text(HEAD + QUESTIONS)
    return path


@pytest.fixture
def spec(query_file: Path) -> JobSpec:
    return plan_job(query_file, "trial")


@pytest.fixture
def publication(spec: JobSpec, catalogue: Catalogue) -> AnswersPublication:
    generator = np.random.default_rng(2)
    rows, items = generator.integers(0, 500, 6000), generator.integers(0, 40, 6000)
    interactions = Interactions.from_pairs(rows, items, users=500, items=40)
    algorithm = QueryAlgorithm(spec, catalogue)
    return algorithm.publish(
        central_state(
            algorithm,
            spec,
            PartyRows(interactions),
            lambda release: noise_of.draw(release, keyed_source(b"\x02" * 32, release.name.encode())),
        )
    )


@pytest.fixture
def directory(spec: JobSpec, publication: AnswersPublication, consortium: Path, tmp_path: Path) -> Path:
    files = publication.files(spec)
    manifest = publication.manifest(spec, files, created_s=int(certificates.now().timestamp()))
    signatures = []
    for party in PARTIES:
        own = Credentials.load(consortium / f"party-{party}")
        signatures.append(sign_manifest(manifest, party, own.certificate_pem, own.sign))
    save_directory(tmp_path / "published", files, manifest, signatures)
    return tmp_path / "published"


@pytest.fixture
def authority(consortium: Path) -> str:
    return str(consortium / "party-alpha" / "authority.pem")


def test_plan_shows_noise_and_cost(query_file: Path) -> None:
    done = RUNNER.invoke(app, ["plan", str(query_file)])
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line.split() for line in done.output.splitlines() if line.strip()}
    # epsilon 0.75 for an L1 norm of 2: scale 2.67 or, as both compose, a little less; two draws
    cells = lines["categories"]
    assert cells[1:8] == ["users", "by", "category", "2", "L1", "2", "laplace"]
    assert 4.8 < float(cells[8]) < 2 * 2 / 0.75
    assert lines["items"][4] == "40"
    assert "2 draws on each value" in done.output
    assert "epsilon 0.99" in done.output or "epsilon 1.0000" in done.output


def test_plan_shows_the_text_on_request(query_file: Path) -> None:
    done = RUNNER.invoke(app, ["plan", str(query_file), "--text"])
    document = json.loads(done.output.splitlines()[-1])
    assert document["trainer"]["kind"] == "query"
    assert len(document["trainer"]["questions"]) == 2


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("groups_per_user = 2", "", "groups_per_user"),
        ("groups_per_user = 2", 'groups_per_user = 2\ngroups = ["western"]', "western"),
        ('"gaussian"', '"none"', "mechanism"),
        ('kind = "query"', 'kind = "query"\nrounds = 2', "rounds"),
        ('name = "items"', 'name = "categories"', "twice"),
    ],
)
def test_questions_that_parties_would_refuse_are_refused_here(
    query_file: Path, old: str, new: str, complaint: str
) -> None:
    query_file.write_text(query_file.read_text().replace(old, new))
    done = RUNNER.invoke(app, ["plan", str(query_file)])
    assert isinstance(done.exception, ConfigError)
    assert complaint in str(done.exception)


def test_a_training_job_is_no_query(query_file: Path, consortium: Path) -> None:
    query_file.write_text(HEAD.replace('kind = "query"', 'kind = "subspace"\ndimensions = 3\ncontent_dimensions = 2'))
    for arguments in (
        ["plan", str(query_file)],
        ["ask", str(query_file), "--coordinator", "127.0.0.1:1", "--credentials", str(consortium / "operator-main")],
    ):
        done = RUNNER.invoke(app, arguments)
        assert isinstance(done.exception, ConfigError), done.exception
        assert "expected query" in str(done.exception)


def test_answers_are_shown_with_their_intervals(
    directory: Path, publication: AnswersPublication, authority: str, tmp_path: Path
) -> None:
    out = tmp_path / "answers.json"
    done = RUNNER.invoke(
        app, ["show", str(directory), "--authority", authority, "--signers", "alpha,beta", "--json", str(out)]
    )
    assert done.exit_code == 0, done.output
    categories, items = publication.answers.answers
    assert f"{categories.values[0]:,.1f}" in done.output
    assert f"± {items.interval_95:,.1f}" in done.output
    assert "20 of 40 groups" in done.output
    assert "at most 4 groups a user" in done.output
    # a title is text, not markup
    assert f"[bold]{ranked(items, 20)[0]} $x" in done.output
    assert json.loads(out.read_text())["answers"][1]["values"] == list(items.values)


@pytest.mark.parametrize(("suffix", "head"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_a_plot_is_written(directory: Path, authority: str, tmp_path: Path, suffix: str, head: bytes) -> None:
    plot = tmp_path / f"answers{suffix}"
    done = RUNNER.invoke(app, ["show", str(directory), "--authority", authority, "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert plot.read_bytes().startswith(head)


def test_a_plot_of_another_kind_is_refused(directory: Path, authority: str, tmp_path: Path) -> None:
    done = RUNNER.invoke(
        app, ["show", str(directory), "--authority", authority, "--plot", str(tmp_path / "answers.doc")]
    )
    assert isinstance(done.exception, ConfigError)
    assert not (tmp_path / "answers.doc").exists()


def test_nothing_is_shown_that_does_not_verify(directory: Path, authority: str, tmp_path: Path) -> None:
    missing = RUNNER.invoke(app, ["show", str(directory), "--authority", authority, "--signers", "alpha,gamma"])
    assert isinstance(missing.exception, ArtifactError)
    assert "gamma" in str(missing.exception)
    file = directory / "answers.json"
    file.write_bytes(file.read_bytes().replace(b"drama", b"dramb", 1))
    altered = RUNNER.invoke(
        app, ["show", str(directory), "--authority", authority, "--json", str(tmp_path / "no.json")]
    )
    assert isinstance(altered.exception, ArtifactError)
    assert "users by" not in altered.output
    assert not (tmp_path / "no.json").exists()


def test_groups_are_shown_largest_first_but_bins_in_their_order(publication: AnswersPublication) -> None:
    categories, items = publication.answers.answers
    assert ranked(categories, 2) == [0, 1]
    largest = ranked(items, 5)
    assert [items.values[place] for place in largest] == sorted(items.values, reverse=True)[:5]
    bins = items.model_copy(update={"question": items.question.model_copy(update={"by": "activity"})})
    assert ranked(bins, 5) == list(range(40))


@pytest.mark.parametrize("command", [[], ["plan"], ["ask"], ["show"]])
def test_help_has_examples(command: list[str]) -> None:
    done = RUNNER.invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert not command or f"Example: veil query {command[0]}" in " ".join(done.output.split())


def test_names_do_not_steer_a_terminal(publication: AnswersPublication) -> None:
    answer = publication.answers.answers[0]
    hostile = answer.model_copy(update={"groups": ("a\x1b]0;owned\x07\nb", *answer.groups[1:])})
    assert label(hostile, 0).isprintable()
    assert label(answer, 0) == answer.groups[0]
