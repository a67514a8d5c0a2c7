"""The gate in front of SEAL: what it lets through, and that it refuses everything else with one kind of error."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from he_inference import seal_file
from he_inference.parameters import SESSION_4096
from he_inference.scheme import CkksSession
from veil.errors import CiphertextError

LIMIT = SESSION_4096.max_query_bytes


@pytest.fixture(scope="module")
def query() -> bytes:
    return CkksSession(SESSION_4096).encrypt(np.full(SESSION_4096.slots, 0.25))


def enveloped(frame: bytes) -> bytes:
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 2, 0, 16 + len(frame)) + frame


def block(kind: int, size: int, last: bool) -> bytes:
    return ((size << 3) | (kind << 1) | int(last)).to_bytes(3, "little")


def test_a_real_object_passes(query: bytes) -> None:
    seal_file.check(query, "a query", limit_bytes=LIMIT)


def test_sizes_are_checked_first(query: bytes) -> None:
    with pytest.raises(CiphertextError, match="empty"):
        seal_file.check(b"", "a query", limit_bytes=LIMIT)
    with pytest.raises(CiphertextError, match=f"expected at most {len(query) - 1}"):
        seal_file.check(query, "a query", limit_bytes=len(query) - 1)


@pytest.mark.parametrize(
    ("position", "value", "says"),
    [
        (0, 0x5F, "no SEAL header"),
        (2, 0x20, "no SEAL header"),
        (3, 3, "version 3"),
        (5, 0, "compression mode 0"),
        (5, 1, "compression mode 1"),
        (6, 1, "no SEAL header"),
        (8, 0, "declared size"),
        (15, 0x7F, "declared size"),  # about 2^63 bytes
        (16, 0, "no Zstandard frame"),
    ],
)
def test_a_header_that_lies_is_refused(query: bytes, position: int, value: int, says: str) -> None:
    changed = bytearray(query)
    changed[position] = value
    with pytest.raises(CiphertextError, match=says):
        seal_file.check(bytes(changed), "a query", limit_bytes=LIMIT)


def test_truncation_and_appendices_are_refused_even_with_a_header_that_agrees(query: bytes) -> None:
    for size in [*range(64), *range(64, len(query), 997), len(query) - 1]:
        with pytest.raises(CiphertextError):
            seal_file.check(query[:size], "a query", limit_bytes=LIMIT)
        with pytest.raises(CiphertextError):
            seal_file.check(enveloped(query[16:size]), "a query", limit_bytes=LIMIT)
    with pytest.raises(CiphertextError, match="beyond"):
        seal_file.check(enveloped(query[16:] + b"\0"), "a query", limit_bytes=LIMIT)


def test_content_that_expands_is_refused() -> None:
    """A few bytes of run-length blocks stand for gigabytes."""
    bomb = b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(block(1, 128 * 1024, n == 999) + b"\0" for n in range(1000))
    with pytest.raises(CiphertextError, match="may expand to 131072000 bytes"):
        seal_file.check(enveloped(bomb), "a query", limit_bytes=LIMIT)
    compressed = b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(block(2, 8, n == 999) + b"\0" * 8 for n in range(1000))
    with pytest.raises(CiphertextError, match="may expand"):
        seal_file.check(enveloped(compressed), "a query", limit_bytes=LIMIT)
    declared = b"\x28\xb5\x2f\xfd\xc0\x38" + (1 << 62).to_bytes(8, "little") + block(0, 4, True) + b"\0" * 4
    with pytest.raises(CiphertextError, match="may expand"):
        seal_file.check(enveloped(declared), "a query", limit_bytes=LIMIT)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"\x28\xb5\x2f\xfd\x00\xff" + block(0, 1, True) + b"\0", "window"),
        (b"\x28\xb5\x2f\xfd\x01\x38" + block(0, 1, True) + b"\0", "dictionary"),
        (b"\x28\xb5\x2f\xfd\x00\x38" + block(3, 1, True) + b"\0", "unknown kind"),
        (b"\x28\xb5\x2f\xfd\x00\x38" + block(0, 1, False) + b"\0", "ends early"),
        (b"\x28\xb5\x2f\xfd\x00\x38" + block(0, 9, True) + b"\0", "missing from"),
    ],
)
def test_frames_outside_of_the_format_are_refused(frame: bytes, says: str) -> None:
    with pytest.raises(CiphertextError, match=says):
        seal_file.check(enveloped(frame), "a query", limit_bytes=LIMIT)


def test_random_bytes_and_random_changes_meet_one_kind_of_error(query: bytes) -> None:
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(2000):
        changed = bytearray(query[:400])
        for position in generator.integers(0, 60, 3):
            changed[position] = generator.integers(0, 256)
        for data in (bytes(changed), generator.bytes(generator.integers(1, 200))):
            try:
                seal_file.check(data, "a query", limit_bytes=LIMIT)
            except CiphertextError:
                refused += 1
    assert refused == 4000
