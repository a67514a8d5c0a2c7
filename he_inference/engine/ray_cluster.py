"""This process's connection to a Ray cluster, and the engines over its actors.

Guarantee: leaving it ends what it started: actors, and the cluster where that is local. An engine is handed out when
all its actors have opened and checked their blocks; when one of several does not come about, none stays.

What it does not guarantee: Ray's own messages are pickled Python objects, and who reaches a Ray port can run code on
every node. So a cluster belongs inside one operator's network, with Ray's own TLS (RAY_USE_TLS) and token
authentication (RAY_AUTH_MODE) where that is shared; a local cluster always asks for a token. Only bytes and small
integers are passed here, to an address from the operator's configuration; nothing secret is among them, since no secret
key exists on this side. The dashboard and Ray's usage statistics are off.

Sources: Ray's documentation, "Token authentication", "Configuring Ray" and "TLS authentication".
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from he_inference.engine.pinned import pin
from he_inference.engine.ray_settings import LOCAL, RaySettings, installed
from he_inference.engine.ray_shards import RayShards
from he_inference.index.store import Index
from veil.errors import PeerLost

# Of a cluster that exists in this process's machine only; Ray asks for at least 75 MiB.
_LOCAL_STORE_BYTES: Final = 512 * 1024 * 1024


class RayCluster:
    """A connection to Ray, one in a process; a context manager that gives it up, and ends a local cluster.

    When this process is killed, actors and a local cluster end with it, but for two agents of Ray, a minute later.
    """

    def __init__(self, settings: RaySettings) -> None:
        """Connects. Raises `ConfigError` when Ray is not installed, `PeerLost` when no cluster answers."""
        # Read by Ray when it starts a cluster.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if settings.address == LOCAL:
            # Ray listens on all interfaces, and asks who comes for a token, which it would write to the home folder.
            # This one stays in the memory of this process and its children.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # Clients wait for actors; Ray runs them behind everything else (niceness 15).
            os.environ.setdefault("RAY_worker_niceness", "0")
            if "ray" not in sys.modules:
                # Ray looks when it is imported; later it does the same by itself, since version 2.59.
                os.environ.setdefault("RAY_AUTH_MODE", "token")
        ray = installed()
        self.settings = settings
        options: dict[str, Any] = {"address": settings.address}
        if settings.address == LOCAL:
            options |= {
                "num_cpus": 1,
                "num_gpus": 0,
                "include_dashboard": False,
                "object_store_memory": _LOCAL_STORE_BYTES,
            }
        try:
            ray.init(**options, namespace="veil-scoring", log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, TimeoutError) as error:
            raise PeerLost(
                f"got no Ray cluster at {settings.address}: {str(error).partition(chr(10))[0]}",
                hint="is it started there (ray start --head), and is its token known here?",
            ) from None
        self._engines: list[RayShards] = []

    def engines(self, indexes: Sequence[tuple[Index, Path]]) -> list[RayShards]:
        """An engine for each open index and its path, which every node must reach; raises `VeilError`.

        The indexes stay the caller's and may be closed. Each engine's actors have opened the file and checked their
        blocks. Index files at the same paths that are not among these are given up (`he_inference.engine.pinned`).
        """
        made: list[RayShards] = []
        try:
            for (index, _), path in zip(indexes, pin(indexes), strict=True):
                made.append(RayShards(index, path, self.settings))
            for engine in made:
                engine.start()
        except BaseException:
            for engine in made:
                engine.close()
            raise
        self._engines += made
        return made

    def close(self) -> None:
        """Ends the actors and the connection; may be called again."""
        for engine in self._engines:
            engine.close()
        self._engines.clear()
        installed().shutdown()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The frames of an error hold references to answers. Those must not outlive the connection: Ray crashes then.
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        self.close()
