"""Residues as bytes and back: as many bits for each as its prime has, nothing else.

Guarantee: number i of a run lies in bits [i b, (i + 1) b), least significant first; `read_rows` takes exactly one
length and only residues below their primes, and answers anything else with a `ProtocolMismatch` that names the peer.
There are no pointers, counts, versions or compressed parts, so no content of any message does more than that.
"""

from __future__ import annotations

import numpy as np

from veil.errors import ProtocolMismatch
from veil.mpc.he.jit import kernel
from veil.mpc.he.ring import Ring, Words

u32 = np.uint32
u64 = np.uint64


def row_bytes(count: int, prime: int) -> int:
    """Bytes of `count` residues of one prime."""
    return -(-count * prime.bit_length() // 8)


def rows_bytes(rows: int, count: int, ring: Ring) -> int:
    """Bytes of residues [rows, primes, count]."""
    return rows * sum(row_bytes(count, prime) for prime in ring.primes)


@kernel
def _pack(values, bits, out) -> None:  # type: ignore[no-untyped-def]
    held = u64(0)
    count = 0
    place = 0
    for j in range(values.size):
        held |= u64(values[j]) << u64(count)
        count += bits
        while count >= 8:
            out[place] = np.uint8(held & u64(255))
            held >>= u64(8)
            count -= 8
            place += 1
    if count > 0:
        out[place] = np.uint8(held & u64(255))


@kernel
def _unpack(data, bits, out) -> bool:  # type: ignore[no-untyped-def]
    # Whether the bits beyond the last number are zero.
    held = u64(0)
    count = 0
    place = 0
    most = u64((1 << bits) - 1)
    for j in range(out.size):
        while count < bits:
            held |= u64(data[place]) << u64(count)
            count += 8
            place += 1
        out[j] = u32(held & most)
        held >>= u64(bits)
        count -= bits
    clean: bool = held == u64(0)
    return clean


@kernel
def _leading_below(words, shift, prime, out) -> int:  # type: ignore[no-untyped-def]
    filled = 0
    for j in range(words.size):
        value = words[j] >> u32(shift)
        if value < prime:
            out[filled] = value
            filled += 1
            if filled == out.size:
                break
    return filled


def leading_below(words: Words, prime: int, out: Words) -> int:
    """Writes the leading bits of words, as many as the prime has, where they are below it; how many fitted."""
    return int(_leading_below(words, 32 - prime.bit_length(), u32(prime), out))


def write_rows(values: Words, ring: Ring) -> bytes:
    """The bytes of uint32[rows, primes, n]."""
    rows, primes, count = values.shape
    if primes != len(ring.primes):
        raise ValueError(f"got shape {values.shape}, expected {len(ring.primes)} primes")
    out = np.empty(rows_bytes(rows, count, ring), np.uint8)
    place = 0
    for row in values:
        for p, prime in enumerate(ring.primes):
            size = row_bytes(count, prime)
            _pack(np.ascontiguousarray(row[p]), prime.bit_length(), out[place : place + size])
            place += size
    return out.tobytes()


def read_rows(data: bytes | memoryview, rows: int, count: int, ring: Ring, *, peer: str, what: str) -> Words:
    """uint32[rows, primes, count]. Raises `ProtocolMismatch` naming `peer` for a wrong length or number."""
    expected = rows_bytes(rows, count, ring)
    if len(data) != expected:
        raise mismatch(f"{what} of {len(data)} bytes", f"{expected}", peer)
    source = np.frombuffer(data, np.uint8)
    out = np.empty((rows, len(ring.primes), count), np.uint32)
    place = 0
    for row in out:
        for p, prime in enumerate(ring.primes):
            size = row_bytes(count, prime)
            if not _unpack(source[place : place + size], prime.bit_length(), row[p]):
                raise mismatch(f"{what} with bits set beyond its end", "zeros", peer)
            place += size
    if (out >= ring.q[:, None]).any():
        raise mismatch(f"{what} with numbers beyond its modulus", "residues", peer)
    return out


def mismatch(got: str, expected: str, peer: str) -> ProtocolMismatch:
    """What is raised for a message of `peer` that does not fit."""
    return ProtocolMismatch(
        f"got {got} from {peer}, expected {expected}",
        culprits=(peer,),
        hint="the parties do not run the same steps; compare software versions and job texts",
    )
