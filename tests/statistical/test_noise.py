"""The noise sampler against the law that it claims, with operating-system randomness.

Every check rejects a correct sampler with probability at most 1e-9, so all of them together below 1e-7 a run; the
controls show that the same checks reject samplers that are slightly wrong.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from veil.privacy import noise
from veil.privacy.noise import rounded_gaussian, system_source

FALSE_ALARM = 1e-9
SIX_SIGMA = float(stats.norm.isf(FALSE_ALARM / 2))

Values = npt.NDArray[np.int64]


def chi_square_p(values: Values, sigma: float) -> float:
    """P-value of the counts against Phi((k + 1/2) / sigma) - Phi((k - 1/2) / sigma), cells expecting < 20 pooled."""
    edge = int(6 * sigma) + 1
    k = np.arange(-edge, edge + 1)
    # By symmetry from the upper tail, where the survival function loses no digits.
    inner = stats.norm.sf((np.abs(k) - 0.5) / sigma) - stats.norm.sf((np.abs(k) + 0.5) / sigma)
    probability = np.concatenate([inner, [2 * stats.norm.sf((edge + 0.5) / sigma)]])
    inside = np.abs(values) <= edge
    counts = np.append(np.bincount(values[inside] + edge, minlength=k.size), np.count_nonzero(~inside))
    expected = probability * values.size
    rare = expected < 20
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


def kolmogorov_p(values: Values, sigma: float) -> float:
    return float(stats.kstest(values / sigma, "norm").pvalue)


@pytest.mark.parametrize("sigma", [1, 2, 3, 17])
def test_small_sigma_cells_match_exact_probabilities(sigma: int) -> None:
    values = rounded_gaussian(3_000_000, sigma, system_source())
    assert chi_square_p(values, sigma) > FALSE_ALARM


@pytest.mark.parametrize("sigma", [2**20 + 7, 2**40 - 1, 2**52 - 1])
def test_large_sigma_follows_the_normal_law(sigma: int) -> None:
    values = rounded_gaussian(1_000_000, sigma, system_source())
    # The grid is far finer than the test can see (one step against a standard error of sigma / 1000).
    assert kolmogorov_p(values, sigma) > FALSE_ALARM


def test_controls_reject_slightly_wrong_samplers() -> None:
    values = rounded_gaussian(3_000_000, 3, system_source())
    assert chi_square_p(values, 3 * 1.005) < FALSE_ALARM
    one_in_fifty = np.arange(values.size) % 50 == 0
    assert chi_square_p(np.where((values == 1) & one_in_fifty, 0, values), 3) < FALSE_ALARM
    fine = rounded_gaussian(4_000_000, 2**40, system_source())
    assert kolmogorov_p(fine, 2**40 * 1.01) < FALSE_ALARM
    # The cells of the sampler are 1/128 wide: a sampler that forgets the position within a cell is seen.
    coarse = (fine >> 33) << 33
    assert kolmogorov_p(coarse, 2**40) < FALSE_ALARM


def test_moments() -> None:
    n, sigma = 4_000_000, 2**30
    z = rounded_gaussian(n, sigma, system_source()) / sigma
    # Standard errors of the mean, the variance, the third and the fourth moment of a standard normal.
    for power, wanted, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = ((z**power).mean() - wanted) / np.sqrt(variance / n)
        assert abs(error) < SIX_SIGMA, power


def test_tails_are_not_cut() -> None:
    n, sigma = 10_000_000, 1000
    magnitude = np.abs(rounded_gaussian(n, sigma, system_source()))
    for deviations in (3, 4, 4.5, 5):
        beyond = int(np.count_nonzero(magnitude > deviations * sigma))
        probability = 2 * stats.norm.sf(deviations + 0.5 / sigma)
        assert stats.binomtest(beyond, n, probability).pvalue > FALSE_ALARM, deviations


def test_neighbours_calls_and_bits_are_independent() -> None:
    n, sigma, source = 1_000_000, 2**51 + 12345, system_source()
    first, second = (rounded_gaussian(n, sigma, source) for _ in range(2))
    a, b = first / sigma, second / sigma
    for left, right in (
        (a, b),
        (a[1:], a[:-1]),
        (a[2:], a[:-2]),
        (np.abs(a), np.abs(b)),
        (np.abs(a[1:]), np.abs(a[:-1])),
    ):
        correlation = np.corrcoef(left, right)[0, 1]
        assert abs(correlation) * np.sqrt(n) < SIX_SIGMA
    # With so large a sigma the low 40 bits of the magnitude are uniform, and pairwise independent of each other.
    bits = (np.abs(first)[:, None] >> np.arange(40)) & 1
    centred = 2.0 * bits - 1
    assert np.abs(centred.sum(axis=0)).max() / np.sqrt(n) < SIX_SIGMA
    gram = centred.T @ centred / np.sqrt(n)
    np.fill_diagonal(gram, 0)
    assert np.abs(gram).max() < float(stats.norm.isf(FALSE_ALARM / 40**2))


def test_results_are_integers_and_both_signs_share_zero() -> None:
    values = rounded_gaussian(1_000_000, 1, system_source())
    assert values.dtype == np.int64
    zeros = int(np.count_nonzero(values == 0))
    assert stats.binomtest(zeros, values.size, 1 - 2 * stats.norm.sf(0.5)).pvalue > FALSE_ALARM
    assert stats.binomtest(int((values > 0).sum()), values.size - zeros, 0.5).pvalue > FALSE_ALARM


class _Deviate:
    """A uniform as a list of 4-bit digits, for the reference below; ties are frequent on purpose."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._digits: list[int] = []

    def digit(self, i: int) -> int:
        while len(self._digits) <= i:
            self._digits.append(self._generator.getrandbits(4))
        return self._digits[i]

    def less(self, other: _Deviate) -> bool:
        i = 0
        while self.digit(i) == other.digit(i):
            i += 1
        return self.digit(i) < other.digit(i)

    def rounded(self, k: int, sigma: int) -> int:
        """floor(sigma (k + x) + 1/2), in units of 16^-i of ever more digits."""
        value, i = 0, 0
        while True:
            value, i = value * 16 + self.digit(i), i + 1
            low = 2 * sigma * (k * 16**i + value) + 16**i
            if low // (2 * 16**i) == (low + 2 * sigma - 1) // (2 * 16**i):
                return low // (2 * 16**i)


class _Karney:
    """Algorithms N, G, P, H and B of Karney 2016, step by step as printed: units of one standard deviation."""

    def __init__(self) -> None:
        self._generator = random.SystemRandom()

    def _uniform(self) -> _Deviate:
        return _Deviate(self._generator)

    def h(self) -> bool:
        previous = self._uniform()
        if previous.digit(0) >= 8:
            return True
        even = False
        while True:
            following = self._uniform()
            if not following.less(previous):
                return even
            previous, even = following, not even

    def b(self, k: int, x: _Deviate) -> bool:
        y, even = x, True
        while True:
            z = self._uniform()
            if not z.less(y):
                return even
            choice = self._generator.randrange(2 * k + 2)
            if choice == 0 or (choice == 1 and not self._uniform().less(x)):
                return even
            y, even = z, not even

    def sample(self, sigma: int) -> int:
        while True:
            k = 0
            while self.h():  # G
                k += 1
            if not all(self.h() for _ in range(k * (k - 1))):  # P
                continue
            x = self._uniform()
            if all(self.b(k, x) for _ in range(k + 1)):
                magnitude = x.rounded(k, sigma)
                return magnitude if self._generator.getrandbits(1) else -magnitude


def test_agrees_with_a_plain_reference_of_karneys_algorithm() -> None:
    karney = _Karney()
    reference = np.array([karney.sample(2) for _ in range(30_000)])
    values = rounded_gaussian(300_000, 2, system_source())
    assert chi_square_p(reference, 2) > FALSE_ALARM
    cells = np.arange(-6, 8) - 0.5
    table = np.array([np.histogram(np.clip(v, -6, 6), cells)[0] for v in (reference, values)])
    assert stats.chi2_contingency(table).pvalue > FALSE_ALARM


@pytest.mark.parametrize("digit_bits", [8, 64])
def test_exact_path_alone_follows_the_law(digit_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All candidates through the path that otherwise sees 0.6% of them; with 8-bit digits, ties are everywhere."""
    monkeypatch.setattr(noise, "_DIGIT", digit_bits)
    source, generator = system_source(), random.SystemRandom()
    for sigma in (3, 2**40 + 1):
        exact = noise._Exact(sigma, source)
        drawn = [
            exact.value(*(generator.getrandbits(bits) for bits in (digit_bits, digit_bits, 16))) for _ in range(40_000)
        ]
        values = np.array([value for value in drawn if value is not None])
        assert len(drawn) - values.size < 0.01 * len(drawn)
        assert (chi_square_p if sigma == 3 else kolmogorov_p)(values, sigma) > FALSE_ALARM
