"""Queries and keys of random residues: arithmetic does not know what a ciphertext is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from he_inference import messages
from he_inference.layouts.seam import Layout


def residues(primes: tuple[int, ...], rows: int, degree: int, seed: int) -> NDArray[np.uint32]:
    source = np.random.default_rng(seed)
    return np.stack([source.integers(0, prime, (rows, degree), np.uint32) for prime in primes], axis=1)


def a_query(layout: Layout, seed: int) -> bytes:
    chosen = layout.parameters
    half = residues(chosen.data_primes, layout.query_ciphertexts, chosen.degree, seed)
    return messages.write_query(chosen, seed.to_bytes(32, "big"), half)


def some_keys(layout: Layout, seed: int) -> bytes:
    chosen = layout.parameters
    half = residues(chosen.primes, len(layout.galois_elements), chosen.degree, seed)
    return messages.write_keys(chosen, seed.to_bytes(32, "big"), half)
