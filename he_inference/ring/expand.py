"""Uniform polynomials from a seed: the half of a fresh ciphertext or key that need not travel.

Guarantee: `uniform` is a function of seed, label and prime, the same on every machine, and indistinguishable from
uniform residues as long as AES-256 in counter mode is from random bytes; the seed is public. A label is used for one
polynomial.

Rejection sampling: the leading bits of consecutive 32-bit words, those below q.
"""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from he_inference.ring.moduli import Words

SEED_BYTES = 32
_DOMAIN = b"veil/uniform-polynomial/v1\x00"


def keystream(seed: bytes, label: str, prime: int, degree: int) -> Words:
    """The words that `uniform` looks at first: uint32[more than degree]."""
    return np.frombuffer(_stream(seed, label, prime).update(bytes(4 * _first_words(degree))), "<u4")


def _stream(seed: bytes, label: str, prime: int) -> CipherContext:
    key = hashlib.sha256(_DOMAIN + seed + label.encode() + b"\x00" + prime.to_bytes(8, "big")).digest()
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _first_words(missing: int) -> int:
    return missing + missing // 8 + 64


def uniform(seed: bytes, label: str, prime: int, degree: int) -> Words:
    """uint32[degree], uniform below `prime`."""
    stream = _stream(seed, label, prime)
    kept: list[Words] = []
    missing = degree
    while missing > 0:
        words = np.frombuffer(stream.update(bytes(4 * _first_words(missing))), "<u4")
        words = words >> np.uint32(32 - prime.bit_length())
        accepted = words[words < prime][:missing]
        kept.append(accepted.astype(np.uint32))
        missing -= len(accepted)
    return np.concatenate(kept)
