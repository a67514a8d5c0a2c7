"""`veil privacy`: what it says of a ledger and of a plan, in the terminal, as JSON and as figures."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from cli.privacy import app
from veil.errors import ConfigError, StateError
from veil.jobs.spec import Release
from veil.privacy.accountant import epsilon, noise_multiplier
from veil.privacy.ledger import Ledger

_EXAMPLE = Path(__file__).parents[3] / "deploy" / "party.toml"
RUNNER = CliRunner()
SPRING, AUTUMN = "5b1c0000-0000-4000-8000-000000000001", "77aa0000-0000-4000-8000-000000000002"


def release(name: str, sigma: int, **more: object) -> Release:
    return Release.model_validate({"name": name, "shape": (4, 2), "sensitivity": 1000, "sigma": sigma, **more})


JOBS = {
    SPRING: [release("counts", 5000), release("round-1", 3000)],
    AUTUMN: [release(f"round-{i}", 1500, sampling=0.1) for i in range(12)]
    + [release("question", 9000, mechanism="discrete-laplace")],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The shipped example with a ledger of two jobs, the first of which was published."""
    path = tmp_path / "party.toml"
    path.write_text(_EXAMPLE.read_text())
    state = tmp_path / "state"
    state.mkdir()
    ledger = Ledger(state / "ledger.sqlite", epsilon_limit=8.0, delta=1e-5)
    for number, (job, releases) in enumerate(JOBS.items()):
        for one in releases:
            ledger.record(job, bytes([number]) * 32, one)
    manifest = {"name": "spring", "job_digest": "sha256:" + "00" * 32}
    (state / "models" / SPRING).mkdir(parents=True)
    (state / "models" / SPRING / "manifest.json").write_text(json.dumps(manifest))
    return path


def run(*arguments: str) -> str:
    done = RUNNER.invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: str, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as raised:
        RUNNER.invoke(app, list(arguments), catch_exceptions=False)
    return str(raised.value)


def drawn(path: Path) -> str:
    """The text of a figure; it must parse as SVG."""
    text = path.read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")  # noqa: S314
    return text


def test_the_ledger_by_job(config: Path, tmp_path: Path) -> None:
    output = run("ledger", "--config", str(config), "--json", str(tmp_path / "spent.json"))
    whole = epsilon([one for releases in JOBS.values() for one in releases], 1e-5)
    assert "spring (5b1c0000)" in output and "77aa0000" in output
    assert f"spent  epsilon {whole:.4f} of 8, {8 - whole:.4f} below the limit" in output
    figures = json.loads((tmp_path / "spent.json").read_text())
    assert (figures["spent"], figures["epsilon_limit"], figures["delta"]) == (whole, 8.0, 1e-5)
    assert [job["name"] for job in figures["jobs"]] == ["spring", None]
    assert [job["epsilon_alone"] for job in figures["jobs"]] == [epsilon(r, 1e-5) for r in JOBS.values()]
    assert figures["jobs"][-1]["total_after"] == whole
    assert sum(job["epsilon_added"] for job in figures["jobs"]) == pytest.approx(whole)
    assert len(figures["releases"]) == 15 and figures["releases"][-1]["mechanism"] == "discrete-laplace"
    assert f"{figures['jobs'][1]['epsilon_alone']:.4f}" in output
    assert "round-1" not in output
    assert "discrete-laplace" in run("ledger", "--config", str(config), "--releases")


def test_a_name_is_believed_only_with_the_jobs_digest(config: Path) -> None:
    manifest = config.parent / "state" / "models" / SPRING / "manifest.json"
    for text in ('{"name": "other", "job_digest": "sha256:11"}', "[]", "{", '{"name": 5}'):
        manifest.write_text(text)
        output = run("ledger", "--config", str(config))
        assert "other" not in output and "5b1c0000" in output


def test_the_ledger_as_a_figure(config: Path, tmp_path: Path) -> None:
    run("ledger", "--config", str(config), "--plot", str(tmp_path / "spent.svg"))
    drawn(tmp_path / "spent.svg")
    run("ledger", "--config", str(config), "--plot", str(tmp_path / "spent.png"))
    assert (tmp_path / "spent.png").read_bytes().startswith(b"\x89PNG")
    assert "spent.txt" in refused("ledger", "--config", str(config), "--plot", str(tmp_path / "spent.txt"))
    assert not (tmp_path / "spent.txt").exists()


def test_a_ledger_that_is_not_there_is_not_made(config: Path) -> None:
    ledger = config.parent / "state" / "ledger.sqlite"
    ledger.unlink()
    refused("ledger", "--config", str(config), error=StateError)
    assert not ledger.exists()


def test_an_empty_ledger(config: Path, tmp_path: Path) -> None:
    (config.parent / "state" / "ledger.sqlite").unlink()
    Ledger(config.parent / "state" / "ledger.sqlite", epsilon_limit=2.0, delta=1e-6)
    output = run("ledger", "--config", str(config), "--plot", str(tmp_path / "spent.svg"))
    assert "spent  epsilon 0.0000 of 2, 2.0000 below the limit" in output
    drawn(tmp_path / "spent.svg")


def test_a_plan_states_cost_openings_and_what_to_expect(tmp_path: Path) -> None:
    output = run(
        *("plan", "--epsilon", "3", "--items", "3706", "--users", "6040"),
        *("--json", str(tmp_path / "plan.json"), "--plot", str(tmp_path / "plan.svg")),
    )
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["epsilon"] <= 3.0 and f"epsilon  {figures['epsilon']:.4f}" in output
    assert figures["numbers_opened"] == sum(
        release["count"] * release["shape"][0] * (release["shape"] + [1])[1] for release in figures["releases"]
    )
    assert figures["bytes_opened"] == 8 * figures["numbers_opened"]
    assert figures["noise_multiplier"] == pytest.approx(noise_multiplier(3.0, 1e-5), rel=1e-5)
    assert figures["noise_to_users"] == pytest.approx(figures["noise_multiplier"] / 6040)
    # On the data set itself the measured figure comes back, inside of what was measured.
    same = next(one for one in figures["expected"] if one["data"] == "ml-1m")
    assert same["within_measured_noise"]
    assert same["popularity_hr_at_10"] < same["hr_at_10"] < same["plaintext_hr_at_10"]
    assert "ml-1m" in output and "yours will differ" in output.lower()
    drawn(tmp_path / "plan.svg")


def test_more_users_or_budget_never_lower_what_to_expect(tmp_path: Path) -> None:
    shares = []
    for epsilon_, users in (("1", "1000"), ("1", "10000"), ("5", "10000"), ("5", "100000")):
        target = tmp_path / "plan.json"
        run("plan", "--epsilon", epsilon_, "--items", "2000", "--users", users, "--json", str(target))
        shares.append(
            {one["data"]: one["share_of_plaintext_gain"] for one in json.loads(target.read_text())["expected"]}
        )
    for data in shares[0]:
        assert sorted(share[data] for share in shares) == [share[data] for share in shares]


def test_noise_by_the_parties_is_more_noise(tmp_path: Path) -> None:
    ratios = {}
    for name, more in {
        "dealer": (),
        "all": ("--noise", "parties"),
        "one": ("--noise", "parties", "--colluding", "1"),
    }.items():
        target = tmp_path / f"{name}.json"
        run("plan", "--epsilon", "3", "--items", "500", "--users", "1000", *more, "--json", str(target))
        ratios[name] = json.loads(target.read_text())["noise_to_users"]
    assert ratios["all"] == pytest.approx(ratios["dealer"] * 3**0.5)
    assert ratios["one"] == pytest.approx(ratios["dealer"] * 1.5**0.5)


def test_a_gradient_plan_counts_its_rounds(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    output = run(
        *("plan", "--epsilon", "4", "--trainer", "gradient", "--parameters", "2000", "--rounds", "10"),
        *("--sampling", "0.2", "--users", "3000", "--json", str(target), "--plot", str(tmp_path / "plan.svg")),
    )
    figures = json.loads(target.read_text())
    rounds = [one for one in figures["releases"] if one["sampling"] == 0.2]
    assert sum(one["count"] for one in rounds) == 10
    assert 3.9 <= figures["epsilon"] <= 4.0
    assert figures["mean_update_noise"] > 0 and figures["expected"] == []
    assert "noise on the mean update" in output and "measure it on public data" in output
    drawn(tmp_path / "plan.svg")


def test_own_figures_take_the_place_of_the_built_in_ones(tmp_path: Path) -> None:
    case = {
        "data": "ours",
        "users": 500,
        "items": 90,
        "trainer": "subspace",
        "epsilon": 2.0,
        "delta": 1e-5,
        "hr_at_10": 0.5,
        "plaintext": {"hr_at_10": 0.6},
        "popularity": {"hr_at_10": 0.4},
    }
    for document in (case, {"cases": [case]}):
        (tmp_path / "own.json").write_text(json.dumps(document))
        arguments = (
            "plan",
            "--epsilon",
            "2",
            "--items",
            "90",
            "--users",
            "500",
            "--measured",
            str(tmp_path / "own.json"),
        )
        output = run(*arguments)
        assert "ours" in output and "50%" in output and "ml-1m" not in output
    for text in ("{}", "[1]", "nonsense", '{"cases": [{"plaintext": 1, "popularity": 1}]}'):
        (tmp_path / "own.json").write_text(text)
        assert "own.json" in refused(*arguments)


def test_wrong_sizes_are_refused() -> None:
    assert "--items" in refused("plan", "--epsilon", "3")
    assert "--parameters" in refused("plan", "--epsilon", "3", "--trainer", "gradient")
    assert "gradient only" in refused("plan", "--epsilon", "3", "--items", "50", "--sampling", "0.5")
    assert "epsilon" in refused("plan", "--epsilon", "-1", "--items", "50")
    assert "delta" in refused("plan", "--epsilon", "1", "--items", "50", "--delta", "0.5")
    assert "--colluding" in refused("plan", "--epsilon", "1", "--items", "50", "--colluding", "1")
