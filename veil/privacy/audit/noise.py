"""Is what lies on an opened sum the noise that the job claims?

The auditor holds the data, so it knows the exact integer sum; opened minus exact is the noise itself, entry by entry.

Guarantee: noise that is a sum of `draws` independent values of round(sigma Z) an entry, Z standard normal, independent
over entries, fails each check with probability at most `false_alarm`. Limits are exact for normal deviates; the
rounding adds draws / 12 to a variance of draws sigma^2 and makes the law a lattice's, both of which are counted in, and
sigma is 64 or more.

Checks: "noise spread" (variance, chi-square), "noise centre", "noise shape" (Kolmogorov-Smirnov, normal law), "noise
tails" (share beyond 3 standard deviations, binomial: what kurtosis would show, with exact limits; catches capped
samplers), "noise low bits" (uniform on every residue, so that the noise lives on the whole integer grid: floating-point
samplers leave gaps there, Mironov 2012, "On significance of the least significant bits for differential privacy"), and
in `independence` "noise reuse": correlation at every shift, of the deviates and of their magnitudes. The latter sees a
keystream that was used twice even where signs or scales differ.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import fft, special, stats

from veil.errors import InputError
from veil.privacy.audit.finding import Finding

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

FALSE_ALARM: Final = 1e-6
LEAST_SIGMA: Final = 64
_TAIL: Final = 3.0
_LATTICE_GAP: Final = 0.21  # 1 / (2 sqrt(2 pi)), and a little for the scale that counts the rounding in
_CELL_COUNT: Final = 20
_MOST_BITS: Final = 8
_LEAST_OVERLAP: Final = 64
LONGEST_SCAN: Final = 1 << 15
"""Entries of a release that the search for reuse looks at."""


def deviates(residual: Int64, sigma: int, draws: int) -> Float64:
    """The noise in standard deviations of what is claimed; float64[n]. Raises `InputError`."""
    if residual.dtype != np.int64 or residual.size < _LEAST_OVERLAP:
        raise InputError(f"got {residual.dtype}{residual.shape}, expected at least {_LEAST_OVERLAP} int64 entries")
    if sigma < LEAST_SIGMA or draws < 1:
        raise InputError(f"got sigma {sigma} and {draws} draws, expected at least {LEAST_SIGMA} and 1")
    return residual.reshape(-1) / math.sqrt(draws * (sigma**2 + 1 / 12))


def noise_findings(
    subject: str, residual: Int64, sigma: int, draws: int, false_alarm: float = FALSE_ALARM
) -> list[Finding]:
    """Every check of one release on its own. residual: opened minus exact sum, int64 of any shape."""
    values = deviates(residual, sigma, draws)
    n, half = values.size, false_alarm / 2
    spread = math.sqrt(float(np.square(values).mean()))
    low, high = (math.sqrt(float(stats.chi2.ppf(at, n)) / n) for at in (half, 1 - half))
    found = [
        Finding("noise spread", subject, spread, (low, high), false_alarm, "measured / claimed standard deviation")
    ]
    edge = -float(special.ndtri(half))
    centre = float(values.mean()) * math.sqrt(n)
    found.append(
        Finding("noise centre", subject, centre, (-edge, edge), false_alarm, "mean in its own standard errors")
    )
    distance = float(stats.kstest(values, "norm", method="asymp").statistic)
    # Whole numbers climb in steps: half a step is the law's own gap, whatever n is.
    largest = float(special.kolmogi(false_alarm)) / math.sqrt(n) + _LATTICE_GAP / (sigma * math.sqrt(draws))
    found.append(
        Finding("noise shape", subject, distance, (0.0, largest), false_alarm, "largest gap to the normal distribution")
    )
    beyond = int(np.count_nonzero(np.abs(values) > _TAIL))
    # Beyond a whole number means: above it by one half before rounding.
    edge = math.floor(_TAIL * math.sqrt(draws * (sigma**2 + 1 / 12))) + 0.5
    chance = 2 * float(special.ndtr(-edge / math.sqrt(draws * sigma**2 + (draws - 1) / 12)))
    few, many = (float(stats.binom.ppf(half, n, chance)), float(stats.binom.isf(half, n, chance)))
    found.append(
        Finding("noise tails", subject, beyond, (few, many), false_alarm, f"entries beyond {_TAIL:g} deviations")
    )
    bits = min(_MOST_BITS, sigma.bit_length() - 5, int(math.log2(n / _CELL_COUNT)) if n >= 2 * _CELL_COUNT else 0)
    if bits >= 1:
        cells = 1 << bits
        counts = np.bincount(residual.reshape(-1) & (cells - 1), minlength=cells)
        statistic = float((np.square(counts - n / cells) / (n / cells)).sum())
        top = float(stats.chi2.isf(false_alarm, cells - 1))
        found.append(
            Finding("noise low bits", subject, statistic, (0.0, top), false_alarm, f"chi-square of the {bits} low bits")
        )
    return found


def independence(
    subject: str, first: Float64, second: Float64 | None = None, false_alarm: float = FALSE_ALARM
) -> Finding:
    """Correlation of two draws' `deviates` at every shift; second None: of one with itself, shift 0 left out.

    The statistic is the largest |r| sqrt(overlap), of deviates and of magnitudes turned into normal scores; the
    limit is Bonferroni's over all shifts. Looks at the first 32,768 entries.
    """
    x = first[:LONGEST_SCAN]
    y = x if second is None else second[:LONGEST_SCAN]
    worst, tests = 0.0, 0
    for transform in (_centred, _magnitudes):
        peak, count = _strongest(transform(x), transform(y), itself=second is None)
        worst, tests = max(worst, peak), tests + count
    limit = -float(special.ndtri(false_alarm / (2 * max(tests, 1))))
    return Finding(
        "noise reuse",
        subject,
        worst,
        (0.0, limit),
        false_alarm,
        f"strongest correlation over {tests} alignments, in standard errors",
    )


def _centred(values: Float64) -> Float64:
    centred: Float64 = values - values.mean()
    return centred


def _magnitudes(values: Float64) -> Float64:
    size = np.abs(values)
    zero = size == 0
    if zero.any() and not zero.all():
        # 0 stands for all that rounds to it. Its own score, far out, would make tails heavier than normal.
        size[zero] = size[~zero].min() / 4
    scores: Float64 = special.ndtri(np.clip(2 * special.ndtr(size) - 1, 1e-12, 1 - 1e-12))
    return _centred(scores)


def _strongest(x: Float64, y: Float64, *, itself: bool) -> tuple[float, int]:
    """Largest |r| sqrt(overlap) over shifts, and how many shifts there were.

    For independent normal vectors r sqrt(n) has lighter tails than a standard normal deviate, so its quantiles hold.
    """
    n, m = len(x), len(y)
    size = fft.next_fast_len(n + m, real=True)
    products = fft.irfft(fft.rfft(x, size) * np.conj(fft.rfft(y, size)), size)
    shift = np.arange(1 if itself else 1 - m, n)  # x[i + shift] against y[i]
    start, end = np.maximum(shift, 0), np.minimum(n, m + shift)
    wide = end - start >= _LEAST_OVERLAP
    shift, start, end = shift[wide], start[wide], end[wide]
    if not len(shift):
        return 0.0, 0
    energy_x = _between(np.square(x), start, end)
    energy_y = _between(np.square(y), start - shift, end - shift)
    scale = np.sqrt(np.maximum(energy_x, 0) * np.maximum(energy_y, 0))
    sound = scale > 1e-9  # a draw of nothing but zeros correlates with nothing; its spread is what fails
    r = np.divide(products[shift % size], scale, out=np.zeros(len(shift)), where=sound)
    return float(np.max(np.abs(r) * np.sqrt(end - start))), len(shift)


def _between(values: Float64, start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> Float64:
    total = np.concatenate([[0.0], np.cumsum(values)])
    difference: Float64 = total[end] - total[start]
    return difference
