"""The dealer under mutual TLS: client and server as they are, and the program as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dealer.config import load
from dealer.service import DealerServicer
from dealer.sessions import Limits
from tests.unit.mpc.parties import job_text
from veil.errors import ConfigError, IdentityError, PolicyError, StateError, VeilError, WireError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs.spec import digest
from veil.mpc.dealer_client import DealerClient
from veil.mpc.engine import wire as engine_wire
from veil.mpc.engine.items import EngineItem
from veil.mpc.items import Item, to_wire
from veil.mpc.provider import DealerProvider
from veil.wire.channel import serve
from veil.wire.v1 import dealer_pb2

DEALER = Identity("trial", Role.DEALER, "main")
EXAMPLE = Path(__file__).parents[3] / "deploy" / "dealer.toml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    make_consortium(folder, "trial", ("alpha", "beta", "stranger"))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    servicer = DealerServicer(DEALER, limits=Limits(elements=2**20))
    with serve("127.0.0.1:0", Credentials.load(folder / "dealer-main"), [servicer.service()]) as server:
        yield f"127.0.0.1:{server.port}"


def client(folder: Path, address: str, who: str, job_id: str) -> DealerClient:
    credentials = Credentials.load(folder / who)
    text = job_text(2)
    return DealerClient(address, credentials, DEALER, job_id=job_id, job_text=text, job_digest=digest(text))


def test_two_parties_get_shares_that_fit(folder: Path, address: str) -> None:
    clients = [client(folder, address, f"party-{name}", "fit") for name in ("alpha", "beta")]
    providers = [DealerProvider(rank, c.open(), c.correct) for rank, c in enumerate(clients)]
    # 3.2 MB: several pieces
    parts = [p.generate_additive_triple((400, 100), (100, 1000), "matmul") for p in providers]
    a, b, c = (first + second for first, second in zip(*parts, strict=True))
    assert (a @ b == c).all()
    assert (clients[0].bytes_received, clients[1].bytes_received) == (8 * 400 * 1000, 0)
    with pytest.raises(PolicyError, match="alpha"):
        clients[1].correct(to_wire(Item("square", ((2,),)), "", 1))
    with pytest.raises(WireError, match="at most 1048576"):
        clients[0].correct(to_wire(Item("square", ((2**20 + 1,),)), "", 1))
    for each in clients:
        each.close()  # the second finds the job closed already, which is no error


def test_a_failure_inside_a_stream_keeps_its_class(folder: Path, address: str) -> None:
    alpha = client(folder, address, "party-alpha", "order")
    alpha.open()
    with pytest.raises(StateError, match="beta"):
        alpha.correct(to_wire(Item("square", ((2,),)), "", 0))
    alpha.close()


@pytest.mark.parametrize("who", ["party-stranger", "coordinator-main", "client-main"])
def test_whoever_is_not_in_the_job_is_refused(folder: Path, address: str, who: str) -> None:
    other = client(folder, address, who, "refused")
    with pytest.raises(IdentityError):
        other.open()
    other.close()


def test_a_dealer_with_another_identity_is_not_spoken_to(folder: Path, address: str) -> None:
    credentials = Credentials.load(folder / "party-alpha")
    wrong = Identity("trial", Role.DEALER, "second")
    text = job_text(2)
    other = DealerClient(address, credentials, wrong, job_id="x", job_text=text, job_digest=digest(text))
    with pytest.raises(VeilError, match="second"):
        other.open()
    other.close()


def test_the_example_configuration_holds_the_defaults() -> None:
    config = load(EXAMPLE)
    assert config.session_limits() == Limits()
    assert config.dealer.credentials == EXAMPLE.parent / "credentials"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "dealer: got nothing, expected a value"),
        ("[dealer", "conf.toml"),
        ('[dealer]\ncredentials = "x"\nlisten = "h:1"\nextra = 1', "extra"),
        ('[dealer]\ncredentials = "x"\nlisten = "h:1"\nworkers = 0', "workers"),
        ('[dealer]\ncredentials = "x"\nlisten = "h:1"\n[limits]\nelements = 99999999999', "elements"),
        ("\xff", "conf.toml"),
    ],
)
def test_wrong_configurations_say_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "conf.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=says.replace("[", r"\[")):
        load(path)


def test_the_program_listens_drains_and_says_why_it_cannot_start(folder: Path) -> None:
    path = folder / "dealer.toml"
    path.write_text('[dealer]\ncredentials = "dealer-main"\nlisten = "127.0.0.1:0"\n[log]\nformat = "json"\n')
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dealer", "--config"]
    with subprocess.Popen([*command, str(path)], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "listening on 127.0.0.1:" in line)
        port = int(line.rsplit(":", 1)[1].strip('"}\n '))
        alpha = client(folder, f"127.0.0.1:{port}", "party-alpha", "process")
        seed = alpha.open()
        alpha.close()
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) == 0
    assert "draining" in rest and "alpha registered" in rest
    assert seed.hex() not in rest and str(seed) not in rest
    failed = subprocess.run([*command, str(folder / "none.toml")], capture_output=True, text=True, env=environment)
    assert failed.returncode == 2 and "none.toml" in failed.stderr and "Traceback" not in failed.stderr
    assert failed.stdout == ""


def test_who_does_not_read_its_answer_gets_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream that is not read would hold a thread of the dealer and its answer in memory."""
    text, servicer = job_text(2), DealerServicer(DEALER)
    alpha, beta = (Identity("trial", Role.PARTY, name) for name in ("alpha", "beta"))
    monkeypatch.setattr("dealer.service.caller", lambda context: alpha)
    for job_id in ("job", "other"):
        for party in (alpha, beta):
            servicer.sessions.open(party, job_id, text, digest(text))
    cut = EngineItem("truncation", (2**17,), shift=4)

    def asked(job_id: str, first: int) -> Iterator[dealer_pb2.CorrectResponse]:
        request = engine_wire.to_wire(first, [cut])
        request.job_id = job_id
        return servicer.Correct(request, None)  # type: ignore[arg-type]

    unread = asked("job", 0)
    assert not next(unread).last
    with pytest.raises(StateError, match="one at a time"):
        next(asked("job", 1))
    assert len(list(asked("other", 0))) == 2
    assert next(unread).last and not list(unread)
    abandoned = asked("job", 1)
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert len(list(asked("job", 2))) == 2
