"""Known answers, independence of labels, and what colluders can and cannot remove from a pairwise sharing of zero."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from veil.errors import InputError
from veil.mpc.randomness import RingStream, SummedStreams, derive_key, low_bits, pair_key, zero_sources

# Each test of uniformity fails by chance with probability 1e-9.
ALPHA = 1e-9


def chi_square(tensor: torch.Tensor) -> float:
    counts = np.bincount(tensor.numpy().reshape(-1).view(np.uint8), minlength=256)
    return float(scipy.stats.chisquare(counts).pvalue)


def test_stream_is_aes_256_ctr_of_the_derived_key() -> None:
    key = bytes(range(32))
    cipher = Cipher(algorithms.AES(derive_key(key, b"ring-stream", b"x")), modes.CTR(bytes(16)))
    expected = np.frombuffer(cipher.encryptor().update(bytes(8 * 300_000)), dtype="<i8")
    stream = RingStream(key, b"x")
    # Sizes that cross the block of 16 bytes and the 1 MiB buffer; positions continue from draw to draw.
    drawn = torch.cat([stream.ring((n,)) for n in (1, 2, 3, 200_000, 99_994)])
    np.testing.assert_array_equal(drawn.numpy(), expected)


def test_shapes_scalars_and_empty_tensors() -> None:
    stream = RingStream(bytes(32), b"x")
    assert stream.ring(()).shape == torch.Size([])
    assert stream.ring((0, 3)).shape == (0, 3)
    assert stream.ring(torch.Size([2, 3])).dtype == torch.int64


@pytest.mark.parametrize("bits", [1, 16, 63, 64])
def test_bits_keep_their_range(bits: int) -> None:
    drawn = RingStream(os.urandom(32), b"x").bits((4096,), bits)
    words = drawn.numpy().view(np.uint64)
    assert int(words.max()) < 2**bits
    assert int(words.max()) >= 2 ** (bits - 1)


def test_labels_and_keys_separate() -> None:
    key = os.urandom(32)
    draws = [RingStream(key, b"a"), RingStream(key, b"b"), RingStream(os.urandom(32), b"a")]
    assert len({int(stream.ring((1,))) for stream in draws}) == 3
    assert derive_key(key, b"ab", b"c") != derive_key(key, b"a", b"bc")
    assert pair_key(key, key, b"d", 0, 1) != pair_key(key, key, b"e", 0, 1) != pair_key(key, key, b"e", 0, 2)


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33)])
def test_short_keys_are_refused(bad: bytes) -> None:
    with pytest.raises(InputError, match="expected"):
        RingStream(bad, b"x")


def test_secrets_do_not_print() -> None:
    key = bytes(range(32))
    assert repr(RingStream(key, b"x")) == "RingStream(AES-256-CTR)"
    with pytest.raises(InputError):
        low_bits(torch.zeros(1, dtype=torch.int64), 65)


def keys_of_all_pairs(size: int) -> dict[tuple[int, int], bytes]:
    return {pair: os.urandom(32) for pair in itertools.combinations(range(size), 2)}


def own_keys(keys: dict[tuple[int, int], bytes], rank: int) -> dict[int, bytes]:
    return {sum(pair) - rank: key for pair, key in keys.items() if rank in pair}


def zero_share(rank: int, keys: dict[int, bytes], combine: str) -> Any:
    """What CrypTen computes from "prev" and "next"."""
    before, after = zero_sources(rank, keys)
    if combine == "xor":
        return before.bits((64, 64), 64) ^ after.bits((64, 64), 64)
    return before.ring((64, 64)) - after.ring((64, 64))


@pytest.mark.parametrize("combine", ["sum", "xor"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_all_shares_combine_to_zero_and_fewer_are_uniform(size: int, combine: str) -> None:
    keys = keys_of_all_pairs(size)
    shares = [zero_share(rank, own_keys(keys, rank), combine) for rank in range(size)]

    def total(ranks: Any) -> torch.Tensor:
        result = torch.zeros(64, 64, dtype=torch.int64)
        for rank in ranks:
            result = result ^ shares[rank] if combine == "xor" else result + shares[rank]
        return result

    assert not total(range(size)).any()
    for count in range(1, size):
        for ranks in itertools.combinations(range(size), count):
            assert chi_square(total(ranks)) > ALPHA


def test_colluding_neighbours_cannot_unmask_a_party_while_another_is_honest() -> None:
    # In a ring 0-1-2-3, parties 1 and 3 hold every key of 0. Here 0 and 2 share one that they do not have.
    keys = keys_of_all_pairs(4)
    share = zero_share(0, own_keys(keys, 0), "sum")
    for colluder in (1, 3):
        share += RingStream(keys[0, colluder], b"zero").ring((64, 64))
    assert chi_square(share) > ALPHA
    share += RingStream(keys[0, 2], b"zero").ring((64, 64))
    assert not share.any()  # with all three, nothing is left: the test above can fail


def test_no_streams_sum_to_zero() -> None:
    assert not SummedStreams([]).ring((3,)).any()
