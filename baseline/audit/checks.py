"""Every check of one mechanism: its noise, its sensitivity, its users' independence, and the canaries' bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Final

import numpy as np

from baseline.audit.mechanism import Bool, Float64, Mechanism, Opener, RunRecord, audited_run
from baseline.audit.probes import sensitivity_findings
from veil.privacy.audit.bounds import EpsilonBounds, epsilon_bounds
from veil.privacy.audit.finding import Finding
from veil.privacy.audit.gaussian import Regression
from veil.privacy.audit.noise import deviates, independence, noise_findings
from veil.recsys.interactions import Interactions

ESTIMATORS: Final = 3
"""Lower bounds that `EpsilonBounds` holds."""


def noise_checks(record: RunRecord, before: RunRecord | None, drawers: int, honest: int = 1) -> list[Finding]:
    """Every opening's noise on its own, then draws against each other: within the run and with the run before.

    drawers: draws on a total. honest: draws that colluding parties face; where single draws are known, what is left to
    them is checked too.
    """
    found: list[Finding] = []
    run = f"run {record.number + 1}"
    for opening in record.openings:
        name = opening.release.name
        found += noise_findings(f"{run}, {name}", opening.residual, opening.sigma, drawers)
        for party, view in enumerate(opening.views(honest), 1):
            subject = f"{run}, {name}, against all but {honest} from party {party} on"
            found += noise_findings(subject, view, opening.sigma, honest)
    seen = _draws(record, drawers)
    for name, values in seen.items():
        found.append(independence(f"{run}, {name}", values))
    for (name, values), (other, others) in combinations(seen.items(), 2):
        found.append(independence(f"{run}, {name} and {other}", values, others))
    for name, values in (_draws(before, drawers) if before else {}).items():
        found.append(independence(f"{run} and the one before, {name}", values, seen[name]))
    return found


def _draws(record: RunRecord, drawers: int) -> dict[str, Float64]:
    """Deviates of every draw by name; of every opening's total where single draws are not known."""
    out = {}
    for opening in record.openings:
        name = opening.release.name
        single = opening.views(1)
        for party, view in enumerate(single, 1):
            out[f"{name} of party {party}"] = deviates(view, opening.sigma, 1)
        if not single:
            out[name] = deviates(opening.residual, opening.sigma, drawers)
    return out


def canary_findings(runs: list[EpsilonBounds], pooled: EpsilonBounds, epsilon: float) -> list[Finding]:
    """One finding a run, one for all runs as one: no lower bound above the claim."""
    what = "largest lower bound on epsilon; limit: the claim"
    named = [(f"run {number}", one) for number, one in enumerate(runs, 1)]
    return [
        Finding("canary bound", name, one.largest, (0.0, epsilon), ESTIMATORS * one.significance, what)
        for name, one in [*named, ("all runs together", pooled)]
    ]


def run_checks(
    mechanism: Mechanism,
    rest: Interactions,
    canaries: Interactions,
    runs: int,
    generator: np.random.Generator,
    significance: float,
    *,
    opener: Opener | None = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[RunRecord], list[Finding], EpsilonBounds]:
    """Runs the mechanism `runs` times with fresh coins and applies every check; the bounds are those of all runs.

    significance: of each bound in the verdict. Of the records, only the first keeps its openings and states.
    """
    epsilon, delta = mechanism.spec.privacy.epsilon, mechanism.spec.privacy.delta
    records: list[RunRecord] = []
    found: list[Finding] = []
    for number in range(runs):
        coins: Bool = generator.random(canaries.users) < 0.5
        record = audited_run(mechanism, rest, canaries, coins, number=number, opener=opener)
        found += noise_checks(record, records[-1] if records else None, mechanism.drawers, mechanism.honest)
        apart = float(sum(record.apart.values()))
        found.append(
            Finding("users apart", f"run {number + 1}", apart, (0.0, 0.0), 0.0, "entries where canaries do not add up")
        )
        if number == 0:
            found = sensitivity_findings(mechanism, record, rest, seed=1) + found
        if len(records) > 1:
            records[-1] = replace(records[-1], openings=[], states=[])  # compared already
        records.append(record)
        tick()
    bounds = [record.bounds(delta, significance) for record in records]
    pooled = pooled_bounds(records, delta, significance)
    found += canary_findings(bounds, pooled, epsilon)
    return records, found, pooled


def pooled_bounds(records: list[RunRecord], delta: float, significance: float) -> EpsilonBounds:
    """Bounds from all runs as one: independent runs are one mechanism on disjoint data."""
    scores = np.concatenate([record.scores for record in records])
    included = np.concatenate([record.included for record in records])
    regression = Regression.joined([record.regression for record in records])
    return epsilon_bounds(scores, included, delta, significance, regression)
