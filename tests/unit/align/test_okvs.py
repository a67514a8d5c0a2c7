"""Tables that decode to what was stored, also for keys that peeling cannot place, and that look random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.align import okvs
from veil.align.okvs import Encoder, Layout, Words, entries
from veil.align.sets import Bytes
from veil.errors import StateError


def keys_of(count: int, first: int = 0) -> Bytes:
    return np.frombuffer(b"".join((first + row).to_bytes(33, "big") for row in range(count)), np.uint8).reshape(-1, 33)


def encode(keys: Bytes, values: Words) -> tuple[bytes, Words]:
    encoder = Encoder(keys)
    return encoder.seed, encoder.encode(values, 0)


def decode(keys: Bytes, seed: bytes, table: Words, block: int = 0) -> Words:
    return Layout(keys, seed, len(table)).decode(table, block)


def random_words(count: int, width: int) -> Words:
    return np.random.default_rng(count).integers(0, 2**64, (count, width), dtype=np.uint64)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 400), st.integers(1, 4))
def test_stored_keys_decode(count: int, width: int) -> None:
    keys, values = keys_of(count), random_words(count, width)
    seed, table = encode(keys, values)
    assert table.shape == (entries(count), width)
    assert np.array_equal(decode(keys, seed, table), values)


def test_many_keys() -> None:
    keys, values = keys_of(60_000), random_words(60_000, 2)
    seed, table = encode(keys, values)
    assert np.array_equal(decode(keys, seed, table), values) and len(table) < 1.32 * 60_000


def test_keys_that_share_all_positions_are_solved_by_the_dense_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of them at three positions, among a hundred others."""
    real = okvs.Layout.__init__

    def crowded(self: Layout, keys: Bytes, seed: bytes, size: int) -> None:
        real(self, keys, seed, size)
        self._positions[:10] = self._positions[0]

    monkeypatch.setattr(okvs.Layout, "__init__", crowded)
    keys, values = keys_of(110), random_words(110, 3)
    seed, table = encode(keys, values)
    assert np.array_equal(decode(keys, seed, table), values)


def test_equal_keys_are_refused() -> None:
    keys = np.concatenate([keys_of(50), keys_of(1)])
    with pytest.raises(StateError):
        encode(keys, random_words(51, 1))


def test_other_keys_and_the_table_look_random() -> None:
    """All values zero and no secret: bits of table and of foreign keys are balanced all the same."""
    keys = keys_of(4000)
    seed, table = encode(keys, np.zeros((4000, 2), dtype=np.uint64))
    foreign = decode(keys_of(4000, first=10**6), seed, table)
    for words in (table, foreign):
        bits = np.unpackbits(words.view(np.uint8))
        assert abs(bits.mean() - 0.5) < 6 * 0.5 / np.sqrt(bits.size)
        assert len(np.unique(words)) == words.size


def test_two_tables_of_the_same_differ() -> None:
    keys, values = keys_of(10), random_words(10, 1)
    (first_seed, first), (second_seed, second) = encode(keys, values), encode(keys, values)
    assert first_seed != second_seed and not np.any(first == second)


def test_blocks_have_masks_of_their_own() -> None:
    """Equal values in two blocks: neither their tables nor what foreign keys decode to agree."""
    keys, values = keys_of(100), random_words(100, 2)
    encoder = Encoder(keys)
    tables = [encoder.encode(values, block) for block in range(2)]
    for block, table in enumerate(tables):
        assert np.array_equal(decode(keys, encoder.seed, table, block), values)
        assert not np.any(decode(keys, encoder.seed, table, 1 - block) == values)
    assert not np.any(tables[0] == tables[1])
    assert repr(encoder) == f"Encoder(100 keys, {entries(100)} rows)"
