"""Numbers to test with: uniform ones with the boundaries among them, and exact products of Python integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from veil.mpc.communicator import TensorCommunicator
from veil.mpc.loopback import loopback

BOUNDARIES = (0, -1, -(2**63), 2**63 - 1, 1, 2**32)
ResultT = TypeVar("ResultT")
Integers = NDArray[np.int64]


def uniform(seed: int, *shape: int) -> Integers:
    """int64, uniform, with boundaries at its beginning and the lowest number at its end."""
    values = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, shape, endpoint=True)
    flat = values.reshape(-1)
    flat[: len(BOUNDARIES)] = BOUNDARIES[: flat.size]
    flat[-1] = -(2**63)
    return values


def bounded(seed: int, bits: int, *shape: int) -> Integers:
    """int64 with |x| < 2^bits (64: any), the greatest at both ends."""
    if bits == 64:
        return uniform(seed, *shape)
    values = np.random.default_rng(seed).integers(-(2**bits) + 1, 2**bits, shape)
    values.reshape(-1)[[0, -1]] = -(2**bits) + 1, 2**bits - 1
    return values


def product(left: Integers, right: Integers) -> Integers:
    """left @ right by Python's integers, modulo 2^64."""
    exact = left.astype(object) @ right.astype(object)
    return wrapped(exact)


def wrapped(exact: NDArray[np.object_]) -> Integers:
    """Python integers modulo 2^64 as int64."""
    return np.array([(int(x) + 2**63) % 2**64 - 2**63 for x in exact.ravel()], np.int64).reshape(exact.shape)


def together(parties: int, program: Callable[[TensorCommunicator], ResultT]) -> list[ResultT]:
    """What `program` returns at each party, in threads joined by queues."""
    results: dict[int, ResultT] = {}
    errors: list[BaseException] = []
    transports = loopback(parties)

    def take_part(rank: int) -> None:
        try:
            names = [f"party-{number}" for number in range(parties)]
            results[rank] = program(TensorCommunicator(transports[rank], names, timeout_s=60.0))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the test
            errors.append(error)
            transports[rank].close()

    threads = [Thread(target=take_part, args=(rank,)) for rank in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(parties)]


def total(shares: Sequence[Integers]) -> Integers:
    """The sum of shares, wrapping."""
    return np.sum(np.stack(shares), axis=0)
