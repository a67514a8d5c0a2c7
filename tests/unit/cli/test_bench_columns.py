"""`veil bench columns`: what is asked for, draws put together, tables; real jobs are in integration."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cli import columns_data, columns_jobs
from cli.bench_columns import Asked, budgets, chosen, columns, columns_all, known_lines, measure
from cli.columns_jobs import JobKind
from cli.columns_tables import Draw, cells, heading, line, standard_error, table_of
from veil.errors import ConfigError

PHASES = {
    "align": {"forecast_s": 3.0, "measured_s": 3.5, "forecast_bytes": 10.0, "measured_bytes": 11.0},
    "descend": {"forecast_s": 0.5, "measured_s": 1.5, "forecast_bytes": 4.0, "measured_bytes": 4.0},
}


def job(test: float, sent: tuple[int, ...] = (2_000_000, 5_000_000), seconds: float = 10.0) -> Draw:
    return Draw(0.7, test, seconds, sent, (2_000_000, 4_900_000), PHASES)


def test_a_line_has_means_and_deviations_of_all_draws() -> None:
    found = line("joint logistic", [job(0.70), job(0.74, (3_000_000, 5_500_000), 14.0)], epsilon=3.0, noise="dealer")
    assert found["auc_test"] == pytest.approx(0.72)
    assert found["auc_test_sd"] == pytest.approx(0.02 * math.sqrt(2))
    assert (found["auc_dev"], found["auc_dev_sd"]) == (0.7, 0.0)
    assert (found["seconds"], found["draws"], len(found["each"])) == (12.0, 2, 2)
    # of the party that sends most, in the draw in which it sent most
    assert (found["bytes_per_party"], found["forecast_bytes_per_party"]) == (5_500_000, 4_900_000)
    assert (found["forecast_s"], found["measured_s"]) == (3.5, 5.0)
    assert cells(found) == (
        *("joint logistic", "3", "dealer", "2", ".720 ± .028", ".700 ± .000", "12.0", "3.5 / 5.0", "4.90 / 5.50"),
    )
    json.dumps(found, allow_nan=False)


def test_a_line_without_noise_has_no_deviation_and_no_forecast() -> None:
    plain = line("plaintext logistic", [Draw(0.69, 0.71)])
    assert plain["auc_test_sd"] is None
    assert cells(plain) == ("plaintext logistic", "–", "", "1", ".710", ".690", "", "", "")
    quiet = line("joint logistic", [Draw(0.69, 0.71, 2.34, (27_420_864, 37_904_064))])
    assert cells(quiet)[6:] == ("2.3", "", "37.90")
    assert cells(line("all ranked", [Draw(1.0, 1.0)]))[4] == "1.000"


def test_the_standard_error_is_that_of_draws() -> None:
    """Scores that are exponential, as the approximation assumes, with means whose AUC is 0.75."""
    from baseline.tabular.scores import auc

    generator, positive, negative = np.random.default_rng(5), 80, 310
    labels = np.repeat([1.0, 0.0], [positive, negative])
    scale = np.where(labels == 1, 3.0, 1.0)
    drawn = [auc(labels, generator.exponential(scale)) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.003)
    assert standard_error(0.75, positive, negative) == pytest.approx(np.std(drawn), rel=0.06)
    assert standard_error(1.0, positive, negative) == 0.0


def test_budgets_and_models_are_lists() -> None:
    assert budgets("1,3,8") == (1.0, 3.0, 8.0)
    assert budgets("3,3.0") == (3.0,)
    assert chosen("towers,logistic,towers") == ("towers", "logistic")
    for text in ("", "1,,3", "0", "nan", "inf", "101", "1;3", ",".join("1" * 17)):
        with pytest.raises(ConfigError, match="epsilon"):
            budgets(text)
    with pytest.raises(ConfigError, match="models"):
        chosen("logistic,forest")


def test_the_jobs_of_a_case() -> None:
    plain = Asked("criteo", Path(), 2, (1.0, 8.0), 3)
    assert plain.kinds() == [(JobKind("logistic", 1.0), 3), (JobKind("logistic", 8.0), 3)]
    more = Asked("avazu", Path(), 3, (3.0,), 2, ("logistic", "towers"), True)
    assert more.kinds() == [
        (JobKind("logistic", 3.0), 2),
        # asked for by name already: as often as the others, and once
        (JobKind("towers", 3.0), 2),
        (JobKind("logistic", 3.0, "parties"), 2),
        (JobKind("perceptron", 3.0), 1),
    ]
    assert (plain.name, more.name) == ("criteo-2", "avazu-3")


def test_what_the_commands_refuse(tmp_path: Path) -> None:
    for data in ("criteo", "movielens:x", "avazu:", ":x"):
        with pytest.raises(ConfigError, match="expected criteo:FOLDER"):
            columns(data=data)
    with pytest.raises(ConfigError, match="got case 'criteo-4'"):
        columns_all(folder=tmp_path, only=["criteo-4"])
    case = Asked("criteo", tmp_path, 2, (1.0,), 1)
    assert known_lines(tmp_path / "none.json", case) == []
    other = json.dumps({"data": "avazu", "parties": 2, "link": case.link, "lines": []})
    for text in ("[]", "{", '{"lines": [{}]}', '{"lines": 3}', other):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ConfigError, match="expected figures of criteo-2"):
            known_lines(tmp_path / "other.json", case)


class FakeSample:
    """Answers at once; `made` counts what was asked for."""

    made: ClassVar[list[str]] = []

    def __init__(self, *_: object) -> None:
        type(self).made = []

    def facts(self) -> dict[str, Any]:
        return {"rows": {"train": 9, "dev": 4, "test": 5}, "features": 7, "base_rate": 0.2}

    def standard_errors(self, draw: Draw) -> dict[str, float]:
        return {"dev": 0.031, "test": draw.test / 20}

    def __getattr__(self, name: str) -> Any:
        def make() -> Draw:
            self.made.append(name)
            return Draw(0.6, 0.66)

        return make


class FakeConsortium:
    """Counts starts and jobs."""

    def __init__(self, *_: object) -> None:
        FakeSample.made.append("start")

    def __enter__(self) -> FakeConsortium:
        return self

    def __exit__(self, *_: object) -> None:
        FakeSample.made.append("stop")

    def draw(self, kind: JobKind) -> Draw:
        FakeSample.made.append(f"{kind.model} {kind.epsilon:g} {kind.noise}")
        return job(0.7)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns_data, "Sample", FakeSample)
    monkeypatch.setattr(columns_jobs, "Consortium", FakeConsortium)


@pytest.mark.usefixtures("fakes")
def test_a_case_starts_its_programs_once_and_saves_every_line(tmp_path: Path) -> None:
    from rich.console import Console

    saved: list[int] = []
    asked = Asked("criteo", tmp_path, 3, (1.0, 3.0), 2, extras=True)
    figures = measure(asked, save=lambda found: saved.append(len(found["lines"])))
    assert saved == list(range(1, 10))
    assert [one["model"] for one in figures["lines"][:4]] == [
        *("plaintext logistic", "plaintext, scikit-learn", "plaintext, the same descent", "joint logistic"),
    ]
    assert FakeSample.made == [
        *("own_logistic", "scikit_logistic", "same_descent", "joint_without_noise", "start"),
        *("logistic 1 dealer", "logistic 1 dealer", "logistic 3 dealer", "logistic 3 dealer"),
        *("logistic 3 parties", "logistic 3 parties", "perceptron 3 dealer", "towers 3 dealer", "stop"),
    ]
    assert any("9 train, 4 dev, 5 test" in text for text in heading(figures))
    assert any("test 0.033, dev 0.031" in text for text in heading(figures))
    console = Console(width=140, file=io.StringIO())
    console.print(table_of(figures))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"joint logistic\s+3\s+parties, t = 2\s+2\s+\.700 ± \.000", shown)
    assert re.search(r"joint towers\s+3\s+dealer\s+1\s+\.700\s+\.700\s+10\.0\s+3\.5 / 5\.0\s+4\.90 / 5\.00", shown)


@pytest.mark.usefixtures("fakes")
def test_a_run_that_was_interrupted_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def all_of_it(keep: bool, draws: int = 2) -> None:
        columns_all(folder=tmp_path, out=tmp_path, only=["avazu-2"], epsilon="1,3", draws=draws, keep=keep)

    all_of_it(keep=False)
    file = tmp_path / "avazu-2.json"
    whole = json.loads(file.read_bytes())
    file.write_text(json.dumps({**whole, "lines": whole["lines"][:5]}))
    all_of_it(keep=True)
    assert FakeSample.made == ["own_logistic", "start", "logistic 3 dealer", "logistic 3 dealer", "stop"]
    assert json.loads(file.read_bytes())["lines"] == whole["lines"]
    # with other draws they are other lines
    all_of_it(keep=True, draws=1)
    assert FakeSample.made == ["own_logistic", "start", "logistic 1 dealer", "logistic 3 dealer", "stop"]
    assert "avazu, 2 parties" in capsys.readouterr().out
    # what was forecast for another link is measured again
    lines = json.loads(file.read_bytes())["lines"]
    assert known_lines(file, Asked("avazu", tmp_path, 2, (1.0,), 1)) == lines
    assert known_lines(file, Asked("avazu", tmp_path, 2, (1.0,), 1, latency="20ms")) == lines[:4]
