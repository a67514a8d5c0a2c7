"""Masks and shares of zero from AES-256 in counter mode; keys by HKDF-SHA256 with a label for each use.

Guarantee. Let party i hold x_i and publish s_i = x_i + z_i in Z_2^64, where

    z_i = sum over j < i of R_ij  -  sum over j > i of R_ij

and R_ij is a stream whose key only i and j know. All z_i sum to zero: R_ij enters once with each sign. Take any set C
of colluders and its complement H. Colluders can remove every R_ij with an end in C. What remains are the R_ij with
both ends in H: one independent uniform mask for each edge of the complete graph on H. A complete graph is connected,
so the masks make (s_i for i in H) uniform among all tuples with the right sum: colluders learn the sum of x_i over H
and nothing else. (CrypTen masks along a ring only; there, the two neighbours of a party can unmask it while other
honest parties exist.) With xor in place of + and - the same holds for binary shares, bit by bit.

Uniformity is computational: AES-256 as a pseudorandom permutation (NIST SP 800-38A, CTR; a stream ends long before
2^64 blocks), HKDF as in RFC 5869. torch's CPU generator, which CrypTen uses, keeps 32 bits of its seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from veil.errors import InputError

KEY_BYTES = 32
_DOMAIN = b"veil/mpc/v1"
_BLOCK_BYTES = 16
_ZEROS = bytes(2**20)


def derive_key(secret: bytes, *labels: bytes) -> bytes:
    """A 32-byte key for one use. Labels are length-prefixed, so two different lists never coincide."""
    if len(secret) < KEY_BYTES:
        raise InputError(f"got a secret of {len(secret)} bytes, expected at least {KEY_BYTES}")
    info = b"".join(len(label).to_bytes(4, "little") + label for label in (_DOMAIN, *labels))
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


class RingSource(Protocol):
    """Whatever yields uniform tensors."""

    def ring(self, size: Sequence[int]) -> Tensor:
        """int64, uniform over the ring Z_2^64."""
        ...

    def bits(self, size: Sequence[int], count: int) -> Tensor:
        """int64, uniform over [0, 2^count)."""
        ...


class RingStream:
    """One key's stream of ring elements, 8 bytes each, little-endian.

    Two holders of the key who ask for the same sizes in the same order get the same tensors.
    """

    def __init__(self, key: bytes, label: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise InputError(f"got a key of {len(key)} bytes, expected {KEY_BYTES}")
        cipher = Cipher(algorithms.AES(derive_key(key, b"ring-stream", label)), modes.CTR(bytes(_BLOCK_BYTES)))
        self._encryptor = cipher.encryptor()

    def __repr__(self) -> str:
        return "RingStream(AES-256-CTR)"

    def ring(self, size: Sequence[int]) -> Tensor:
        count = math.prod(size)
        # update_into wants room for one block more than it writes; the tail is cut off again below.
        out = np.empty(8 * count + _BLOCK_BYTES, dtype=np.uint8)
        view, done = out.data, 0
        while done < 8 * count:
            step = min(len(_ZEROS), 8 * count - done)
            self._encryptor.update_into(memoryview(_ZEROS)[:step], view[done : done + step + _BLOCK_BYTES - 1])
            done += step
        return torch.from_numpy(out[: 8 * count].view("<i8").astype(np.int64, copy=False)).reshape(tuple(size))

    def bits(self, size: Sequence[int], count: int) -> Tensor:
        return low_bits(self.ring(size), count)


class SummedStreams:
    """Several streams as one source: summed for ring elements, xored for bits.

    With the streams shared with lower ranks as CrypTen's "prev" and those with higher ranks as its "next", CrypTen's
    `prev - next` (and `prev ^ next`) is the full pairwise sharing of zero described above.
    """

    def __init__(self, streams: Sequence[RingSource]) -> None:
        self._streams = tuple(streams)

    def __repr__(self) -> str:
        return f"SummedStreams({len(self._streams)})"

    def ring(self, size: Sequence[int]) -> Tensor:
        total = torch.zeros(tuple(size), dtype=torch.int64)
        for stream in self._streams:
            total += stream.ring(size)
        return total

    def bits(self, size: Sequence[int], count: int) -> Tensor:
        total = torch.zeros(tuple(size), dtype=torch.int64)
        for stream in self._streams:
            total ^= stream.bits(size, count)
        return total


def low_bits(tensor: Tensor, count: int) -> Tensor:
    """The lowest `count` bits of each element; 1 to 64."""
    if not 1 <= count <= 64:
        raise InputError(f"got {count} bits, expected 1 to 64")
    return tensor if count == 64 else tensor & ((1 << count) - 1)


def pair_key(first: bytes, second: bytes, job_digest: bytes, low_rank: int, high_rank: int) -> bytes:
    """The key of one pair from what its two ends contributed (32 random bytes each, lower rank first)."""
    if len(first) != KEY_BYTES or len(second) != KEY_BYTES:
        raise InputError(f"got contributions of {len(first)} and {len(second)} bytes, expected {KEY_BYTES} each")
    return derive_key(first + second, b"pair", job_digest, bytes((low_rank, high_rank)))


def zero_sources(rank: int, pair_keys: dict[int, bytes]) -> tuple[SummedStreams, SummedStreams]:
    """(prev, next) for a party: streams shared with lower ranks and with higher ranks. Keys by peer rank."""
    lower = [RingStream(pair_keys[peer], b"zero") for peer in sorted(pair_keys) if peer < rank]
    higher = [RingStream(pair_keys[peer], b"zero") for peer in sorted(pair_keys) if peer > rank]
    return SummedStreams(lower), SummedStreams(higher)
