"""`python -m dealer --config FILE`: serves correlated randomness until SIGTERM or SIGINT, then drains."""

from __future__ import annotations

import argparse
import json
import logging
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from dealer.config import DealerConfig, LogSection, load
from dealer.service import DealerServicer
from veil.errors import VeilError
from veil.identity.credentials import Credentials
from veil.mpc.engine.kernels import warm_up
from veil.wire.channel import serve

_log = logging.getLogger("veil.dealer")
_EXPIRE_INTERVAL_S = 30.0


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


def _set_up_logging(section: LogSection) -> None:
    stream = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    stream.setFormatter(_JsonLines() if section.format == "json" else plain)
    logging.basicConfig(level=section.level.upper(), handlers=[stream], force=True)


def run(config: DealerConfig, stop: threading.Event) -> None:
    """Serves until `stop` is set. Raises `VeilError` when it cannot start."""
    credentials = Credentials.load(config.dealer.credentials)
    servicer = DealerServicer(
        credentials.identity, limits=config.session_limits(), concurrent=config.dealer.concurrent_corrections
    )
    warm_up()  # compiled loops are loaded now and not while the first job waits
    server = serve(config.dealer.listen, credentials, [servicer.service()], max_workers=config.dealer.workers)
    _log.info("listening on %s", server.address)
    while not stop.wait(_EXPIRE_INTERVAL_S):
        servicer.sessions.expire()
    _log.info("draining for at most %g s", config.dealer.grace_s)
    server.stop(config.dealer.grace_s)
    _log.info("stopped")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a drain, 2 when the configuration or the start fails."""
    parser = argparse.ArgumentParser(prog="python -m dealer", description="Hands out correlated randomness to parties.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file, see deploy/dealer.toml")
    config_path: Path = parser.parse_args(arguments).config
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _set_up_logging(LogSection())
    # A core dump would hold seeds and noise.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        config = load(config_path)
        _set_up_logging(config.log)
        run(config, stop)
    except VeilError as error:
        _log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
