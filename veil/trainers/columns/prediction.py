"""Scores of new rows whose columns lie with several parties, by a published model: one party learns its own users'.

    score = intercept + sum over parties of x_i w_i + sum over units j of s_j a(z_j)         perceptron
                                                    + sum over units j of s_j a(l_j) a(r_j)  two towers

The weights are public to the parties, so each computes its own part x_i w_i alone (`ColumnsModel.part`) and rounds it
to the grid of the opened scores, 2^-bits, before anything else. Parts are shared as they are (`Engine.own`): nothing is
sent for that. Rounds beside the opening:

    linear scores, revealed users   none, and no correlated randomness
    perceptron                      the waves of z; a truncation to the grid
    towers                          the waves of both sides; both under masks; a truncation to the grid
    hidden alignment                two more: score times the recipient's own bit of whether the slot is its user's

What the recipient learns. In "reveal" mode the scores of the common users; in "hidden" mode those of all of its users,
where a party that does not hold a user adds nothing: a user whom nobody else holds has the recipient's own part and the
intercept as its score, which tells the recipient so. Slots of users that it does not hold open as 0. Nobody else learns
anything, except what the alignment tells (`veil.align.protocol`).

A score is one known function of each user's columns, told up to one step of the grid: linear parts are rounded before
they are added; the rest is cut inside the sharing to a neighbour, which, together with the opened mask, tells an
interval of one step and no more (y = ceil((x - c) / 2^f) with c public and uniform). There is no differential privacy
for the people scored: to know their scores is the purpose. One score tells at most its bits, but of several columns: of
few values each, they can be told apart by what is left without the recipient's own part. M linear models tell M linear
functions of a user's columns, and as many as these have numbers tell all; the same model tells the same again. So bits
are bounded, those before the point by the weights that are accepted (`check_model`). With hidden units every
job tells one number more: what is computed is off by up to some 2e-4 (the table of sines), in a way that depends on the
opened masks and on the units' inputs, and the cut falls elsewhere. The limits in a party's configuration are for that.

Privacy of what is sent. Openings inside are masked (`veil.mpc.engine.engine`). The last one goes to the recipient alone
and each party adds its share of zero first, for a share here may be the part itself (`veil.mpc.engine.revealing`). So
n - 1 colluding parties, the recipient among them, learn the honest party's part of the score, which is the score less
their own parts: what the score tells them in any protocol. Parties follow the protocol.
"""

from __future__ import annotations

import functools
import hashlib
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veil.align.plan import AlignmentPlan
from veil.errors import ConfigError
from veil.jobs.columns import HiddenTerms
from veil.jobs.predictions import SCORES, PredictionsTrainer
from veil.jobs.spec import JobSpec, canonical, digest
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.outline import outline
from veil.mpc.engine.plan import Plan, plan
from veil.mpc.engine.values import Value, concatenated
from veil.privacy.mechanism import vector_sensitivity
from veil.tabular.reading import PartyTable
from veil.trainers.columns.perceptron import signs
from veil.trainers.columns.publication import ColumnsModel
from veil.trainers.columns.terms import series_of

_HIDDEN_BITS: Final = 20  # fractional bits of what goes into a hidden unit
_PRECISION_BITS: Final = 16  # of waves; less for a product of two whose sum over units would not fit
_PRODUCT_BITS: Final = 61.0
_BLOCK_NUMBERS: Final = 2**22  # dependent numbers of an item: 32 MiB
_SLACK: Final = 2.0**-30
_MOST_NORM: Final = 1024.0  # of one party's linear weights: no probability needs more, an encoding of columns does
_MOST_NUMBERS: Final = 2**27  # slots times units: 1 GiB at each party
_DOMAIN: Final = b"veil/predictions/v1\x00"

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PredictionTerms:
    """What a job on predictions says, checked as far as it goes without the model."""

    trainer: PredictionsTrainer
    parties: tuple[str, ...]
    alignment: AlignmentPlan

    @classmethod
    def of(cls, spec: JobSpec) -> PredictionTerms:
        """The job's terms. Raises `ConfigError` unless they fit together."""
        trainer = spec.trainer
        if not isinstance(trainer, PredictionsTrainer):
            raise ConfigError(f"got a job of trainer {trainer.kind!r}, expected predictions")
        alignment, hidden = AlignmentPlan(**trainer.alignment.model_dump()), trainer.hidden
        if len(alignment.sizes) != len(spec.parties):
            raise ConfigError(f"got an alignment of {len(alignment.sizes)} parties, expected {len(spec.parties)}")
        if hidden is not None:
            series_of(hidden.activation)
            sides = sorted((*hidden.left, *hidden.right))
            if sides and (not hidden.left or not hidden.right or sides != list(range(len(spec.parties)))):
                raise ConfigError(f"got sides {hidden.left} and {hidden.right}, expected all parties split in two")
            if alignment.result * hidden.units > _MOST_NUMBERS:
                raise ConfigError(
                    f"got {alignment.result} slots of {hidden.units} units, expected at most {_MOST_NUMBERS} in all",
                    hint="score fewer rows in one job",
                )
        return cls(trainer, spec.parties, alignment)

    @property
    def slots(self) -> int:
        """Rows that are scored, padding included."""
        return self.alignment.result

    @property
    def units(self) -> int:
        """Hidden units; 0 for linear scores."""
        return 0 if self.trainer.hidden is None else self.trainer.hidden.units

    @property
    def recipient(self) -> int:
        """Rank of who learns the scores."""
        return self.parties.index(self.trainer.recipient)

    def rows_told(self, party: str) -> int:
        """How many of a party's users the recipient can learn scores of, at most; 0 for its own."""
        if party == self.trainer.recipient:
            return 0
        sizes = self.alignment.sizes
        return min(self.slots, sizes[self.parties.index(party)], sizes[self.recipient])

    def check_model(self, model: ColumnsModel) -> None:
        """Raises `ConfigError` unless it is these parties', with the stated hidden layer and weights within bounds."""
        named = tuple(one.party for one in model.schema.parties)
        if named != self.parties:
            raise ConfigError(
                f"got a job of {', '.join(self.parties)}, expected {', '.join(named)}, in order, as in the model"
            )
        if model.hidden != self.trainer.hidden:
            raise ConfigError("got another hidden layer than the model has, expected the same")
        norms = [float(np.linalg.norm(model.weights[model.schema.place(party), 0])) for party in named]
        if max(norms) > _MOST_NORM:
            raise ConfigError(
                f"got linear weights of norm {max(norms):.6g} at one party, expected at most {_MOST_NORM:g}",
                hint="scores of such a model would tell more of the columns than a probability does",
            )


@dataclass(frozen=True)
class Public:
    """The public numbers of a model that bound the computation.

    limits: for each party log2 of a bound on its linear part over 2^bits; intercept: over 2^bits.
    """

    limits: tuple[float, ...]
    intercept: int = 0

    @classmethod
    def of(cls, model: ColumnsModel, terms: PredictionTerms) -> Public:
        """By Cauchy and Schwarz: |x w| <= |x| |w|, where |x| is at most the party's share of the norm, on the grid."""
        limits, scale = [], 2.0**terms.trainer.bits
        for one in model.schema.parties:
            share = vector_sensitivity(one.norm_share, model.schema.bits) / 2.0**model.schema.bits
            bound = share * float(np.linalg.norm(model.weights[model.schema.place(one.party), 0]))
            limits.append(math.log2(bound * (1 + _SLACK) * scale + 1))  # and half a step of rounding
        return cls(tuple(limits), round(model.intercept * scale))

    @classmethod
    def nothing(cls, terms: PredictionTerms) -> Public:
        """Of a model of zeros: for what does not depend on the model, such as sizes of messages."""
        return cls((0.0,) * len(terms.parties))


@dataclass(frozen=True, repr=False)
class OwnParts:
    """One party's part of every slot, zeros where it has no row.

    linear: int64[slots, 1] over 2^bits. units: int64[slots, units] over 2^20, None for linear scores. present:
    int64[slots, 1], 1 where the recipient has a row; None at others and in "reveal" mode.
    """

    linear: Tensor
    units: Tensor | None
    present: Tensor | None

    def __repr__(self) -> str:
        return f"OwnParts(slots={len(self.linear)})"


def own_parts(terms: PredictionTerms, model: ColumnsModel, table: PartyTable, positions: Int64, rank: int) -> OwnParts:
    """This party's part of every slot, rounded to the grid alone.

    positions: for each aligned row the number of the own row there, or -1; no longer than the slots.
    """
    placed = np.full(terms.slots, -1, dtype=np.int64)
    placed[: len(positions)] = positions
    held = placed >= 0
    part = np.zeros((terms.slots, 1 + terms.units))
    part[held] = model.part(table)[placed[held]]
    linear = _on_grid(part[:, :1], terms.trainer.bits)
    units = present = None
    if terms.trainer.hidden is not None:
        # A unit's waves have a period, so of its input only the remainder counts, and that is bounded for any weights.
        units = _on_grid(np.remainder(part[:, 1:], terms.trainer.hidden.activation.period), _HIDDEN_BITS)
    if terms.alignment.mode == "hidden" and rank == terms.recipient:
        present = torch.from_numpy(held.astype(np.int64).reshape(-1, 1))
    return OwnParts(linear, units, present)


def _precision_bits(hidden: HiddenTerms) -> int:
    """Of the waves: half the fractional bits of an activation; a product of two has four times as many."""
    if not hidden.left:
        return _PRECISION_BITS
    size = 2 * math.log2(series_of(hidden.activation).most + 1) + math.log2(hidden.units)
    return min(_PRECISION_BITS, math.floor((_PRODUCT_BITS - size) / 4))


def _on_grid(numbers: npt.NDArray[np.float64], bits: int) -> Tensor:
    return torch.from_numpy(np.rint(numbers * 2.0**bits).astype(np.int64))


class Prediction:
    """The program of one job: parts in, shared scores out; all parties run the same."""

    def __init__(self, terms: PredictionTerms, public: Public) -> None:
        self._terms, self._public = terms, public

    def run(self, engine: Engine, own: OwnParts | None) -> Value:
        """Shared scores, int64[slots] over 2^bits. own: None in a dry run. Raises `ConfigError` beyond 62 bits."""
        terms, public = self._terms, self._public
        limits = dict(enumerate(public.limits))
        score = self._sum(engine, None if own is None else own.linear, 1, terms.trainer.bits, limits)
        if public.intercept:
            score = engine.plus(score, public.intercept)
        if terms.trainer.hidden is not None:
            score = score + self._units(engine, own)
        if terms.alignment.mode == "hidden":
            score = self._of_own_users(engine, score, own)
        return score.reshape(terms.slots)

    def _sum(self, engine: Engine, mine: Tensor | None, width: int, bits: int, limits: Mapping[int, float]) -> Value:
        """The sum of what the parties named by `limits` hold, int64[slots, width]; nothing is sent."""
        values = [
            engine.own(
                mine if rank == engine.rank else None, (self._terms.slots, width), rank, bits=bits, limit_bits=one
            )
            for rank, one in limits.items()
        ]
        return functools.reduce(operator.add, values)

    def _units(self, engine: Engine, own: OwnParts | None) -> Value:
        """What the hidden units add, on the grid of the scores; block by block of slots, so that items are bounded."""
        hidden = self._terms.trainer.hidden
        if hidden is None:
            raise ConfigError("got no hidden units, expected some")
        everybody = tuple(range(len(self._terms.parties)))
        sides = (hidden.left, hidden.right) if hidden.left else (everybody,)
        series, turns = series_of(hidden.activation), signs(hidden.units)
        mine, limit = None if own is None else own.units, math.log2(series.period) + _HIDDEN_BITS
        inputs = [self._sum(engine, mine, hidden.units, _HIDDEN_BITS, dict.fromkeys(ranks, limit)) for ranks in sides]
        precision_bits = _precision_bits(hidden)
        found = []
        for first, stop in self._blocks(len(sides) * 2 * series.harmonics * hidden.units):
            block = concatenated([value.rows(first, stop) for value in inputs], dimension=1)
            activations = engine.functions(block, series, precision_bits=precision_bits)[0]
            if hidden.left:
                left, right = engine.masked_all(
                    activations.columns(0, hidden.units), activations.columns(hidden.units, 2 * hidden.units)
                )
                activations = engine.mul(left, right)
            signed = activations.weighted(turns, 0, 0.0).sum(1)
            found.append(engine.truncated(signed, signed.bits - self._terms.trainer.bits))
        return concatenated(found)

    def _blocks(self, numbers_a_slot: int) -> Iterator[tuple[int, int]]:
        size = max(1, _BLOCK_NUMBERS // numbers_a_slot)
        for first in range(0, self._terms.slots, size):
            yield first, min(first + size, self._terms.slots)

    def _of_own_users(self, engine: Engine, score: Value, own: OwnParts | None) -> Value:
        """The scores of slots that hold a user of the recipient, 0 elsewhere."""
        recipient = self._terms.recipient
        mine = None if own is None else own.present
        present = engine.own(mine, (self._terms.slots, 1), recipient, bits=0, limit_bits=0.0)
        return engine.mul(engine.fix(present, owner=recipient), engine.masked(score))


def dry_run(terms: PredictionTerms, public: Public, *, rank: int) -> Plan:
    """The program and its opening without data, at the party of `rank`.

    Raises `ConfigError` when a number may leave its 62 bits, `WireError` for items that a dealer would refuse.
    """

    def everything(engine: Engine) -> None:
        score = Prediction(terms, public).run(engine, None)
        engine.combine_at(score, outline(score.shape), terms.recipient)

    return plan(everything, rank, len(terms.parties))


def statement(spec: JobSpec) -> bytes:
    """What all parties say of a job that has ended well, 32 bytes: nothing but public facts, for there is no model.

    SHA-256 of canonical JSON: the job's digest, the model's, the opening and its recipient.
    """
    trainer = PredictionTerms.of(spec).trainer
    facts = {
        "job": f"sha256:{digest(spec.text()).hex()}",
        "model": trainer.model,
        "opened": SCORES,
        "recipient": trainer.recipient,
        "slots": trainer.alignment.result,
    }
    return hashlib.sha256(_DOMAIN + canonical(facts).encode("ascii")).digest()
