"""Standardisation without looking: each party's column sums are released with noise, and scale and offset follow.

Guarantee: the only thing that depends on rows is `contribution`, an exact integer sum in which one user moves at most
`sensitivity` grid steps (L2). What is made of the opened sum is post-processing, public, and the same everywhere.

With the noised sums N = sum 1, S_j = sum x_j, Q_j = sum x_j^2 over users (Q_j = S_j where x_j is 0 or 1):

    mean_j = S_j / N     variance_j = Q_j / N - mean_j^2          the method of moments, clamped to what is possible
    z_j = g w_j (x_j - mean_j) / d_j

with w_j the column's weight of the schema, d_j = sqrt(variance_j) for a linear feature and 1 for a feature of a one-hot
column (unit variance would blow up rare categories, and noise with them), and

    g = fill * share / sqrt(sum over j of w_j^2 variance_j / d_j^2)

so that a row's mean squared norm is (fill * share)^2 before it is clipped to its share. Centring matters more than
scale: without it the largest eigenvalue of X^T X is that of the mean row, and gradient steps must be small for its sake
(LeCun, Bottou, Orr and Mueller 1998, "Efficient BackProp", section 4.3).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import InputError
from veil.jobs.spec import Release
from veil.privacy.accountant import sigma_steps
from veil.privacy.mechanism import to_grid, vector_sensitivity, vector_sum
from veil.tabular.encoding import Float64, encode_features, squares_bound
from veil.tabular.reading import PartyTable
from veil.tabular.schema import ColumnsSchema, NumericColumn, PartyColumns

STATISTICS_BITS: Final = 14
_PUBLIC_STEP: Final = 2.0**20
_LEAST_VARIANCE: Final = 2.0**-12
_LEAST_RATE: Final = 2.0**-10
# On the public grid still far inside 63 bits. Any row scaled so is clipped to its share all the same.
MOST_SCALE: Final = 2.0**32
_MOST_NAME: Final = 48

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Standardisation:
    """Public numbers of one party's features: z = (x - offset) * scale.

    Attributes:
        offset: float64[width].
        scale: float64[width]; 0 for a feature that is left out.
        rate: share of positive labels among labelled rows, in (0, 1); None but at the party that holds the label.
        users: the noised number of users, at least 1.
    """

    offset: Float64
    scale: Float64
    rate: float | None
    users: float

    def public(self) -> dict[str, Int64]:
        """The same as whole numbers, in steps of 2^-20: what is broadcast and published, equal to the last bit."""
        rest = [self.users, -1.0 if self.rate is None else self.rate]
        parts = {"offset": self.offset, "scale": self.scale, "rest": np.array(rest)}
        return {name: np.rint(part * _PUBLIC_STEP).astype(np.int64) for name, part in parts.items()}

    @classmethod
    def of_public(cls, parts: Mapping[str, Int64], width: int) -> Standardisation:
        """The inverse of `public`; raises `InputError` unless the parts are what it makes for `width` features."""
        shapes = {"offset": (width,), "scale": (width,), "rest": (2,)}
        if {name: part.shape for name, part in parts.items()} != shapes or any(
            part.dtype != np.int64 for part in parts.values()
        ):
            raise InputError(f"got a standardisation of other parts, expected int64 for {width} features")
        offset, scale, rest = (parts[name] / _PUBLIC_STEP for name in shapes)
        users, rate = float(rest[0]), float(rest[1])
        if (
            np.abs(offset).max(initial=0) > 1
            or scale.min(initial=0) < 0
            or scale.max(initial=0) > MOST_SCALE
            or users < 1
            or not (rate == -1 or 0 < rate < 1)
        ):
            raise InputError("got a standardisation out of range, expected one that `standardise` made")
        return cls(offset, scale, None if rate == -1 else rate, users)


def release_name(party: str) -> str:
    """Name of a party's statistics among the job's releases, at most 48 characters; parties' names stay distinct."""
    name = f"statistics-{party}"
    if len(name) <= _MOST_NAME:
        return name
    # Names that begin alike would be equal once cut; part of a digest tells them apart.
    return f"{name[: _MOST_NAME - 9]}-{hashlib.sha256(party.encode()).hexdigest()[:8]}"


def entries(schema: ColumnsSchema, party: str) -> int:
    """Number of sums: 1, the features, the squares of linear ones, and two for the labels where the party has them."""
    mine = schema.of(party)
    return 1 + mine.width + len(_linear_places(mine)) + (2 if schema.label_party == party else 0)


def norm_bound(schema: ColumnsSchema, party: str) -> float:
    """Bound on the L2 norm of one user's entries.

    1 for the count; 1 for the labels (a row is positive, negative or neither); a column's features at most
    `squares_bound`; and x^4 <= 1 for the square of a linear feature.
    """
    mine = schema.of(party)
    labels = 1 if schema.label_party == party else 0
    squares = 1 + labels + sum(map(squares_bound, mine.columns)) + len(_linear_places(mine))
    return math.sqrt(squares)


def sensitivity(schema: ColumnsSchema, party: str) -> int:
    """L2 sensitivity of `contribution` in steps of 2^-14; add or remove one user."""
    # Sensitivity: a user adds one row of `_rows`, clipped by `to_grid` to this integer whatever it holds.
    return vector_sensitivity(norm_bound(schema, party), STATISTICS_BITS)


def statistics_release(schema: ColumnsSchema, party: str, multiplier: float) -> Release:
    """The opening that the job lists for this party's sums, with noise of `multiplier` sensitivities."""
    bound = sensitivity(schema, party)
    return Release(
        name=release_name(party),
        shape=(entries(schema, party),),
        sensitivity=bound,
        sigma=sigma_steps(multiplier, bound),
    )


def contribution(schema: ColumnsSchema, table: PartyTable) -> Int64:
    """One party's exact integer sums, int64[entries], in steps of 2^-14: what goes into the secure sum.

    Zeros for a table without rows, which is what an empty intersection leaves.
    """
    party = table.party.party
    bound = norm_bound(schema, party)
    total = np.zeros(entries(schema, party), dtype=np.int64)
    for block in table.blocks():
        # At most 2^27 slots of entries below 2^14 sqrt(65,536 + 1): far from 63 bits.
        total += vector_sum(to_grid(_rows(schema, block), bound, STATISTICS_BITS))
    return total


def _rows(schema: ColumnsSchema, table: PartyTable) -> Float64:
    features = encode_features(table)
    parts = [np.ones((table.rows, 1)), features, np.square(features[:, _linear_places(table.party)])]
    if schema.label_party == table.party.party:
        if table.labels is None:
            raise InputError("got no labels at the party that holds them, expected them")
        parts.append(np.stack([table.labels == 1, table.labels == 0], axis=1).astype(np.float64))
    return np.concatenate(parts, axis=1)


def standardise(
    schema: ColumnsSchema, party: str, opened: Int64, *, fill: float = 1.0, least_users: float = 0.0
) -> Standardisation:
    """Scale and offset from the opened sums, noise included, int64[entries].

    fill: the row's root mean square norm over the party's share, before clipping, in (0, 4]. least_users: features of
    one-hot columns with fewer users by the noised count are left out (scale 0). Raises `InputError`.
    """
    mine = schema.of(party)
    if opened.shape != (entries(schema, party),) or opened.dtype != np.int64:
        raise InputError(f"got sums of {opened.dtype} and shape {opened.shape}, expected int64 and one per entry")
    if not 0 < fill <= 4 or not least_users >= 0:
        raise InputError(f"got fill {fill} and least_users {least_users}, expected (0, 4] and at least 0")
    sums = opened / 2.0**STATISTICS_BITS
    users = min(max(float(sums[0]), 1.0), float(schema.slots))
    linear = _linear_places(mine)
    # Clamped to what is possible: noise may take a rare category's count below zero.
    mean = np.clip(sums[1 : 1 + mine.width] / users, 0.0, 1.0)
    variance = np.maximum(mean * (1.0 - mean), 0.0)
    mean[linear] = np.clip(sums[1 + np.asarray(linear, dtype=np.int64)] / users, -1.0, 1.0)
    squares = np.clip(sums[1 + mine.width : 1 + mine.width + len(linear)] / users, 0.0, 1.0)
    variance[linear] = np.maximum(squares - np.square(mean[linear]), _LEAST_VARIANCE)
    scale = np.concatenate([np.full(column.width, column.weight) for column in mine.columns])
    one_hot = np.concatenate([np.full(column.width, column.one_hot) for column in mine.columns])
    scale[linear] /= np.sqrt(variance[linear])
    scale[one_hot & (mean * users < least_users)] = 0.0
    total = float(np.sum(np.square(scale) * variance))
    scale *= fill * mine.norm_share / math.sqrt(total) if total > 0 else 0.0
    # Where all that varies hardly weighs, what does not vary would be scaled beyond every number.
    scale = np.minimum(scale, MOST_SCALE)
    rate = None
    if schema.label_party == party:
        positive, negative = (max(float(value), 1.0) for value in sums[-2:])
        rate = min(max(positive / (positive + negative), _LEAST_RATE), 1.0 - _LEAST_RATE)
    # On a public grid, so that a last place of one machine's arithmetic does not travel.
    return Standardisation.of_public(Standardisation(mean, scale, rate, users).public(), mine.width)


def _linear_places(party: PartyColumns) -> list[int]:
    """Positions of linear features among the party's: the value of each numeric column without bins."""
    return [
        place.start
        for column, place in zip(party.columns, party.slices(), strict=True)
        if isinstance(column, NumericColumn) and not column.one_hot
    ]
