"""`python -m he_inference --config FILE`: runs the scoring server until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from he_inference.service import journal
from he_inference.service.canary_process import CanaryProcess
from he_inference.service.config import ScoringConfig, load
from he_inference.service.server import start
from veil.errors import VeilError

_log = logging.getLogger("veil.he_inference")


def run(config: ScoringConfig, ready: Callable[[str], None], source: Path | None = None) -> None:
    """Serves until SIGINT or SIGTERM, then lets running queries end; SIGHUP takes up another model or changed indexes.

    ready: told when and where it listens. source: the file that the configuration is from, which a canary needs.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if config.log == "json":
        journal.install(logging.getLogger().getEffectiveLevel())
    server = start(config)
    # Only now: before, there is nothing to reload, and the signal would end the process.
    signal.signal(signal.SIGHUP, lambda *_: server.reloader.soon())
    offers = server.offers.offers
    layout = offers[0].layout
    sets = ", ".join(f"{offer.layout.parameters.name} ({offer.layout.kind})" for offer in offers)
    ready(f"serving {layout.items} items of {layout.dimensions} dimensions under {sets}; listens at {server.address}")
    try:
        with ExitStack() as resources:
            if config.canary is not None and source is not None:
                resources.enter_context(CanaryProcess(source, server.address))
            stop.wait()
    finally:
        server.stop()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m he_inference", description="The scoring server.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file, see deploy/scoring.toml")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        source: Path = parser.parse_args().config
        run(load(source), _say, source)
    except VeilError as error:
        _log.error("%s", error)
        _say(str(error))
        return 1
    return 0


def _say(line: str) -> None:
    """To the person who started the server; no line of the log."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
