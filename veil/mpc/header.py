"""The fixed header in front of every message between parties, and what a receiver checks in it.

    magic "VMT1" | operation u8 | dtype u8 | dimensions u8 | 0 | sequence u64 | one u64 for each extent | data

all little-endian. Sequence numbers count the messages of one direction of one pair from 0. A receiver knows what its
own step expects, so any difference means that the two sides are not running the same program, and the job ends with
the peer named; no tensor of unexpected size or type is ever handed on.
"""

from __future__ import annotations

import enum
import math
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from veil.errors import InputError, ProtocolMismatch
from veil.mpc.transport import Payload

_FIXED = struct.Struct("<4sBBBBQ")
_MAGIC = b"VMT1"
MAX_DIMENSIONS = 8
_HEADERS = [struct.Struct(f"<4sBBBBQ{dimensions}Q") for dimensions in range(MAX_DIMENSIONS + 1)]


class Operation(enum.IntEnum):
    """Which step a message belongs to."""

    SEND = 1
    SCATTER = 2
    REDUCE = 3
    ALL_REDUCE = 4
    GATHER = 5
    ALL_GATHER = 6
    BROADCAST = 7
    BARRIER = 8
    OBJECT = 9
    KEY = 10
    AGREE = 11
    PUBLIC = 12
    BYTES = 13
    ALL_REDUCE_XOR = 14
    REDUCE_XOR = 15


# Wire number -> (torch dtype, numpy dtype, little-endian). Numbers are never reused.
_DTYPES: dict[int, tuple[torch.dtype, str]] = {
    1: (torch.int64, "<i8"),
    2: (torch.int32, "<i4"),
    3: (torch.uint8, "u1"),
    4: (torch.int8, "i1"),
    5: (torch.bool, "?"),
    6: (torch.float32, "<f4"),
    7: (torch.float64, "<f8"),
}
_NUMBER_OF = {dtype: number for number, (dtype, _) in _DTYPES.items()}
_NUMPY_OF = {dtype: np.dtype(code) for dtype, code in _DTYPES.values()}
_ITEM_BYTES = {dtype: np.dtype(code).itemsize for dtype, code in _DTYPES.values()}


@dataclass(frozen=True)
class Header:
    """What a message claims to be."""

    operation: Operation
    sequence: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def data_bytes(self) -> int:
        """Size of the data that must follow."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    def pack(self) -> bytes:
        """The header's bytes; raises `InputError` for a dtype or shape that cannot travel."""
        return pack_header(self.operation, self.sequence, self.dtype, self.shape)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.operation.name.lower()} {dtype}{list(self.shape)} as message {self.sequence}"


def pack_header(operation: Operation, sequence: int, dtype: torch.dtype, shape: Sequence[int]) -> bytes:
    """The bytes of one header; raises `InputError` for a dtype or shape that cannot travel."""
    number = _NUMBER_OF.get(dtype)
    if number is None:
        raise _cannot_travel(dtype)
    if len(shape) > MAX_DIMENSIONS:
        raise InputError(f"got {len(shape)} dimensions, expected at most {MAX_DIMENSIONS}")
    return _HEADERS[len(shape)].pack(_MAGIC, operation, number, len(shape), 0, sequence, *shape)


def _cannot_travel(dtype: torch.dtype) -> InputError:
    return InputError(f"got dtype {dtype}, expected one of {', '.join(map(str, _NUMBER_OF))}")


class Packed(NamedTuple):
    """A tensor as it travels, apart from its header; `array` and `data` are the tensor's memory where they can be."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    array: np.ndarray[Any, Any]
    """The elements in one dimension."""
    data: memoryview
    """Their bytes."""


def packed(tensor: Tensor) -> Packed:
    """Dtype, shape and data of a tensor, to be sent to any number of peers; raises `InputError` as `pack_header`."""
    if tensor.dtype not in _NUMBER_OF:
        raise _cannot_travel(tensor.dtype)
    array = tensor.detach().cpu().contiguous().numpy().reshape(-1)
    wire = array
    if sys.byteorder != "little":
        wire = array.astype(_NUMPY_OF[tensor.dtype], copy=False)
    return Packed(tensor.dtype, tuple(tensor.shape), array, wire.view(np.uint8).data)


def pack(operation: Operation, sequence: int, tensor: Tensor) -> bytes:
    """Header and data of one tensor."""
    head = pack_header(operation, sequence, tensor.dtype, tuple(tensor.shape))
    return b"".join((head, packed(tensor).data))


def unpack(message: Payload, peer: str) -> tuple[Header, memoryview]:
    """Header and data; raises `ProtocolMismatch` naming `peer` when they do not fit together."""

    def wrong(got: str, expected: str) -> ProtocolMismatch:
        return ProtocolMismatch(f"got {got} from {peer}, expected {expected}", culprits=(peer,))

    if len(message) < _FIXED.size:
        raise wrong(f"a message of {len(message)} bytes", f"a header of at least {_FIXED.size}")
    magic, operation, number, dimensions, reserved, sequence = _FIXED.unpack_from(message)
    if magic != _MAGIC or reserved != 0:
        raise wrong("a message without the protocol's mark", f"the mark {_MAGIC.decode()}")
    if number not in _DTYPES or operation not in Operation._value2member_map_ or dimensions > MAX_DIMENSIONS:
        raise wrong(f"operation {operation}, dtype {number}, {dimensions} dimensions", "known ones")
    start = _FIXED.size + 8 * dimensions
    if len(message) < start:
        raise wrong(f"a message of {len(message)} bytes", f"a header of {start}")
    shape = struct.unpack_from(f"<{dimensions}Q", message, _FIXED.size)
    header = Header(Operation(operation), sequence, _DTYPES[number][0], tuple(shape))
    data = memoryview(message)[start:]
    if len(data) != header.data_bytes:
        raise wrong(f"{len(data)} bytes of data for {header}", f"{header.data_bytes}")
    return header, data


def to_array(dtype: torch.dtype, data: memoryview) -> np.ndarray[Any, Any]:
    """The elements in `data`, whose size has been checked, in one dimension; a view, not to be written to."""
    array: np.ndarray[Any, Any] = np.frombuffer(data, dtype=_NUMPY_OF[dtype])
    if dtype is torch.bool:
        array = np.not_equal(array.view(np.uint8), 0)  # whatever a peer sends for true
    if sys.byteorder != "little":
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array


def to_tensor(header: Header, data: memoryview) -> Tensor:
    """A tensor of its own memory from checked header and data; takes over the memory of `data` where it can."""
    array = to_array(header.dtype, data)
    if not (array.flags.writeable and array.flags.aligned):
        array = array.copy()
    return torch.from_numpy(array).reshape(header.shape)
