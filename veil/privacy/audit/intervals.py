"""Confidence limits of proportions."""

from __future__ import annotations

from scipy import special

from veil.errors import InputError


def clopper_pearson(successes: int, trials: int, significance: float) -> tuple[float, float]:
    """Two-sided limits of a proportion, each side missed with probability at most significance / 2.

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits", Biometrika 26.
    Raises `InputError` unless 0 <= successes <= trials, trials > 0.
    """
    if not (0 <= successes <= trials and trials > 0 and 0 < significance < 1):
        raise InputError(f"got {successes} of {trials} at significance {significance}, expected a proportion")
    half = significance / 2
    low = float(special.betaincinv(successes, trials - successes + 1, half)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, trials - successes, 1 - half)) if successes < trials else 1.0
    return low, high
