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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veil.errors import InputError, ProtocolMismatch

_FIXED = struct.Struct("<4sBBBBQ")
_MAGIC = b"VMT1"
MAX_DIMENSIONS = 8


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
        number = _NUMBER_OF.get(self.dtype)
        if number is None:
            raise InputError(f"got dtype {self.dtype}, expected one of {', '.join(map(str, _NUMBER_OF))}")
        if len(self.shape) > MAX_DIMENSIONS:
            raise InputError(f"got {len(self.shape)} dimensions, expected at most {MAX_DIMENSIONS}")
        fixed = _FIXED.pack(_MAGIC, self.operation, number, len(self.shape), 0, self.sequence)
        return fixed + struct.pack(f"<{len(self.shape)}Q", *self.shape)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.operation.name.lower()} {dtype}{list(self.shape)} as message {self.sequence}"


def pack(operation: Operation, sequence: int, tensor: Tensor) -> bytes:
    """Header and data of one tensor."""
    tensor = tensor.detach().cpu().contiguous()
    header = Header(operation, sequence, tensor.dtype, tuple(tensor.shape)).pack()
    code = _DTYPES[_NUMBER_OF[tensor.dtype]][1]
    return b"".join((header, tensor.numpy().astype(code, copy=False).tobytes()))


def unpack(message: bytes, peer: str) -> tuple[Header, memoryview]:
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


def to_tensor(header: Header, data: memoryview) -> Tensor:
    """A tensor of its own memory from checked header and data."""
    code = _DTYPES[_NUMBER_OF[header.dtype]][1]
    array = np.frombuffer(data, dtype=code).copy()
    if header.dtype is torch.bool:
        array = np.frombuffer(data, dtype=np.uint8) != 0
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(header.shape)
