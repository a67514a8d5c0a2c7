"""The scoring kernel against SEAL's evaluator and Python's integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from he_inference.ring.accumulate import MOST_ROTATIONS, TILE, accumulate, tiled_queries
from he_inference.ring.jit import threads, use_threads
from he_inference.ring.moduli import Words, find_primes, moduli
from tests.unit.he_inference.ring.polynomials import ring_of
from tests.unit.he_inference.ring.seal_twin import SealTwin


def _tiled(items: Words) -> Words:
    """uint32[blocks, terms, primes, N] -> the order of the index."""
    blocks, terms, primes, n = items.shape
    return np.ascontiguousarray(items.reshape(blocks, terms, primes, n // TILE, TILE).transpose(0, 2, 3, 1, 4))


def test_sums_are_those_of_seals_evaluator_residue_for_residue() -> None:
    twin = SealTwin(4096)
    generator = np.random.default_rng(0)
    plaintexts = [twin.encode(generator.normal(size=2048)) for _ in range(12)]
    ciphertexts = [twin.encrypt(twin.encode(generator.normal(size=2048))) for _ in range(6)]
    expected = [twin.sum_of_products(ciphertexts, plaintexts[6 * group : 6 * group + 6]) for group in range(2)]
    items = np.stack([twin.plain_residues(p) for p in plaintexts])[None]
    queries = np.stack([twin.cipher_residues(c) for c in ciphertexts])[:, None]
    got = accumulate(_tiled(items), tiled_queries(queries), ring_of(4096, 2).q)
    for group in range(2):
        assert np.array_equal(got[0, group, 0], twin.cipher_residues(expected[group]))


@pytest.mark.parametrize(
    ("bits", "rotations"), [((27, 27), MOST_ROTATIONS), ((28, 28), 64), ((27, 27), 255), ((27, 27), 1)]
)
def test_sums_hold_when_every_residue_is_the_largest(bits: tuple[int, int], rotations: int) -> None:
    ring = moduli(2048, find_primes(2048, bits))
    top = np.array(ring.primes, np.uint32)[:, None] - np.uint32(1)
    items = np.broadcast_to(top, (1, rotations, 2, ring.degree)).copy()
    queries = np.broadcast_to(top, (rotations, 2, 2, 2, ring.degree)).copy()
    got = accumulate(_tiled(items), tiled_queries(queries), ring.q)
    for p, prime in enumerate(ring.primes):
        assert (got[:, :, :, :, p] == rotations * (prime - 1) ** 2 % prime).all()


@pytest.mark.parametrize(("blocks", "groups", "rotations", "queries"), [(1, 1, 3, 1), (5, 2, 4, 3), (3, 4, 7, 2)])
def test_sums_equal_those_of_integers(blocks: int, groups: int, rotations: int, queries: int) -> None:
    ring = ring_of(2048, 2)
    generator = np.random.default_rng(blocks)
    items = generator.integers(0, min(ring.primes), (blocks, groups * rotations, 2, 2048)).astype(np.uint32)
    ciphertexts = generator.integers(0, min(ring.primes), (rotations, queries, 2, 2, 2048)).astype(np.uint32)
    got = accumulate(_tiled(items), tiled_queries(ciphertexts), ring.q)
    grouped = items.reshape(blocks, groups, rotations, 1, 1, 2, 2048).astype(object)
    expected = (grouped * ciphertexts.astype(object)).sum(axis=2) % ring.q.astype(object)[:, None]
    assert np.array_equal(got, expected)


def test_threads_and_read_only_files_change_nothing(tmp_path: Path) -> None:
    ring = ring_of(2048, 2)
    generator = np.random.default_rng(1)
    index = generator.integers(0, min(ring.primes), (7, 2, 2048 // TILE, 4, TILE)).astype(np.uint32)
    queries = tiled_queries(generator.integers(0, min(ring.primes), (4, 3, 2, 2, 2048)).astype(np.uint32))
    np.save(tmp_path / "index.npy", index)
    mapped = np.load(tmp_path / "index.npy", mmap_mode="r")
    before = threads()
    answers = []
    try:
        for count in (1, before):
            assert use_threads(count) == count
            answers += [accumulate(index, queries, ring.q), accumulate(mapped[2:5], queries, ring.q)]
    finally:
        use_threads(before)
    assert np.array_equal(answers[0], answers[2])
    assert np.array_equal(answers[1], answers[3])
    assert np.array_equal(answers[1], answers[0][2:5])


def test_shapes_that_do_not_fit_are_refused() -> None:
    ring, tiles = ring_of(2048, 2), 2048 // TILE
    index = np.zeros((1, 2, tiles, 6, TILE), np.uint32)
    for shape in (
        (2, tiles, 1, 4, 2, TILE),
        (1, tiles, 1, 3, 2, TILE),
        (2, tiles, 1, 0, 2, TILE),
        (2, 4, 1, 3, 2, TILE),
    ):
        with pytest.raises(ValueError, match="expected"):
            accumulate(index, np.zeros(shape, np.uint32), ring.q)
    many = np.zeros((2, tiles, 1, 257, 2, TILE), np.uint32)
    with pytest.raises(ValueError, match="expected"):
        accumulate(np.zeros((1, 2, tiles, 257, TILE), np.uint32), many, ring.q)
    with pytest.raises(ValueError, match="expected"):
        accumulate(np.zeros((1, 2, 8, 3, 256), np.uint32), np.zeros((2, 8, 1, 3, 2, 256), np.uint32), ring.q)
