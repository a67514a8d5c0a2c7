"""Programs on shared fixed-point numbers, in as few rounds as they take: masked openings, products, truncations, waves.

    engine.open(Masked(x), Truncated(y, 12), Waved(z, [series]))     one message to each peer for all of them

Guarantee. Every opening here is of a value less a uniform mask of which any n - 1 parties know nothing (the dealer
honest), used for one value only; so the openings are uniform and independent of the data, and what the values are
opens only by `reveal`, which the job's policy must list. Arithmetic is exact modulo 2^64:

    product      X = E + A, W = D + B with E, D public:  X W = E D + E B + A D + A B;  A B comes from the dealer
    truncation   c = x + 2^62 + r;  x / 2^f = c / 2^f - r / 2^f + wrap 2^(64 - f) - 2^(62 - f), and the sum wrapped
                 exactly if the top bit of r is set and that of c is not (x + 2^62 < 2^63). So there is no failure as
                 long as |x| < 2^62, which bounds assure; the result is one of the two neighbours of x / 2^f, the upper
                 with the probability that makes the mean exact.
    waves        see `veil.mpc.engine.waves`

(Truncation with the top bit of the mask: Escudero, Ghosh, Keller, Rachuri, Scholl, "Improved primitives for MPC over
mixed arithmetic-binary circuits", CRYPTO 2020, section 5; n - 1 privacy follows from the dealer's sharing.) Who sees c
and later the opened result could tell whether the fraction was rounded up, which depends on the fraction of x; results
that open are therefore noised sums whose sensitivity counts one unit for each truncation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from veil.errors import InputError, StateError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.correlations import Correlations
from veil.mpc.engine.items import SHARED, EngineItem
from veil.mpc.engine.kernels import matmul
from veil.mpc.engine.outline import outline
from veil.mpc.engine.requests import (
    PRECISION_BITS,
    Masked,
    Request,
    Result,
    Truncated,
    Waved,
    waves_item,
)
from veil.mpc.engine.unmasking import TOP, cut, waved
from veil.mpc.engine.values import MOST_BITS, Mask, Opened, Value, check_limit, sum_of_bits
from veil.mpc.engine.waves import Series, sine_table

_LOGARITHM_ERROR = 2.0**-40
_CPU = torch.device("cpu")
KindT = TypeVar("KindT")


class Engine:
    """One party's part of a program that all parties run in the same order."""

    def __init__(
        self, communicator: TensorCommunicator, correlations: Correlations, *, device: torch.device = _CPU
    ) -> None:
        """device: "meta" for a dry run, which computes shapes and bounds only."""
        self.device = device
        self._communicator = communicator
        self._correlations = correlations
        self.rank = communicator.rank
        self.parties = communicator.world_size

    def __repr__(self) -> str:
        return f"Engine(rank={self.rank}, parties={self.parties})"

    def start(self) -> None:
        """Makes sure that all parties hold the same table of sines; one round. Raises `ProtocolMismatch`."""
        self._communicator.agree(b"veil/engine/sines" + hashlib.sha256(sine_table().tobytes()).digest())

    # Values without a message -------------------------------------------------------------------------------------

    def own(self, tensor: Tensor | None, shape: Sequence[int], owner: int, *, bits: int, limit_bits: float) -> Value:
        """`owner`'s integers as a value; the others pass None. Its share is the number itself, the others' are 0:
        nothing is sent, and nothing opens but under a mask. limit_bits bounds the integers, and is checked here."""
        if self.device.type == "meta":
            return Value(outline(shape), bits, limit_bits, owner)
        if (owner == self.rank) != (tensor is not None):
            raise InputError("got a tensor at the wrong party, expected it at its owner only")
        share = torch.zeros(tuple(shape), dtype=torch.int64) if tensor is None else tensor
        if tuple(share.shape) != tuple(shape) or share.dtype != torch.int64:
            raise InputError(f"got {share.dtype} {tuple(share.shape)}, expected torch.int64 {tuple(shape)}")
        if tensor is not None and tensor.numel():
            most = max(abs(int(tensor.min())), abs(int(tensor.max())))
            # In logarithms: 2.0 ** log2(5) is less than 5, and a bound that is just kept would be refused.
            if most and math.log2(most) > limit_bits + _LOGARITHM_ERROR:
                raise InputError(f"got numbers above the declared bound of 2^{limit_bits:g}, expected smaller ones")
        return Value(share, bits, limit_bits, owner)

    def public(self, tensor: Tensor, *, bits: int, limit_bits: float) -> Value:
        """A public tensor of integers as a value."""
        if self.device.type == "meta":
            return Value(outline(tensor.shape), bits, limit_bits)
        return Value(tensor if self.rank == 0 else torch.zeros_like(tensor), bits, limit_bits)

    def plus(self, value: Value, number: int) -> Value:
        """A value plus a public integer, in the value's units; of any size, since only its remainder counts."""
        share = value.share + ((number + 2**63) % 2**64 - 2**63) if self.rank == 0 else value.share
        limit = sum_of_bits(value.limit_bits, math.log2(abs(number) or 1))
        return Value(share, value.bits, limit)

    # Masks and openings -------------------------------------------------------------------------------------------

    def mask(self, shape: Sequence[int], owner: int = SHARED) -> Mask:
        """A fresh mask."""
        number, share, _ = self._correlations.take(EngineItem("mask", tuple(shape), owner=owner))
        return Mask(number, share, owner)

    def fix(self, value: Value, owner: int = SHARED) -> Opened:
        """Opens a value that will be a factor many times, say the data of a whole job.

        With an owner, who alone knows the value, only the owner sends. Raises `StateError`, in a dry run too, unless
        the value is as the owner's `own` made it: with summands of others in it, what opened would lack them.
        """
        if owner not in (SHARED, value.owner):
            raise StateError(
                f"got a value that is not of rank {owner} alone, expected what `own` made of its numbers",
                hint="fix a value of several parties without an owner",
            )
        mask = self.mask(value.shape, owner)
        if owner == SHARED:
            return self._opened(value, mask, self._sum(self._hidden(value, mask)))
        hidden = self._hidden(value, mask)
        return self._opened(value, mask, self._communicator.broadcast(hidden, owner))

    def open(self, *requests: Request) -> list[Result]:
        """Serves all requests in one round; results in their order."""
        pending = [self._prepare(request) for request in requests]
        flat = [hidden.reshape(-1) for hidden, _ in pending]
        opened = self._sum(flat[0] if len(flat) == 1 else torch.cat(flat))
        results: list[Result] = []
        at = 0
        for (hidden, made), request in zip(pending, requests, strict=True):
            part = opened[at : at + hidden.numel()].reshape(hidden.shape)
            at += hidden.numel()
            results.append(self._finish(request, made, part))
        return results

    def masked(self, value: Value, mask: Mask | None = None) -> Opened:
        """One value less a mask, opened; one round."""
        return _as(Opened, self.open(Masked(value, mask))[0])

    def masked_all(self, *values: Value) -> list[Opened]:
        """Several values, each less a mask, opened; one round."""
        return [_as(Opened, result) for result in self.open(*map(Masked, values))]

    def truncated(self, value: Value, shift: int) -> Value:
        """One value with `shift` fewer fractional bits; one round."""
        return _as(Value, self.open(Truncated(value, shift))[0])

    def functions(self, value: Value, *series: Series, precision_bits: int = PRECISION_BITS) -> list[Value]:
        """Functions of one value; one round."""
        return [_as(Value, one) for one in _as(list, self.open(Waved(value, series, precision_bits))[0])]

    def open_waved(self, value: Value, series: Series, precision_bits: int, *others: Request) -> list[Result]:
        """One function of a value first, then what else is asked for in the same round."""
        first, *rest = self.open(Waved(value, (series,), precision_bits), *others)
        return [_as(list, first)[0], *rest]

    def _prepare(self, request: Request) -> tuple[Tensor, Mask | tuple[Mask, Tensor]]:
        value = request.value
        if isinstance(request, Masked):
            mask = request.mask or self.mask(value.shape)
            if mask.owner != SHARED:
                raise StateError(
                    f"got a mask that rank {mask.owner} knows, expected a shared one: it would see the value"
                )
            return self._hidden(value, mask), mask
        if isinstance(request, Truncated):
            check_limit(value, 62.0, "a truncation")
            item = EngineItem("truncation", value.shape, shift=request.shift)
            hidden = value.share + (TOP if self.rank == 0 else 0)
        else:
            item = waves_item(request)
            hidden = value.share
        number, share, dependent = self._correlations.take(item)
        if dependent is None:
            raise StateError("got no dependent part, expected one")
        mask = Mask(number, share, SHARED, used=True)
        return (hidden + share if isinstance(request, Truncated) else hidden - share), (mask, dependent)

    def _finish(self, request: Request, made: Mask | tuple[Mask, Tensor], opened: Tensor) -> Result:
        if isinstance(request, Masked):
            if not isinstance(made, Mask):
                raise StateError("got no mask, expected one")
            return self._opened(request.value, made, opened)
        if isinstance(made, Mask):
            raise StateError("got a mask alone, expected its dependent part")
        if isinstance(request, Truncated):
            return cut(request, made[1], opened, first=self.rank == 0)
        return waved(request, made[1], opened, first=self.rank == 0)

    def _hidden(self, value: Value, mask: Mask) -> Tensor:
        if mask.used:
            raise StateError("got a mask a second time, expected a fresh one: two values under one mask would show")
        if tuple(mask.share.shape) != value.shape:
            raise InputError(f"got a mask of shape {tuple(mask.share.shape)}, expected {value.shape}")
        mask.used = True
        return value.share - mask.share

    @staticmethod
    def _opened(value: Value, mask: Mask, difference: Tensor) -> Opened:
        return Opened(difference, mask, value.bits, value.limit_bits)

    def _sum(self, hidden: Tensor) -> Tensor:
        total: Tensor = self._communicator.all_reduce(hidden.contiguous())
        return total

    # Products -----------------------------------------------------------------------------------------------------

    def matmul(
        self, left: Opened, right: Opened, *, rows: tuple[int, int] | None = None, transposed: bool = False
    ) -> Value:
        """left @ right of opened matrices; `rows` of the left one only, transposed if so asked. Nothing is sent."""
        first, stop = rows or (0, left.difference.shape[0])
        public, share = left.difference[first:stop], left.mask.share[first:stop]
        if transposed:
            public, share = public.t(), share.t()
        item = EngineItem(
            "product",
            (public.shape[0], right.difference.shape[1]),
            left=left.mask.number,
            right=right.mask.number,
            first_row=first,
            rows=stop - first,
            transposed=transposed,
        )
        _, _, product = self._correlations.take(item)
        limit = left.limit_bits + right.limit_bits + math.log2(public.shape[1])
        seen = right.mask.share + right.difference if self.rank == 0 else right.mask.share
        total = matmul(public, seen)
        if left.mask.owner in (SHARED, self.rank):  # elsewhere the share of the left mask is 0
            total = total + matmul(share, right.difference)
        if product is not None:
            total = total + product
        return Value(total, left.bits + right.bits, limit)

    def mul(self, left: Opened, right: Opened, *, rows: tuple[int, int] | None = None) -> Value:
        """The elementwise product of opened tensors of one shape, `rows` of the left one only; the right one may be a
        column that counts for each of the left one's. Nothing is sent."""
        first, stop = rows or (0, left.difference.shape[0])
        public, share = left.difference[first:stop], left.mask.share[first:stop]
        item = EngineItem(
            "product",
            tuple(public.shape),
            operation="mul",
            left=left.mask.number,
            right=right.mask.number,
            first_row=first,
            rows=stop - first,
        )
        _, _, product = self._correlations.take(item)
        if product is None:
            raise StateError("got no product of masks, expected one")
        seen = right.mask.share + right.difference if self.rank == 0 else right.mask.share
        total = product + public * seen + share * right.difference
        return Value(total, left.bits + right.bits, left.limit_bits + right.limit_bits)

    # What becomes known -------------------------------------------------------------------------------------------

    def noise(self, release: str, shape: Sequence[int], *, bits: int, limit_bits: float) -> Value:
        """A draw of the noise of one of the job's releases, that nobody knows."""
        _, _, share = self._correlations.take(EngineItem("noise", tuple(shape), release=release))
        if share is None:
            raise StateError("got no noise, expected a share of it")
        return Value(share, bits, limit_bits)

    def combine(self, value: Value) -> Tensor:
        """Opens a value: int64. Only `Session` calls it, after the job's policy has admitted the opening."""
        check_limit(value, MOST_BITS, "an opening")
        return self._sum(value.share)

    def combine_at(self, value: Value, zero: Tensor, recipient: int) -> Tensor | None:
        """As `combine`, at the party of rank `recipient` alone; None elsewhere. zero: this party's share of zero, under
        which what it sends is uniform. Only `Revealing.open_to` calls it; a dry run passes zeros."""
        check_limit(value, MOST_BITS, "an opening")
        total: Tensor | None = self._communicator.reduce((value.share + zero).contiguous(), recipient)
        return total


def _as(kind: type[KindT], result: object) -> KindT:
    if not isinstance(result, kind):
        raise StateError(f"got {type(result).__name__}, expected {kind.__name__}")
    return result
