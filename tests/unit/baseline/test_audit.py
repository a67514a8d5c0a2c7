"""The audit's harness: what it runs is the real mechanism, and each part of it measures what it says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from baseline.audit.canaries import make_canaries
from baseline.audit.checks import noise_checks, run_checks
from baseline.audit.examine import audit
from baseline.audit.mechanism import Mechanism, audited_run, honest
from baseline.audit.probes import edge_users, hostile_states, sensitivity_findings
from baseline.audit.report import AuditPlan, AuditReport, Control
from baseline.audit.sabotage import SABOTAGES, Unclipped, sabotage
from baseline.audit.shadows import attack, features
from baseline.evaluate import simulation_spec
from veil.errors import ConfigError, InputError
from veil.jobs.spec import JobSpec, Release
from veil.privacy.audit.bounds import EpsilonBounds
from veil.privacy.audit.finding import Finding
from veil.privacy.audit.sensitivity import squared_norm
from veil.recsys.catalogue import Catalogue
from veil.recsys.features import build_catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.synthetic import generate
from veil.trainers.registry import central_run
from veil.trainers.rows import PartyRows

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def data() -> Interactions:
    return generate(users=120, items=310, seed=9).train


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return build_catalogue(generate(users=120, items=310, seed=9).table)


def claimed(catalogue: Catalogue, source: str = "dealer", epsilon: float = 5.0) -> JobSpec:
    # With a collaborative part in any case, which the defaults leave out for so few users.
    always = {"noise_ratio_limit": 1e9}
    return simulation_spec(catalogue, epsilon=epsilon, delta=1e-5, noise_source=source, overrides=always)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mechanism(catalogue: Catalogue) -> Mechanism:
    return honest(claimed(catalogue), catalogue, KEY)


def test_canaries_are_users_as_visible_as_can_be(
    catalogue: Catalogue, mechanism: Mechanism, data: Interactions
) -> None:
    canaries = make_canaries(catalogue, 64, 3)
    assert canaries.users == 64 and canaries.lengths().min() >= 8 and canaries.lengths().max() <= 24
    assert np.array_equal(make_canaries(catalogue, 64, 3).indices, canaries.indices)
    assert not np.array_equal(make_canaries(catalogue, 64, 4).indices, canaries.indices)
    record = audited_run(mechanism, data, canaries, np.arange(64) % 2 == 0)
    assert 0.9 < record.strengths.mean() <= record.strengths.max() <= 1.0
    with pytest.raises(ConfigError):
        make_canaries(catalogue, 0, 1)


def test_a_run_is_the_trainers_own_run(catalogue: Catalogue, mechanism: Mechanism, data: Interactions) -> None:
    canaries = make_canaries(catalogue, 24, 3)
    coins = np.arange(24) % 3 == 0
    record = audited_run(mechanism, data, canaries, coins, number=4)
    everyone = Interactions.concatenate([data, canaries.rows(coins)])
    model = central_run(mechanism.spec, catalogue, everyone, lambda release: sum(mechanism.draws(4, release)))
    assert np.array_equal(mechanism.algorithm.model(record.states[-1]).item_factors, model.item_factors)
    for opening in record.openings:
        assert np.array_equal(opening.residual, mechanism.draws(4, opening.release)[0])
    assert record.apart == dict.fromkeys(mechanism.algorithm.steps, 0)


def test_scores_tell_what_a_claim_allows_and_no_more(
    catalogue: Catalogue, mechanism: Mechanism, data: Interactions
) -> None:
    canaries = make_canaries(catalogue, 300, 3)
    coins = np.random.default_rng(1).random(300) < 0.5
    scores = audited_run(mechanism, data, canaries, coins).scores
    measured = scores[coins].mean() - scores[~coins].mean()
    # mu is 1.121; the standard error of 300 canaries is 0.12.
    assert 0.6 < measured < mechanism.mu + 0.5
    assert 0.8 < scores[coins].std() < 1.2 and 0.8 < scores[~coins].std() < 1.2


def test_views_of_colluding_parties_hold_one_draw_each(catalogue: Catalogue, data: Interactions) -> None:
    mechanism = honest(claimed(catalogue, "parties"), catalogue, KEY)
    canaries = make_canaries(catalogue, 24, 3)
    record = audited_run(mechanism, data, canaries, np.ones(24, bool), number=1)
    for opening in record.openings:
        draws = mechanism.draws(1, opening.release)
        assert len(draws) == 3 and np.array_equal(opening.residual, sum(draws))
        for view, draw in zip(opening.views(1), draws, strict=True):
            assert np.array_equal(view, draw)
    assert all(finding.passed for finding in noise_checks(record, None, 3))


def test_fewer_colluding_parties_face_more_draws(catalogue: Catalogue, data: Interactions) -> None:
    spec = simulation_spec(catalogue, epsilon=5.0, delta=1e-5, noise_source="parties", parties=4, colluding=2)
    mechanism = honest(spec, catalogue, KEY)
    assert (mechanism.drawers, mechanism.honest) == (4, 2)
    record = audited_run(mechanism, data, make_canaries(catalogue, 24, 3), np.ones(24, bool), number=1)
    for opening in record.openings:
        draws = mechanism.draws(1, opening.release)
        assert opening.sigma < opening.release.sigma <= opening.sigma * 2**0.5 + 1
        expected = [draws[0] + draws[1], draws[1] + draws[2], draws[2] + draws[3], draws[3] + draws[0]]
        assert all(np.array_equal(view, two) for view, two in zip(opening.views(2), expected, strict=True))
    found = noise_checks(record, None, 4, 2)
    assert any("against all but 2" in finding.subject for finding in found)
    assert all(finding.passed for finding in found)


def test_coins_must_fit(mechanism: Mechanism, catalogue: Catalogue, data: Interactions) -> None:
    canaries = make_canaries(catalogue, 24, 3)
    for coins in (np.ones(23, bool), np.ones(24)):
        with pytest.raises(InputError):
            audited_run(mechanism, data, canaries, coins)


def test_other_mechanisms_are_refused(catalogue: Catalogue, mechanism: Mechanism) -> None:
    spec = mechanism.spec
    for change in ({"mechanism": "discrete-laplace"}, {"sampling": 0.5}):
        release = Release.model_validate({**spec.releases[0].model_dump(), **change})
        with pytest.raises(ConfigError, match="rounded-gaussian"):
            replace(mechanism, spec=spec.model_copy(update={"releases": (release,)}))


def test_probes_reach_the_sensitivity_and_never_pass_it(
    catalogue: Catalogue, mechanism: Mechanism, data: Interactions
) -> None:
    users = dict(edge_users(data, 1))
    assert users["nothing"].nnz == 0 and users["all items"].nnz == 310
    assert users["the same item 1,000 times"].nnz == 1, "a user's repeats are one interaction"
    record = audited_run(mechanism, data, make_canaries(catalogue, 24, 3), np.ones(24, bool))
    own = record.states[1]
    states = hostile_states(own)
    assert len(states) >= 5 * len(own) and all(set(state) <= set(own) for state in states)
    found = sensitivity_findings(mechanism, record, data, seed=1)
    assert [finding.check for finding in found] == ["sensitivity", "users apart"] * len(mechanism.spec.releases)
    assert all(finding.passed for finding in found)
    assert all(0.95 < finding.statistic <= 1 for finding in found if finding.check == "sensitivity")


def test_unclipped_counts_every_piece(catalogue: Catalogue, mechanism: Mechanism, data: Interactions) -> None:
    broken = Unclipped(mechanism.algorithm)
    user = PartyRows(data.rows(np.array([int(data.lengths().argmax())])))
    items = int(user.need_interactions().nnz)
    release = mechanism.spec.releases[0]
    norm = squared_norm(broken.contribution("counts", user, {})) ** 0.5
    # 16 orthogonal pieces of norm 1 each; the entry that counts users adds up to a little more.
    assert items > 16 and norm == pytest.approx(4 * release.sensitivity, rel=0.2)
    assert list(broken.steps) == list(mechanism.algorithm.steps)


@pytest.mark.parametrize(
    "name,caught_by",
    [
        ("noise-off", {"noise spread", "noise shape", "canary bound"}),
        ("clipping-off", {"sensitivity"}),
        ("party-noise-missing", {"noise spread", "noise shape", "canary bound"}),
        ("party-noise-split", {"noise spread"}),
        ("noise-reused", {"noise reuse"}),
    ],
)
def test_every_sabotage_is_caught(name: str, caught_by: set[str], catalogue: Catalogue, data: Interactions) -> None:
    mechanism = sabotage(name).build(lambda source: claimed(catalogue, source), catalogue, KEY)
    generator = np.random.default_rng(2)
    _, found, _ = run_checks(mechanism, data, make_canaries(catalogue, 64, 3), 2, generator, 1e-5)
    failed = {finding.check for finding in found if not finding.passed}
    assert caught_by <= failed


def test_a_control_is_caught_by_the_check_that_is_there_for_it() -> None:
    by_chance = Finding("users apart", "run 1", 1.0, (0.0, 0.0), 0.0, "")
    seen = Finding("noise reuse", "run 1", 9.0, (0.0, 7.0), 1e-6, "")
    bounds = EpsilonBounds(0.0, 0.0, 0.0, 0.001)
    for failed, caught in (([], False), ([by_chance], False), ([by_chance, seen], True)):
        assert Control("noise-reused", "", failed, 9, bounds, "noise reuse").caught is caught


def test_where_nobody_colludes_a_share_of_the_noise_is_the_claim() -> None:
    plan = AuditPlan(epsilon=5.0, noise_source="parties", colluding=0)
    assert plan.control_names == [name for name in SABOTAGES if name != "party-noise-split"]
    with pytest.raises(ConfigError, match="party-noise-split"):
        AuditPlan(epsilon=5.0, noise_source="parties", colluding=0, sabotaged="party-noise-split")


def test_what_is_not_sabotaged_passes(catalogue: Catalogue, data: Interactions) -> None:
    generator = np.random.default_rng(2)
    for source in ("dealer", "parties"):
        mechanism = honest(claimed(catalogue, source), catalogue, KEY)
        _, found, _ = run_checks(mechanism, data, make_canaries(catalogue, 64, 3), 2, generator, 1e-5)
        assert found and all(finding.passed for finding in found)


def test_a_missing_draw_is_seen_on_the_total_alone_too(catalogue: Catalogue, data: Interactions) -> None:
    """In a joint run single draws are unknown; two draws where three are claimed still show."""
    mechanism = sabotage("party-noise-missing").build(lambda source: claimed(catalogue, source), catalogue, KEY)

    def opener(release: Release, sums: list[np.ndarray]) -> np.ndarray:
        return sum(mechanism.draws(0, release), sum(sums, np.zeros(release.shape, np.int64)))

    canaries = make_canaries(catalogue, 24, 3)
    record = audited_run(mechanism, data, canaries, np.ones(24, bool), opener=opener)
    assert not any(opening.draws for opening in record.openings)
    failed = [finding for finding in noise_checks(record, None, 3) if not finding.passed]
    # 310 counts are too few to tell sqrt(2/3) from 1 at a false-alarm rate of 1e-6; the rounds are not.
    rounds = {f"run 1, {release.name}" for release in mechanism.spec.releases[1:]}
    assert rounds <= {finding.subject for finding in failed if finding.check == "noise spread"}


def test_membership_without_noise_finds_everyone_and_with_noise_does_not(
    catalogue: Catalogue, data: Interactions, mechanism: Mechanism
) -> None:
    targets = Interactions.concatenate([make_canaries(catalogue, 20, 3), data.rows(slice(0, 20))])
    rest = data.rows(slice(20, None))
    canary = np.arange(40) < 20
    model = central_run(mechanism.spec, catalogue, data, lambda release: np.zeros(release.shape, np.int64))
    assert features(model, targets).shape == (40, 5) and np.isfinite(features(model, targets)).all()
    bare = sabotage("noise-off").build(lambda source: claimed(catalogue, source), catalogue, KEY)
    areas = []
    for one in (bare, mechanism):
        found = attack(one, rest, targets, canary, shadows=16, models=8, generator=np.random.default_rng(3))
        assert found.scores.shape == found.included.shape == (8, 40)
        figures = found.figures(5.0, 1e-5, one.mu, 0.05)
        areas.append(figures["auc"]["all"]["auc"])
        json.dumps(figures, allow_nan=False)
    assert areas[0] > 0.8 and areas[1] < 0.75
    # 320 guesses suffice to refute epsilon 1 without noise.
    bare_again = attack(bare, rest, targets, canary, shadows=16, models=8, generator=np.random.default_rng(3))
    assert bare_again.bounds(1e-5, 1e-3).general > 1.0


PLAN = AuditPlan(epsilon=5.0, runs=2, canaries=48, users=100, models=4, shadows=4, targets=20, seed=5)


@pytest.fixture(scope="module")
def ticks() -> list[str]:
    return []


@pytest.fixture(scope="module")
def report(catalogue: Catalogue, data: Interactions, ticks: list[str]) -> AuditReport:
    return audit(data, catalogue, PLAN, ticks.append)


def test_audit_end_to_end(report: AuditReport, ticks: list[str]) -> None:
    assert report.passed and report.below_claim == 2 and report.users == 100
    assert len(ticks) == PLAN.work
    assert [control.name for control in report.controls] == list(SABOTAGES)
    assert all(control.caught for control in report.controls) and not report.missed
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert document["passed"] and document["claim"]["epsilon"] == 5.0
    assert set(document["checks"]) >= {"sensitivity", "noise spread", "noise reuse", "canary bound", "membership bound"}


def test_a_seed_repeats_coins_and_noise(report: AuditReport, catalogue: Catalogue, data: Interactions) -> None:
    again = audit(data, catalogue, replace(PLAN, controls=False, models=0))
    assert again.runs == report.runs
    assert again.membership is None and not again.controls
    other = audit(data, catalogue, replace(PLAN, controls=False, models=0, runs=1, seed=6))
    assert other.plots != again.plots


def test_a_control_that_is_not_caught_fails_the_audit(report: AuditReport) -> None:
    blind = replace(report, controls=[replace(report.controls[0], failed=[]), *report.controls[1:]])
    assert report.passed and not blind.passed and blind.missed == ["noise-off"]


def test_audit_of_a_sabotaged_mechanism_fails(catalogue: Catalogue, data: Interactions) -> None:
    plan = AuditPlan(epsilon=5.0, runs=1, canaries=48, models=0, seed=5, sabotaged="noise-off", controls=False)
    report = audit(data, catalogue, plan)
    assert not report.passed and report.failed and report.as_dict()["sabotaged"] == "noise-off"


@pytest.mark.parametrize(
    "change",
    [{"runs": 0}, {"canaries": 3}, {"users": -1}, {"targets": 1}, {"confidence": 1.0}, {"sabotaged": "nothing"}],
)
def test_plans_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        AuditPlan(epsilon=5.0, **change)  # type: ignore[arg-type]
