"""Keys that nobody chooses, and permutations that are what their key says."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.align.company import DIGEST, NAMES, communicators, together
from veil.align.ordering import joint_key, permutation, private_permutation
from veil.errors import ProtocolMismatch
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.header import Operation


@pytest.mark.parametrize("size", [2, 3, 5])
def test_all_parties_draw_one_key_each_time_another(size: int) -> None:
    drawn = []
    for label, digest in ((b"a", DIGEST), (b"a", DIGEST), (b"b", DIGEST), (b"a", bytes(32))):

        def draw(party: TensorCommunicator, label: bytes = label, digest: bytes = digest) -> bytes:
            return joint_key(party, digest, label)

        keys = together(communicators(size)[0], draw)
        assert len(set(keys)) == 1 and len(keys[0]) == 32
        drawn.append(keys[0])
    assert len(set(drawn)) == len(drawn)


def test_who_opens_something_else_is_named() -> None:
    parties, _ = communicators(3)
    rounds = [0]

    class Late(TensorCommunicator):
        """Chooses its contribution after having seen the others'."""

        def all_gather(self, tensor: torch.Tensor) -> Any:
            rounds[0] += 1
            return super().all_gather(tensor if rounds[0] == 1 else tensor ^ 1)

    parties[1] = Late(parties[1].transport, NAMES[:3], timeout_s=20)
    results = together(parties, lambda c: joint_key(c, DIGEST, b"a"))
    for rank in (0, 2):
        assert isinstance(results[rank], ProtocolMismatch) and results[rank].culprits == ("beta",)


def test_a_copied_commitment_does_not_open() -> None:
    """A party that repeats another's messages would cancel or double its contribution: ranks are in the commitment."""
    parties, _ = communicators(2)

    class Parrot(TensorCommunicator):
        def all_gather(self, tensor: torch.Tensor) -> Any:
            heard = self._messages.take(0, Operation.ALL_GATHER, tensor)
            self._messages.put(0, Operation.ALL_GATHER, heard)
            return [heard, heard]

    parties[1] = Parrot(parties[1].transport, NAMES[:2], timeout_s=20)
    results = together(parties, lambda c: joint_key(c, DIGEST, b"a"))
    assert isinstance(results[0], ProtocolMismatch) and results[0].culprits == ("beta",)


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_permutations(count: int) -> None:
    first, again, other = permutation(bytes(32), count), permutation(bytes(32), count), private_permutation(count)
    assert sorted(first.tolist()) == sorted(other.tolist()) == list(range(count))
    assert np.array_equal(first, again) and first.dtype == np.int64
    if count == 1000:
        assert not np.array_equal(first, other)


def test_permutations_are_uniform() -> None:
    drawn = 6000
    counts = Counter(tuple(private_permutation(3).tolist()) for _ in range(drawn))
    expected = drawn / 6
    statistic = sum((counts[order] - expected) ** 2 / expected for order in permutations(range(3)))
    assert statistic < 40  # chi-square with 5 degrees of freedom: exceeded once in 10^7 runs
