"""The canary as a process beside the server: its settings, and starting and ending it.

Why a process: a canary encrypts and decrypts, so it holds a secret key and SEAL, which the server's own process must
never import (pyproject, import-linter). It asks as any client does, over TLS, and therefore tries the whole way: door,
limits, keys, queue, worker, answer. Here is only what the server's side may import.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from pydantic import Field

from he_inference.service.metrics import MetricsSettings
from veil.settings import Section

_ENDS_WITHIN_S = 5.0
_log = logging.getLogger("veil.he_inference.canary")


class CanarySettings(Section):
    """An own client that asks with random vectors and histories and compares with plaintext scores."""

    # Directory with key.pem, cert.pem and authority.pem of a client, such as `veil certs issue --role client --name
    # canary`; name it in [budget] exempt, certificate/canary, since it asks for as long as the server runs.
    credentials: Path
    # Seconds between two rounds; a round asks each offer once.
    every_s: float = Field(default=60.0, ge=0.1, le=86_400)
    # Endpoint of the canary's own metrics.
    metrics: MetricsSettings = MetricsSettings()


class CanaryProcess:
    """A canary that runs; as a context manager it ends with the block. It ends by itself when this process does."""

    def __init__(self, config: Path, address: str) -> None:
        """config: the server's file. address: where the server listens for certificates. Raises `OSError`."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "he_inference.canary", "--config", str(config), "--address", address],
            stdin=subprocess.PIPE,
        )
        _log.info("canary started")

    @property
    def running(self) -> bool:
        """Whether it still asks."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends it; kills it when it does not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> CanaryProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
