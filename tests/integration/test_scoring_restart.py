"""A scoring server that is killed and started again: what its clients had paid for stays paid for."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.scoring_site import ANNA, DIMENSIONS, SERVER, Raw, Site, unit_vector
from veil.wire.channel import open_channel
from veil.wire.v1 import inference_pb2 as messages

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(config: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "he_inference", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process, log.open("ab") as kept:
        assert process.stderr is not None
        try:
            address = None
            while address is None:
                line = process.stderr.readline()
                assert line, "the server ended before it listened"
                kept.write(line)
                address = re.search(rb"at (127\.0\.0\.1:\d+)", line)
            yield process, address[1].decode()
        finally:
            process.kill()
            kept.write(process.stderr.read())


def left(client: Raw) -> int:
    return client.stub.GetParameters(messages.GetParametersRequest(), timeout=30).queries_left


def test_a_retry_after_the_server_was_killed_counts_once(site: Site, tmp_path: Path) -> None:
    config, log = tmp_path / "scoring.toml", tmp_path / "log"
    config.write_text(
        f'listen = "127.0.0.1:0"\ncredentials = "{site.members[SERVER]}"\nmodel = "{site.published}"\n'
        'require_signers = ["alpha", "beta"]\nstate = "state"\noffers = ["fast"]\n[load]\nthreads = 1\n'
        "[budget]\nqueries_per_dimension = 4.0\nwindow_days = 0\n"
    )
    limit, step = 4 * DIMENSIONS, 4 * DIMENSIONS // 16
    vector = unit_vector(3)
    with serving(config, log) as (process, address), open_channel(address, site.credentials(ANNA), SERVER) as channel:
        client = Raw(channel, site.model)
        # the first is written with the step that it takes, the second is one of that step
        requests = [(client.query(vector), secrets.token_bytes(16)) for _ in range(2)]
        for query, request_id in requests:
            client.check(client.ask(query, request_id=request_id), vector)
        assert left(client) == limit - 2
        process.kill()
        process.wait()
    with serving(config, log) as (_, address), open_channel(address, site.credentials(ANNA), SERVER) as channel:
        again = Raw(channel, site.model)
        again.secret, again.digest = client.secret, client.digest
        assert left(again) == limit - step
        for query, request_id in [*requests, *requests]:
            again.check(again.ask(query, request_id=request_id), vector)
        assert left(again) == limit - step
        # the same id with another query is another query
        again.check(again.ask(again.query(vector), request_id=requests[0][1]), vector)
        assert left(again) == limit - step - 1
    written = log.read_bytes()
    assert written.count(b"query_answered") >= 5
    for _, request_id in requests:
        assert request_id not in written and request_id.hex().encode() not in written
        assert all(request_id not in file.read_bytes() for file in (tmp_path / "state").glob("budget*"))
