"""Ids of records: checked, then blinded for one job.

Guarantee: no id leaves a party. What enters the protocol is the first 128 bits of HMAC-SHA256(key, domain || id)
(RFC 2104), under a key that the parties draw together for one run and that is bound to the job's digest: two runs
have unrelated pseudonyms for the same id, and nobody outside can test a guess. The parties themselves know the key;
against each other the ids are protected by the curve (`veil.align.curve`). Among 2^24 ids two share a pseudonym with
probability below 2^-80.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from veil.errors import DataError, InputError

MAX_ID_BYTES = 256
PSEUDONYM_BYTES = 16
_DOMAIN = b"veil/align-id/v1\x00"
_MOST_LINES = 10

Pseudonyms = npt.NDArray[np.uint8]
"""(count, 16) uint8."""


def check_ids(ids: Sequence[str | bytes], most: int) -> list[bytes]:
    """The ids as bytes (UTF-8), in order; equal ids have equal bytes, so normalise spelling before.

    Raises `InputError` for more than `most`, `DataError` with row numbers from 1 for an id that is empty, longer than
    `MAX_ID_BYTES`, no text, or a repetition.
    """
    if len(ids) > most:
        raise InputError(f"got {len(ids)} ids, expected at most the {most} that the job declares for this party")
    encoded: list[bytes] = []
    wrong: list[int] = []
    for line, value in enumerate(ids, start=1):
        data = _bytes_of(value)
        if not 1 <= len(data) <= MAX_ID_BYTES:
            wrong.append(line)
        encoded.append(data)
    if wrong:
        raise DataError(
            f"got {len(wrong)} ids that are empty, too long or no text (rows {_listed(wrong)}), "
            f"expected 1 to {MAX_ID_BYTES} bytes of UTF-8",
            lines=wrong,
        )
    if len(set(encoded)) != len(encoded):
        raise _repeated(encoded)
    return encoded


def _bytes_of(value: object) -> bytes:
    """UTF-8 of the id; nothing, which is refused, for what is no id."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or len(value) > MAX_ID_BYTES:
        return b""
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        return b""


def _repeated(encoded: list[bytes]) -> DataError:
    seen: set[bytes] = set()
    lines = []
    for line, data in enumerate(encoded, start=1):
        if data in seen:
            lines.append(line)
        seen.add(data)
    return DataError(
        f"got {len(lines)} ids a second time (rows {_listed(lines)}), expected each id once",
        lines=lines,
        hint="aggregate the rows of one id before aligning",
    )


def _listed(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:_MOST_LINES]))
    return f"{shown}, ..." if len(lines) > _MOST_LINES else shown


def pseudonyms(ids: Sequence[bytes], key: bytes) -> Pseudonyms:
    """(count, 16) uint8, about a microsecond each."""
    data = b"".join(hmac.digest(key, _DOMAIN + value, "sha256")[:PSEUDONYM_BYTES] for value in ids)
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, PSEUDONYM_BYTES)


def dummies(count: int) -> Pseudonyms:
    """(count, 16) uniform uint8: pseudonyms of nobody, which no other party can tell from real ones."""
    return np.frombuffer(os.urandom(count * PSEUDONYM_BYTES), dtype=np.uint8).reshape(-1, PSEUDONYM_BYTES)
