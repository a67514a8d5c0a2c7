"""Lower bounds on epsilon against mechanisms whose epsilon is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from veil.errors import InputError
from veil.privacy.audit import gaussian, one_run
from veil.privacy.audit.bounds import epsilon_bounds
from veil.privacy.audit.intervals import clopper_pearson
from veil.privacy.gaussian import gaussian_epsilon

DELTA = 1e-5


def gaussian_run(mu: float, canaries: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores of an auditor of N(0, 1) against N(mu, 1), and the coins."""
    included = generator.random(canaries) < 0.5
    return generator.normal(size=canaries) + mu * included, included


def plain_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 written out, with another library's binomial."""
    law = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    beta = sum(law.pmf(k) for k in range(right, guesses + 1))
    alpha, total = 0.0, 0.0
    for i in range(1, right + 1):
        total += law.pmf(right - i)
        alpha = max(alpha, total / i)
    return min(1.0, beta + 2 * canaries * delta * alpha)


@pytest.mark.parametrize("canaries,guesses", [(10, 10), (50, 20), (400, 100)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-6, 1e-3, 1.0])
def test_p_value_is_the_theorem(canaries: int, guesses: int, epsilon: float, delta: float) -> None:
    for right in range(guesses + 1):
        expected = plain_p_value(canaries, guesses, right, epsilon, delta)
        assert one_run.p_value(canaries, guesses, right, epsilon, delta) == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_randomised_response_is_bounded_near_the_truth() -> None:
    # Each coin is told truly with probability e^eps / (1 + e^eps): epsilon exactly, delta 0, and the theorem is tight.
    generator = np.random.default_rng(1)
    for epsilon in (0.5, 1.0, 3.0):
        included = generator.random(40_000) < 0.5
        truth = generator.random(40_000) < 1 / (1 + math.exp(-epsilon))
        told = np.where(truth, included, ~included).astype(np.float64)
        bound = one_run.epsilon_lower_bound(told, included, 0.0, 1e-3)
        assert 0.88 * epsilon < bound <= epsilon


def test_certainty_ends_where_the_number_of_guesses_ends_it() -> None:
    # All of 2k guesses right: the p-value is q^2k, so the bound solves q^2k = level.
    included = np.arange(256) % 2 == 0
    bound = one_run.epsilon_lower_bound(included.astype(float), included, 0.0, 1e-3)
    level = 1e-3 / len(one_run.sides(256))
    chance = level ** (1 / 256)
    assert bound == pytest.approx(math.log(chance / (1 - chance)), abs=1e-3)


@pytest.mark.parametrize("mu", [0.3, 1.1, 2.0])
def test_gaussian_mechanism_false_alarms_and_order(mu: float) -> None:
    generator = np.random.default_rng(int(100 * mu))
    epsilon, significance, trials = gaussian_epsilon(1 / mu, DELTA), 0.1, 400
    over = {"general": 0, "gaussian": 0, "parametric": 0}
    for _ in range(trials):
        found = epsilon_bounds(*gaussian_run(mu, 150, generator), DELTA, significance)
        for name in over:
            over[name] += found.as_dict()[name] > epsilon
    # 10% each at most; beyond 70 of 400 with probability below 1e-5.
    assert stats.binom.sf(70, trials, significance) < 1e-5
    assert over["general"] <= 70 and over["gaussian"] <= 70 and over["parametric"] <= 70
    assert over["parametric"] >= 15, "an exact limit misses in 10%"


def test_sharper_assumptions_give_sharper_bounds() -> None:
    scores, included = gaussian_run(1.1212, 20_000, np.random.default_rng(5))
    found = epsilon_bounds(scores, included, DELTA, 1e-3)
    assert 0 <= found.general < found.gaussian < found.parametric <= 5.0
    assert found.gaussian > 2 and found.parametric > 4.5
    assert found.largest == found.parametric


def test_noise_too_small_is_seen_by_the_parametric_limit() -> None:
    # 80% of the noise that epsilon 5 needs.
    scores, included = gaussian_run(1.1212 / 0.8, 6000, np.random.default_rng(6))
    assert epsilon_bounds(scores, included, DELTA, 1e-3).parametric > 5.0


def test_no_signal_gives_nothing() -> None:
    scores, included = gaussian_run(0.0, 2000, np.random.default_rng(7))
    found = epsilon_bounds(scores, included, DELTA, 1e-3)
    assert found.as_dict() == {"general": 0.0, "gaussian": 0.0, "parametric": 0.0, "significance": 1e-3}
    reverse = epsilon_bounds(-gaussian_run(2.0, 500, np.random.default_rng(7))[0], included[:500], DELTA, 1e-3)
    assert reverse.largest == 0.0


def test_one_run_mu_is_where_rejection_starts() -> None:
    scores, included = gaussian_run(2.0, 1000, np.random.default_rng(8))
    mu = gaussian.one_run_mu(scores, included, 0.05)
    assert 0.5 < mu < 2.0
    choices = one_run.sides(1000)
    rights = [one_run.right_guesses(scores, included, side) for side in choices]
    level = 0.05 / len(choices)
    assert any(
        gaussian.rejects(1000, 2 * side, right, mu - 1e-6, level) for side, right in zip(choices, rights, strict=True)
    )
    assert not any(
        gaussian.rejects(1000, 2 * side, right, mu + 0.01, level) for side, right in zip(choices, rights, strict=True)
    )


def test_parametric_without_any_noise_and_without_a_class() -> None:
    included = np.arange(40) % 2 == 0
    assert gaussian.two_sample_mu(included.astype(float), included, 1e-3) == gaussian.LARGEST_MU
    assert gaussian.two_sample_mu(np.arange(40.0), np.zeros(40, bool), 1e-3) == 0.0
    # Beyond the noncentral t's reach the large-sample limit takes over, without a jump.
    generator = np.random.default_rng(9)
    far = gaussian.two_sample_mu(*gaussian_run(8.0, 200, generator), 1e-3)
    assert 6 < far < 8


def alike(canaries: int, generator: np.random.Generator) -> np.ndarray:
    """What canaries of three strongly overlapping kinds add: float64[m, 300], mu 1.2 at most."""
    kinds = generator.normal(size=(3, 300))
    vectors = kinds[np.arange(canaries) % 3] + 0.5 * generator.normal(size=(canaries, 300))
    return 1.2 * vectors / np.linalg.norm(vectors, axis=1).max()


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_regression_holds_for_canaries_that_resemble_each_other(scale: float) -> None:
    """Where independence of scores would be a wrong assumption: false alarms at the stated rate, and power."""
    generator, trials, level = np.random.default_rng(11), 600, 0.05
    vectors = alike(60, generator)
    gram = vectors @ vectors.T
    truth = math.sqrt(gram.diagonal().max()) / scale
    over = 0
    for _ in range(trials):
        coins = generator.random(60) < 0.5
        opened = (coins - 0.5) @ vectors + scale * generator.normal(size=300)
        regression = gaussian.Regression.of(vectors @ opened, gram, coins)
        over += gaussian.regression_mu(regression, level) > truth
    # 30 expected; outside of 8 to 58 with probability below 1e-5.
    assert stats.binom.cdf(7, trials, level) + stats.binom.sf(58, trials, level) < 1e-5
    assert 8 <= over <= 58


def test_regression_over_runs_is_sharper_and_degenerate_cases_say_nothing() -> None:
    generator = np.random.default_rng(12)
    vectors = alike(60, generator)
    gram = vectors @ vectors.T
    parts = []
    for _ in range(40):
        coins = generator.random(60) < 0.5
        opened = (coins - 0.5) @ vectors + generator.normal(size=300)
        parts.append(gaussian.Regression.of(vectors @ opened, gram, coins))
    whole = gaussian.Regression.joined(parts)
    assert max(gaussian.regression_mu(part, 1e-3) for part in parts[:5]) < 1.2
    assert 0.9 < gaussian.regression_mu(whole, 1e-3) < 1.2
    silent = gaussian.Regression.of(gram @ (coins - 0.5), gram, coins)
    assert gaussian.regression_mu(silent, 1e-3) > 1000, "no noise at all"
    nobody = gaussian.Regression.of(np.zeros(60), np.zeros((60, 60)), coins)
    assert gaussian.regression_mu(nobody, 1e-3) == 0.0
    for against in (0.0, -1.0):  # nothing shows of the coins, or their opposite, and no noise either
        opposite = gaussian.Regression.of(against * gram @ (coins - 0.5), gram, coins)
        assert gaussian.regression_mu(opposite, 1e-3) == 0.0


@pytest.mark.parametrize(
    "scores,included,significance",
    [
        (np.zeros(4), np.zeros(3, bool), 0.05),
        (np.zeros(4), np.zeros(4, int), 0.05),
        (np.array([0.0, np.nan]), np.zeros(2, bool), 0.05),
        (np.zeros(4), np.zeros(4, bool), 0.0),
    ],
)
def test_malformed_canaries_are_refused(scores: np.ndarray, included: np.ndarray, significance: float) -> None:
    with pytest.raises(InputError):
        one_run.epsilon_lower_bound(scores, included, 0.0, significance)
    with pytest.raises(InputError):
        gaussian.two_sample_mu(scores, included, significance)


def test_p_value_refuses_impossible_counts() -> None:
    for arguments in ((10, 11, 5, 1.0, 0.0), (10, 5, 6, 1.0, 0.0), (10, 5, 5, -1.0, 0.0), (10, 5, 5, 1.0, 2.0)):
        with pytest.raises(InputError):
            one_run.p_value(*arguments)


def test_clopper_pearson_is_scipys() -> None:
    for successes, trials in ((0, 20), (3, 20), (20, 20), (500, 4000)):
        expected = stats.binomtest(successes, trials).proportion_ci(0.99, "exact")
        assert clopper_pearson(successes, trials, 0.01) == pytest.approx((expected.low, expected.high))
    with pytest.raises(InputError):
        clopper_pearson(3, 2, 0.05)
