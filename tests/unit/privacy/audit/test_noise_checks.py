"""Checks of noise and of sensitivity: what they accept, how often they err, what they reject."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from veil.errors import InputError
from veil.jobs.spec import Release
from veil.privacy.audit.finding import CEILING, Finding
from veil.privacy.audit.noise import deviates, independence, noise_findings
from veil.privacy.audit.sensitivity import equality_finding, norm_finding, squared_norm
from veil.privacy.noise import keyed_source, rounded_gaussian, system_source

SIGMA = 1 << 30


def draw(size: int, sigma: int = SIGMA, label: bytes = b"test") -> np.ndarray:
    return rounded_gaussian(size, sigma, keyed_source(bytes(16), label))


def failed(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if not finding.passed}


@pytest.mark.parametrize("sigma,draws", [(64, 1), (5000, 3), (SIGMA, 1)])
def test_the_right_noise_passes(sigma: int, draws: int) -> None:
    residual = sum((rounded_gaussian(20_000, sigma, system_source()) for _ in range(draws)), np.zeros(20_000, np.int64))
    found = noise_findings("x", residual.reshape(200, 100), sigma, draws)
    assert len(found) == 5 and not failed(found)


def test_false_alarm_rate_is_what_is_stated() -> None:
    # Each check at 2% on 500 draws: 10 expected; more than 28 with probability below 1e-6.
    generator, trials, rate = np.random.default_rng(3), 500, 0.02
    assert stats.binom.sf(28, trials, rate) < 1e-6
    alarms: dict[str, int] = {}
    for _ in range(trials):
        residual = np.rint(generator.normal(size=1500) * 1e6).astype(np.int64)
        for finding in noise_findings("x", residual, 1_000_000, 1, rate):
            alarms[finding.check] = alarms.get(finding.check, 0) + (not finding.passed)
    assert len(alarms) == 5 and max(alarms.values()) <= 28


def test_reuse_false_alarm_rate_is_what_is_stated() -> None:
    generator, trials, rate = np.random.default_rng(4), 300, 0.05
    alone = pairs = 0
    for _ in range(trials):
        x, y = generator.normal(size=700), generator.normal(size=1100)
        alone += not independence("x", x, None, rate).passed
        pairs += not independence("x", x, y, rate).passed
    # 15 expected at most (Bonferroni is cautious); more than 36 with probability below 1e-6.
    assert stats.binom.sf(36, trials, rate) < 1e-6
    assert alone <= 36 and pairs <= 36


def test_the_least_noise_has_the_stated_false_alarm_rate_too() -> None:
    # At sigma 64 steps are wide: half of one is a gap of 0.003 to the normal law, and zeros are one entry of 160.
    generator, trials, rate = np.random.default_rng(6), 400, 0.02
    found = noise_findings("x", np.rint(generator.normal(size=2_000_000) * 64).astype(np.int64), 64, 1)
    assert not failed(found)
    alarms = 0
    for _ in range(trials):
        residual = np.rint(generator.normal(size=300) * 64).astype(np.int64)
        alarms += not independence("x", deviates(residual, 64, 1), None, rate).passed
    # 8 expected at most; more than 24 with probability below 1e-5.
    assert stats.binom.sf(24, trials, rate) < 1e-5 and alarms <= 24


@pytest.mark.parametrize("scale", [0.0, 0.8, 0.97, 1.03])
def test_another_width_is_seen(scale: float) -> None:
    residual = np.rint(draw(60_000) * scale).astype(np.int64)
    assert "noise spread" in failed(noise_findings("x", residual, SIGMA, 1))


def test_other_laws_are_seen() -> None:
    generator, n = np.random.default_rng(5), 60_000
    laplace = np.rint(generator.laplace(scale=SIGMA / math.sqrt(2), size=n)).astype(np.int64)
    assert {"noise shape", "noise tails"} <= failed(noise_findings("x", laplace, SIGMA, 1))
    capped = np.clip(draw(n), -int(2.9 * SIGMA), int(2.9 * SIGMA))
    assert "noise tails" in failed(noise_findings("x", capped, SIGMA, 1))
    assert "noise centre" in failed(noise_findings("x", draw(n) + SIGMA // 20, SIGMA, 1))
    # A float32 sampler scaled to the grid leaves the low bits empty.
    coarse = (generator.normal(size=n).astype(np.float32) * np.float32(SIGMA)).astype(np.int64)
    assert failed(noise_findings("x", coarse, SIGMA, 1)) == {"noise low bits"}


def test_reuse_is_seen_at_any_shift_scale_or_sign() -> None:
    values = draw(9000).astype(np.float64) / SIGMA
    other = draw(9000, label=b"other").astype(np.float64) / SIGMA
    assert independence("x", values, other).passed and independence("x", values).passed
    signs = np.where(np.arange(9000) % 3 == 0, -1.0, 1.0)
    for again in (values, values[1234:], np.concatenate([other[:500], values[:3000]]), values * signs):
        assert not independence("x", values, again).passed
    assert not independence("x", np.concatenate([values[:4000], values[:4000]])).passed


def test_one_keystream_for_two_releases_is_seen_though_sizes_and_widths_differ() -> None:
    first = deviates(draw(1682, 5_000_000), 5_000_000, 1)
    second = deviates(draw(1682 * 20, 1 << 34), 1 << 34, 1)
    assert not independence("x", first, second).passed


def test_silence_is_no_correlation() -> None:
    # All zeros: the spread fails, and nothing divides by zero on the way.
    assert independence("x", np.zeros(1000), np.zeros(1000)).statistic == 0.0


@pytest.mark.parametrize(
    "residual,sigma,draws",
    [(np.zeros(100), SIGMA, 1), (np.zeros(10, np.int64), SIGMA, 1), (np.zeros(100, np.int64), 63, 1)],
)
def test_what_the_limits_do_not_hold_for_is_refused(residual: np.ndarray, sigma: int, draws: int) -> None:
    with pytest.raises(InputError):
        noise_findings("x", residual, sigma, draws)


def test_squared_norm_is_exact() -> None:
    generator = np.random.default_rng(6)
    for values in (
        generator.integers(-(2**62), 2**62, size=1000),
        np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0, -1]),
        np.zeros(0, np.int64),
        generator.integers(-9, 9, size=(30, 40)),
    ):
        assert squared_norm(values) == sum(int(v) ** 2 for v in values.reshape(-1))
    with pytest.raises(InputError):
        squared_norm(np.zeros(3))


def test_norms_are_compared_in_integers() -> None:
    release = Release(name="sum", shape=(2,), sensitivity=2**51, sigma=2**51)
    at_limit = np.array([2**51, 0])
    above = np.array([2**51, 1])
    assert norm_finding(release, [("small", np.array([1, 0])), ("edge", at_limit)]).passed
    found = norm_finding(release, [("edge", at_limit), ("long", above)])
    assert not found.passed and "long" in found.what
    laplace = Release(name="sum", shape=(2,), sensitivity=5, sigma=5, mechanism="discrete-laplace")
    assert norm_finding(laplace, [("edge", np.array([-2, 3]))]).passed
    assert not norm_finding(laplace, [("long", np.array([-3, 3]))]).passed


def test_equality_counts_entries() -> None:
    assert equality_finding("x", np.arange(4), np.arange(4), "w").passed
    assert equality_finding("x", np.arange(4), np.array([0, 1, 9, 9]), "w").statistic == 2
    assert equality_finding("x", np.arange(4), np.arange(5), "w").statistic == CEILING


def test_findings_are_plain_json() -> None:
    for statistic in (math.inf, math.nan, -math.inf, 1.0):
        finding = Finding("c", "s", statistic, (0.0, math.inf), 1e-6, "w")
        json.dumps(finding.as_dict(), allow_nan=False)
    assert not Finding("c", "s", math.nan, (0.0, 1.0), 1e-6, "w").passed
