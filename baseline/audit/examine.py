"""The audit: runs the mechanism under attack, and says what held.

Guarantee: `audit` fails a mechanism only for what it saw. A correct one fails a statistical check with probability at
most `noise.FALSE_ALARM` for each noise check and 1 - confidence for all bounds together; exact checks never. Passing is
no proof: an audit bounds epsilon from below. What it can see is shown by the sabotaged mechanisms beside it, each of
which must fail.

For data that one holds: nothing is charged to a ledger, and a report of private rows is as private as they are.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np

from baseline.audit.canaries import make_canaries
from baseline.audit.checks import pooled_bounds, run_checks
from baseline.audit.mechanism import Mechanism, RunRecord, honest
from baseline.audit.report import CONTROL_MODELS, SABOTAGE_RUNS, AuditPlan, AuditReport, Control
from baseline.audit.sabotage import sabotage
from baseline.audit.shadows import Membership, attack
from baseline.evaluate import simulation_spec
from veil.jobs.spec import JobSpec
from veil.privacy.audit.finding import Finding
from veil.privacy.audit.noise import deviates
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions

SABOTAGE_USERS: Final = 300
SABOTAGE_CANARIES: Final = 128
_PLOTTED: Final = 400
# The controls have few users, for which the subspace trainer would leave its collaborative part out.
_ON_FEW_USERS: Final[Mapping[str, dict[str, float]]] = {"subspace": {"noise_ratio_limit": 1e9}}
RATE_SIGNIFICANCE: Final = 0.05
"""Of the limits beside rates and areas: 95% each."""

Source = Literal["dealer", "parties"]
Tick = Callable[[str], None]


def audit(data: Interactions, catalogue: Catalogue, plan: AuditPlan, tick: Tick = lambda what: None) -> AuditReport:
    """Audits the private trainer on `data`. tick: called with a word after each of `plan.work` pieces of work."""
    entropy = secrets.randbits(256) if plan.seed is None else plan.seed
    generator = np.random.default_rng([0x5EED, entropy])
    key = generator.bytes(32)

    def claim(source: Source, overrides: dict[str, float] | None = None) -> JobSpec:
        return simulation_spec(
            catalogue,
            epsilon=plan.epsilon,
            delta=plan.delta,
            noise_source=source,
            parties=plan.parties,
            colluding=plan.colluding if source == "parties" else None,
            trainer=plan.trainer,
            overrides=overrides,
        )

    def small_claim(source: Source) -> JobSpec:
        return claim(source, _ON_FEW_USERS.get(plan.trainer))

    if plan.sabotaged is None:
        mechanism = honest(claim(plan.noise_source), catalogue, key)
    else:
        mechanism = sabotage(plan.sabotaged).build(claim, catalogue, key)
    rest = _some(data, plan.users, generator)
    canaries = make_canaries(catalogue, plan.canaries, int(generator.integers(2**32)))
    records, found, _ = run_checks(
        mechanism, rest, canaries, plan.runs, generator, plan.joint_significance, tick=lambda: tick("runs")
    )
    members: dict[str, Any] | None = None
    if plan.models:
        attacked = _membership(mechanism, rest, catalogue, plan, (plan.shadows, plan.models), generator, tick)
        found.append(_membership_finding(attacked, plan))
        members = attacked.figures(plan.epsilon, plan.delta, mechanism.mu, RATE_SIGNIFICANCE)
        if plan.controls:
            # The same attack where it must succeed: without it, a low AUC might only say that the attack is no good.
            bare = sabotage("noise-off").build(claim, catalogue, key)
            control = _membership(
                bare, rest, catalogue, plan, (CONTROL_MODELS // 2, CONTROL_MODELS // 2), generator, tick
            )
            members["without_noise"] = control.figures(plan.epsilon, plan.delta, mechanism.mu, RATE_SIGNIFICANCE)
    each = 1 - plan.confidence
    return AuditReport(
        plan=plan,
        spec=mechanism.spec,
        mu=mechanism.mu,
        users=rest.users,
        strength=float(np.mean([record.strengths.mean() for record in records])),
        runs=[record.bounds(plan.delta, each) for record in records],
        pooled=pooled_bounds(records, plan.delta, each),
        findings=found,
        controls=[
            _control(name, small_claim, catalogue, rest, key, generator, plan, tick) for name in plan.control_names
        ],
        membership=members,
        plots=_plots(records, mechanism.drawers),
    )


def _some(data: Interactions, users: int, generator: np.random.Generator) -> Interactions:
    if users == 0 or users >= data.users:
        return data
    return data.rows(np.sort(generator.choice(data.users, users, replace=False)))


def _membership(
    mechanism: Mechanism,
    rest: Interactions,
    catalogue: Catalogue,
    plan: AuditPlan,
    counts: tuple[int, int],
    generator: np.random.Generator,
    tick: Tick,
) -> Membership:
    half = min(plan.targets // 2, rest.users // 2)
    order = generator.permutation(rest.users)
    made_up = make_canaries(catalogue, plan.targets - half, int(generator.integers(2**32)))
    targets = Interactions.concatenate([made_up, rest.rows(order[:half])])
    return attack(
        mechanism,
        rest.rows(np.sort(order[half:])),
        targets,
        np.arange(targets.users) < made_up.users,
        shadows=counts[0],
        models=counts[1],
        generator=generator,
        tick=lambda: tick("membership"),
    )


def _membership_finding(attacked: Membership, plan: AuditPlan) -> Finding:
    bounds = attacked.bounds(plan.delta, plan.joint_significance)
    # Not the parametric one: scores of a likelihood ratio are not normal.
    return Finding(
        "membership bound",
        "published model",
        max(bounds.general, bounds.gaussian),
        (0.0, plan.epsilon),
        2 * plan.joint_significance,
        "lower bound on epsilon from the published arrays; limit: the claim",
    )


def _control(
    name: str,
    claim: Callable[[Source], JobSpec],
    catalogue: Catalogue,
    rest: Interactions,
    key: bytes,
    generator: np.random.Generator,
    plan: AuditPlan,
    tick: Tick,
) -> Control:
    broken = sabotage(name)
    few = rest.rows(slice(0, SABOTAGE_USERS))
    canaries = make_canaries(catalogue, SABOTAGE_CANARIES, int(generator.integers(2**32)))
    _, found, pooled = run_checks(
        broken.build(claim, catalogue, key),
        few,
        canaries,
        SABOTAGE_RUNS,
        generator,
        plan.joint_significance,
        tick=lambda: tick("sabotage"),
    )
    failed = [one for one in found if not one.passed]
    return Control(name, broken.title, failed, len(found), pooled, broken.shows_in)


def _plots(records: list[RunRecord], drawers: int) -> dict[str, Any]:
    """Quantiles of the first run's noise, and scores of all runs, for the report's plots."""
    noise = {}
    for opening in records[0].openings:
        values = deviates(opening.residual, opening.sigma, drawers)
        at = (np.arange(_PLOTTED) + 0.5) / _PLOTTED
        noise[opening.release.name] = np.quantile(values, at).tolist()
    scores = np.concatenate([record.scores for record in records])
    included = np.concatenate([record.included for record in records])
    return {
        "noise_quantiles": noise,
        "scores_in": np.quantile(scores[included], np.linspace(0, 1, _PLOTTED)).tolist() if included.any() else [],
        "scores_out": np.quantile(scores[~included], np.linspace(0, 1, _PLOTTED)).tolist()
        if not included.all()
        else [],
    }
