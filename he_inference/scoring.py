"""Scores of all items for one encrypted user vector: pure, without network, files or keys that decrypt.

Guarantee: what is computed depends on the items and the layout only, never on a query: every query runs the same
operations and gets the same number of ciphertexts at the same level. Zero items, rows and diagonals are skipped at
encoding time (a product with a zero plaintext would be a transparent ciphertext, which SEAL refuses).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from he_inference.packing import SessionLayout
from he_inference.seam import CipherT, Evaluator, KeysT, PlainT
from veil.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScaledItems:
    """Item vectors divided by their longest: float64[items, d], rows of norm at most 1, and that norm."""

    rows: NDArray[np.float64] = field(repr=False)
    norm: float


def scale_items(factors: NDArray[np.floating]) -> ScaledItems:
    """Divides [items, d] by the largest row norm (1 when all are zero), which is what the scales are made for.

    Raises `ConfigError` when a value is not finite.
    """
    rows = np.asarray(factors, dtype=np.float64)
    if rows.ndim != 2:
        raise ConfigError(f"got item vectors of {rows.ndim} axes, expected [items, dimensions]")
    if not np.all(np.isfinite(rows)):
        raise ConfigError("got item vectors with NaN or infinity, expected finite numbers")
    norm = float(np.sqrt((rows * rows).sum(axis=1).max(initial=0.0))) or 1.0
    return ScaledItems(rows / norm, norm)


@dataclass(frozen=True, slots=True)
class EncodedItems(Generic[PlainT]):
    """Items as plaintext polynomials: for each block, for each giant step, the baby steps that are not zero."""

    layout: SessionLayout
    blocks: tuple[tuple[tuple[tuple[int, PlainT], ...], ...], ...] = field(repr=False)

    @property
    def plaintexts(self) -> int:
        """How many polynomials are held; each is 8 N bytes under one prime."""
        return sum(len(giant) for block in self.blocks for giant in block)


def encode_items(
    evaluator: Evaluator[PlainT, CipherT, KeysT], layout: SessionLayout, rows: NDArray[np.float64]
) -> EncodedItems[PlainT]:
    """Encodes float64[items, d] of row norm at most 1, once; 8 * D bytes for each item. Raises `ConfigError`."""
    if layout.parameters != evaluator.parameters:
        raise ConfigError(f"got a layout for {layout.parameters.name}, expected {evaluator.parameters.name}")
    if rows.size and float((rows * rows).sum(axis=1).max()) > 1.0 + 1e-6:
        raise ConfigError("got an item vector longer than 1, expected scaled items", hint="see scale_items")
    blocks = []
    for index in range(layout.blocks):
        block = layout.block(rows, index)
        giants = [
            [
                (baby, plaintext)
                for baby in range(layout.baby_steps)
                if (plaintext := evaluator.encode(layout.diagonal(block, giant, baby))) is not None
            ]
            for giant in range(layout.giant_steps)
        ]
        if not any(giants):
            # A block of nothing but zeros still answers with a ciphertext; it decrypts to less than the error bound.
            giants[0].append((0, evaluator.unit()))
        blocks.append(tuple(tuple(giant) for giant in giants))
    return EncodedItems(layout, tuple(blocks))


def score(
    evaluator: Evaluator[PlainT, CipherT, KeysT], items: EncodedItems[PlainT], query: CipherT, keys: KeysT
) -> list[CipherT]:
    """One ciphertext for each block of items (`he_inference.packing` draws it). `query` and `keys` are checked ones."""
    layout = items.layout
    rotated = [query]
    for _ in range(layout.baby_steps - 1):
        rotated.append(evaluator.rotate(rotated[-1], 1, keys))
    return [_score_block(evaluator, layout, block, rotated, keys) for block in items.blocks]


def _score_block(
    evaluator: Evaluator[PlainT, CipherT, KeysT],
    layout: SessionLayout,
    block: tuple[tuple[tuple[int, PlainT], ...], ...],
    rotated: list[CipherT],
    keys: KeysT,
) -> CipherT:
    # Horner: result = inner(0) + rotate(b, inner(1) + rotate(b, inner(2) + ...)), from the last giant step inwards.
    total: CipherT | None = None
    for giant in reversed(block):
        if total is not None:
            total = evaluator.rotate(total, layout.baby_steps, keys)
        for baby, plaintext in giant:
            product = evaluator.multiply(rotated[baby], plaintext)
            if total is None:
                total = product
            else:
                evaluator.add_into(total, product)
    if total is None:
        raise ConfigError("got a block without any plaintext, expected at least one", hint="encode_items adds one")
    return total
