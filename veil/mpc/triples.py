"""Correlated randomness by seed expansion: every party expands its share from its own key, one receives corrections.

For an item with independent tensors (a, b; or r) and a dependent one (c = op(a, b); r*r; wraps; a bit as a number;
noise), party i expands its shares of all of them from key k_i. The shares of the independent tensors define their
values; those of the dependent one are off, and party 0 gets instead of its own

    correction = dependent value - sum over i >= 1 of the expanded shares        (xor for binary shares)

which is uniform, being masked by shares that party 0 cannot compute. So only one party receives bytes. The shapes of
Beaver triples are those of CrypTen 0.4.1 (mpc/provider); the method is the one of its trusted third party and of
SPU's semi2k, with AES-256 streams in place of torch generators.

Any n-1 parties know all keys but one: the remaining party's shares, hence every a, b, r, bit and noise value, stay
uniform to them. The dealer knows all keys and no share of data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from veil.errors import StateError
from veil.mpc.items import Item, apply
from veil.mpc.randomness import RingStream, derive_key
from veil.mpc.shapes import Shape

Parts = tuple[Tensor, ...]


def item_key(seed: bytes, index: int, item: Item) -> bytes:
    """The key from which a party expands item number `index`."""
    return derive_key(seed, b"item", index.to_bytes(8, "little"), item.label)


def expand_independent(item: Item, key: bytes) -> Parts:
    """One party's shares of the independent tensors: (a, b), (r,), or none for noise."""
    match item.kind:
        case "additive" | "binary":
            return tuple(_stream(key, name).ring(shape) for name, shape in zip((b"a", b"b"), item.shapes, strict=True))
        case "square" | "wraps":
            return (_stream(key, b"r").ring(item.shapes[0]),)
        case "bits":
            return (_stream(key, b"r").bits(item.shapes[0], 1),)
        case "noise":
            return ()


def expand_dependent(item: Item, key: bytes, shape: Shape) -> Tensor:
    """The share of the dependent tensor of any party but the one of rank 0."""
    return _stream(key, b"dependent").ring(shape)


def correction(item: Item, keys: Sequence[bytes], noise: Tensor | None = None) -> Tensor:
    """What the party of rank 0 uses as its share of the dependent tensor. `keys` are the item keys in rank order.

    `noise` is the draw, int64, for a noise item. Memory: about five tensors of the item's largest shape.
    """
    shape = item.result_shape()
    match item.kind:
        case "additive":
            left, right = (_total(part, torch.add) for part in _columns(item, keys))
            value = apply(item, left, right)
        case "binary":
            left, right = (_total(part, torch.bitwise_xor) for part in _columns(item, keys))
            value = left & right
        case "square":
            root = _total(next(_columns(item, keys)), torch.add)
            value = root * root
        case "wraps":
            value = count_wraps(next(_columns(item, keys)))
        case "bits":
            value = _total(next(_columns(item, keys)), torch.bitwise_xor)
        case "noise":
            if noise is None:
                raise StateError("got no draw for a noise item, expected one")
            value = noise.reshape(shape).clone()
    for key in keys[1:]:
        share = expand_dependent(item, key, shape)
        value = value ^ share if item.kind == "binary" else value - share
    return value


def count_wraps(shares: Iterator[Tensor]) -> Tensor:
    """How often the sum of signed 64-bit shares leaves their range: +1 above, -1 below; adding in rank order.

    With w the result, the sum over the integers is the sum in the ring plus w * 2^64.
    """
    total = next(shares).clone()
    wraps = torch.zeros_like(total)
    for share in shares:
        following = total + share
        wraps += ((total >= 0) & (share >= 0) & (following < 0)).long()
        wraps -= ((total < 0) & (share < 0) & (following >= 0)).long()
        total = following
    return wraps


def _columns(item: Item, keys: Sequence[bytes]) -> Iterator[Iterator[Tensor]]:
    """For each independent tensor, the parties' shares in rank order, expanded one at a time to bound memory."""
    names = (b"a", b"b") if item.kind in ("additive", "binary") else (b"r",)
    for name, shape in zip(names, item.shapes, strict=True):
        if item.kind == "bits":
            yield (_stream(key, name).bits(shape, 1) for key in keys)
        else:
            yield (_stream(key, name).ring(shape) for key in keys)


def _total(shares: Iterator[Tensor], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    total = next(shares)
    for share in shares:
        total = combine(total, share)
    return total


def _stream(key: bytes, name: bytes) -> RingStream:
    return RingStream(key, name)
