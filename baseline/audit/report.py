"""What an audit is asked, and what it answers: plain records, and the JSON of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from baseline.audit.checks import ESTIMATORS
from baseline.audit.sabotage import SABOTAGES, sabotage
from baseline.evaluate import LinearTrainer
from veil.errors import ConfigError
from veil.jobs.spec import JobSpec
from veil.privacy.accountant import epsilon as accounted_epsilon
from veil.privacy.audit.bounds import EpsilonBounds
from veil.privacy.audit.finding import Finding

SABOTAGE_RUNS: Final = 2
CONTROL_MODELS: Final = 24
"""Shadow and attacked models of the attack on a mechanism without noise, together."""


@dataclass(frozen=True)
class AuditPlan:
    """What is audited and how hard.

    Attributes:
        colluding: how many parties may pool their draws, for noise source "parties"; None for all but one.
        runs: independent runs with canaries; at least 1.
        canaries: made-up users, each in a run by a fair coin; at least 16.
        users: how many users of the data stand beside them, drawn at random; 0 for all. The claim is about any data.
        models: models attacked by membership inference, 0 for none; `shadows` are trained to learn the attack from.
        targets: how many users are attacked, half of them canaries.
        confidence: of each run's bounds; and, in the verdict, of all bounds jointly.
        seed: None draws coins and noise keys from the operating system; a number makes the audit repeatable.
        sabotaged: audit this broken mechanism (`SABOTAGES`) instead of the real one.
        controls: whether to audit the sabotaged mechanisms too.
    """

    epsilon: float
    delta: float = 1e-5
    noise_source: Literal["dealer", "parties"] = "dealer"
    parties: int = 3
    colluding: int | None = None
    trainer: LinearTrainer = "subspace"
    runs: int = 5
    canaries: int = 256
    users: int = 2000
    models: int = 24
    shadows: int = 24
    targets: int = 160
    confidence: float = 0.999
    seed: int | None = None
    sabotaged: str | None = None
    controls: bool = True

    def __post_init__(self) -> None:
        """Raises `ConfigError` for what is out of range."""
        ranges = {
            "runs": (1, 1000),
            "canaries": (16, 100_000),
            "users": (0, 10**9),
            "models": (0, 10_000),
            "shadows": (4, 10_000),
            "targets": (2, 100_000),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"got {getattr(self, name)} {name}, expected {low} to {high}")
        if not 0.5 <= self.confidence < 1:
            raise ConfigError(f"got confidence {self.confidence}, expected 0.5 or more and below 1")
        if self.sabotaged is not None:
            sabotage(self.sabotaged)
            if self._is_the_claim(self.sabotaged):
                raise ConfigError(
                    f"got sabotage {self.sabotaged!r} with no colluding party, where it is the claim, expected another"
                )

    @property
    def joint_significance(self) -> float:
        """Of one bound, so that all of the audit hold together with `confidence` (Bonferroni)."""
        return (1 - self.confidence) / (ESTIMATORS * (self.runs + 2))

    @property
    def work(self) -> int:
        """How often `audit` calls its `tick`."""
        attacks = self.models + self.shadows + CONTROL_MODELS * self.controls if self.models else 0
        return self.runs + attacks + SABOTAGE_RUNS * len(self.control_names)

    @property
    def control_names(self) -> list[str]:
        """The sabotaged mechanisms to audit beside the real one; none that the claim makes right."""
        return [name for name in SABOTAGES if not self._is_the_claim(name)] if self.controls else []

    def _is_the_claim(self, name: str) -> bool:
        # Where nobody colludes, a share of one draw from each is what the job promises.
        return name == "party-noise-split" and self.colluding == 0


@dataclass(frozen=True)
class Control:
    """How a sabotaged mechanism fared: the findings that failed. shows_in: as in `Sabotage`."""

    name: str
    title: str
    failed: list[Finding]
    checks: int
    bounds: EpsilonBounds
    shows_in: str

    @property
    def caught(self) -> bool:
        """Whether the check failed that is there to see it: another one may have failed for a reason of its own."""
        return self.shows_in in self.caught_by

    @property
    def caught_by(self) -> list[str]:
        """The kinds of checks that failed, once each."""
        return list(dict.fromkeys(finding.check for finding in self.failed))


@dataclass(frozen=True)
class AuditReport:
    """Everything that the audit saw. `as_dict` is what is written."""

    plan: AuditPlan
    spec: JobSpec
    mu: float
    users: int
    strength: float
    runs: list[EpsilonBounds]
    pooled: EpsilonBounds
    findings: list[Finding]
    controls: list[Control]
    membership: dict[str, Any] | None
    plots: dict[str, Any] = field(repr=False)

    @property
    def below_claim(self) -> int:
        """In how many runs every lower bound is at most the claimed epsilon."""
        return sum(run.largest <= self.spec.privacy.epsilon for run in self.runs)

    @property
    def failed(self) -> list[Finding]:
        """Findings that failed."""
        return [finding for finding in self.findings if not finding.passed]

    @property
    def missed(self) -> list[str]:
        """Sabotages that no check caught: the audit itself is not to be trusted then."""
        return [control.name for control in self.controls if not control.caught]

    @property
    def passed(self) -> bool:
        """Whether no check failed and every sabotage was caught."""
        return not self.failed and not self.missed

    def by_check(self) -> dict[str, tuple[int, int]]:
        """(passed, all) findings by kind of check."""
        out: dict[str, tuple[int, int]] = {}
        for finding in self.findings:
            good, total = out.get(finding.check, (0, 0))
            out[finding.check] = (good + finding.passed, total + 1)
        return out

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        releases = self.spec.releases
        return {
            "passed": self.passed,
            "claim": {
                "epsilon": self.spec.privacy.epsilon,
                "accounted": accounted_epsilon(releases, self.spec.privacy.delta),
                "delta": self.spec.privacy.delta,
                "mu": self.mu,
                "unit": self.spec.privacy.unit,
                "neighbouring": self.spec.privacy.neighbouring,
                "noise_source": self.spec.privacy.noise.source,
                "parties": len(self.spec.parties),
                "colluding": self.spec.privacy.noise.colluding,
                "trainer": self.spec.trainer.kind,
                "releases": [release.model_dump(mode="json") for release in releases],
            },
            "sabotaged": self.plan.sabotaged,
            "users": self.users,
            "canaries": self.plan.canaries,
            "canary_strength": self.strength,
            "confidence": self.plan.confidence,
            "runs": [run.as_dict() for run in self.runs],
            "runs_below_claim": self.below_claim,
            "pooled": self.pooled.as_dict(),
            "membership": self.membership,
            "checks": {name: {"passed": good, "all": total} for name, (good, total) in self.by_check().items()},
            "findings": [finding.as_dict() for finding in self.findings],
            "controls": [
                {
                    "name": control.name,
                    "title": control.title,
                    "caught": control.caught,
                    "caught_by": control.caught_by,
                    "checks": control.checks,
                    "failed": [finding.as_dict() for finding in control.failed],
                    "bounds": control.bounds.as_dict(),
                }
                for control in self.controls
            ],
            "plots": self.plots,
        }
