"""TLS: the only file that turns credentials into something that connects or listens.

Guarantee: the server always shows a certificate of its consortium's authority, and so does the client, but on a port
for bearer tokens (`token_server_credentials`), where no client is asked for one and `veil.wire.admission` wants a token
of each call instead. There is no port without TLS. gRPC negotiates TLS 1.2 or 1.3 (between two Veils 1.3).
"""

from __future__ import annotations

import secrets
import ssl
import tempfile
from pathlib import Path

import grpc

from veil.identity.credentials import Credentials


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """For a client that shows its own certificate and trusts its authority alone."""
    return grpc.ssl_channel_credentials(
        root_certificates=credentials.authority_pem,
        private_key=credentials.key_pem(),
        certificate_chain=credentials.certificate_pem,
    )


def token_channel_credentials(authority_pem: bytes, token: str) -> grpc.ChannelCredentials:
    """For a client without a certificate: trusts that authority alone, and sends the token with every call.

    gRPC sends such call credentials over TLS only, after it has verified the server's certificate.
    """
    return grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(root_certificates=authority_pem), grpc.access_token_call_credentials(token)
    )


def token_server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """For a port that asks no client for a certificate: whoever calls there is known by a token, or refused."""
    return grpc.ssl_server_credentials([(credentials.key_pem(), credentials.certificate_pem)])


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """For a server that refuses, in the handshake, whoever shows no certificate of its authority."""
    return grpc.ssl_server_credentials(
        [(credentials.key_pem(), credentials.certificate_pem)],
        root_certificates=credentials.authority_pem,
        require_client_auth=True,
    )


def probe_context(credentials: Credentials) -> ssl.SSLContext:
    """For Python's `ssl`: as a client of `channel_credentials`, but whoever the authority vouches for may answer.

    It serves only to read the certificate of a server that gRPC has already refused; no request is sent over it.
    """
    context = _context(credentials, ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    return context


def direct_context(credentials: Credentials, *, server: bool) -> ssl.SSLContext:
    """For connections of the mesh beside gRPC: TLS 1.3 alone, a certificate of the one authority from both ends.

    A client wants the DNS name of the identity that it expects; who a server's caller is, the caller of this function
    reads from the certificate.
    """
    context = _context(credentials, ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["veil-mesh/2"])
    if server:
        context.num_tickets = 0  # nothing is resumed: every connection shows both certificates
    return context


def _context(credentials: Credentials, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials.authority_pem.decode("ascii"))
    # `ssl` reads keys from files only: the key passes through one encrypted under a password that is never stored
    password = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="veil-tls-") as folder:
        path = Path(folder) / "pair.pem"
        path.touch(mode=0o600)
        path.write_bytes(credentials.key_pem(password.encode()) + credentials.certificate_pem)
        context.load_cert_chain(path, password=password)
    return context
