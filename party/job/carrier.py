"""The carrier: one process, one job, and gloo's connections to the other parties; only with `[mesh] plane = "gloo"`.

`python -m party.job.carrier --fd N --messages-fd M`: sockets to the daemon and to the worker. Guarantee: it holds no
private key, no seed of the dealer's and no rows, only messages that are on the network in any case. gloo ends a process
on bytes that it does not expect, so it runs here, where one job is lost with it, and neither in the daemon nor beside
rows.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import socket
import sys
import threading
from typing import Any, NoReturn

from veil.errors import StateError, VeilError
from veil.mpc.faults import to_document
from veil.mpc.gloo_plane import GlooPlane
from veil.mpc.relay import RelayTransport
from veil.mpc.relay_hub import RelayHub

_LOG = logging.getLogger("veil.party.carrier")


def carry(source: socket.socket, messages: socket.socket, rank: int, parties: int) -> None:
    """Joins the worker behind `messages` to the peers, until it has gone. Failures are told to the daemon, then raised.

    source: to the daemon, which relays the job's mesh: addresses pass there, and who leaves it is lost here too.
    """
    daemon = RelayTransport(source, rank, parties)
    try:
        told = daemon.request("init", {})
        names = [str(name) for name in told["names"]]
        plane = GlooPlane.connect(daemon, names, str(told["host"]), float(told["timeout_s"]))
        plane.watch(daemon)
        gone = threading.Event()
        RelayHub(messages, plane, _refuse, on_worker_gone=gone.set).start()
        daemon.request("ready", {})
        # The worker's end closes the plane, which says goodbye first.
        gone.wait()
    except VeilError as error:
        try:
            daemon.request("failed", to_document(error))
        except VeilError:
            _LOG.warning("the daemon could not be told: %s", error)
        raise
    finally:
        messages.close()
        daemon.close()


def _refuse(kind: str, body: dict[str, Any]) -> NoReturn:
    raise StateError("got a control request at the carrier, expected it at the daemon")


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m party.job.carrier")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the daemon")
    parser.add_argument("--messages-fd", type=int, required=True, help="inherited socket to the worker")
    parser.add_argument("--rank", type=int, required=True, help="own rank in the job")
    parser.add_argument("--parties", type=int, required=True, help="number of parties of the job")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("VEIL_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, messages = (socket.socket(fileno=descriptor) for descriptor in (arguments.fd, arguments.messages_fd))
    try:
        carry(source, messages, arguments.rank, arguments.parties)
    except VeilError as error:
        _LOG.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
