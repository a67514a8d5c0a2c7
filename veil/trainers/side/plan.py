"""From a budget, a catalogue and the public facts of side columns to a side job: its numbers and every release's noise.

Guarantee: the releases cost together at most epsilon by `veil.privacy.accountant`, with the sensitivities of the
mechanism itself (`veil.trainers.side.terms`); the program was run without data, so its numbers fit. Nothing is chosen
by looking at anybody's rows.

The budget, in mu^2 = 1/sigma^2: 25% for the outer products, 3% for the moments, 2% for the statistics, each divided
alike among side parties; the recommender takes the rest and plans it as it would plan a budget of its own
(`veil.trainers.subspace.plan`). What was chosen on what says `veil.trainers.side.estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from veil.errors import ConfigError
from veil.jobs.columns import AlignmentTerms
from veil.jobs.request import CatalogueFacts, JobRequest
from veil.jobs.side import MixingTerms, SideTrainer
from veil.jobs.spec import Noise, Release, SubspaceTrainer, describe
from veil.privacy.accountant import epsilon as cost_of
from veil.privacy.accountant import gaussian_epsilon, multipliers, sigma_steps
from veil.tabular.schema import ColumnsSchema
from veil.trainers.columns.plan import read_schema
from veil.trainers.columns.terms import check_triples
from veil.trainers.seam import Expected
from veil.trainers.side.dry import dry_run
from veil.trainers.side.terms import SideTerms, schema_text
from veil.trainers.subspace.plan import plan_subspace

OUTER_SHARE: Final = 0.25
MOMENT_SHARE: Final = 0.03
STATISTICS_SHARE: Final = 0.02
_MIXING: Final[Mapping[str, float]] = {
    "weak": 0.1,
    "strong": 0.2,
    "ratio_weak": 1.0,
    "ratio_strong": 0.9,
    "half_length": 50.0,
}
_RIDGE: Final = 20.0
_SHARES: Final = ("outer_share", "moment_share", "statistics_share")
_NUMBERS: Final = ("fill", "least_users", "ridge", "row_bits")
OVERRIDES: Final = (*_SHARES, *_NUMBERS, "side_weight", "half_length")
"""What a job may set itself beside the recommender's own (`veil.trainers.subspace.plan.OVERRIDES`).

`side_weight`: how much columns count for a user without history, at every noise ratio.
"""
# The releases round their noise up to whole grid steps, and the search for a budget ends somewhere: never above it.
_EPSILON_SLACK: Final = 1 - 1e-6


def plan_request(request: JobRequest, catalogue: CatalogueFacts) -> tuple[SideTrainer, tuple[Release, ...]]:
    """As `plan_side`, from a job.toml. Raises `ConfigError`."""
    section, privacy = request.trainer, request.privacy
    if section.schema_file is None or section.alignment is None or section.items is None:
        raise ConfigError("got trainer side without items, schema_file or alignment, expected all three")
    return plan_side(
        read_schema(section.schema_file, slots=section.alignment.result, kind=ColumnsSchema),
        section.alignment,
        items_party=section.items,
        parties=request.parties,
        items=catalogue.items,
        features=catalogue.features,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        noise=Noise(source=privacy.noise, colluding=privacy.colluding),
        triples=section.triples,
        overrides=section.overrides,
    )


def plan_side(
    schema: ColumnsSchema,
    alignment: AlignmentTerms,
    *,
    items_party: str,
    parties: tuple[str, ...],
    items: int,
    features: int,
    epsilon: float,
    delta: float,
    noise: Noise,
    triples: str = "dealer",
    overrides: Mapping[str, float] | None = None,
) -> tuple[SideTrainer, tuple[Release, ...]]:
    """Trainer and releases of a job that costs at most (epsilon, delta), add or remove one user.

    items, features: of the catalogue. overrides: some of `OVERRIDES` and of the recommender's. The noise of a release
    is what one draw must have. Raises `ConfigError`.
    """
    given = dict(overrides or {})
    own: dict[str, float] = {name: given.pop(name) for name in OVERRIDES if name in given}
    check_triples(triples, noise)
    shares = _shares(own)
    others = len(schema.parties)
    each = [shares[name] / others for name in ("statistics_share", "moment_share", "outer_share")]
    fractions = [1 - sum(shares.values()), *(share for share in each for _ in range(others))]
    first, *rest = multipliers(epsilon, delta, fractions)
    # The recommender's part of mu^2 as a budget of its own: its plan follows from that alone.
    trainer, releases = plan_subspace(
        epsilon=min(gaussian_epsilon(first, delta), epsilon) * _EPSILON_SLACK,
        delta=delta,
        noise_source=noise.source,
        parties=len(parties),
        items=items,
        features=features,
        overrides=given,
    )
    side = _trainer(schema, alignment, items_party, triples, own, trainer)
    terms = SideTerms.of_trainer(side, parties, items)
    planned = (*releases, *_releases(terms.expected(), rest))
    dry_run(terms, planned, noise, rank=0)  # numbers fit
    spent = cost_of(planned, delta)
    if spent > epsilon:
        raise ConfigError(f"got a plan that costs epsilon {spent}, expected at most {epsilon}")
    return side, planned


def _shares(own: Mapping[str, float]) -> dict[str, float]:
    default = dict(zip(_SHARES, (OUTER_SHARE, MOMENT_SHARE, STATISTICS_SHARE), strict=True))
    found = {name: float(own.get(name, default[name])) for name in _SHARES}
    if not all(0 < share < 1 for share in found.values()) or not sum(found.values()) < 1:
        told = ", ".join(f"{name} {share:g}" for name, share in found.items())
        raise ConfigError(f"got {told}, expected each above 0 and their sum below 1")
    return found


def _trainer(
    schema: ColumnsSchema,
    alignment: AlignmentTerms,
    items_party: str,
    triples: str,
    own: Mapping[str, float],
    recommender: SubspaceTrainer,
) -> SideTrainer:
    mixing = dict(_MIXING)
    if "side_weight" in own:
        mixing |= {"weak": own["side_weight"], "strong": own["side_weight"]}
    mixing["half_length"] = own.get("half_length", mixing["half_length"])
    numbers: dict[str, float | int] = {"ridge": _RIDGE, **{name: own[name] for name in _NUMBERS if name in own}}
    if "row_bits" in numbers:
        if not math.isfinite(numbers["row_bits"]) or numbers["row_bits"] != int(numbers["row_bits"]):
            raise ConfigError(f"got row_bits {numbers['row_bits']}, expected a whole number")
        numbers["row_bits"] = int(numbers["row_bits"])
    try:
        return SideTrainer.model_validate(
            {
                "items": items_party,
                "recommender": recommender,
                "columns": schema_text(schema),
                "alignment": alignment,
                "triples": triples,
                "mixing": MixingTerms.model_validate(mixing),
                **numbers,
            }
        )
    except ValidationError as error:
        raise ConfigError(f"[trainer]: {describe(error)}", hint="deploy/job-side.toml explains every key") from None


def _releases(expected: list[Expected], found: list[float]) -> list[Release]:
    return [
        Release(
            name=one.name, shape=one.shape, sensitivity=one.sensitivity, sigma=sigma_steps(multiplier, one.sensitivity)
        )
        for one, multiplier in zip(expected, found, strict=True)
    ]
