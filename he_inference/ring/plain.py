"""The transform in plain numpy: what clients use, and the twin that the compiled one is tested against.

Guarantee: `forward` and `inverse` equal those of `he_inference.ring.ntt` residue for residue; nothing is compiled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from he_inference.ring.moduli import Moduli, Words

Longs = NDArray[np.uint64]


def forward(polynomials: NDArray[np.integer], ring: Moduli) -> Words:
    """Transformed uint32[..., primes, N] of residues uint[..., primes, N] below their primes."""
    values = polynomials.astype(np.uint64)
    for p, prime in enumerate(ring.primes):
        q = np.uint64(prime)
        a = values[..., p, :]
        groups, stride = 1, ring.degree // 2
        while stride:
            view = a.reshape(*a.shape[:-1], groups, 2, stride)
            roots = ring.forward[p, groups : 2 * groups].astype(np.uint64)[:, None]
            # Sums are reduced at the end only: they grow by q in each of at most 13 stages, so that products with a
            # root stay below 2^60.
            u, v = view[..., 0, :], view[..., 1, :] * roots % q
            a = np.stack([u + v, u + (q - v)], axis=-2).reshape(a.shape)
            groups, stride = 2 * groups, stride // 2
        values[..., p, :] = a % q
    return values.astype(np.uint32)


def inverse(polynomials: NDArray[np.integer], ring: Moduli) -> Words:
    """Residues uint32[..., primes, N] of transformed ones."""
    values = polynomials.astype(np.uint64)
    for p, prime in enumerate(ring.primes):
        q = np.uint64(prime)
        a = values[..., p, :]
        groups, stride = ring.degree // 2, 1
        while groups:
            view = a.reshape(*a.shape[:-1], groups, 2, stride)
            roots = ring.inverse[p, groups : 2 * groups].astype(np.uint64)[:, None]
            u, v = view[..., 0, :], view[..., 1, :]
            a = np.stack([(u + v) % q, (u + q - v) * roots % q], axis=-2).reshape(a.shape)
            groups, stride = groups // 2, 2 * stride
        values[..., p, :] = a * ring.scale[p, 0].astype(np.uint64) % q
    return values.astype(np.uint32)


def residues(numbers: NDArray[np.int64], ring: Moduli) -> Words:
    """uint32[..., primes, N] of integers int64[..., N] of either sign."""
    rows = [np.mod(numbers, prime).astype(np.uint32) for prime in ring.primes]
    return np.ascontiguousarray(np.stack(rows, axis=-2))
