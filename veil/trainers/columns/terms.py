"""A columns job's public terms as the objects that its program takes: schema, alignment, layout, descent, releases.

Guarantee: `ColumnsTerms.of` returns only when the terms fit together, every release has the sensitivity of the program
that will run, and the openings are exactly those of the program; each party calls it before it signs, and its worker
again before it runs, so no number of a job is believed that can be recomputed.

Unit and neighbours: one user is one row at each party; a user is there or is a row of zeros at every party
(`veil.tabular.grid`). Each party's statistics and every step's noised sum count, although no sum of a step ever opens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from veil.align.plan import AlignmentPlan
from veil.errors import ConfigError
from veil.jobs.columns import ColumnsTrainer, DescentTerms, HiddenTerms, SeriesTerms
from veil.jobs.spec import JobSpec, Noise, Release, canonical, describe
from veil.mpc.engine.waves import Series
from veil.privacy.mechanism import vector_sensitivity
from veil.tabular import statistics
from veil.tabular.schema import TabularSchema
from veil.trainers.columns.descent import AddNoise, Descent, Program
from veil.trainers.columns.layout import WEIGHT_BITS, Layout
from veil.trainers.columns.logistic import Logistic
from veil.trainers.columns.perceptron import Hidden, Perceptron
from veil.trainers.columns.towers import Sides, Towers
from veil.trainers.seam import Expected, check_releases

WEIGHTS: Final = "weights"
OFFSET_BITS: Final = 16
PAID_TOGETHER: Final = 4
"""Steps that a party pays for in one commit of its ledger."""
_NORM: Final = 1.0


def check_triples(triples: str, noise: Noise) -> None:
    """Raises `ConfigError` for triples without a dealer where the dealer is to draw the noise."""
    if triples == "he" and noise.source != "parties":
        raise ConfigError(
            f"got triples {triples!r} with noise by the {noise.source}, expected noise by the parties",
            hint="a job without a dealer has none to draw noise",
        )


def step_name(step: int) -> str:
    """Name of a step's release; steps count from 0."""
    return f"step-{step:04d}"


def schema_of(text: str) -> TabularSchema:
    """The schema of a job text. Raises `ConfigError` when it is malformed or not canonical."""
    try:
        schema = TabularSchema.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"columns: {describe(error)}") from None
    if schema_text(schema) != text:
        raise ConfigError("got columns that are not canonical, expected sorted keys, no white space, every key")
    return schema


def schema_text(schema: TabularSchema) -> str:
    """Canonical JSON."""
    return canonical(schema.model_dump(mode="json"))


@dataclass(frozen=True)
class ColumnsTerms:
    """What a columns job says, checked."""

    trainer: ColumnsTrainer
    schema: TabularSchema
    alignment: AlignmentPlan
    layout: Layout
    descent: Descent

    @classmethod
    def of(cls, spec: JobSpec) -> ColumnsTerms:
        """The job's terms. Raises `ConfigError` unless trainer, openings and releases fit together."""
        if not isinstance(spec.trainer, ColumnsTrainer):
            raise ConfigError(f"got a job of trainer {spec.trainer.kind!r}, expected columns")
        terms = cls.of_trainer(spec.trainer, spec.parties)
        check_triples(spec.trainer.triples, spec.privacy.noise)
        check_releases(spec, terms.expected())
        return terms

    @classmethod
    def of_trainer(cls, trainer: ColumnsTrainer, parties: tuple[str, ...]) -> ColumnsTerms:
        """As `of`, before there are releases."""
        schema = schema_of(trainer.columns)
        named = tuple(one.party for one in schema.parties)
        if named != parties:
            raise ConfigError(f"got columns of {', '.join(named)}, expected those of {', '.join(parties)}, in order")
        alignment = AlignmentPlan(**trainer.alignment.model_dump())
        if len(alignment.sizes) != len(parties) or alignment.result != schema.slots:
            raise ConfigError(
                f"got an alignment of {len(alignment.sizes)} parties into {alignment.result} rows, expected"
                f" {len(parties)} and the columns' {schema.slots} slots"
            )
        # Sensitivity: one user more moves others to other slots. A sum over all slots does not notice; with batches,
        # users would change between them, and a step's sum would change by more than one user's summand.
        if trainer.descent.batch != schema.slots:
            raise ConfigError(f"got batches of {trainer.descent.batch} rows, expected all {schema.slots} in every step")
        layout = layout_of(schema, hidden=alignment.mode == "hidden")
        terms = cls(trainer, schema, alignment, layout, descent_of(trainer.descent))
        terms._check_openings()
        return terms

    def _check_openings(self) -> None:
        listed = [(one.name, one.shape) for one in self.trainer.openings]
        wanted = (self.layout.columns, self.outputs)
        if listed != [(WEIGHTS, wanted)]:
            raise ConfigError(f"got openings {listed}, expected {WEIGHTS} of shape {wanted} and nothing else")

    @property
    def outputs(self) -> int:
        """Weights of each column: one for the linear part, one for each hidden unit."""
        return 1 + (0 if self.trainer.hidden is None else self.trainer.hidden.units)

    def program(self, noise: AddNoise | None = None, *, offset: int = 0) -> Program:
        """What the parties run. offset: what every score has on top, public, over 2^16. Raises `ConfigError`."""
        layout, descent, top = self.layout, self.descent, offset / 2**OFFSET_BITS
        model, terms = self.trainer.model, self.trainer.hidden
        sides = () if terms is None else (*terms.left, *terms.right)
        if (model == "logistic") != (terms is None) or (model == "towers") != bool(sides):
            raise ConfigError(f"got model {model} with another hidden layer than it has, expected one that fits")
        if terms is None:
            return Logistic(layout, descent, noise=noise, offset=top)
        if model == "perceptron":
            return Perceptron(layout, descent, hidden_of(terms), noise=noise, offset=top)
        return Towers(layout, descent, hidden_of(terms), Sides(terms.left, terms.right), noise=noise, offset=top)

    def expected(self) -> list[Expected]:
        """Every release of the job, in order: each party's statistics, then the noised sum of each step."""
        found = [
            Expected(
                statistics.release_name(one.party),
                (statistics.entries(self.schema, one.party),),
                statistics.sensitivity(self.schema, one.party),
            )
            for one in self.schema.parties
        ]
        # Sensitivity: that of the program itself, which bounds |p - y| for every model (`Descent.residual_limit`).
        bound = self.program().sensitivity
        steps = range(self.descent.steps)
        shape = (self.layout.columns * self.outputs,)
        return [*found, *(Expected(step_name(step), shape, bound) for step in steps)]

    def offset(self, rate: float) -> int:
        """The public log odds of the base rate, class weights included, over 2^16."""
        label = self.schema.label
        positive, negative = rate * label.positive_weight, (1 - rate) * label.negative_weight
        return round(math.log(positive / negative) * 2**OFFSET_BITS)


def layout_of(schema: TabularSchema, *, hidden: bool) -> Layout:
    """The joint rows. Rows weigh 1 where all that stand in a slot have a label and classes weigh alike."""
    most = max(schema.label.positive_weight, schema.label.negative_weight)
    if min(schema.label.positive_weight, schema.label.negative_weight) < 2.0**-WEIGHT_BITS:
        raise ConfigError(f"got a class that weighs less than 1/{1 << WEIGHT_BITS}, expected at least that")
    weighs = hidden or (schema.label.positive_weight, schema.label.negative_weight) != (1.0, 1.0)
    return Layout(
        rows=schema.slots,
        widths=tuple(one.width for one in schema.parties),
        label=[one.party for one in schema.parties].index(schema.label_party),
        feature_bits=schema.bits,
        norm=_NORM,
        shares=tuple(vector_sensitivity(one.norm_share, schema.bits) for one in schema.parties),
        most_weight=most if weighs else 0.0,
    )


def descent_of(terms: DescentTerms) -> Descent:
    """The descent of a job text."""
    values = terms.model_dump(exclude={"sigmoid"})
    return Descent(**values, sigmoid=series_of(terms.sigmoid))


def hidden_of(terms: HiddenTerms) -> Hidden:
    """The hidden layer of a job text."""
    values = terms.model_dump(exclude={"activation", "slope", "left", "right"})
    return Hidden(**values, activation=series_of(terms.activation), slope=series_of(terms.slope))


def series_of(terms: SeriesTerms) -> Series:
    """The waves of a job text. Raises `ConfigError` unless they are ones."""
    if len(terms.sines) != len(terms.cosines) or terms.period & (terms.period - 1):
        raise ConfigError("got waves of two lengths or a period that is no power of two, expected one of each")
    return Series(terms.period, terms.reach, terms.constant, terms.sines, terms.cosines, terms.error)


def terms_of(series: Series) -> SeriesTerms:
    """Waves as they stand in a job text."""
    return SeriesTerms(
        period=series.period,
        reach=series.reach,
        constant=series.constant,
        sines=series.sines,
        cosines=series.cosines,
        error=series.error,
    )


def noise_limit_bits(release: Release, draws: int) -> float:
    """log2 of a bound on an entry of `draws` draws of a release's noise: 40 standard deviations and the roundings."""
    return math.log2(40 * release.sigma * (math.isqrt(draws - 1) + 1) + draws)
