"""Messages: one length each, residues or nothing, and every change of a bit is noticed or is another number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_inference import messages
from he_inference.parameters import EXACT, FAST, KEYLESS_SMALL, NAMES, named
from he_inference.ring.bits import packed_bytes
from veil.errors import CiphertextError

_ELEMENTS = (3, 9)


def _query(seed: int = 0) -> tuple[bytes, np.ndarray]:
    generator = np.random.default_rng(seed)
    primes = np.array(KEYLESS_SMALL.data_primes)[:, None]
    words = generator.integers(0, primes, (3, 2, 2048)).astype(np.uint32)
    return messages.write_query(KEYLESS_SMALL, generator.bytes(32), words), words


def test_messages_go_there_and_back() -> None:
    data, words = _query()
    assert len(data) == messages.query_bytes(KEYLESS_SMALL, 3) == 32 + 3 * 2 * packed_bytes(2048, 27)
    read = messages.read_query(KEYLESS_SMALL, data, 3)
    assert np.array_equal(read[:, 0], words)
    for number in range(3):
        assert np.array_equal(read[number, 1], messages.query_mask(KEYLESS_SMALL, data[:32], number))
    assert len({half.tobytes() for half in read[:, 1]}) == 3

    generator = np.random.default_rng(1)
    made = generator.integers(0, np.array(FAST.primes)[:, None], (2, 4, 4096)).astype(np.uint32)
    keys = messages.write_keys(FAST, b"k" * 32, made)
    assert len(keys) == messages.key_bytes(FAST, 2)
    back = messages.read_keys(FAST, keys, _ELEMENTS)
    assert np.array_equal(back[:, 0], made)
    assert np.array_equal(back[1, 1], messages.key_mask(FAST, b"k" * 32, 9))


def test_sizes_are_those_that_the_documents_state() -> None:
    assert messages.query_bytes(FAST, 1) == 27_680 and messages.key_bytes(FAST, 2) == 111_648
    assert messages.result_bytes(FAST, 4096) == 28_672
    for name in NAMES:
        parameters = named(name)
        assert messages.result_bytes(parameters, parameters.degree) <= 8.5 * parameters.degree


def test_layouts_without_rotations_have_keys_of_a_seed_only() -> None:
    assert messages.key_bytes(KEYLESS_SMALL, 0) == 32
    assert messages.read_keys(KEYLESS_SMALL, bytes(32), ()).shape == (0, 2, 2, 2048)
    with pytest.raises(CiphertextError):
        messages.read_keys(KEYLESS_SMALL, bytes(33), ())


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | st.integers(0, 60_000).map(bytes))
def test_any_other_length_is_refused(data: bytes) -> None:
    for read in (
        lambda: messages.read_query(KEYLESS_SMALL, data, 3),
        lambda: messages.read_keys(FAST, data, _ELEMENTS),
        lambda: messages.read_result(EXACT, data, 4096),
    ):
        with pytest.raises(CiphertextError, match="bytes, expected"):
            read()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(min_size=1, max_size=64), place=st.floats(0, 1))
def test_any_content_of_the_right_length_is_residues_or_refused(content: bytes, place: float) -> None:
    data, _ = _query()
    start = int(place * (len(data) - len(content)))
    changed = data[:start] + content + data[start + len(content) :]
    try:
        read = messages.read_query(KEYLESS_SMALL, changed, 3)
    except CiphertextError:
        return
    assert (read < np.array(KEYLESS_SMALL.data_primes, np.uint32)[:, None]).all()
    assert messages.write_query(KEYLESS_SMALL, changed[:32], read[:, 0]) == changed


@settings(max_examples=200, deadline=None)
@given(bit=st.integers(0, 8 * messages.query_bytes(KEYLESS_SMALL, 3) - 1))
def test_a_flipped_bit_is_another_number_or_another_mask(bit: int) -> None:
    data, words = _query()
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << (bit % 8)
    try:
        read = messages.read_query(KEYLESS_SMALL, bytes(flipped), 3)
    except CiphertextError:
        return
    if bit < 256:
        assert np.array_equal(read[:, 0], words)
        assert (read[:, 1] == messages.read_query(KEYLESS_SMALL, data, 3)[:, 1]).mean() < 0.01
    else:
        assert (read[:, 0] != words).sum() == 1


@pytest.mark.parametrize("excess", [0, 1])
def test_a_residue_of_its_prime_is_refused(excess: int) -> None:
    words = np.zeros((3, 2, 2048), np.uint32)
    words[2, 1, -1] = KEYLESS_SMALL.data_primes[1] - 1
    messages.read_query(KEYLESS_SMALL, messages.write_query(KEYLESS_SMALL, bytes(32), words), 3)
    words[2, 1, -1] += np.uint32(1 + excess)
    with pytest.raises(CiphertextError, match="residues"):
        messages.read_query(KEYLESS_SMALL, messages.write_query(KEYLESS_SMALL, bytes(32), words), 3)
