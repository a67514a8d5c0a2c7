"""One organisation's rows times another's, summed over the users they share: how side information meets interactions.

    S = sum over users u of y_u g_u^T = Y^T G,   y_u at one party, g_u at another

Both matrices open once under masks that only their holders know; the product of the masks comes from the dealer; noise
joins inside the sharing and only the noised sum opens. One opening each, whatever the number of users.

Privacy. Unit: one user; neighbouring: a user's rows set to zero at both parties, or back. The Frobenius norm of an
outer product is the product of the norms, |y g^T| = |y| |g|, so each party clips its own rows alone and the sensitivity
of S is the product of the two clipping norms, exactly, on integers (no clipping inside the computation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from veil.errors import ConfigError, InputError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.values import Value


@dataclass(frozen=True)
class OuterProduct:
    """rows: aligned users, padding included. The left party has `left_width` numbers a user, the right `right_width`.

    left_norm, right_norm: bounds on the L2 norm of a row, in grid steps of 2^-bits.
    """

    rows: int
    left: int
    left_width: int
    right: int
    right_width: int
    bits: int
    left_norm: int
    right_norm: int

    def __post_init__(self) -> None:
        if min(self.rows, self.left_width, self.right_width, self.left_norm, self.right_norm) < 1:
            raise ConfigError("got sizes or norms below 1, expected at least 1 each")
        if self.left == self.right or not 1 <= self.bits <= 24:
            raise ConfigError(f"got parties {self.left} and {self.right}, {self.bits} bits; expected two, 1 to 24")

    @property
    def sensitivity(self) -> int:
        """L2 sensitivity of the sum over users, in steps of 2^(-2 bits)."""
        return self.left_norm * self.right_norm

    def run(self, engine: Engine, own: Tensor | None) -> Value:
        """The shared sum, int64[left_width, right_width] over 2^(2 bits).

        own: this party's rows, int64[rows, own width], clipped; None at others and in a dry run. Raises `InputError`
        for a row beyond its bound.
        """
        if own is not None:
            # Sensitivity: entries within the bound are not enough.
            norm = self.left_norm if engine.rank == self.left else self.right_norm
            if float(own.double().square().sum(1).max()) > norm * norm:
                raise InputError(f"got a row with a norm above {norm} grid steps, expected rows clipped to it")
        left = engine.own(
            own if engine.rank == self.left else None,
            (self.rows, self.left_width),
            self.left,
            bits=self.bits,
            limit_bits=math.log2(self.left_norm),
        )
        right = engine.own(
            own if engine.rank == self.right else None,
            (self.rows, self.right_width),
            self.right,
            bits=self.bits,
            limit_bits=math.log2(self.right_norm),
        )
        masked_left = engine.fix(left, owner=self.left)
        masked_right = engine.fix(right, owner=self.right)
        # Every entry of the sum is at most rows times both norms: `matmul` counts the same.
        return engine.matmul(masked_left, masked_right, transposed=True)
