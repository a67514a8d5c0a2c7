"""The index file: items of a catalogue as encoded polynomials, laid out so that the kernel reads them where they lie.

    0         preamble: magic, format version, bytes of the front, bytes of the header, checksum of the front
    40        header: canonical JSON, at most one page together with the preamble
    4096      for each block, the checksum of its polynomials; for each block, the checksum of its rows
    ...       one bit for each item: set when it was removed
    front     block 0, block 1, ...: uint32[primes, tiles, terms, TILE] each, little-endian, from a multiple of 4096 on

Guarantee: `read_front` returns only when every byte in front of the blocks is covered by its checksum, the header is
canonical and describes a layout that this version knows under the same parameter set, and the file is exactly as long
as that layout needs. So nothing is allocated or mapped by a number that was not checked. Checksums are BLAKE2b of 16
bytes: they find damage and mixed-up files; who may write the file is a matter of its permissions.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from he_inference.index.geometry import CHECK_BYTES, PAGE_BYTES, data_offset, file_bytes
from he_inference.index.header import REBUILD, Header, parsed, written
from he_inference.layouts.seam import Floats
from he_inference.ring.moduli import Words
from veil.errors import ArtifactError, VeilError

MAGIC: Final = b"VEIL-IDX"
VERSION: Final = 2
_PREAMBLE: Final = struct.Struct("<8sIII4x16s")
_MAX_HEADER_BYTES: Final = PAGE_BYTES - _PREAMBLE.size
# Checksums and bits of the largest catalogue in the smallest blocks take 4.5 MB.
_MAX_FRONT_BYTES: Final = 8 * 1024 * 1024

Checks = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Front:
    """Everything but the blocks. checks, row_checks: uint8[blocks, 16]; removed: bool[items]."""

    header: Header
    checks: Checks = field(repr=False)
    row_checks: Checks = field(repr=False)
    removed: NDArray[np.bool_] = field(repr=False)

    @property
    def rows_identity(self) -> bytes:
        """Names the rows that the index was made from, 16 bytes: equal for equal rows."""
        layout = self.header.layout
        digest = hashlib.blake2b(struct.pack("<QQ", layout.items, layout.dimensions), digest_size=CHECK_BYTES)
        digest.update(self.row_checks.tobytes())
        return digest.digest()


def block_check(block: Words) -> bytes:
    """Checksum of the polynomials of a block."""
    return hashlib.blake2b(block.data, digest_size=CHECK_BYTES, person=b"veil-index-block").digest()


def rows_check(rows: Floats) -> bytes:
    """Checksum of the rows of a block, float64[n, dimensions], C-contiguous."""
    return hashlib.blake2b(rows.data, digest_size=CHECK_BYTES, person=b"veil-index-rows").digest()


def front_bytes(front: Front) -> bytes:
    """The front as it stands in the file."""
    layout = front.header.layout
    text = written(front.header)
    if len(text) > _MAX_HEADER_BYTES:
        raise ArtifactError(f"got a header of {len(text)} bytes, expected at most {_MAX_HEADER_BYTES}")
    size = data_offset(layout)
    tables = front.checks.tobytes() + front.row_checks.tobytes()
    tables += np.packbits(front.removed, bitorder="little").tobytes()
    body = text.ljust(_MAX_HEADER_BYTES, b"\0") + tables.ljust(size - PAGE_BYTES, b"\0")
    check = _front_check(_PREAMBLE.pack(MAGIC, VERSION, size, len(text), bytes(CHECK_BYTES)) + body)
    return _PREAMBLE.pack(MAGIC, VERSION, size, len(text), check) + body


def read_front(descriptor: int, name: str) -> Front:
    """Reads and checks what stands in front of the blocks of an open file. Raises `ArtifactError` that names `name`."""
    try:
        return _checked(descriptor, name)
    except ArtifactError:
        raise
    except VeilError as error:
        # A layout or a parameter set that this version does not know.
        raise ArtifactError(f"index {name}: {error.message}", hint=REBUILD) from None
    except OSError as error:
        raise ArtifactError(f"got no readable index at {name}: {error.strerror}") from None


def _checked(descriptor: int, name: str) -> Front:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"got {name}, which is no file, expected an index")
    start = os.pread(descriptor, PAGE_BYTES, 0)
    if len(start) < PAGE_BYTES or start[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"got {name}, which is no index of Veil, expected one", hint=REBUILD)
    _, version, size, header_bytes, check = _PREAMBLE.unpack_from(start)
    if version != VERSION:
        raise ArtifactError(f"got index {name} of format {version}, expected format {VERSION}", hint=REBUILD)
    if size % PAGE_BYTES or not PAGE_BYTES < size <= min(_MAX_FRONT_BYTES, status.st_size):
        raise ArtifactError(
            f"got index {name} of {status.st_size} bytes with a front of {size}, expected a whole file", hint=REBUILD
        )
    front = start + _read(descriptor, size - PAGE_BYTES, PAGE_BYTES, name)
    blank = _PREAMBLE.pack(MAGIC, version, size, header_bytes, bytes(CHECK_BYTES)) + front[_PREAMBLE.size :]
    # Compared with the bytes read, so that the unused bytes of the preamble are covered as well.
    if front[: _PREAMBLE.size - CHECK_BYTES] != blank[: _PREAMBLE.size - CHECK_BYTES] or _front_check(blank) != check:
        raise ArtifactError(f"got index {name} with a damaged header, expected its checksum", hint=REBUILD)
    if not 2 <= header_bytes <= _MAX_HEADER_BYTES:
        raise ArtifactError(f"got index {name} with a header of {header_bytes} bytes, expected a page at most")
    text, rest = front[_PREAMBLE.size :][:header_bytes], front[_PREAMBLE.size + header_bytes : PAGE_BYTES]
    header = parsed(text, name)
    layout = header.layout
    if status.st_size != file_bytes(layout) or size != data_offset(layout):
        raise ArtifactError(
            f"got index {name} of {status.st_size} bytes, expected {file_bytes(layout)} for its layout", hint=REBUILD
        )
    table = np.frombuffer(front, np.uint8, 2 * CHECK_BYTES * layout.blocks, PAGE_BYTES)
    checks, row_checks = table.reshape(2, layout.blocks, CHECK_BYTES)
    start_of_bits = PAGE_BYTES + table.size
    bits = np.frombuffer(front, np.uint8, -(-layout.items // 8), start_of_bits)
    removed = np.unpackbits(bits, bitorder="little")
    if any(rest) or any(front[start_of_bits + bits.size :]) or removed[layout.items :].any():
        raise ArtifactError(f"got index {name} with bytes in its gaps, expected zeros", hint=REBUILD)
    return Front(header, checks, row_checks, removed[: layout.items].astype(np.bool_))


def _front_check(blank: bytes) -> bytes:
    return hashlib.blake2b(blank, digest_size=CHECK_BYTES, person=b"veil-index-front").digest()


def _read(descriptor: int, size: int, offset: int, name: str) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise ArtifactError(f"got index {name} that ends early, expected a whole file", hint=REBUILD)
    return data
