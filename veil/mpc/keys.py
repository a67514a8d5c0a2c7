"""The streams of one session: agreed with every peer when it starts, gone when it ends.

Each end of a pair contributes 32 random bytes, which travel under the mesh's mutual TLS; the key is derived from both
and from the digest of the signed job. A session that starts again for the same job has other keys throughout, so no
mask is ever used twice.
"""

from __future__ import annotations

import os

from veil.mpc.communicator import TensorCommunicator
from veil.mpc.randomness import KEY_BYTES, RingSource, RingStream, derive_key, pair_key, zero_sources


def agree_on_streams(communicator: TensorCommunicator, job_digest: bytes) -> dict[str, RingSource]:
    """CrypTen's four generators by name; one round.

    "prev" and "next": shares of zero with all lower and all higher ranks (`veil.mpc.randomness`). "local": known to
    this party alone. "global": the same at every party.
    """
    rank, size = communicator.rank, communicator.world_size
    common = os.urandom(KEY_BYTES)
    own = {peer: os.urandom(KEY_BYTES) + common for peer in range(size) if peer != rank}
    received = communicator.exchange_keys(own)
    keys: dict[int, bytes] = {}
    for peer, data in received.items():
        mine, theirs = own[peer][:KEY_BYTES], data[:KEY_BYTES]
        low, high = (mine, theirs) if rank < peer else (theirs, mine)
        keys[peer] = pair_key(low, high, job_digest, min(rank, peer), max(rank, peer))
    commons = b"".join(common if peer == rank else received[peer][KEY_BYTES:] for peer in range(size))
    previous, following = zero_sources(rank, keys)
    return {
        "prev": previous,
        "next": following,
        "local": RingStream(os.urandom(KEY_BYTES), b"local"),
        "global": RingStream(derive_key(commons, b"common", job_digest), b"global"),
    }
