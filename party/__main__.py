"""`python -m party --config FILE`: runs a data owner's daemon until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import sys
import threading
from pathlib import Path

from party import service
from party.config import load
from party.daemon import Daemon
from veil.errors import VeilError
from veil.identity.credentials import Credentials
from veil.wire.channel import serve

_LOG = logging.getLogger("veil.party")
_GRACE_S = 5.0


def run(config_path: Path) -> None:
    """Prepares the rows, listens, joins the coordinator, and returns after SIGTERM or SIGINT."""
    # A core dump would hold rows and keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    config = load(config_path)
    credentials = Credentials.load(config.credentials)
    daemon = Daemon(config, credentials)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    server = serve(config.listen, credentials, [daemon.mesh.service(), service.service(daemon)], max_workers=32)
    _LOG.info("party %s listening on %s", daemon.name, server.address)
    direct = None
    if config.listen_direct is not None:
        direct = daemon.mesh.listen_direct(config.listen_direct, credentials)
    daemon.link.start()
    try:
        stopping.wait()
    finally:
        daemon.close()
        if direct is not None:
            direct.close()
        server.stop(_GRACE_S)


def main() -> None:
    """Entry point; a `VeilError` ends the program with one readable line."""
    parser = argparse.ArgumentParser(prog="python -m party", description="Run a data owner's daemon.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file; see deploy/party.toml")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("VEIL_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        run(arguments.config)
    except VeilError as error:
        _LOG.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
