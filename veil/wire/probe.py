"""Why a server could not be reached, when the reason is somebody's identity.

gRPC says UNAVAILABLE alike when nobody listens and when the server's or the client's certificate was refused. Here the
same handshake is made once more with Python's `ssl`, which tells the cases apart.

What each side learns. The client: got whom, expected whom; an authority that differs; a date that has passed; its own
certificate refused. The server: when the client had expected another identity of the same consortium, the client tells
it by one health check, so that the server's log names both. A client without a certificate of this authority never
gets as far as a call: gRPC's core then writes "Handshake failed" to the server's standard error (without a name or an
address, and not through Python's logging), and Veil's own log cannot mention it.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from veil.errors import IdentityError
from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.identity.names import Identity
from veil.wire.limits import MAX_MESSAGE_BYTES, client_options, split_address
from veil.wire.tls import channel_credentials, probe_context

EXPECTED_PEER = "veil-expected-peer"

_TIMEOUT_S = 3.0
_PAUSE_S = 0.2
_ROUTE_ATTRIBUTE = "_veil_route"
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL
_OUT_OF_DATE = {9: "is not valid yet", 10: "has expired"}
_log = logging.getLogger("veil.wire.probe")


@dataclass(frozen=True)
class Route:
    """Where a channel leads, as whom, and to whom."""

    address: str
    credentials: Credentials
    expect: Identity


def attach(call: object, route: Route) -> None:
    """Notes on a call (which is also the error that it raises) the route that it took."""
    setattr(call, _ROUTE_ATTRIBUTE, route)


def route_of(error: BaseException) -> Route | None:
    """The route of the call that raised `error`; None when the channel was not made by `open_channel`."""
    route = getattr(error, _ROUTE_ATTRIBUTE, None)
    return route if isinstance(route, Route) else None


def diagnose(route: Route) -> IdentityError | None:
    """The identity trouble that keeps `route` from working; None when there is none, so that the cause lies elsewhere.

    Takes at most about ten seconds; mostly milliseconds.
    """
    try:
        certificates.verify(route.credentials.certificate_pem, route.credentials.authority_pem, what="our own cert.pem")
    except IdentityError as error:
        return error
    for attempt in range(2):
        try:
            found, admitted = _handshake(route)
        except IdentityError as error:
            return error
        except OSError:
            # nobody listens, or the network fails: no question of identity
            return None
        if found != route.expect:
            if found.consortium == route.expect.consortium:
                _tell(route, found)
            return IdentityError(
                f"got {found} at {route.address}, expected {route.expect}",
                hint="correct the address, or the identity that is expected there",
            )
        if admitted:
            return None
        # a server that is just going down looks the same; by the second attempt it is gone
        if attempt == 0:
            time.sleep(_PAUSE_S)
    return IdentityError(
        f"{route.expect} at {route.address} ended the connection on seeing our certificate of "
        f"{route.credentials.identity}, expected it to be accepted",
        hint="its authority.pem differs from ours, or its clock; compare both with `veil certs show`",
    )


def _handshake(route: Route) -> tuple[Identity, bool]:
    """Who answers, and whether it keeps the connection. Raises `IdentityError`, or `OSError` when nobody answers."""
    host, port = split_address(route.address)
    context = probe_context(route.credentials)
    with socket.create_connection((host, port), timeout=_TIMEOUT_S) as plain:
        try:
            secure = context.wrap_socket(plain)
        except ssl.SSLCertVerificationError as error:
            dated = _OUT_OF_DATE.get(error.verify_code)
            if dated:
                raise IdentityError(
                    f"got a certificate at {route.address} that {dated}, expected one of {route.expect} in date",
                    hint="its operator runs `veil certs renew`; check the clocks as well",
                ) from None
            raise IdentityError(
                f"got a certificate at {route.address} that our authority did not sign, expected one of {route.expect}",
                hint="it belongs to another consortium, or authority.pem differs: compare with `veil certs show`",
            ) from None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise ConnectionResetError from None
        except ssl.SSLError:
            raise IdentityError(
                f"got no TLS of Veil's kind at {route.address}, expected {route.expect}", hint="check host and port"
            ) from None
        with secure:
            der = secure.getpeercert(binary_form=True)
            if der is None:
                raise ConnectionResetError
            pem = ssl.DER_cert_to_PEM_cert(der).encode("ascii")
            found = certificates.certificate_identity(
                certificates.parse_certificate(pem, f"the certificate at {route.address}"),
                f"what {route.address} shows",
            )
            return found, _stays_open(secure)


def _stays_open(secure: ssl.SSLSocket) -> bool:
    """Whether the server goes on after our certificate. In TLS 1.3 it judges it only after our handshake has ended; an
    HTTP/2 server that accepts us speaks first (RFC 9113, section 3.4), one that refuses us ends the connection."""
    try:
        return bool(secure.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def _tell(route: Route, found: Identity) -> None:
    """Lets the server that answered log that it was taken for another: it compares the metadata with itself."""
    credentials = channel_credentials(route.credentials)
    options = client_options(route.address, found.dns, MAX_MESSAGE_BYTES)
    with grpc.secure_channel(route.address, credentials, options) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S, metadata=((EXPECTED_PEER, route.expect.uri),)
            )
        except grpc.RpcError as error:
            # FAILED_PRECONDITION is the answer that means: logged
            _log.debug("told %s that it was taken for %s: %s", found, route.expect, error)
