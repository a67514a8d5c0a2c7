"""Randomness that the parties draw together, and orders drawn from keys.

Guarantee of `joint_key`: every party commits to 32 random bytes before any is opened, so the key is uniform as long
as one party draws honestly, and no party can steer it. A permutation comes from 128 random bits for each row, sorted:
its distance from uniform is below count^2 / 2^129, beside what AES-256 in counter mode adds.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
import torch

from veil.align.plan import Rows
from veil.errors import ProtocolMismatch
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.randomness import KEY_BYTES, RingStream, derive_key

_DOMAIN = b"veil/align-commitment/v1\x00"


def joint_key(communicator: TensorCommunicator, job_digest: bytes, label: bytes) -> bytes:
    """32 bytes that all parties know and none has chosen; two rounds. Names a party that opens something else."""
    own = os.urandom(KEY_BYTES)

    def commitment(rank: int, contribution: bytes) -> bytes:
        return hashlib.sha256(_DOMAIN + derive_key(contribution, b"commit", label, job_digest, bytes([rank]))).digest()

    commitments = _all_gather(communicator, commitment(communicator.rank, own))
    opened = _all_gather(communicator, own)
    culprits = [
        communicator.names[rank] for rank, value in enumerate(opened) if commitment(rank, value) != commitments[rank]
    ]
    if culprits:
        raise ProtocolMismatch(
            f"got another contribution from {', '.join(culprits)}, expected the one committed to", culprits=culprits
        )
    return derive_key(b"".join(opened), b"align", label, job_digest)


def _all_gather(communicator: TensorCommunicator, own: bytes) -> list[bytes]:
    tensors = communicator.all_gather(torch.frombuffer(bytearray(own), dtype=torch.uint8))
    return [tensor.numpy().tobytes() for tensor in tensors]


def permutation(key: bytes, count: int) -> Rows:
    """A permutation of 0..count-1, int64; the same at every holder of the key."""
    high, low = RingStream(key, b"permutation").ring((2, count)).numpy()
    return np.lexsort((low, high)).astype(np.int64, copy=False)


def private_permutation(count: int) -> Rows:
    """One that nobody else knows."""
    return permutation(os.urandom(KEY_BYTES), count)
