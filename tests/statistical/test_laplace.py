"""Exact coins, discrete Laplace noise and private selection against the laws that they claim, with system randomness.

Every check rejects a correct sampler with probability at most 1e-9, so all of them together below 1e-7 a run; the
controls show that the same checks reject samplers that are slightly wrong.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from veil.privacy.coins import below, exp_coins
from veil.privacy.laplace import discrete_laplace
from veil.privacy.noise import system_source
from veil.privacy.selection import Selection, release_from_best, release_top_k

FALSE_ALARM = 1e-9

Values = npt.NDArray[np.int64]


def cells_p(observed: npt.NDArray[np.int64], probability: npt.NDArray[np.float64]) -> float:
    """P-value of counts against probabilities; cells expecting < 20 are one."""
    expected = probability * observed.sum()
    rare = expected < 20
    counts, wanted = observed[~rare], expected[~rare]
    if rare.any():
        counts, wanted = np.append(counts, observed[rare].sum()), np.append(wanted, expected[rare].sum())
    if wanted[-1] < 20:  # the pooled rest is rare too: beside the last cell
        counts = np.append(counts[:-2], counts[-2:].sum())
        wanted = np.append(wanted[:-2], wanted[-2:].sum())
    return float(stats.chisquare(counts, wanted * counts.sum() / wanted.sum()).pvalue)


def laplace_p(values: Values, scale: float) -> float:
    """P-value against (1 - q) / (1 + q) q^|k|, q = e^(-1 / scale)."""
    edge = int(25 * scale)
    k = np.arange(-edge, edge + 1)
    q = math.exp(-1 / scale)
    probability = np.append((1 - q) / (1 + q) * q ** np.abs(k), 2 * q ** (edge + 1) / (1 + q))
    inside = np.abs(values) <= edge
    counts = np.append(np.bincount(values[inside] + edge, minlength=k.size), np.count_nonzero(~inside))
    return cells_p(counts, probability)


def binomial_p(successes: int, trials: int, probability: float) -> float:
    return float(stats.binomtest(successes, trials, probability).pvalue)


@pytest.mark.parametrize("bound", [3, 5, 13, 100, 4097])
def test_integers_below_a_bound_are_uniform(bound: int) -> None:
    counts = np.bincount(below(bound, 1_000_000, system_source()), minlength=bound)
    assert cells_p(counts, np.full(bound, 1 / bound)) > FALSE_ALARM


@pytest.mark.parametrize(
    ("numerator", "denominator"), [(1, 1), (1, 2), (1, 1000), (2, 3), (7, 3), (5, 1), (2**40 + 1, 2**41 - 3), (10, 1)]
)
def test_coins_have_their_probability(numerator: int, denominator: int) -> None:
    trials = 1_000_000
    heads = int(exp_coins(np.full(trials, numerator), denominator, system_source()).sum())
    probability = math.exp(-numerator / denominator)
    assert binomial_p(heads, trials, probability) > FALSE_ALARM
    # control: a probability that is 13 standard errors off, towards the middle
    shift = 13 * math.sqrt(probability * (1 - probability) / trials)
    assert binomial_p(heads, trials, probability + math.copysign(shift, 0.5 - probability)) < FALSE_ALARM


@pytest.mark.parametrize("scale", [1, 2, 3, 17, 200])
def test_small_scales_match_exact_probabilities(scale: int) -> None:
    assert laplace_p(discrete_laplace(3_000_000, scale, system_source()), scale) > FALSE_ALARM


@pytest.mark.parametrize("scale", [2**20 + 7, 2**40 - 1, 2**52 - 1])
def test_large_scales_follow_the_laplace_law(scale: int) -> None:
    # The grid is far finer than the test can see (one step against a standard error of scale / 1000).
    values = discrete_laplace(1_000_000, scale, system_source())
    assert stats.kstest(values / scale, "laplace").pvalue > FALSE_ALARM


def test_controls_reject_slightly_wrong_samplers() -> None:
    values = discrete_laplace(3_000_000, 3, system_source())
    assert laplace_p(values, 3 * 1.015) < FALSE_ALARM
    # step (4) left out: zero counted under both signs
    generator = np.random.default_rng(1)
    doubled = np.where(generator.random(values.size) < 0.1, 0, values)
    assert laplace_p(doubled, 3) < FALSE_ALARM
    one_in_fifty = np.arange(values.size) % 50 == 0
    assert laplace_p(np.where((values == 1) & one_in_fifty, 0, values), 3) < FALSE_ALARM
    # a Gaussian of the same variance is no Laplace
    assert laplace_p(np.rint(generator.normal(0, values.std(), 100_000)).astype(np.int64), 3) < FALSE_ALARM
    fine = discrete_laplace(1_000_000, 2**40, system_source())
    assert stats.kstest(fine / (2**40 * 1.02), "laplace").pvalue < FALSE_ALARM


def test_tails_are_as_heavy_as_claimed() -> None:
    n, scale = 4_000_000, 1000
    values = np.abs(discrete_laplace(n, scale, system_source()))
    q = math.exp(-1 / scale)
    for multiple in (3, 6, 9, 12):
        beyond = int(np.count_nonzero(values > multiple * scale))
        probability = 2 * q ** (multiple * scale + 1) / (1 + q)
        assert binomial_p(beyond, n, probability) > FALSE_ALARM
    # control: tails capped at 9 scales, as of a uniform of 13 bits
    capped = int(np.count_nonzero(np.minimum(values, 9 * scale) > 9 * scale))
    assert binomial_p(capped, n, 2 * q ** (9 * scale + 1) / (1 + q)) < FALSE_ALARM


def test_low_digits_of_wide_noise_are_uniform() -> None:
    values = discrete_laplace(1_000_000, 2**40 - 1, system_source())
    assert cells_p(np.bincount(values & 255, minlength=256), np.full(256, 1 / 256)) > FALSE_ALARM
    # control: noise in steps of 2
    assert cells_p(np.bincount((values * 2) & 255, minlength=256), np.full(256, 1 / 256)) < FALSE_ALARM


def test_neighbouring_draws_are_independent() -> None:
    values = discrete_laplace(2_000_000, 1000, system_source())
    signs = (values[0::2] > 0).astype(np.int64) * 2 + (values[1::2] > 0)
    above = (np.abs(values[:-1]) > 693).astype(np.int64) * 2 + (np.abs(values[1:]) > 693)
    for pairs in (signs, above[::2]):
        table = np.bincount(pairs, minlength=4).reshape(2, 2)
        assert stats.chi2_contingency(table).pvalue > FALSE_ALARM
    # control: one draw in a hundred repeats the sign of the one before it
    copied = values.copy()
    again = np.arange(1, values.size, 2)[::50]
    copied[again] = np.abs(copied[again]) * np.sign(copied[again - 1])
    table = np.bincount((copied[0::2] > 0).astype(np.int64) * 2 + (copied[1::2] > 0), minlength=4).reshape(2, 2)
    assert stats.chi2_contingency(table).pvalue < FALSE_ALARM


SCORES = np.array([1.0, 0.5, 0.0, -1.0])


def selection_law(mechanism: Selection, epsilon: float) -> npt.NDArray[np.float64]:
    """Exact probabilities for SCORES under bound 1: weights e^(-epsilon gap / (2 * 2))."""
    weight = np.exp(-epsilon * (SCORES.max() - SCORES) / 4)
    if mechanism == "exponential":
        law: npt.NDArray[np.float64] = weight / weight.sum()
        return law
    law = np.zeros(SCORES.size)
    for heads in range(1, 2**SCORES.size):
        # every set of successes, in which each is as likely as the others
        inside = np.array([heads >> i & 1 for i in range(SCORES.size)], bool)
        law[inside] += np.where(inside, weight, 1 - weight).prod() / inside.sum()
    return law


@pytest.mark.parametrize("epsilon", [0.5, 4.0])
@pytest.mark.parametrize("mechanism", ["permute-and-flip", "exponential"])
def test_selection_follows_its_law(mechanism: Selection, epsilon: float) -> None:
    source = system_source()
    runs = 6000
    chosen = [int(release_top_k(SCORES, 1, epsilon, 1.0, mechanism=mechanism, source=source)[0]) for _ in range(runs)]
    counts = np.bincount(chosen, minlength=SCORES.size)
    assert cells_p(counts, selection_law(mechanism, epsilon)) > FALSE_ALARM
    assert cells_p(counts, selection_law(mechanism, epsilon * 3)) < FALSE_ALARM  # control


def test_permute_and_flip_is_report_noisy_max_with_exponential_noise() -> None:
    generator = np.random.default_rng(3)
    noisy = SCORES + generator.exponential(4 / 3.0, (400_000, SCORES.size))
    counts = np.bincount(noisy.argmax(axis=1), minlength=SCORES.size)
    assert cells_p(counts, selection_law("permute-and-flip", 3.0)) > FALSE_ALARM
    assert cells_p(counts, selection_law("exponential", 3.0)) < FALSE_ALARM


def test_two_in_a_row_are_chosen_one_after_the_other() -> None:
    source = system_source()
    runs, epsilon = 5000, 6.0
    pairs = np.array(
        [release_top_k(SCORES, 2, epsilon, 1.0, mechanism="exponential", source=source) for _ in range(runs)]
    )
    weight = np.exp(-(epsilon / 2) * (SCORES.max() - SCORES) / 4)
    law = np.zeros((4, 4))
    for first in range(4):
        for second in range(4):
            if first != second:
                law[first, second] = weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
    counts = np.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16)
    possible = law.ravel() > 0
    assert counts[~possible].sum() == 0
    assert cells_p(counts[possible], law.ravel()[possible]) > FALSE_ALARM


def test_items_from_the_best_follow_their_law() -> None:
    source, runs, epsilon = system_source(), 8000, 1.5
    scores = np.array([0.1, 5.0, -2.0, 4.0, 0.2, 0.0])
    weight = np.where(np.isin(np.arange(6), [1, 3]), math.exp(epsilon), 1.0)
    counts = np.bincount(
        [int(release_from_best(scores, 1, epsilon, best=2, source=source)[0]) for _ in range(runs)], minlength=6
    )
    assert cells_p(counts, weight / weight.sum()) > FALSE_ALARM
    wrong = np.where(weight > 1, math.exp(epsilon / 2), 1.0)
    assert cells_p(counts, wrong / wrong.sum()) < FALSE_ALARM  # control
