"""Membership inference against what is published: shadow models with and without each target.

The attacker of this module knows the catalogue, the job, all other users and each target's history; of the audited
training it reads the published arrays only (`item_factors`, `fold_in` and what goes with them). It trains shadow models
by the same job, half of them with each target.

Guarantee: audited models and shadow models are disjoint sets of independent runs, so that a target's score in an
audited model depends on that target's coin through that model alone. The targets are thus canaries of an audit in the
sense of `veil.privacy.audit.one_run`, and bounds from them hold whatever correlations there are within a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from baseline.audit.mechanism import Mechanism
from veil.privacy.audit import membership
from veil.privacy.audit.bounds import EpsilonBounds, epsilon_bounds
from veil.privacy.audit.intervals import clopper_pearson
from veil.recsys.interactions import Interactions
from veil.recsys.model import Model
from veil.recsys.postprocess import USER_TERMS
from veil.trainers.rows import PartyRows
from veil.trainers.seam import central_state

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
_FIRST_RUN = 1_000_000  # run numbers of shadows, away from those of the canary audit


@dataclass(frozen=True, eq=False, repr=False)
class Membership:
    """Scores of the attack: float64[A, T] with the coins bool[A, T]; `canary` says which targets are made up."""

    scores: Float64
    included: Bool
    canary: Bool
    shadows: int

    def bounds(self, delta: float, significance: float) -> EpsilonBounds:
        """Lower bounds on epsilon from the attack."""
        return epsilon_bounds(self.scores.reshape(-1), self.included.reshape(-1), delta, significance)

    def figures(self, epsilon: float, delta: float, mu: float, significance: float) -> dict[str, Any]:
        """Rates beside what epsilon and mu allow. Limits of rates take pairs of model and target as independent."""
        curve = membership.roc(self.scores, self.included)
        members = int(self.included.sum())
        rates = []
        for fpr in FALSE_POSITIVE_RATES:
            tpr = curve.tpr_at(fpr)
            low, high = clopper_pearson(round(tpr * members), members, significance)
            rates.append(
                {
                    "fpr": fpr,
                    "tpr": tpr,
                    "tpr_limits": [low, high],
                    "allowed_by_epsilon": float(membership.largest_tpr(fpr, epsilon, delta)),
                    "allowed_by_gaussian": float(membership.largest_gaussian_tpr(fpr, mu)),
                }
            )
        groups = {"all": np.ones_like(self.canary), "canaries": self.canary, "users": ~self.canary}
        areas = {}
        for name, chosen in groups.items():
            part, coins = self.scores[:, chosen], self.included[:, chosen]
            if coins.size and coins.any() and not coins.all():
                limits = membership.auc_interval(part, coins, significance)
                areas[name] = {"auc": membership.auc(part, coins), "limits": list(limits)}
        keep = np.unique(np.linspace(0, len(curve.false_positive) - 1, 400).astype(int))
        return {
            "models": len(self.scores),
            "shadows": self.shadows,
            "targets": int(self.scores.shape[1]),
            "members": members,
            "others": int((~self.included).sum()),
            "rates": rates,
            "auc": areas,
            "allowed_auc": membership.largest_gaussian_auc(mu),
            "roc": {"fpr": curve.false_positive[keep].tolist(), "tpr": curve.true_positive[keep].tolist()},
        }


def features(model: Model, targets: Interactions) -> Float64:
    """What the published arrays say about each target's history; float64[T, 5].

    Score of the own items over the average item's, the collaborative part of it, the length of the collaborative and
    of the content part of the user vector, and the mean published log count of the own items.
    """
    vectors = model.user_vectors(targets).astype(np.float64)
    factors = model.item_factors.astype(np.float64)
    met = targets.to_sparse(np.float64)
    length = np.maximum(targets.lengths(), 1)[:, None]
    own = (met @ factors) / length - factors.mean(axis=0)
    linear, split = model.dimensions - USER_TERMS, model.collaborative
    popularity = (met @ model.fold_in[:, -1:].astype(np.float64)) / length
    return np.column_stack(
        [
            (own * vectors).sum(axis=1),
            (own * vectors)[:, :split].sum(axis=1),
            np.square(vectors[:, :split]).sum(axis=1),
            np.square(vectors[:, split:linear]).sum(axis=1),
            popularity[:, 0],
        ]
    )


def attack(
    mechanism: Mechanism,
    rest: Interactions,
    targets: Interactions,
    canary: Bool,
    *,
    shadows: int,
    models: int,
    generator: np.random.Generator,
    tick: Callable[[], None] = lambda: None,
) -> Membership:
    """Trains `shadows` + `models` times on `rest` and a random half of `targets`; scores the last `models`."""
    algorithm, spec = mechanism.algorithm, mechanism.spec
    included = generator.random((shadows + models, targets.users)) < 0.5
    seen = []
    for number, coins in enumerate(included):
        rows = PartyRows(Interactions.concatenate([rest, targets.rows(coins)]))

        def noise(release: Any, number: int = number) -> npt.NDArray[np.int64]:
            return sum(mechanism.draws(_FIRST_RUN + number, release), np.zeros(release.shape, np.int64))

        seen.append(features(algorithm.model(central_state(algorithm, spec, rows, noise)), targets))
        tick()
    whole = np.stack(seen)
    varies = whole.reshape(-1, whole.shape[2]).std(axis=0) > 0
    scores = membership.likelihood_ratios(whole[:shadows, :, varies], included[:shadows], whole[shadows:, :, varies])
    return Membership(scores, included[shadows:], canary, shadows)
