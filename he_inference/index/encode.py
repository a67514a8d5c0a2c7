"""Rows to blocks of the index; several threads may encode several blocks at a time.

Guarantee: a block is a function of its rows, its number and the layout alone, whichever thread makes it.
"""

from __future__ import annotations

import numpy as np

from he_inference.layouts.seam import Floats, Integers, Layout
from he_inference.ring import ntt, plain
from he_inference.ring.moduli import TILE, Moduli, Words, moduli


def encoded(layout: Layout, rows: Floats, block: int) -> Words:
    """uint32[primes, tiles, terms, TILE] of float64[n, dimensions], the rows of block number `block`: what
    `Compute.encode` makes of the polynomials, for layouts of parts as well that no evaluator has by themselves."""
    ring = moduli(layout.parameters.degree, layout.parameters.data_primes)
    return encoded_polynomials(layout.item_polynomials(rows, block), ring)


def encoded_polynomials(polynomials: Integers, ring: Moduli) -> Words:
    """uint32[primes, tiles, terms, TILE] of int64[terms, N]."""
    values = plain.residues(polynomials, ring)
    ntt.forward(values, ring)
    terms, primes, n = values.shape
    return np.ascontiguousarray(values.reshape(terms, primes, n // TILE, TILE).transpose(1, 2, 0, 3))
