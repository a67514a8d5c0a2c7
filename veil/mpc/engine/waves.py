"""Functions of one variable as Fourier sums, which cost one opening whatever their degree.

Let u be a shared number with f fractional bits and a mask r with shares of cos(k w r), sin(k w r), w = 2 pi / 2^m. Open
d = u - r modulo 2^m, which is uniform. Then

    sin(k w u) = sin(k w d) cos(k w r) + cos(k w d) sin(k w r)

is a public combination of shares, and so is every sum of such waves. Since 2^m divides 2^64 nothing wraps wrongly: the
value of u in the ring modulo 2^m is all that counts, however many fractional bits it has, so a product needs no
truncation before it and the result has as many bits as its reader likes. One round, where a polynomial of degree k
takes log2 k and truncations in between.

Guarantee: what parties must agree on, bounds included, is computed in integers from integer coefficients, which the
job states, and from one table of sines.

Bounds. Wave k is taken at the phase k v + half a stretch of the table, v = w u up to that table, for every v; so on a
grid of 4096 values of v the sum is computed as parties compute it, and between two of them wave k, of amplitude A_k <=
|sine| + |cosine|, moves by at most k A_k pi / 4096. Fixed point adds, in units of the waves' precision and for each
wave, less than sqrt 2 (both coefficients are cut down by less than a unit) and A_k / sqrt 2 (both waves of the dealer
are off by half a unit at most): `Series.rounding` counts 2 + A_k.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError
from veil.mpc.engine.items import MOST_HARMONICS

TABLE_BITS = 18
_AMPLITUDE_BITS = 30
COEFFICIENT_BITS = 24
# Sums of products of coefficients and table stay far inside 63 bits.
_MOST_COEFFICIENT = 2 ** (COEFFICIENT_BITS + 4)
_GRID = 4096
# pi / 4096 is less than 1 / 1303.
_STEPS_A_UNIT = 1303
Function = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Series:
    """f(u) = constant + sum over k of sines[k-1] sin(k w u) + cosines[k-1] cos(k w u), all coefficients over 2^24.

    period: a power of two, in the units of u; reach: |u| up to which `error` bounds |f - the function meant|.
    """

    period: int
    reach: float
    constant: int
    sines: tuple[int, ...]
    cosines: tuple[int, ...]
    error: float

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a series whose sums could leave 63 bits, or whose period does not divide 2^64."""
        numbers = (self.constant, *self.sines, *self.cosines)
        if not len(self.sines) == len(self.cosines) <= MOST_HARMONICS or max(map(abs, numbers)) >= _MOST_COEFFICIENT:
            raise ConfigError(
                f"got {len(self.sines)} sines and {len(self.cosines)} cosines of up to {max(map(abs, numbers))},"
                f" expected as many of each, up to {MOST_HARMONICS}, below {_MOST_COEFFICIENT}"
            )
        if not self.sines or self.period < 2 or self.period & (self.period - 1):
            raise ConfigError(f"got {len(self.sines)} waves of period {self.period}, expected some, and a power of two")

    @property
    def harmonics(self) -> int:
        """Number of waves."""
        return len(self.sines)

    @property
    def most(self) -> float:
        """A bound on |f| everywhere."""
        total = abs(self.constant) + sum(map(abs, self.sines)) + sum(map(abs, self.cosines))
        return float(total / 2**COEFFICIENT_BITS)

    def residual_limit(self, precision_bits: int) -> int:
        """A bound on |f(u) - y| over all u and y in {0, 1}, f as an engine computes it; over 2^(2 precision_bits)."""
        low, high = _extent(self)
        return self._computed(max(high, (1 << COEFFICIENT_BITS) - low), precision_bits)

    def limit(self, precision_bits: int) -> int:
        """A bound on |f(u)| over all u, f as an engine computes it; over 2^(2 precision_bits)."""
        low, high = _extent(self)
        return self._computed(max(high, -low), precision_bits)

    def _computed(self, bound: int, precision_bits: int) -> int:
        return -(-(bound << 2 * precision_bits) >> COEFFICIENT_BITS) + self.rounding(precision_bits)

    def rounding(self, precision_bits: int) -> int:
        """What fixed point adds to |f| at most, over 2^(2 precision_bits)."""
        units = (2 * self.harmonics << COEFFICIENT_BITS) + sum(map(abs, (*self.sines, *self.cosines)))
        return -(-(units << precision_bits) >> COEFFICIENT_BITS)

    def __call__(self, u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The series in floating point, for comparison."""
        turns = np.arange(1, self.harmonics + 1) * (2 * np.pi / self.period) * np.asarray(u)[..., None]
        waves = np.sin(turns) @ np.array(self.sines) + np.cos(turns) @ np.array(self.cosines)
        result: npt.NDArray[np.float64] = (self.constant + waves) / 2**COEFFICIENT_BITS
        return result


@functools.cache
def _extent(series: Series) -> tuple[int, int]:
    """Bounds on f from below and above for every phase, over 2^24, before fixed point; see above."""
    table = sine_table().astype(np.int64) >> _AMPLITUDE_BITS - COEFFICIENT_BITS
    last, stretch = len(table) - 1, len(table) // _GRID
    places = np.arange(1, series.harmonics + 1)[:, None] * (np.arange(_GRID) * stretch)
    sums = np.array(series.sines) @ table[places & last]
    sums = sums + np.array(series.cosines) @ table[(places + len(table) // 4) & last]
    amplitudes = [abs(one) + abs(other) for one, other in zip(series.sines, series.cosines, strict=True)]
    # The slack of 1 / 1303 over pi / 4096 is more than what the shorter table takes away.
    margin = sum(k * amplitude for k, amplitude in enumerate(amplitudes, 1)) // _STEPS_A_UNIT + 2
    low, high = (series.constant + (int(end) >> COEFFICIENT_BITS) for end in (sums.min(), sums.max()))
    return low - margin, high + margin


def fit(function: Function, *, reach: float, period: int, harmonics: int) -> Series:
    """The sum of waves with nearly the least greatest error on [-reach, reach], by Lawson's weights.

    Between reach and half the period it does as it likes; so half the period must exceed reach. Source: Lawson,
    "Contributions to the theory of linear least maximum approximations", 1961. Raises `ConfigError`.
    """
    if period < 2 or period & (period - 1) or not 0 < reach < period / 2 or not 1 <= harmonics <= MOST_HARMONICS:
        raise ConfigError(
            f"got period {period}, reach {reach:g}, {harmonics} harmonics;"
            " expected a power of two, less than half of it, 1 to 32"
        )
    points = reach * np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
    turns = np.arange(1, harmonics + 1) * (2 * np.pi / period) * points[:, None]
    design = np.concatenate([np.ones((len(points), 1)), np.sin(turns), np.cos(turns)], axis=1)
    values = function(points)
    # An odd or even function has no waves of the other kind; leaving them out keeps its symmetry exact.
    odd, even = (values - values[::-1]) / 2, (values + values[::-1]) / 2
    kept = np.ones(design.shape[1], bool)
    if np.ptp(even) < 1e-9:
        kept[1 + harmonics :] = False
    if np.abs(odd).max() < 1e-9:
        kept[1 : 1 + harmonics] = False
    weights = np.full(len(points), 1 / len(points))
    solution = np.zeros(design.shape[1])
    for _ in range(80):
        root = np.sqrt(weights)[:, None]
        solution[kept] = np.linalg.lstsq(design[:, kept] * root, values * root[:, 0], rcond=1e-10)[0]
        residual = np.abs(design @ solution - values)
        weights = weights * residual
        weights /= weights.sum()
    scaled = [round(float(number) * 2**COEFFICIENT_BITS) for number in solution]
    if max(map(abs, scaled)) >= 2 ** (COEFFICIENT_BITS + 3):
        raise ConfigError(
            f"got coefficients up to {np.abs(solution).max():.0f} for reach {reach:g} of period {period},"
            " expected at most 8",
            hint="take a shorter period or fewer harmonics",
        )
    series = Series(
        period, reach, scaled[0], tuple(scaled[1 : 1 + harmonics]), tuple(scaled[1 + harmonics :]), error=0.0
    )
    error = float(np.abs(series(points) - values).max())
    return Series(period, reach, series.constant, series.sines, series.cosines, error)


def sigmoid(u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (1 + e^-u)."""
    result: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(u / 2))
    return result


@functools.cache
def sine_table() -> npt.NDArray[np.int32]:
    """int32[2^18]: sines of one period, over 2^30, each taken in the middle of its stretch.

    Parties must hold the same numbers; `Engine` compares its digest among them when it starts.
    """
    turns = (np.arange(1 << TABLE_BITS) + 0.5) * (2 * np.pi / (1 << TABLE_BITS))
    table: npt.NDArray[np.int32] = np.rint(np.sin(turns) * 2**_AMPLITUDE_BITS).astype(np.int32)
    return table


def coefficients(series: Sequence[Series]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(sines, cosines), int64[functions, harmonics] over 2^24. Raises `ConfigError` unless periods are the same."""
    if len({(one.period, one.harmonics) for one in series}) != 1:
        raise ConfigError("got series of different periods or lengths, expected the same in one opening")
    return (
        np.array([one.sines for one in series], np.int64),
        np.array([one.cosines for one in series], np.int64),
    )


def cut_bits(public_bits: int) -> int:
    """Bits to cut from coefficient times table, for a public factor over 2^public_bits."""
    return COEFFICIENT_BITS + _AMPLITUDE_BITS - public_bits
