"""`python -m he_inference --config FILE`: runs the scoring server until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from he_inference.config import ScoringConfig, load
from he_inference.server import start
from veil.errors import VeilError

_log = logging.getLogger("veil.he_inference")


def run(config: ScoringConfig, ready: Callable[[str], None] = _log.info) -> None:
    """Serves until SIGINT or SIGTERM, then lets running requests end. `ready` is told when and where it listens."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    server = start(config)
    layout = server.terms.layout
    extent = f"{layout.items} items of {layout.dimensions} dimensions"
    ready(f"serving {extent} at {server.address} under {layout.parameters.name}")
    try:
        stop.wait()
    finally:
        server.stop()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m he_inference", description="The scoring server.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file, see deploy/scoring.toml")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        run(load(parser.parse_args().config))
    except VeilError as error:
        _log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
