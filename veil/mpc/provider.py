"""The worker's side of correlated randomness: expands its own part, asks for corrections only at rank 0.

`DealerProvider` has the surface of CrypTen's TupleProvider and returns raw int64 shares; `veil.mpc.session` wraps them
for CrypTen. Every party must ask for the same items in the same order: the position in that order is part of each
item's key, so a party that strays gets shares that fit nothing, and no key serves twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from veil.errors import InputError, ProtocolMismatch
from veil.jobs.spec import Release
from veil.mpc.items import Item, check, normalise, to_wire
from veil.mpc.triples import Parts, expand_dependent, expand_independent, item_key
from veil.privacy import noise_of
from veil.privacy.noise import ByteSource, system_source
from veil.wire.v1 import dealer_pb2

Correct = Callable[[dealer_pb2.CorrectRequest], bytes]


class DealerProvider:
    """Expands shares from `seed`. At rank 0, `correct` fetches corrections; elsewhere it is never called."""

    def __init__(self, rank: int, seed: bytes, correct: Correct | None) -> None:
        if rank == 0 and correct is None:
            raise InputError("got no way to ask for corrections, expected one at rank 0")
        self._rank = rank
        self._seed = seed
        self._correct = correct
        self._index = 0

    def __repr__(self) -> str:
        return f"DealerProvider(rank={self._rank}, items={self._index})"

    @property
    def items(self) -> int:
        """Number of items handed out so far."""
        return self._index

    def generate_additive_triple(
        self, size0: Sequence[int], size1: Sequence[int], op: str, device: object = None, **kwargs: object
    ) -> Parts:
        """Shares of uniform a (size0), b (size1) and of c = op(a, b) mod 2^64."""
        shapes = (tuple(size0), tuple(size1))
        return self._parts(Item("additive", shapes, operation=op, options=normalise(kwargs)))

    def square(self, size: Sequence[int], device: object = None) -> Parts:
        """Shares of a uniform r and of r*r."""
        return self._parts(Item("square", (tuple(size),)))

    def generate_binary_triple(self, size0: Sequence[int], size1: Sequence[int], device: object = None) -> Parts:
        """Xor shares of uniform a (size0), b (size1) and of a AND b."""
        return self._parts(Item("binary", (tuple(size0), tuple(size1))))

    def wrap_rng(self, size: Sequence[int], device: object = None) -> Parts:
        """Shares of a uniform r and of the number of times that the shares of r wrap."""
        return self._parts(Item("wraps", (tuple(size),)))

    def B2A_rng(self, size: Sequence[int], device: object = None) -> Parts:  # CrypTen's name
        """Uniform bits: additive shares and xor shares (one bit each) of the same."""
        binary, additive = self._parts(Item("bits", (tuple(size),)))
        return additive, binary

    def noise_share(self, release: Release) -> Tensor:
        """A share of a draw of the release's noise, int64, of its shape; nobody knows the draw.

        The dealer reads sigma and shape from the job text that all parties signed, never from this request.
        """
        return self._parts(Item("noise", (release.shape,), release=release.name))[0]

    def _parts(self, item: Item) -> Parts:
        check(item)
        index, self._index = self._index, self._index + 1
        shape = item.result_shape()
        key = item_key(self._seed, index, item)
        independent = expand_independent(item, key)
        if self._rank != 0 or self._correct is None:
            return (*independent, expand_dependent(item, key, shape))
        data = self._correct(to_wire(item, "", index))
        if len(data) != 8 * math.prod(shape):
            raise ProtocolMismatch(f"got a correction of {len(data)} bytes, expected {8 * math.prod(shape)}")
        dependent = torch.from_numpy(np.frombuffer(data, dtype="<i8").astype(np.int64)).reshape(shape)
        return (*independent, dependent)


def party_noise(release: Release, source: ByteSource | None = None) -> Tensor:
    """One party's own draw, int64, of the release's shape, for jobs whose noise is by the parties.

    release: what one party draws (`veil.privacy.sources.party_release`).
    """
    return torch.from_numpy(noise_of.draw(release, source or system_source()))
