"""Small public objects between parties, as JSON: integers, strings, booleans, sizes, and lists and dicts of them.

CrypTen pickles such objects. Here nothing that arrives can name a class, and size and depth are bounded before use.
"""

from __future__ import annotations

import json

import torch

from veil.errors import InputError, ProtocolMismatch

MAX_OBJECT_BYTES = 64 * 1024
MAX_DEPTH = 8
_SIZE = "$size"


def dumps(value: object) -> bytes:
    """JSON of a permitted object; raises `InputError` for any other."""
    text = json.dumps(_encode(value, MAX_DEPTH), separators=(",", ":"), sort_keys=True).encode("ascii")
    if len(text) > MAX_OBJECT_BYTES:
        raise InputError(f"got an object of {len(text)} bytes, expected at most {MAX_OBJECT_BYTES}")
    return text


def loads(data: bytes, peer: str) -> object:
    """The object; raises `ProtocolMismatch` naming `peer` when it is not a permitted one."""
    try:
        if len(data) > MAX_OBJECT_BYTES:
            raise InputError(f"got an object of {len(data)} bytes, expected at most {MAX_OBJECT_BYTES}")
        return _decode(json.loads(data.decode("ascii")), MAX_DEPTH)
    except (InputError, ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, InputError) else "got no JSON"
        raise ProtocolMismatch(f"object from {peer}: {reason}", culprits=(peer,)) from None


def _encode(value: object, depth: int) -> object:
    if depth == 0:
        raise InputError(f"got an object nested deeper than {MAX_DEPTH}, expected less")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return _bounded(value)
    if isinstance(value, torch.Size):
        return {_SIZE: [int(extent) for extent in value]}
    if isinstance(value, list | tuple):
        return [_encode(item, depth - 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) and key != _SIZE for key in value):
        return {key: _encode(item, depth - 1) for key, item in value.items()}
    raise InputError(f"got an object of type {type(value).__name__}, expected int, str, bool, size, list or dict")


def _decode(value: object, depth: int) -> object:
    if depth == 0:
        raise InputError(f"got an object nested deeper than {MAX_DEPTH}, expected less")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return _bounded(value)
    if isinstance(value, list):
        return [_decode(item, depth - 1) for item in value]
    if isinstance(value, dict):
        if set(value) == {_SIZE}:
            extents = value[_SIZE]
            if not isinstance(extents, list) or not all(type(n) is int and 0 <= n < 2**40 for n in extents):
                raise InputError("got a size with extents that are not integers in range, expected a size")
            return torch.Size(extents)
        return {key: _decode(item, depth - 1) for key, item in value.items()}
    raise InputError(f"got a {type(value).__name__}, expected int, str, bool, size, list or dict")


def _bounded(value: int) -> int:
    if not -(2**63) <= value < 2**64:
        raise InputError("got an integer beyond 64 bits, expected one that fits")
    return value
