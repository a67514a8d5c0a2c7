"""Comparisons: mixing weights, references, the simulation of the private mechanism, and both commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from baseline import __main__ as program
from baseline import material, mixing
from baseline.evaluate import (
    fit_private_mixing,
    plain_comparison,
    private_comparison,
    private_metrics,
    reference_metrics,
    simulated_noise,
    simulation_spec,
)
from baseline.references import Factorisation, Popularity
from baseline.train import train
from cli import baseline as command
from veil.errors import ConfigError, InputError
from veil.recsys import postprocess
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.features import build_catalogue
from veil.recsys.synthetic import generate


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(users=800, items=310, seed=9)


@pytest.fixture(scope="module")
def catalogue(dataset: Dataset) -> Catalogue:
    return build_catalogue(dataset.table)


def test_fit_recovers_known_weights() -> None:
    generator = np.random.default_rng(3)
    problem = generator.standard_normal((4000, 20, 3)).astype(np.float32)
    wanted = np.array([2.0, -1.0, 0.0])
    # Whoever wins under Gumbel noise is distributed as the softmax of the scores: the model that `fit` assumes.
    chosen = (problem @ wanted + generator.gumbel(size=(4000, 20))).argmax(axis=1)
    rows = np.arange(4000)
    problem[rows, 0], problem[rows, chosen] = problem[rows, chosen], problem[rows, 0].copy()
    found = mixing.fit(["a", "b", "c"], [problem])
    assert list(found.values()) == pytest.approx(wanted.tolist(), abs=0.1)


def test_fit_ignores_masked_candidates() -> None:
    generator = np.random.default_rng(4)
    problem = generator.standard_normal((500, 6, 2)).astype(np.float32)
    extended = np.concatenate([problem, np.full((500, 1, 2), np.nan, np.float32)], axis=1)
    plain, masked = (mixing.fit(["a", "b"], [one]) for one in (problem, extended))
    assert list(plain.values()) == pytest.approx(list(masked.values()), abs=1e-3)


def test_columns_add_up_to_the_score(dataset: Dataset, catalogue: Catalogue) -> None:
    trained = train(dataset.train, catalogue, dimensions=6, rounds=2)
    weights = {name: 0.3 + number for number, name in enumerate(trained.terms())}
    assert dataset.negatives is not None
    names, columns = mixing.columns(trained, dataset.train, dataset.test_items, dataset.negatives)
    assert names == list(weights)
    model = trained.model(weights)
    scores = model.scores(model.user_vectors(dataset.train))
    candidates = np.concatenate([dataset.test_items[:, None], dataset.negatives], axis=1)
    expected = np.take_along_axis(scores, candidates, axis=1)
    np.testing.assert_allclose(columns @ np.array(list(weights.values())), expected, atol=1e-3)


def test_columns_mask_the_test_item_and_need_one(dataset: Dataset, catalogue: Catalogue) -> None:
    trained = train(dataset.train, catalogue, dimensions=4, rounds=1)
    negatives = np.repeat(dataset.test_items[:, None], 2, axis=1)
    _, columns = mixing.columns(trained, dataset.train, dataset.test_items, negatives)
    assert np.isnan(columns[:, 1:]).all()
    assert np.isfinite(columns[:, 0]).all()
    with pytest.raises(InputError, match="held-out"):
        mixing.columns(trained, dataset.train, np.full(dataset.train.users, -1), negatives)


def test_references(dataset: Dataset) -> None:
    first, second = (Factorisation(dataset.train, dimensions=8, threads=1) for _ in range(2))
    users = np.arange(5)
    np.testing.assert_array_equal(first(users), second(users))
    np.testing.assert_array_equal(Popularity(dataset.train)(users)[4], dataset.train.counts())
    metrics = reference_metrics(dataset, threads=1)
    assert set(metrics) == {"popularity", "ials"}
    assert metrics["ials"].ndcg_at_10 > metrics["popularity"].ndcg_at_10


def test_simulated_noise_has_the_variance_of_its_source(catalogue: Catalogue) -> None:
    for source, draws in (("dealer", 1), ("parties", 4)):
        spec = simulation_spec(catalogue, epsilon=3.0, delta=1e-5, noise_source=source, parties=4)  # type: ignore[arg-type]
        release = spec.releases[1]
        noise = simulated_noise(spec, release, seed=1)
        assert noise.shape == release.shape
        # 310 x 30 values or so: the standard deviation is known to 1%; six of those are allowed.
        assert noise.std() == pytest.approx(release.sigma * draws**0.5, rel=0.06)
        np.testing.assert_array_equal(noise, simulated_noise(spec, release, seed=1))
        assert (noise != simulated_noise(spec, release, seed=2)).any()


def test_private_rows(dataset: Dataset, catalogue: Catalogue) -> None:
    rows = list(private_comparison(dataset, catalogue, epsilons=[0.5, 50.0], delta=1e-5, seeds=(1, 2)))
    assert [row.name for row in rows] == ["private, epsilon 0.5", "private, epsilon 50"]
    assert rows[0].mean()["ndcg_at_10"] < rows[1].mean()["ndcg_at_10"]
    assert rows[0].deviation()["ndcg_at_10"] > 0
    again = private_metrics(dataset, catalogue, epsilon=0.5, delta=1e-5, seeds=(1, 2))
    assert again == rows[0]
    with pytest.raises(ConfigError, match="seed"):
        private_metrics(dataset, catalogue, epsilon=0.5, delta=1e-5, seeds=())


def test_plain_rows(dataset: Dataset, catalogue: Catalogue) -> None:
    rows = {row.name: row for row in plain_comparison(dataset, catalogue, "cpu", threads=1)}
    assert list(rows) == ["plaintext, cpu", "iALS", "popularity"]
    assert rows["popularity"].deviation()["hr_at_10"] == 0.0
    assert rows["plaintext, cpu"].mean()["ndcg_at_10"] > rows["popularity"].mean()["ndcg_at_10"]


def test_private_mixing_has_all_weights(dataset: Dataset, catalogue: Catalogue) -> None:
    weights = fit_private_mixing(dataset, catalogue, epsilon=20.0, delta=1e-5, seeds=(1,))
    assert set(weights) == set(postprocess.TERMS)
    assert all(np.isfinite(weight) for weight in weights.values())
    assert weights["popularity-log"] > 0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, dataset: Dataset, catalogue: Catalogue) -> None:
    """The commands load a small data set instead of the 30,000 readers of the default."""
    monkeypatch.setattr(material, "load", lambda data, **_: (dataset, catalogue))


@pytest.mark.usefixtures("small")
def test_train_command(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["train", "--device", "cpu", "--out", str(tmp_path / "model"), "--json", str(figures)]
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 0, result.output
    for word in ("plaintext, cpu", "iALS", "popularity", "HR@10"):
        assert word in result.output
    assert len(json.loads(figures.read_text())["rows"]) == 3
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.usefixtures("small")
def test_private_command(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["private", "--epsilon", "1", "--epsilon", "9", "--seeds", "2", "--json", str(figures)]
    result = CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 0, result.output
    assert "simulation" in result.output
    assert "add-or-remove-one-user" in result.output
    assert [row["name"] for row in json.loads(figures.read_text())["rows"]] == [
        "private, epsilon 1",
        "private, epsilon 9",
    ]


def test_a_device_that_is_not_there_stops_before_loading() -> None:
    result = CliRunner().invoke(command.app, ["train", "--device", "tpu"])
    assert isinstance(result.exception, ConfigError)


@pytest.mark.usefixtures("small")
def test_the_program_writes_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--data", "synthetic"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 3


def test_the_program_reports_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--data", "nothing"]) == 1
    assert "synthetic" in capsys.readouterr().err
