"""Correlated randomness for CrypTen without a dealer: its tuples, made by the parties when it asks for them.

`HomomorphicProvider` has the surface of `veil.mpc.provider.DealerProvider` and returns raw int64 shares, all but two
kinds: convolutions, and wraps of shares, of which CrypTen's own truncation with three and more parties takes one. The
engine (`veil.mpc.engine`) needs neither.

Guarantee: shares are exact and uniform; what any n - 1 parties learn is in `veil.mpc.he.shared`. Every party must ask
for the same items in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from veil.errors import ConfigError
from veil.mpc.he.residues import Integers
from veil.mpc.he.shared import SharedProducts
from veil.mpc.items import Item, check
from veil.mpc.triples import Parts


class HomomorphicProvider:
    """Makes tuples with the other parties of `products`."""

    def __init__(self, products: SharedProducts) -> None:
        self._products = products

    def __repr__(self) -> str:
        return f"HomomorphicProvider(rank={self._products.rank})"

    def generate_additive_triple(
        self, size0: Sequence[int], size1: Sequence[int], op: str, device: object = None, **options: object
    ) -> Parts:
        """Shares of uniform a (size0), b (size1) and of c = op(a, b) mod 2^64, for mul and for matmul of matrices.

        Raises `ConfigError` for other operations, `WireError` for shapes that do not fit or are too large.
        """
        item = check(Item("additive", (tuple(size0), tuple(size1)), operation=op))
        left, right = (self._products.uniform(shape) for shape in item.shapes)
        if op == "mul":
            shape = item.result_shape()
            return _tensors(left, right, self._products.mul(_spread(left, shape), _spread(right, shape)))
        if op == "matmul" and left.ndim == right.ndim == 2:
            return _tensors(left, right, self._products.matmul(left, right))
        raise _unserved(f"{op} of {left.ndim} and {right.ndim} dimensions")

    def square(self, size: Sequence[int], device: object = None) -> Parts:
        """Shares of a uniform r and of r*r."""
        root = self._products.uniform(check(Item("square", (tuple(size),))).shapes[0])
        return _tensors(root, self._products.mul(root, root))

    def generate_binary_triple(self, size0: Sequence[int], size1: Sequence[int], device: object = None) -> Parts:
        """Xor shares of uniform a (size0), b (size1) and of a AND b."""
        item = check(Item("binary", (tuple(size0), tuple(size1))))
        left, right = (self._products.uniform(shape) for shape in item.shapes)
        shape = item.result_shape()
        return _tensors(left, right, self._products.conjunction(_spread(left, shape), _spread(right, shape)))

    def wrap_rng(self, size: Sequence[int], device: object = None) -> Parts:
        """Raises `ConfigError`: wraps of shares are not made."""
        raise _unserved("wraps of shares")

    def B2A_rng(self, size: Sequence[int], device: object = None) -> Parts:  # CrypTen's name
        """Uniform bits: additive shares and xor shares (one bit each) of the same."""
        item = check(Item("bits", (tuple(size),)))
        count = int(np.prod(item.shapes[0], dtype=np.int64))
        binary, additive = self._products.mixed_bits(count)
        return _tensors(self._products.anew(additive).reshape(size), binary.reshape(size))


def _spread(side: Integers, shape: Sequence[int]) -> Integers:
    return np.ascontiguousarray(np.broadcast_to(side, shape))


def _tensors(*parts: Integers) -> Parts:
    return tuple(torch.from_numpy(part) for part in parts)


def _unserved(what: str) -> ConfigError:
    return ConfigError(
        f"got a request for {what}, expected mul, matmul, squares, bits or binary triples",
        hint="take triples from a dealer, or run the job on Veil's engine",
    )
