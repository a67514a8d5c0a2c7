"""One body on both backends and for 2, 3 and 5 parties; then what a session must refuse."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dealer.service import DealerServicer
from tests.unit.mpc.operations import operations
from tests.unit.mpc.parties import CONSORTIUM, NAMES, SIZES, Group, Pool, job_text, own_sum
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.privacy.noise import keyed_source, rounded_gaussian
from veil.wire.channel import serve

GROUPS = [(backend, size) for size in SIZES for backend in ("loopback", "grpc")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, int], Any]]:
    """Every group run once: (backend, size) -> results by rank."""
    directory = tmp_path_factory.mktemp("consortium")
    make_consortium(directory, CONSORTIUM, NAMES)
    identity = Identity(CONSORTIUM, Role.DEALER, "main")
    dealer = DealerServicer(identity, noise_source=lambda: keyed_source(b"k" * 32, b"test"))
    with serve("127.0.0.1:0", Credentials.load(directory / "dealer-main"), [dealer.service()]) as server:
        pool = Pool(directory)
        try:
            found: dict[tuple[str, int], Any] = {}
            for backend, size in GROUPS:
                started = time.monotonic()
                group = Group(backend, size, job_text(size), pool.addresses, f"127.0.0.1:{server.port}")
                found[backend, size] = pool.run(group)
                print(backend, size, round(time.monotonic() - started, 1), "s", found[backend, size][0]["stats"])
            yield found
        finally:
            pool.close()


@pytest.mark.parametrize("operation", [operation.name for operation in operations()])
@pytest.mark.parametrize(("backend", "size"), GROUPS)
def test_operation_equals_plaintext(results: dict[Any, Any], backend: str, size: int, operation: str) -> None:
    for result in results[backend, size]:
        error, tolerance = result["errors"][operation]
        assert error <= tolerance


@pytest.mark.parametrize(("backend", "size"), GROUPS)
def test_joint_noised_sum_equals_plaintext_sum_plus_the_same_noise(
    results: dict[Any, Any], backend: str, size: int
) -> None:
    noise = rounded_gaussian(21, 5000, keyed_source(b"k" * 32, b"test")).reshape(7, 3)
    expected = sum(own_sum(rank, (7, 3)).numpy() for rank in range(size)) + noise
    for result in results[backend, size]:
        np.testing.assert_array_equal(result["noised"], expected)
    shares = sum(result["noise_share"] for result in results[backend, size])
    np.testing.assert_array_equal(shares, noise)


@pytest.mark.parametrize(("backend", "size"), GROUPS)
def test_nothing_is_sent_before_the_release_is_paid_for(results: dict[Any, Any], backend: str, size: int) -> None:
    for result in results[backend, size]:
        assert result["permits"] == ["counts:0"]


@pytest.mark.parametrize(("backend", "size"), GROUPS)
def test_every_opening_is_on_record(results: dict[Any, Any], backend: str, size: int) -> None:
    for result in results[backend, size]:
        assert result["opened"] == [operation.name for operation in operations()]
        digest = "sha256:" + hashlib.sha256(result["noised"].tobytes()).hexdigest()
        assert result["log"] == [("counts", (7, 3), "rounded-gaussian", digest)]


@pytest.mark.parametrize(("backend", "size"), GROUPS)
def test_public_state_reaches_everybody(results: dict[Any, Any], backend: str, size: int) -> None:
    for result in results[backend, size]:
        text, tensor, gathered = result["public"]
        assert text == b"abc"
        np.testing.assert_array_equal(tensor, np.full((2, 3), 0.5, np.float32))
        assert gathered == [bytes([rank]) * rank for rank in range(size)]


@pytest.mark.parametrize(("backend", "size"), GROUPS)
def test_what_the_job_does_not_list_is_refused(results: dict[Any, Any], backend: str, size: int) -> None:
    for result in results[backend, size]:
        assert result["refusals"] == {
            "plain text": "RevealError",
            "reveal": "RevealError",
            "share reveal": "RevealError",
            "batch": "RevealError",
            "unlisted": "RevealError",
            "again": "RevealError",
            "other sigma": "RevealError",
            "wrong dtype": "InputError",
            "first party": "PolicyError",
            "third party": "PolicyError",
            "homomorphic": "PolicyError",
            "first party class": "PolicyError",
            "providers by name": "PolicyError",
            "replicated": "PolicyError",
            "init": "PolicyError",
            "second session": "StateError",
        }
        assert result["outside"] == {"share": "StateError", "communicator": "StateError", "draw": "StateError"}


@pytest.mark.parametrize(("backend", "size"), GROUPS)
def test_one_refusal_stops_an_opening_at_every_party(results: dict[Any, Any], backend: str, size: int) -> None:
    *others, refusing = (result["refused_permit"] for result in results[backend, size])
    assert refusing == {"error": "BUDGET", "messages": 0}
    for other in others:
        # At most one statement to each peer, no share, nothing opened; the culprit is the one who left.
        assert other.pop("messages") <= size - 1
        assert other == {"error": "PEER_LOST", "culprits": (NAMES[size - 1],), "opened": ()}
