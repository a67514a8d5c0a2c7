"""Three lower bounds on epsilon from the same canaries, from the most general to the sharpest."""

from __future__ import annotations

from dataclasses import dataclass

from veil.privacy.audit import gaussian, one_run
from veil.privacy.audit.one_run import Bool, Float64


@dataclass(frozen=True)
class EpsilonBounds:
    """Lower bounds on epsilon at one delta; each holds with probability 1 - `significance` on its own.

    Attributes:
        general: for any (epsilon, delta)-private mechanism (`one_run`).
        gaussian: for any mu-GDP mechanism (`gaussian.one_run_mu`).
        parametric: for mu-GDP and normal noise (`gaussian.regression_mu`).
    """

    general: float
    gaussian: float
    parametric: float
    significance: float

    @property
    def largest(self) -> float:
        """The largest of them."""
        return max(self.general, self.gaussian, self.parametric)

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {
            "general": self.general,
            "gaussian": self.gaussian,
            "parametric": self.parametric,
            "significance": self.significance,
        }


def epsilon_bounds(
    scores: Float64,
    included: Bool,
    delta: float,
    significance: float,
    regression: gaussian.Regression | None = None,
) -> EpsilonBounds:
    """All three. scores: float64[m], larger for "took part"; included: bool[m], the fair coins.

    regression: the same canaries' openings; without it, `parametric` takes scores for independent and normal.
    """
    if regression is None:
        parametric = gaussian.two_sample_mu(scores, included, significance)
    else:
        parametric = gaussian.regression_mu(regression, significance)
    return EpsilonBounds(
        general=one_run.epsilon_lower_bound(scores, included, delta, significance),
        gaussian=gaussian.epsilon_of_mu(gaussian.one_run_mu(scores, included, significance), delta),
        parametric=gaussian.epsilon_of_mu(parametric, delta),
        significance=significance,
    )
