"""One item of correlated randomness: what it is, which tensors it has, and how it travels to the dealer.

An item is public: kind, shapes and options. Parties and dealer derive everything from it in the same way, so it is
checked in the same way on both sides: extents, elements, and multiplications are bounded before anything is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from veil.errors import WireError
from veil.mpc import shapes
from veil.mpc.shapes import Options, Shape
from veil.wire.v1 import dealer_pb2

Kind = Literal["additive", "square", "binary", "wraps", "bits", "noise"]

OPERATIONS = ("mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 64 * 2**20
# int64 multiply-adds; some ten seconds on one core.
MAX_WORK = 2**36
_OPTION_LISTS = ("stride", "padding", "dilation", "output_padding")
_MAX_OPTION = 2**16


@dataclass(frozen=True)
class Item:
    """`shapes` are those of the factors (two for additive and binary, one otherwise); `release` only for noise."""

    kind: Kind
    shapes: tuple[Shape, ...]
    operation: str = ""
    options: Options = field(default_factory=dict)
    release: str = ""

    @property
    def label(self) -> bytes:
        """Distinguishes this item's keys from those of any other item at the same index."""
        options = sorted(self.options.items())
        return repr((self.kind, self.shapes, self.operation, options, self.release)).encode("ascii")

    def result_shape(self) -> Shape:
        """Shape of the dependent tensor, the one whose correction travels. Raises `WireError` when shapes clash."""
        if self.kind not in ("additive", "binary"):
            return self.shapes[0]
        left, right = self.shapes
        shape: Shape | None
        if self.operation == "matmul":
            shape = shapes.matmul(left, right)
        elif self.operation.startswith("conv"):
            shape = shapes.convolution(self.operation, left, right, self.options)
        else:
            shape = shapes.broadcast(left, right)
        if shape is None:
            raise WireError(f"got shapes {left} and {right} for {self.operation or 'and'}, expected fitting ones")
        return shape

    def work(self) -> int:
        """int64 multiply-adds that the dealer spends on it."""
        elements = math.prod(self.result_shape())
        if self.kind != "additive" or self.operation == "mul":
            return elements
        left, right = self.shapes
        if self.operation == "matmul":
            return elements * left[-1]
        taps = math.prod(right[1:])  # channels in each group times kernel extents
        return taps * (math.prod(left) if self.operation.startswith("conv_transpose") else elements)


def apply(item: Item, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The bilinear operation of an additive item on int64 tensors, modulo 2^64."""
    if item.operation not in OPERATIONS:
        raise WireError(f"got operation {item.operation!r}, expected one of {', '.join(OPERATIONS)}")
    result: torch.Tensor = getattr(torch, item.operation)(left, right, **item.options)
    return result


def check(item: Item, *, max_elements: int = MAX_ELEMENTS, max_work: int = MAX_WORK) -> Item:
    """The item itself, when it keeps every bound; raises `WireError` otherwise."""
    if item.kind == "additive" and item.operation not in OPERATIONS:
        raise WireError(f"got operation {item.operation!r}, expected one of {', '.join(OPERATIONS)}")
    for shape in item.shapes:
        if len(shape) > MAX_DIMENSIONS:
            raise WireError(f"got {len(shape)} dimensions, expected at most {MAX_DIMENSIONS}")
        _check_elements(shape, max_elements)
    for name, value in item.options.items():
        values = value if isinstance(value, tuple) else (value,)
        if len(values) > 2 or any(not 0 <= extent <= _MAX_OPTION for extent in values):
            raise WireError(f"got {name} {value}, expected at most two numbers up to {_MAX_OPTION}")
    _check_elements(item.result_shape(), max_elements)
    if item.work() > max_work:
        raise WireError(f"got {item.work()} multiplications in one item, expected at most {max_work}")
    return item


def _check_elements(shape: Shape, max_elements: int) -> None:
    if any(extent < 0 for extent in shape) or math.prod(shape) > max_elements:
        raise WireError(f"got shape {shape}, expected at most {max_elements} elements", hint="split the tensor")


def to_wire(item: Item, job_id: str, index: int) -> dealer_pb2.CorrectRequest:
    """The request for an item's correction."""
    request = dealer_pb2.CorrectRequest(job_id=job_id, index=index)
    extents = [dealer_pb2.Shape(extents=shape) for shape in item.shapes]
    match item.kind:
        case "additive":
            triple = dealer_pb2.AdditiveTriple(operation=item.operation, left=extents[0], right=extents[1])
            if item.options:
                triple.convolution.CopyFrom(_options_to_wire(item.options))
            request.additive_triple.CopyFrom(triple)
        case "square":
            request.square_pair.CopyFrom(dealer_pb2.SquarePair(shape=extents[0]))
        case "binary":
            request.binary_triple.CopyFrom(dealer_pb2.BinaryTriple(left=extents[0], right=extents[1]))
        case "wraps":
            request.wrap_pair.CopyFrom(dealer_pb2.WrapPair(shape=extents[0]))
        case "bits":
            request.bit_pair.CopyFrom(dealer_pb2.BitPair(shape=extents[0]))
        case "noise":
            request.noise_share.CopyFrom(dealer_pb2.NoiseShare(release=item.release))
    return request


def from_wire(request: dealer_pb2.CorrectRequest) -> Item:
    """The item that a request asks for, not yet checked against bounds; a noise item comes without its shape."""
    match request.WhichOneof("item"):
        case "additive_triple":
            triple = request.additive_triple
            options = _options_from_wire(triple.convolution) if triple.HasField("convolution") else {}
            if options and not triple.operation.startswith("conv"):
                raise WireError(f"got convolution options for {triple.operation!r}, expected none")
            factors = (_shape(triple.left), _shape(triple.right))
            return Item("additive", factors, operation=triple.operation, options=options)
        case "square_pair":
            return Item("square", (_shape(request.square_pair.shape),))
        case "binary_triple":
            return Item("binary", (_shape(request.binary_triple.left), _shape(request.binary_triple.right)))
        case "wrap_pair":
            return Item("wraps", (_shape(request.wrap_pair.shape),))
        case "bit_pair":
            return Item("bits", (_shape(request.bit_pair.shape),))
        case "noise_share":
            return Item("noise", ((),), release=request.noise_share.release)
        case _:
            raise WireError("got a request for nothing, expected one item of correlated randomness")


def _shape(shape: dealer_pb2.Shape) -> Shape:
    return tuple(shape.extents)


def _options_to_wire(options: Options) -> dealer_pb2.Convolution:
    lists: dict[str, list[int]] = {}
    for name in _OPTION_LISTS:
        if name in options:
            value = options[name]
            lists[name] = list(value) if isinstance(value, tuple) else [value]
    groups = options.get("groups", 1)
    if set(options) - {*_OPTION_LISTS, "groups"} or not isinstance(groups, int):
        raise WireError(f"got options {sorted(options)}, expected {', '.join(_OPTION_LISTS)} or groups")
    return dealer_pb2.Convolution(groups=groups, **lists)


def _options_from_wire(convolution: dealer_pb2.Convolution) -> Options:
    options: Options = {name: tuple(getattr(convolution, name)) for name in _OPTION_LISTS}
    options = {name: value for name, value in options.items() if value}
    if convolution.groups not in (0, 1):
        options["groups"] = convolution.groups
    return options


def normalise(options: dict[str, object]) -> Options:
    """Options as CrypTen passes them, in the one form that both sides derive keys from."""
    clean: Options = {}
    for name, value in options.items():
        if name == "groups" and isinstance(value, int):
            if value != 1:
                clean[name] = value
        elif name in _OPTION_LISTS and isinstance(value, int):
            clean[name] = (value,)
        elif name in _OPTION_LISTS and isinstance(value, list | tuple):
            clean[name] = tuple(int(extent) for extent in value)
        else:
            raise WireError(f"got option {name}={value!r}, expected {', '.join(_OPTION_LISTS)} or groups")
    return clean
