"""The gate in front of SEAL's deserialiser: reads the envelope of a serialised object without decompressing it.

Guarantee: bytes that pass have a SEAL header whose version and total size are right, and hold one Zstandard frame that
cannot expand beyond a stated number of bytes. Anything else is refused in pure Python, before native code sees it:
SEAL 4.3.3, which TenSEAL 0.3.18 carries, lacks the hardening of untrusted deserialisation of SEAL 4.4.0.

Sources: SEAL native/src/seal/serialization.h (SEALHeader, 16 bytes); RFC 8878, sections 3.1.1.1 (frame header) and
3.1.1.2 (blocks). A compressed block expands to at most 128 KiB.
"""

from __future__ import annotations

import struct

from veil.errors import CiphertextError

_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, major, minor, compression mode, reserved, total size
_MAGIC = 0xA15E
_MAJOR = 4
_ZSTD = 2
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK_BYTES = 128 * 1024
_LARGEST_WINDOW = 8 * 1024 * 1024
_RAW, _RUN_LENGTH, _COMPRESSED = 0, 1, 2


def check(data: bytes, what: str, *, limit_bytes: int) -> None:
    """Raises `CiphertextError` unless `data` is one enveloped SEAL object of at most `limit_bytes`.

    Its content is bounded too: it expands to at most four times `limit_bytes`, or one block where that is more (random
    residues do not compress, so an honest object expands by a few percent; its blocks may be partly filled).
    """
    if not data:
        raise CiphertextError(f"got an empty {what}", hint="send what the client library made")
    if len(data) > limit_bytes:
        raise CiphertextError(f"got {what} of {len(data)} bytes, expected at most {limit_bytes}")
    if len(data) < _HEADER.size:
        raise _malformed(what, f"{len(data)} bytes, fewer than a header")
    magic, header_size, major, _minor, mode, reserved, size = _HEADER.unpack_from(data)
    if magic != _MAGIC or header_size != _HEADER.size or reserved != 0:
        raise _malformed(what, "no SEAL header")
    if major != _MAJOR:
        raise _malformed(what, f"SEAL version {major}, expected {_MAJOR}")
    if mode != _ZSTD:
        raise _malformed(what, f"compression mode {mode}, expected {_ZSTD} (Zstandard)")
    if size != len(data):
        raise _malformed(what, f"a declared size of {size} in {len(data)} bytes")
    expanded = _expanded_bytes(data[_HEADER.size :], what)
    if expanded > max(4 * limit_bytes, _BLOCK_BYTES):
        raise _malformed(what, f"content that may expand to {expanded} bytes")


def _expanded_bytes(frame: bytes, what: str) -> int:
    """An upper bound of what one Zstandard frame expands to; raises unless it is exactly one whole frame."""
    if frame[:4] != _ZSTD_MAGIC or len(frame) < 6:
        raise _malformed(what, "no Zstandard frame")
    descriptor = frame[4]
    single_segment = bool(descriptor & 0x20)
    if descriptor & 0x0B:  # a reserved bit, or a dictionary
        raise _malformed(what, "a Zstandard frame with a dictionary or reserved bits")
    position = 5
    if not single_segment:
        exponent, mantissa = frame[position] >> 3, frame[position] & 7
        window = (1 << (10 + exponent)) * (8 + mantissa) // 8
        if window > _LARGEST_WINDOW:
            raise _malformed(what, f"a Zstandard window of {window} bytes")
        position += 1
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    declared = int.from_bytes(frame[position : position + size_bytes], "little") + (256 if size_bytes == 2 else 0)
    position += size_bytes
    total = 0
    last = False
    while not last:
        if position + 3 > len(frame):
            raise _malformed(what, "a Zstandard frame that ends early")
        header = int.from_bytes(frame[position : position + 3], "little")
        last, kind, size = bool(header & 1), (header >> 1) & 3, header >> 3
        position += 3
        if kind == _RAW:
            total, position = total + size, position + size
        elif kind == _RUN_LENGTH:
            total, position = total + size, position + 1
        elif kind == _COMPRESSED and size <= _BLOCK_BYTES:
            total, position = total + _BLOCK_BYTES, position + size
        else:
            raise _malformed(what, "a Zstandard block of an unknown kind or size")
    position += 4 if descriptor & 0x04 else 0
    if position != len(frame):
        raise _malformed(what, "bytes beyond, or missing from, its Zstandard frame")
    return max(total, declared)


def _malformed(what: str, got: str) -> CiphertextError:
    return CiphertextError(
        f"got {what} that cannot be read: {got}", hint="send the bytes that the client library made, unchanged"
    )
