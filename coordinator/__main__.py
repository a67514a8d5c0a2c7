"""`python -m coordinator --config FILE`: runs until SIGTERM or SIGINT, then stops cleanly."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from coordinator.config import CoordinatorConfig, load
from coordinator.service import CoordinatorServicer, check_coordinator
from coordinator.store import Store
from coordinator.switchboard import Switchboard
from veil.errors import VeilError
from veil.identity.credentials import Credentials
from veil.wire.channel import RunningServer, serve

_GRACE_S = 3.0
_LOG = logging.getLogger("veil.coordinator")


class Coordinator:
    """A running coordinator; `address` is where it listens. As a context manager it stops at the end of the block."""

    def __init__(self, config: CoordinatorConfig) -> None:
        credentials = Credentials.load(config.credentials)
        check_coordinator(credentials.identity)
        self._switchboard = Switchboard(Store(config.store), rules=config.rules, limits=config.bounds)
        roster = config.roster(credentials.identity.consortium)
        servicer = CoordinatorServicer(self._switchboard, roster, credentials.authority_pem)
        try:
            self._server: RunningServer = serve(
                config.listen, credentials, [servicer.service()], max_workers=config.workers
            )
        except BaseException:
            self._switchboard.close()
            raise
        self.address = self._server.address
        _LOG.info("listening on %s", self.address)

    def stop(self) -> None:
        """Fails what runs, tells everybody, ends the streams, closes the store."""
        self._switchboard.close()
        self._server.stop(_GRACE_S)

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def run(config: Path) -> None:
    """Runs until SIGTERM or SIGINT. Raises `VeilError` when it cannot start."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with Coordinator(load(config)):
        while not stopping.wait(3600):
            pass
        _LOG.info("stopping")


def main() -> None:
    """Entry point of `python -m coordinator`."""
    parser = argparse.ArgumentParser(prog="coordinator", description="Plans and watches jobs; sees no data.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file; see deploy/coordinator.toml")
    arguments = parser.parse_args()
    level = os.environ.get("VEIL_LOG", "INFO").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        run(arguments.config)
    except VeilError as error:
        sys.exit(f"coordinator: {error} [{error.code}]")


if __name__ == "__main__":
    main()
