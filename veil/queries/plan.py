"""From questions and a privacy budget to releases with the noise that the budget asks for.

Guarantee: the releases cost together at most `epsilon` at `delta` by `veil.privacy.accountant.epsilon`, and their
sensitivities are those of the questions.

Every question has a share of epsilon, equal ones by default. A Laplace question with share f has noise of scale
sensitivity / (f epsilon): it is (f epsilon)-private, delta 0. The Gaussian questions, with F as their shares together,
are planned as one Gaussian mechanism of (F epsilon, delta), of which each has its part of mu^2. The sum is at most
(epsilon, delta) by basic composition (Dwork and Roth, theorem 3.16). Where the accountant composes more tightly than
that, all noise is lowered by one common factor until the budget is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from veil.errors import ConfigError
from veil.jobs.spec import QueryTrainer, Release
from veil.privacy import accountant
from veil.queries.question import Question, from_mapping

_MOST_QUESTIONS: Final = 64
_LONGEST: Final = 8192
_SEARCH_STEPS: Final = 8
_WORTH: Final = 0.99  # of the budget: what is left above is not worth a search


def plan_queries(
    questions: Sequence[Mapping[str, Any]], *, epsilon: float, delta: float, items: int, categories: int
) -> tuple[QueryTrainer, tuple[Release, ...]]:
    """Trainer and releases. `questions`: keys of `Question`, and "share" (positive, relative to the others; 1).

    The noise of a release is what one draw must have. With noise by the parties each adds such a draw
    (`veil.privacy.mechanism.variance_factor`). Raises `ConfigError` for questions or a budget that cannot be met.
    """
    if not 1 <= len(questions) <= _MOST_QUESTIONS:
        raise ConfigError(f"got {len(questions)} questions, expected 1 to {_MOST_QUESTIONS}")
    asked = [_asked(document) for document in questions]
    counts = [one.group_count(items=items, categories=categories) for one, _ in asked]
    total = sum(share for _, share in asked)
    fractions = [share / total for _, share in asked]
    sigmas = _sigmas([one for one, _ in asked], counts, fractions, epsilon, delta)

    def releases(factor: Fraction) -> tuple[Release, ...]:
        return tuple(
            Release(
                name=one.name,
                shape=(count,),
                sensitivity=one.sensitivity(count),
                sigma=max(1, math.ceil(factor * sigma)),
                mechanism=one.release_mechanism,
            )
            for (one, _), count, sigma in zip(asked, counts, sigmas, strict=True)
        )

    trainer = QueryTrainer(questions=tuple(one.text() for one, _ in asked))
    return trainer, _fitted(releases, epsilon, delta)


def _asked(document: Mapping[str, Any]) -> tuple[Question, Fraction]:
    rest = dict(document)
    share = rest.pop("share", 1)
    question = from_mapping(rest)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
        raise ConfigError(f"question {question.name}: share: got {str(share)[:20]}, expected a positive number")
    size = len(question.text())
    if size > _LONGEST:
        raise ConfigError(
            f"question {question.name}: got {size} characters of text, expected at most {_LONGEST}",
            hint="name fewer items or groups: every party signs them all",
        )
    return question, Fraction(share)


def _sigmas(
    questions: Sequence[Question], counts: Sequence[int], fractions: Sequence[Fraction], epsilon: float, delta: float
) -> list[int]:
    gaussian = [f for one, f in zip(questions, fractions, strict=True) if one.mechanism == "gaussian"]
    together = sum(gaussian, Fraction(0))
    parts = [float(fraction / together) for fraction in gaussian]
    multipliers = iter(accountant.multipliers(float(together) * epsilon, delta, parts) if gaussian else ())
    sigmas = []
    for question, count, fraction in zip(questions, counts, fractions, strict=True):
        sensitivity = question.sensitivity(count)
        if question.mechanism == "gaussian":
            sigma = accountant.sigma_steps(next(multipliers), sensitivity)
        else:
            sigma = accountant.laplace_scale(float(fraction) * epsilon, sensitivity)
        sigmas.append(sigma)
    return sigmas


def _fitted(releases: Callable[[Fraction], tuple[Release, ...]], epsilon: float, delta: float) -> tuple[Release, ...]:
    """The releases with the least noise, by a common factor, of which the accountant says that they fit."""

    def cost(factor: Fraction) -> float:
        return accountant.epsilon(releases(factor), delta)

    fitting = Fraction(1)
    for _ in range(20):
        spent = cost(fitting)
        if spent <= epsilon:
            break
        # The accountant's own rounding, in the last digits.
        fitting *= 1 + Fraction(1, 10**6)
    else:
        raise ConfigError(f"got a plan that costs epsilon {spent}, expected at most {epsilon}")
    if spent < _WORTH * epsilon:
        # Epsilon falls at least as fast as the noise rises, roughly: this factor is too small, or nearly so.
        small = fitting * Fraction(spent) / Fraction(epsilon)
        for _ in range(_SEARCH_STEPS):
            middle = (small + fitting) / 2
            small, fitting = (small, middle) if cost(middle) <= epsilon else (middle, fitting)
    return releases(fitting)
