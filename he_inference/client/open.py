"""From a client's arguments to its dialogue; the same for threads and event loops.

Guarantee: nothing is sent and nothing is written but the key directory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from he_inference.client.connection import Connection
from he_inference.client.conversation import Dialogue
from he_inference.client.keys import KeyRing, MemoryRing, Ring
from he_inference.client.model import ModelCache
from he_inference.client.steps import Retries
from he_inference.client.wishes import Wishes
from veil.errors import ConfigError
from veil.identity.names import Identity


def dialogue(
    connection: Connection,
    key_dir: Path | None,
    passphrase: bytes | None,
    model_dir: Path | None,
    require_signers: Sequence[Identity] | None,
    one_shot: bool,
    from_history: bool,
    sets: Collection[str] | None,
    retries: Retries,
    timeout_s: float,
) -> Dialogue:
    """The dialogue of a client; arguments as `ScoringClient`."""
    if key_dir is None and passphrase is not None:
        raise ConfigError("got a passphrase without a key directory, expected both, or neither")
    ring: Ring = MemoryRing() if key_dir is None else KeyRing(key_dir, passphrase)
    cache = model_dir if model_dir is not None else key_dir / "models" if key_dir is not None else None
    models = ModelCache(cache, connection.authority_pem, require_signers)
    wishes = Wishes(one_shot=one_shot, from_history=from_history, sets=sets)
    return Dialogue(connection.peer, ring, models, wishes=wishes, retries=retries, timeout_s=timeout_s)
