"""A tensor's shape without its numbers, for dry runs: what the engine does to tensors, done to shapes.

torch has such tensors (its "meta" device), but its first arithmetic on one imports a compiler, seconds on a small
machine; the engine uses a dozen operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from veil.errors import InputError
from veil.mpc.shapes import broadcast


def outline(shape: Sequence[int]) -> Tensor:
    """An outline where a tensor is expected."""
    return cast(Tensor, Outline(shape))


class Outline:
    """Stands in for an int64 tensor of this shape. Operations it does not know raise `InputError`."""

    dtype = torch.int64
    is_meta = True

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(int(extent) for extent in shape)

    def __repr__(self) -> str:
        return f"Outline{self.shape}"

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    def element_size(self) -> int:
        return 8

    def _with(self, other: object) -> Outline:
        shape = getattr(other, "shape", ())
        return Outline(_broadcast(self.shape, tuple(shape)))

    __add__ = __sub__ = __mul__ = __radd__ = __rmul__ = __rsub__ = _with

    def __neg__(self) -> Outline:
        return self

    def __rshift__(self, bits: int) -> Outline:
        return self

    __and__ = __lshift__ = __rshift__

    def t(self) -> Outline:
        return Outline(self.shape[::-1])

    def contiguous(self) -> Outline:
        return self

    def reshape(self, *shape: int | Sequence[int]) -> Outline:
        wanted = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
        sizes = [int(extent) for extent in wanted if isinstance(extent, int)]
        if -1 in sizes:
            rest = -math.prod(sizes)
            sizes[sizes.index(-1)] = self.numel() // rest if rest else 0
        if math.prod(sizes) != self.numel():
            raise InputError(f"got shape {tuple(sizes)} for {self.numel()} numbers, expected one that fits")
        return Outline(sizes)

    def sum(self, dimension: int, keepdim: bool = False) -> Outline:
        sizes = list(self.shape)
        if keepdim:
            sizes[dimension] = 1
        else:
            del sizes[dimension]
        return Outline(sizes)

    def __getitem__(self, places: Any) -> Outline:
        places = places if isinstance(places, tuple) else (places,)
        sizes: list[int] = []
        for place, extent in zip(places, self.shape, strict=False):
            if isinstance(place, slice):
                sizes.append(len(range(*place.indices(extent))))
            elif not isinstance(place, int):
                raise InputError(f"got an index of {type(place).__name__} in a dry run, expected numbers and slices")
        return Outline([*sizes, *self.shape[len(places) :]])

    def __iter__(self) -> Any:
        return iter([Outline(self.shape[1:])] * self.shape[0])

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Outline:
        """torch.cat of outlines, and sums, differences and products with a tensor on the left."""
        if function is torch.cat:
            parts, dimension = arguments[0], (options or {}).get("dim", arguments[1] if len(arguments) > 1 else 0)
            sizes = list(parts[0].shape)
            sizes[dimension] = sum(part.shape[dimension] for part in parts)
            return cls(sizes)
        if function in (torch.Tensor.add, torch.Tensor.sub, torch.Tensor.mul):
            one, other = arguments[:2]
            return cls(_broadcast(tuple(one.shape), tuple(other.shape)))
        raise InputError(f"got {getattr(function, '__name__', function)} in a dry run, expected what `Outline` has")


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    shape = broadcast(one, other)
    if shape is None:
        raise InputError(f"got shapes {one} and {other}, expected ones that fit")
    return shape
