"""From a budget and the public facts of split columns to a job: the descent's numbers and the noise of every release.

Guarantee: the releases cost together at most epsilon by `veil.privacy.accountant`, each step's noised sum counted as if
it had been opened, with the sensitivity of the program itself; the program was run without data, so its numbers fit.
Nothing is chosen by looking at anybody's rows: learning rate and steps follow from the budget and a public number of
users (`veil.tabular.plan.default_descent`).
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from veil.errors import ConfigError
from veil.files import read_bounded
from veil.jobs.columns import (
    MOST_SCHEMA_CHARACTERS,
    AlignmentTerms,
    ColumnsTrainer,
    DescentTerms,
    HiddenTerms,
    PlainOpening,
)
from veil.jobs.request import JobRequest
from veil.jobs.spec import Noise, Release, describe
from veil.mpc.engine.waves import Series, fit, sigmoid
from veil.privacy.accountant import epsilon as cost_of
from veil.privacy.accountant import multipliers, sigma_steps
from veil.privacy.mechanism import GRID_LIMIT
from veil.tabular.plan import STATISTICS_SHARE, default_descent
from veil.tabular.schema import ColumnsSchema, TabularSchema
from veil.trainers.columns.dry import dry_run
from veil.trainers.columns.terms import WEIGHTS, ColumnsTerms, check_triples, schema_text, terms_of

OVERRIDES: Final = (
    *("steps", "learning_rate", "momentum", "population", "statistics_share", "fill", "least_users"),
    *("reach", "period", "harmonics"),
    *("units", "scale", "spread", "seed"),
)
_REACH, _PERIOD, _HARMONICS = 7.0, 16, 10
_UNITS: Final = 8
_HIDDEN_HARMONICS, _HIDDEN_PRECISION_BITS = 6, 7
# Of half a period. A slope has no jump where the period ends; fitted on nearly all of it, it is hardly larger than 1
# anywhere, and so is the sensitivity. An activation has one, and room is left for it.
_ACTIVATION_REACH, _SLOPE_REACH = 0.8, 0.98
_VELOCITY_BITS: Final = 14
_RATE_STEPS_BITS: Final = 8  # the learning rate is kept to 1/2^8 of itself
_MOST_RATE_BITS: Final = 40
_MOST_PRECISION_BITS: Final = 16
_LEAST_PRECISION_BITS: Final = 7
Terms = TypeVar("Terms", bound=BaseModel)
SchemaT = TypeVar("SchemaT", bound=ColumnsSchema)
_SUM_BITS: Final = 60  # of a step's sum over all rows, with room for noise and momentum below 62


def read_schema(path: Path, *, slots: int, kind: type[SchemaT]) -> SchemaT:
    """A schema from TOML or, by the name's ending, JSON. `slots` need not stand in it. Raises `ConfigError`."""
    text = read_bounded(path, MOST_SCHEMA_CHARACTERS).decode("utf-8", "replace")
    try:
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name}: got text that is neither TOML nor JSON: {error}") from None
    try:
        schema = kind.model_validate({"slots": slots, **document} if isinstance(document, dict) else document)
    except ValidationError as error:
        raise ConfigError(f"{path.name}: {describe(error)}", hint="deploy/columns.toml explains every key") from None
    if schema.slots != slots:
        raise ConfigError(f"got {schema.slots} slots, expected the alignment's {slots} rows; leave slots out")
    return schema


def plan_request(request: JobRequest) -> tuple[ColumnsTrainer, tuple[Release, ...]]:
    """As `plan_columns`, from a job.toml. Raises `ConfigError`."""
    section, privacy = request.trainer, request.privacy
    if section.schema_file is None or section.alignment is None:
        raise ConfigError("got trainer columns without schema_file or alignment, expected both")
    return plan_columns(
        read_schema(section.schema_file, slots=section.alignment.result, kind=TabularSchema),
        section.alignment,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        noise=Noise(source=privacy.noise, colluding=privacy.colluding),
        triples=section.triples,
        model=section.model,
        left=section.left,
        overrides=section.overrides,
    )


def plan_columns(
    schema: TabularSchema,
    alignment: AlignmentTerms,
    *,
    epsilon: float,
    delta: float,
    noise: Noise,
    triples: str = "dealer",
    model: str = "logistic",
    left: Sequence[str] = (),
    overrides: Mapping[str, float] | None = None,
) -> tuple[ColumnsTrainer, tuple[Release, ...]]:
    """Trainer and releases of a job that costs at most (epsilon, delta), add or remove one user.

    overrides: some of `OVERRIDES`; those of the last line are for hidden units. left: parties whose columns the left
    tower reads. The noise of a release is what one draw must have. Raises `ConfigError`.
    """
    given = dict(overrides or {})
    unknown = sorted(set(given) - set(OVERRIDES))
    if unknown:
        raise ConfigError(f"got unknown settings {', '.join(unknown)}, expected some of {', '.join(OVERRIDES)}")
    parties = tuple(one.party for one in schema.parties)
    check_triples(triples, noise)
    most = alignment.result if alignment.mode == "reveal" else alignment.sizes[parties.index(schema.label_party)]
    descent = _descent(schema, given, epsilon, delta, _whole(given, "population", most, 2**26))
    hidden = None if model == "logistic" else _hidden(model, schema, given, left)
    shares = _shares(len(parties), descent.steps, given.get("statistics_share", STATISTICS_SHARE))
    found = multipliers(epsilon, delta, shares)
    # The finest residuals that leave room for sums, noise and momentum.
    for bits in range(_MOST_PRECISION_BITS, _LEAST_PRECISION_BITS - 1, -1):
        trainer = _checked(
            ColumnsTrainer,
            {
                "model": model,
                "columns": schema_text(schema),
                "alignment": alignment,
                "descent": descent.model_copy(update={"precision_bits": bits}),
                "hidden": hidden,
                "triples": triples,
                "fill": given.get("fill", 1.0),
                "least_users": given.get("least_users", 0.0),
                "openings": (
                    PlainOpening(name=WEIGHTS, shape=(schema.width, 1 if hidden is None else 1 + hidden.units)),
                ),
            },
        )
        terms = ColumnsTerms.of_trainer(trainer, parties)
        if _fits(terms, max(found), noise):
            releases = _releases(terms, found)
            break
    else:
        raise ConfigError(
            f"got {schema.slots} rows of {schema.bits} bits, which leave less than {_LEAST_PRECISION_BITS} bits for"
            " residuals, expected at least these",
            hint="take fewer bits in the schema, fewer rows, or fewer hidden units",
        )
    spent = cost_of(releases, delta)
    if spent > epsilon:
        raise ConfigError(f"got a plan that costs epsilon {spent}, expected at most {epsilon}")
    return trainer, releases


def _fits(terms: ColumnsTerms, multiplier: float, noise: Noise) -> bool:
    """Whether sums, noise and momentum stay within 62 bits and sensitivities below 2^52."""
    sensitivity = max(one.sensitivity for one in terms.expected())
    if sensitivity >= GRID_LIMIT or multiplier * sensitivity >= GRID_LIMIT:
        return False
    if math.log2(sensitivity) + math.log2(terms.layout.rows) >= _SUM_BITS:
        return False
    try:
        dry_run(terms, _releases(terms, [multiplier] * len(terms.expected())), noise, rank=0)
    except ConfigError:
        return False
    return True


def _releases(terms: ColumnsTerms, found: Sequence[float]) -> tuple[Release, ...]:
    return tuple(
        Release(
            name=one.name, shape=one.shape, sensitivity=one.sensitivity, sigma=sigma_steps(multiplier, one.sensitivity)
        )
        for one, multiplier in zip(terms.expected(), found, strict=True)
    )


def _shares(parties: int, steps: int, statistics_share: float) -> list[float]:
    if not 0 < statistics_share < 1:
        raise ConfigError(f"got statistics_share {statistics_share}, expected above 0 and below 1")
    return [statistics_share / parties] * parties + [(1 - statistics_share) / steps] * steps


def _hidden(model: str, schema: TabularSchema, given: Mapping[str, float], left: Sequence[str]) -> HiddenTerms:
    """Units a(z) = scale / sqrt(units) tanh(z), or its root for products of two: all of them together weigh `scale`."""
    units = _whole(given, "units", _UNITS, 1024)
    scale = float(given.get("scale", 1.0))
    if not 0 < scale <= 16:
        raise ConfigError(f"got scale {scale:g}, expected above 0 and at most 16")
    height = scale / math.sqrt(units) if model == "perceptron" else math.sqrt(scale / math.sqrt(units))
    parties = [one.party for one in schema.parties]
    sides: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if model == "towers":
        chosen = tuple(left) or (schema.label_party,)
        if set(chosen) - set(parties) or not set(parties) - set(chosen):
            raise ConfigError(
                f"got a left tower of {', '.join(chosen)}, expected some of {', '.join(parties)}, not all"
            )
        sides = (
            tuple(rank for rank, party in enumerate(parties) if party in chosen),
            tuple(rank for rank, party in enumerate(parties) if party not in chosen),
        )
    half, waves = _PERIOD / 2, {"period": _PERIOD, "harmonics": _HIDDEN_HARMONICS}
    activation = fit(lambda z: height * np.tanh(z), reach=_ACTIVATION_REACH * half, **waves)
    slope = fit(lambda z: height * (1 - np.tanh(z) ** 2), reach=_SLOPE_REACH * half, **waves)
    values = {
        "units": units,
        "activation": terms_of(activation),
        "slope": terms_of(slope),
        "start": _whole(given, "seed", 1, 2**31 - 1),
        "spread": float(given.get("spread", 1.0)),
        "precision_bits": _HIDDEN_PRECISION_BITS,
        "left": sides[0],
        "right": sides[1],
    }
    return _checked(HiddenTerms, values)


def _checked(kind: type[Terms], values: Mapping[str, object]) -> Terms:
    """The terms; raises `ConfigError` that names what is out of range."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"[trainer]: {describe(error)}", hint="deploy/job-columns.toml explains every key") from None


def _descent(
    schema: TabularSchema, given: Mapping[str, float], epsilon: float, delta: float, population: int
) -> DescentTerms:
    default = default_descent(epsilon, delta, population)
    rate = float(given.get("learning_rate", default.learning_rate))
    if not 0 < rate <= 1e4:
        raise ConfigError(f"got learning_rate {rate:g}, expected above 0 and at most 10,000")
    momentum = float(given.get("momentum", default.momentum))
    if not 0 <= momentum < 1:
        raise ConfigError(f"got momentum {momentum:g}, expected at least 0 and below 1")
    # On the sum of gradients: the rate on their mean over the users that are expected.
    on_sum = rate / max(1.0, population)
    rate_bits = min(_MOST_RATE_BITS, max(0, _RATE_STEPS_BITS - math.floor(math.log2(on_sum))))
    return DescentTerms(
        steps=_whole(given, "steps", default.steps, 900),
        batch=schema.slots,
        rate=max(1, round(on_sum * 2**rate_bits)),
        rate_bits=rate_bits,
        momentum=min(255, round(momentum * 256)),
        velocity_bits=_VELOCITY_BITS,
        precision_bits=_MOST_PRECISION_BITS,
        sigmoid=terms_of(_series(given)),
    )


def _series(given: Mapping[str, float]) -> Series:
    return fit(
        sigmoid,
        reach=float(given.get("reach", _REACH)),
        period=_whole(given, "period", _PERIOD, 2**16),
        harmonics=_whole(given, "harmonics", _HARMONICS, 32),
    )


def _whole(given: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = float(given.get(name, default))
    if not value.is_integer() or not 1 <= value <= most:
        raise ConfigError(f"got {name} {value:g}, expected a whole number from 1 to {most}")
    return int(value)
