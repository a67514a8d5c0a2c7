"""What is public about columns that lie with several parties: how many rows, who holds how many columns, the bounds.

Rows are aligned: row i is the same user at every party (`veil.align`). Each party's numbers are integers on a grid and
each of its rows has a norm of at most its share, so that a whole row has a norm of at most 1 (`veil.tabular`). A row
that is padding is zero at every party and has the label 0 with weight 0.

Guarantee: sensitivities count on the norm of whole rows, which no party sees. The squares of the shares sum to no more
than that norm's, and each party checks its own part against its own share, both on integers (`OwnColumns.check`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from veil.errors import ConfigError, InputError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.values import Opened, Value
from veil.privacy.mechanism import within

WEIGHT_BITS = 4


@dataclass(frozen=True)
class Layout:
    """rows: padded number of aligned rows. widths: columns of each party, by rank. label: rank of who has the labels.

    feature_bits: fractional bits of features; norm: bound on a row's Euclidean norm over all parties, as a number;
    shares: bound on the norm of each party's part of a row, by rank, in steps of 2^-feature_bits.
    most_weight: bound on the weights of rows (classes that count more, slots that hold nobody); 0: all weigh 1.
    """

    rows: int
    widths: tuple[int, ...]
    label: int
    feature_bits: int
    norm: float
    shares: tuple[int, ...]
    most_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.rows < 1 or not any(self.widths) or min(self.widths) < 0:
            raise ConfigError(f"got {self.rows} rows of {self.widths} columns, expected at least one of each")
        if not 0 <= self.label < len(self.widths) or not 1 <= self.feature_bits <= 24 or not 0 < self.norm <= 2**20:
            raise ConfigError(
                "got a label's rank, feature bits or norm out of range, expected a party, 1 to 24, to 2^20"
            )
        # Sensitivity: |x|^2 = sum over parties of |x_i|^2, and no party sees another's part.
        squares = sum(share * share for share in self.shares)
        if len(self.shares) != len(self.widths) or min(self.shares) < 0 or squares > self.row_steps**2:
            raise ConfigError(
                f"got shares {self.shares} of a row's norm of {self.row_steps} steps,"
                f" expected {len(self.widths)} of them whose squares sum to at most its square"
            )

    @property
    def weight_bits(self) -> int:
        """Fractional bits that weights add; 0 where all weigh 1."""
        return WEIGHT_BITS if self.most_weight else 0

    @property
    def columns(self) -> int:
        """Columns of all parties together."""
        return sum(self.widths)

    @property
    def entry_bits(self) -> float:
        """log2 of a bound on every entry, as an integer on the grid."""
        return self.feature_bits + math.log2(self.norm)

    @property
    def row_steps(self) -> int:
        """Bound on the norm of a whole row, in steps of 2^-feature_bits."""
        return math.ceil(self.norm * (1 << self.feature_bits))

    @property
    def holders(self) -> tuple[int, ...]:
        """Ranks of parties with columns."""
        return tuple(rank for rank, width in enumerate(self.widths) if width)

    def places(self) -> dict[int, tuple[int, int]]:
        """Of each party with columns: its first column among all, and the one after its last."""
        ends = [sum(self.widths[: rank + 1]) for rank in range(len(self.widths))]
        return {rank: (ends[rank] - self.widths[rank], ends[rank]) for rank in self.holders}

    def batches(self, size: int) -> list[tuple[int, int]]:
        """Rows of each batch, in order; the last may be shorter."""
        return [(start, min(start + size, self.rows)) for start in range(0, self.rows, size)]


@dataclass(frozen=True, repr=False)
class OwnColumns:
    """One party's part: features int64[rows, own width], labels int64[rows, 1] over 2^label_bits at their holder.

    weights: at the labels' holder, int64[rows, 1] over 2^WEIGHT_BITS, where the layout has a `most_weight`.
    """

    features: Tensor | None
    labels: Tensor | None = None
    weights: Tensor | None = None

    def __repr__(self) -> str:
        shape = None if self.features is None else tuple(self.features.shape)
        return f"OwnColumns(features={shape}, labels={self.labels is not None})"

    def check(self, layout: Layout, rank: int) -> None:
        """Raises `InputError` unless this is what the party of `rank` must bring, each row within its share."""
        wanted = (layout.rows, layout.widths[rank]) if layout.widths[rank] else None
        got = None if self.features is None else tuple(self.features.shape)
        if got != wanted or (self.labels is not None) != (rank == layout.label):
            raise InputError(f"got columns of shape {got}, expected {wanted}, and labels at rank {layout.label} only")
        weighs = bool(layout.most_weight) and rank == layout.label
        if (self.weights is not None) != weighs:
            raise InputError("got weights at the wrong party or none, expected them where the labels are, as declared")
        for one in (self.labels, self.weights):
            if one is not None and (one.dtype != torch.int64 or tuple(one.shape) != (layout.rows, 1)):
                raise InputError(f"got {one.dtype} {tuple(one.shape)}, expected torch.int64 {(layout.rows, 1)}")
        if self.labels is not None and not 0 <= int(self.labels.min()) <= int(self.labels.max()) <= 1:
            raise InputError("got labels other than 0 and 1, expected those: sensitivity counts on it")
        most = most_weight(layout)
        if self.weights is not None and not 0 <= int(self.weights.min()) <= int(self.weights.max()) <= most:
            raise InputError(f"got weights out of range, expected 0 to {layout.most_weight:g}")
        if self.features is not None:
            if self.features.dtype != torch.int64:
                raise InputError(f"got features of {self.features.dtype}, expected torch.int64")
            share = layout.shares[rank]
            if not within(self.features.numpy(), share).all():
                raise InputError(
                    f"got a row with a norm above this party's share of {share} steps of 2^-{layout.feature_bits},"
                    " expected rows clipped to it"
                )


def fixed_features(engine: Engine, layout: Layout, own: OwnColumns | None) -> dict[int, Opened]:
    """Every party's features, opened under a mask that only the party knows: once for a job. By rank.

    own: None in a dry run. Each party sends its rows times its columns times 8 bytes to every other; one round each.
    """
    opened: dict[int, Opened] = {}
    for rank in layout.holders:
        mine = own.features if own is not None and rank == engine.rank else None
        value = engine.own(
            mine,
            (layout.rows, layout.widths[rank]),
            rank,
            bits=layout.feature_bits,
            limit_bits=layout.entry_bits,
        )
        opened[rank] = engine.fix(value, owner=rank)
    return opened


def labels_of(engine: Engine, layout: Layout, own: OwnColumns | None, bits: int) -> Value:
    """The labels as shared numbers of `bits` fractional bits; nothing is sent."""
    mine = own.labels if own is not None and engine.rank == layout.label else None
    if mine is not None:
        mine = mine.to(torch.int64) << bits
    return engine.own(mine, (layout.rows, 1), layout.label, bits=bits, limit_bits=float(bits))


def fixed_weights(engine: Engine, layout: Layout, own: OwnColumns | None) -> Opened | None:
    """The weights of rows, opened under a mask that their holder knows; None where all weigh 1. One round."""
    if not layout.most_weight:
        return None
    mine = own.weights if own is not None and engine.rank == layout.label else None
    limit_bits = math.log2(most_weight(layout))
    value = engine.own(mine, (layout.rows, 1), layout.label, bits=WEIGHT_BITS, limit_bits=limit_bits)
    return engine.fix(value, owner=layout.label)


def most_weight(layout: Layout) -> int:
    """The bound on weights, over 2^WEIGHT_BITS; 2^WEIGHT_BITS where all weigh 1."""
    return math.ceil((layout.most_weight or 1.0) * (1 << WEIGHT_BITS))
