"""The engine's items without a dealer: all that a plan asks for, made by the parties themselves ahead of the job.

    mask         uniform at every party, or at its owner
    product      pairwise products (`shared`); those with the same left factor are made together, so that a data matrix
                 that is masked once for a job is encrypted once
    truncation   from shared random bits
    waves        from products of rotations (`rotations`)
    noise        each party's own draw, by the function that the caller gives

Guarantee: every item is that of `veil.mpc.engine.items`, exact but for the last places of waves; items come in the
order of the plan, each once. Nothing here is trusted: any n - 1 parties that follow the protocol learn nothing of the
remaining one's masks (`shared`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from veil.errors import InputError
from veil.mpc.engine.items import SHARED, EngineItem, check
from veil.mpc.he.residues import Integers
from veil.mpc.he.rotations import rotations
from veil.mpc.he.shared import SharedProducts

Noise = Callable[[EngineItem], Tensor]
# Independent part (empty where there is none) and dependent part (None for a mask).
Parts = tuple[Integers, Integers | None]


def make(products: SharedProducts, items: Sequence[EngineItem], noise: Noise | None = None) -> list[Parts]:
    """The own shares of all items of a plan, in its order. All parties call it with the same items.

    noise: gives one party's own draw, int64 of the item's shape. Raises `WireError` for an item beyond its bounds.
    """
    masks: dict[int, EngineItem] = {}
    for number, item in enumerate(items):
        check(item, masks, products.parties)
        if item.kind == "mask":
            masks[number] = item
    made: list[Parts | None] = [None] * len(items)
    nothing = np.empty(0, np.int64)
    for number, item in enumerate(items):
        if item.kind == "mask":
            held = item.owner in (SHARED, products.rank)
            made[number] = (products.uniform(item.shape) if held else np.zeros(item.shape, np.int64), None)
        elif item.kind == "noise":
            if noise is None:
                raise InputError("got a noise item and no way to draw, expected one")
            made[number] = (nothing, noise(item).numpy())
    _truncations(products, items, made)
    _waves(products, items, made)
    _products(products, items, masks, made)
    return [parts for parts in made if parts is not None]


def _truncations(products: SharedProducts, items: Sequence[EngineItem], made: list[Parts | None]) -> None:
    for shift in sorted({item.shift for item in items if item.kind == "truncation"}):
        numbers = [n for n, item in enumerate(items) if item.kind == "truncation" and item.shift == shift]
        r, cut, top = products.truncation_pairs(sum(items[n].elements for n in numbers), shift)
        at = 0
        for n in numbers:
            part, shape = slice(at, at + items[n].elements), items[n].shape
            at = part.stop
            made[n] = (r[part].reshape(shape), np.stack([cut[part], top[part]]).reshape(2, *shape))


def _waves(products: SharedProducts, items: Sequence[EngineItem], made: list[Parts | None]) -> None:
    kinds = {(i.period_bits, i.harmonics, i.precision_bits) for i in items if i.kind == "waves"}
    for kind in sorted(kinds):
        numbers = [
            n
            for n, item in enumerate(items)
            if item.kind == "waves" and (item.period_bits, item.harmonics, item.precision_bits) == kind
        ]
        masks = products.uniform((sum(items[n].elements for n in numbers),))
        waves = rotations(products, masks, *kind)
        at = 0
        for n in numbers:
            part, shape = slice(at, at + items[n].elements), items[n].shape
            at = part.stop
            made[n] = (masks[part].reshape(shape), waves[:, part].reshape(len(waves), *shape))


def _products(
    products: SharedProducts, items: Sequence[EngineItem], masks: dict[int, EngineItem], made: list[Parts | None]
) -> None:
    groups: dict[tuple[object, ...], list[int]] = {}
    for n, item in enumerate(items):
        if item.kind == "product":
            owners = (masks[item.left].owner, masks[item.right].owner)
            matrix = (item.left, item.first_row, item.rows, item.transposed) if item.operation == "matmul" else ()
            groups.setdefault((item.operation, *owners, *matrix), []).append(n)
    nothing = np.empty(0, np.int64)
    for numbers in groups.values():
        first = items[numbers[0]]
        holders = [products.holders(masks[side].owner) for side in (first.left, first.right)]
        lefts = [_rows(made, items[n]) for n in numbers]
        rights = [_independent(made, items[n].right) for n in numbers]
        if first.operation == "matmul":
            left = np.ascontiguousarray(lefts[0].T if first.transposed else lefts[0])
            result = products.matmul(left, np.concatenate(rights, axis=1), *holders)
            parts = np.split(result, np.cumsum([right.shape[1] for right in rights])[:-1], axis=1)
        else:
            # The right factor may be one column for all of the left one's.
            spread = [np.broadcast_to(right, items[n].shape).ravel() for n, right in zip(numbers, rights, strict=True)]
            result = products.mul(np.concatenate([left.ravel() for left in lefts]), np.concatenate(spread), *holders)
            parts = np.split(result, np.cumsum([left.size for left in lefts])[:-1])
        for n, part in zip(numbers, parts, strict=True):
            made[n] = (nothing, np.ascontiguousarray(part.reshape(items[n].shape)))


def _rows(made: Sequence[Parts | None], item: EngineItem) -> Integers:
    return _independent(made, item.left)[item.first_row : item.first_row + item.rows]


def _independent(made: Sequence[Parts | None], number: int) -> Integers:
    parts = made[number]
    if parts is None:
        raise InputError(f"got a product of item {number}, expected a mask")
    return parts[0]
