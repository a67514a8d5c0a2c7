"""Planning a columns job: what it costs, what it states, and what cannot be met."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.job import app
from cli.job_forecast import link_of
from tests.unit.trainers.columns.clicks import SHOP, SLOTS, job, schema
from veil.errors import ConfigError
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.request import load
from veil.jobs.spec import Noise, parse
from veil.mpc.engine import items
from veil.privacy.accountant import epsilon
from veil.tabular.schema import TabularSchema
from veil.trainers.columns import dry
from veil.trainers.columns.dry import dry_run
from veil.trainers.columns.plan import OVERRIDES, read_schema
from veil.trainers.columns.terms import ColumnsTerms, schema_of, schema_text

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("budget", [1.0, 3.0, 8.0])
def test_a_plan_costs_its_budget_and_hardly_less(budget: float) -> None:
    spec = job(epsilon=budget)
    assert 0.998 * budget < epsilon(spec.releases, 1e-5) <= budget
    assert parse(spec.text()) == spec
    assert '"catalogue":null' in spec.text()


def test_every_step_has_the_sensitivity_of_the_program() -> None:
    spec = job(positive_weight=2.5)
    terms = ColumnsTerms.of(spec)
    steps = [release for release in spec.releases if release.name.startswith("step-")]
    assert len(steps) == terms.descent.steps
    assert {release.sensitivity for release in steps} == {terms.program().sensitivity}
    residual = terms.program().sensitivity / 2.0 ** terms.program().gradient_bits
    assert 2.5 <= residual < 2.5 * 1.02  # rows of norm 1, |p - y| hardly above 1


def test_the_rate_is_that_on_the_mean_gradient() -> None:
    terms = ColumnsTerms.of(job(overrides={"learning_rate": 3.0, "population": 100.0}))
    assert terms.descent.rate / 2.0**terms.descent.rate_bits == pytest.approx(0.03, rel=2**-8)


def test_the_base_rate_counts_classes_as_they_weigh() -> None:
    terms = ColumnsTerms.of(job(positive_weight=2.0))
    assert terms.offset(0.2) / 2**16 == pytest.approx(math.log(0.4 / 0.8), abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"step": 3.0}, "unknown settings step"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": 901.0}, "1 to 900"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"statistics_share": 1.0}, "statistics_share"),
        ({"batch": 50.0}, "unknown settings batch"),
        ({"reach": 9.0}, "reach"),
        ({"fill": 9.0}, "fill"),
        ({"least_users": -1.0}, "least_users"),
    ],
)
def test_settings_that_cannot_be_met(overrides: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        job(overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [({"units": 2000.0}, "units"), ({"scale": 0.0}, "scale"), ({"spread": 9.0}, "spread"), ({"seed": 0.5}, "seed")],
)
def test_hidden_layers_that_are_none(overrides: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        job(model="perceptron", overrides=overrides)


@pytest.mark.parametrize("model", ["perceptron", "towers"])
def test_hidden_units_cost_what_their_scale_says(model: str) -> None:
    terms = ColumnsTerms.of(job(model=model, overrides={"units": 4.0, "scale": 1.0}))
    residual = terms.program().sensitivity / 2.0 ** terms.program().gradient_bits
    # sqrt(1 + scale^2), and what coarse waves add
    assert math.sqrt(2) < residual < 1.25 * math.sqrt(2)
    assert terms.program().sensitivity < 2**52


def test_a_hidden_layer_must_fit_its_model() -> None:
    spec = job(model="towers")
    hidden = spec.trainer.hidden  # type: ignore[union-attr]
    assert hidden is not None
    for changes in (
        {"hidden": None},
        {"model": "logistic"},
        {"model": "perceptron"},
        {"hidden": hidden.model_copy(update={"left": (0, 1), "right": ()})},
        {"hidden": hidden.model_copy(update={"left": (0,), "right": (5,)})},
    ):
        trainer = spec.trainer.model_copy(update=changes)
        with pytest.raises(ConfigError):
            ColumnsTerms.of(spec.model_copy(update={"trainer": trainer}))


def test_a_class_weighs_a_sixteenth_at_least() -> None:
    with pytest.raises(ConfigError, match="1/16"):
        job(positive_weight=0.01)


def test_batches_are_refused_since_one_user_more_moves_others_between_them() -> None:
    spec = job()
    assert isinstance(spec.trainer, ColumnsTrainer)
    descent = spec.trainer.descent.model_copy(update={"batch": 50})
    with pytest.raises(ConfigError, match="batches of 50 rows"):
        ColumnsTerms.of(spec.model_copy(update={"trainer": spec.trainer.model_copy(update={"descent": descent})}))


def test_without_a_dealer_the_parties_draw_the_noise() -> None:
    assert job(noise=Noise(source="parties"), triples="he").trainer.kind == "columns"
    with pytest.raises(ConfigError, match="noise by the parties"):
        job(noise=Noise(source="dealer"), triples="he")


def test_functions_that_take_a_dealer_are_refused_in_the_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    without = job(noise=Noise(source="parties"), triples="he")
    terms = ColumnsTerms.of(without)
    monkeypatch.setattr(items, "MOST_PRECISION_BITS_OF_MANY", 5)
    monkeypatch.setattr(dry, "check_without_dealer", lambda planned, _: items.check_without_dealer(planned, 3))
    spec = job()
    dry_run(ColumnsTerms.of(spec), spec.releases, spec.privacy.noise, rank=0)
    with pytest.raises(ConfigError, match="3 parties without a dealer, expected at most 5"):
        dry_run(terms, without.releases, without.privacy.noise, rank=0)


def test_a_schema_has_one_text() -> None:
    text = schema_text(schema())
    assert schema_text(schema_of(text)) == text
    for other in (text.replace('"bits":12', '"bits": 12'), json.dumps(json.loads(text), indent=1)):
        with pytest.raises(ConfigError, match="canonical"):
            schema_of(other)
    with pytest.raises(ConfigError, match="columns: slots"):
        schema_of(text.replace(f'"slots":{SLOTS}', '"slots":0'))


def test_the_examples_are_a_job_and_the_keys_in_comments_are_real(tmp_path: Path) -> None:
    request = load(ROOT / "deploy" / "job-columns.toml")
    assert request.catalogue is None and request.trainer.overrides == {}
    text = (ROOT / "deploy" / "job-columns.toml").read_text()
    for name in OVERRIDES:
        text = text.replace(f"# {name} = ", f"{name} = ")
    file = tmp_path / "job.toml"
    file.write_text(text)
    assert set(load(file).trainer.overrides) == set(OVERRIDES)
    found = read_schema(ROOT / "deploy" / "columns.toml", slots=80_000, kind=TabularSchema)
    assert [one.party for one in found.parties] == list(request.parties)


def test_job_plan_shows_every_party_and_phase() -> None:
    asked = ["plan", str(ROOT / "deploy" / "job-columns.toml"), "--bandwidth", "100Mbit", "--latency", "20ms", "--json"]
    result = CliRunner().invoke(app, [*asked, "--cores", "1"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert [one["party"] for one in shown] == ["shop", "network", "profiles"]
    phases = [phase for one in shown for phase in one["phases"]]
    assert all(phase["seconds"] > 0 for phase in phases)
    assert {phase["phase"] for phase in phases if not phase["sent_bytes"]} == {"start"}
    refused = CliRunner().invoke(app, [*asked, "--cores", "0"])
    assert refused.exit_code != 0


@pytest.mark.parametrize("text", ["", "fast", "10", "10 parsecs", "-1ms", "1e3ms"])
def test_links_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="latency"):
        link_of("1Gbit", text)
    assert link_of("100Mbit", "20ms").bandwidth == 1e8
    assert SHOP
