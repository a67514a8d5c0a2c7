"""What the engine asks of a dealer: masks, and the correlations that make masked values useful.

    mask         r, uniform; shared among all parties, or known to its owner alone
    product      rows of L @ R or rows of L * R, of two masks that were asked for before; those of L perhaps transposed
    truncation   r, r >> shift and the top bit of r
    waves        r, and cos(k w r), sin(k w r) for k = 1 .. harmonics, with w = 2 pi / 2^period_bits, in fixed point
    noise        a draw of the noise of one of the job's releases

Only dependent tensors travel, and only to the party of rank 0 (`veil.mpc.triples` says why that is enough). A product
of two masks that were asked for before, so that a data matrix is masked once for a whole job, is what CrypTen's triples
cannot say.

Guarantee: an item is public, checked and bounded alike at both ends before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from veil.errors import ConfigError, WireError
from veil.mpc.items import MAX_ELEMENTS, MAX_WORK

Kind = Literal["mask", "product", "truncation", "waves", "noise"]
Operation = Literal["matmul", "mul"]
Shape = tuple[int, ...]

MOST_HARMONICS = 32
MOST_PRECISION_BITS = 40
"""Fractional bits of waves."""
MOST_PRECISION_BITS_OF_MANY = 27
"""The same without a dealer, for three and more parties: `veil.mpc.he.rotations` says what takes the rest."""
SHARED = -1


@dataclass(frozen=True, slots=True)
class EngineItem:
    """One item; only the fields of its kind are set.

    shape: of the mask, or of the product's result. owner: rank of the only party that knows a mask, or SHARED.
    """

    kind: Kind
    shape: Shape
    owner: int = SHARED
    operation: Operation = "matmul"
    left: int = 0
    right: int = 0
    first_row: int = 0
    rows: int = 0
    transposed: bool = False
    shift: int = 0
    period_bits: int = 0
    harmonics: int = 0
    precision_bits: int = 0
    release: str = ""

    @property
    def elements(self) -> int:
        """Elements of the independent tensor, or of the result of a product or a noise draw."""
        return math.prod(self.shape)

    @property
    def dependent_shape(self) -> Shape | None:
        """Shape of what is dependent; None for a mask."""
        match self.kind:
            case "mask":
                return None
            case "truncation":
                return (2, *self.shape)
            case "waves":
                return (2 * self.harmonics, *self.shape)
            case _:
                return self.shape

    @property
    def correction_bytes(self) -> int:
        """Bytes that the party of rank 0 receives for it."""
        return 0 if self.dependent_shape is None else 8 * math.prod(self.dependent_shape)


def factors(item: EngineItem, masks: Mapping[int, EngineItem]) -> tuple[Shape, Shape]:
    """Shapes of the factors of a product, after rows were cut and the left one was transposed. Raises `WireError`."""
    try:
        left, right = masks[item.left].shape, masks[item.right].shape
    except KeyError:
        raise WireError(
            f"got a product of items {item.left} and {item.right}, expected masks asked for before"
        ) from None
    if item.operation == "mul":
        if not left or not 0 <= item.first_row <= item.first_row + item.rows <= left[0]:
            raise WireError(f"got rows {item.first_row} + {item.rows} of a mask {left}, expected rows that it has")
        return (item.rows, *left[1:]), right
    if len(left) != 2 or len(right) != 2 or not 0 <= item.first_row <= item.first_row + item.rows <= left[0]:
        raise WireError(f"got rows {item.first_row} + {item.rows} of masks {left} and {right}, expected two matrices")
    cut = (item.rows, left[1])
    return (cut[::-1] if item.transposed else cut), right


def multiplications(item: EngineItem, masks: Mapping[int, EngineItem]) -> int:
    """What the product takes the dealer; 0 for other items. Raises `WireError` as `factors`."""
    if item.kind != "product":
        return 0
    return item.elements * (1 if item.operation == "mul" else factors(item, masks)[0][1])


def check(
    item: EngineItem,
    masks: Mapping[int, EngineItem],
    parties: int,
    *,
    max_elements: int = MAX_ELEMENTS,
    max_work: int = MAX_WORK,
) -> EngineItem:
    """The item itself, when it keeps every bound; raises `WireError` otherwise. masks: all asked for so far."""
    if len(item.shape) > 4 or any(extent < 1 for extent in item.shape):
        raise WireError(f"got shape {item.shape}, expected at most 4 extents of at least 1")
    if math.prod(item.dependent_shape or item.shape) > max_elements:
        raise WireError(f"got {item.kind} of shape {item.shape}, expected at most {max_elements} elements in one item")
    if not SHARED <= item.owner < (parties if item.kind == "mask" else 0):
        raise WireError(f"got {item.kind} of owner {item.owner}, expected a rank below {parties} for a mask, else none")
    if item.release and item.kind != "noise":
        raise WireError(f"got {item.kind} with a release, expected one for noise only")
    if item.kind == "truncation" and not 2 <= item.shift <= 61:
        raise WireError(f"got a truncation by {item.shift} bits, expected 2 to 61")
    if item.kind == "waves":
        bounds = (
            (item.period_bits, 8, 62),
            (item.harmonics, 1, MOST_HARMONICS),
            (item.precision_bits, 4, MOST_PRECISION_BITS),
        )
        if any(not low <= value <= high for value, low, high in bounds):
            raise WireError(
                f"got {item.harmonics} waves of {item.precision_bits} bits, {item.period_bits} bits a period;"
                f" expected 1 to {MOST_HARMONICS}, 4 to {MOST_PRECISION_BITS}, 8 to 62"
            )
    if item.kind == "product":
        left, right = factors(item, masks)
        if item.operation == "mul":
            column = len(left) == 2 and right == (left[0], 1)
            fits = left == item.shape and (right == left or column)
        else:
            fits = left[1] == right[0] and item.shape == (left[0], right[1])
        if not fits:
            raise WireError(f"got a {item.operation} of {left} and {right} as {item.shape}, expected fitting shapes")
        if (work := multiplications(item, masks)) > max_work:
            raise WireError(f"got {work} multiplications in one item, expected at most {max_work}")
    return item


def check_without_dealer(items: Sequence[EngineItem], parties: int) -> None:
    """Raises `ConfigError` unless the parties can make all items of a plan themselves (`veil.mpc.he`)."""
    most = MOST_PRECISION_BITS if parties == 2 else MOST_PRECISION_BITS_OF_MANY
    finest = max((item.precision_bits for item in items if item.kind == "waves"), default=0)
    if finest > most:
        raise ConfigError(
            f"got functions of {finest} bits for {parties} parties without a dealer, expected at most {most}",
            hint="take fewer bits, or a dealer",
        )
