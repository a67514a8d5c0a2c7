"""One organisation's rows times others', summed over the users they share: how side information meets interactions.

    S_p = sum over users u of y_u g_u^T = Y^T G_p,   y_u at one party, g_u at party p

All matrices open once under masks that only their holders know, a block of rows at a time; the products of masks come
as correlations; noise joins inside the sharing and only the noised sums open. Y opens once, however many others there
are. Two rounds a block with one other party, one more for each further one.

Privacy. Unit: one user; neighbouring: a user's rows set to zero at all parties, or back. The Frobenius norm of an outer
product is the product of the norms, |y g^T| = |y| |g|, so each party clips its own rows alone and the sensitivity of S
is the product of the two clipping norms, exactly, on integers (no clipping inside the computation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from veil.errors import ConfigError, InputError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.values import Opened, Value

BLOCK_ENTRIES: Final = 1 << 22
"""Of the larger factor: 32 MiB of masked numbers at a time."""
MOST_MASKS: Final = 1 << 18
"""Blocks times parties: what a dealer keeps of a job. A dry run takes some 50 microseconds for each."""

OwnRows = Callable[[int, int], Tensor]
"""First row and the one after the last -> int64[rows, own width]."""


@dataclass(frozen=True)
class Factor:
    """One party's rows: so many numbers a user over 2^bits, of an L2 norm of at most `norm` grid steps."""

    rank: int
    width: int
    bits: int
    norm: int

    def __post_init__(self) -> None:
        # So that sums of squares of a row stay below 2^63 (`check`).
        if not (1 <= self.width <= 2**22 and 1 <= self.norm <= 2**20 and 1 <= self.bits <= 20 and self.rank >= 0):
            raise ConfigError("got a width, norm or bits out of range, expected 1 to 2^22, to 2^20 and to 20")

    def check(self, rows: Tensor, expected: int) -> Tensor:
        """The rows. Raises `InputError` unless there are as many, and every one keeps the norm."""
        if tuple(rows.shape) != (expected, self.width):
            raise InputError(f"got rows of shape {tuple(rows.shape)}, expected {(expected, self.width)}")
        # Sensitivity: entries within the bound are not enough. Integers throughout, and entries from both sides first:
        # the least int64 has no magnitude and the square 0.
        if rows.numel() and (
            int(rows.min()) < -self.norm
            or int(rows.max()) > self.norm
            or int(rows.square().sum(1).max()) > self.norm * self.norm
        ):
            raise InputError(f"got a row with a norm above {self.norm} grid steps, expected rows clipped to it")
        return rows


@dataclass(frozen=True)
class OuterProducts:
    """rows: aligned users, padding included. left: whose rows meet those of each of `rights`."""

    rows: int
    left: Factor
    rights: tuple[Factor, ...]
    block_entries: int = BLOCK_ENTRIES

    def __post_init__(self) -> None:
        ranks = [self.left.rank, *(right.rank for right in self.rights)]
        if self.rows < 1 or not self.rights:
            raise ConfigError("got no rows or nobody to meet, expected at least one of each")
        if len(set(ranks)) != len(ranks):
            raise ConfigError(f"got parties {ranks}, expected two at least, each once")
        # Here, before a dry run lists them or a dealer refuses them when half of the job is paid for.
        masks = -(-self.rows // self._step) * len(ranks)
        if masks > MOST_MASKS:
            raise ConfigError(
                f"got {self.rows} rows of {self.left.width} numbers, {masks} masks, expected at most {MOST_MASKS}",
                hint="declare fewer rows, or take a smaller catalogue",
            )

    def sensitivity(self, right: Factor) -> int:
        """L2 sensitivity of the sum with that party over users, in steps of 2^-(left bits + right bits)."""
        # Sensitivity: one user adds y g^T with |y| <= left.norm, |g| <= right.norm in integers (`Factor.check`); the
        # Frobenius norm of an outer product is the product of the norms. A user whom either lacks adds zeros.
        return self.left.norm * right.norm

    @property
    def _step(self) -> int:
        return max(1, self.block_entries // max(self.left.width, *(right.width for right in self.rights)))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Rows of each block, in order."""
        for start in range(0, self.rows, self._step):
            yield start, min(start + self._step, self.rows)

    def run(self, engine: Engine, own: OwnRows | None) -> list[Value]:
        """The shared sums, int64[left width, right width] over 2^(left bits + right bits), one for each of `rights`.

        own: this party's rows, clipped; None at a party without any and in a dry run. Raises `InputError` for a row
        beyond its bound.
        """
        sums: list[Value] = []
        for start, stop in self.blocks():
            left = self._fixed(engine, self.left, start, stop, own)
            for number, right in enumerate(self.rights):
                fixed = self._fixed(engine, right, start, stop, own)
                # An entry is at most rows times both norms: `matmul` counts the same.
                product = engine.matmul(left, fixed, transposed=True)
                # Summed as they come: a block's product may be larger than its rows.
                if start:
                    sums[number] = sums[number] + product
                else:
                    sums.append(product)
        return sums

    def _fixed(self, engine: Engine, factor: Factor, start: int, stop: int, own: OwnRows | None) -> Opened:
        mine = own(start, stop) if own is not None and engine.rank == factor.rank else None
        value = engine.own(
            None if mine is None else factor.check(mine, stop - start),
            (stop - start, factor.width),
            factor.rank,
            bits=factor.bits,
            limit_bits=math.log2(factor.norm),
        )
        return engine.fix(value, owner=factor.rank)
