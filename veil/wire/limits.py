"""What every connection of Veil is bounded by: message and metadata sizes, deadlines, concurrency, dead peers.

Guarantee: both ends of every connection get these options and no caller can raise a limit above them. Option names and
units: grpc/include/grpc/impl/channel_arg_names.h.
"""

from __future__ import annotations

from collections.abc import Sequence

from veil.errors import ConfigError

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# what is larger travels as a stream of chunks; a chunk and its envelope stay far below a message
CHUNK_BYTES = 1024 * 1024
DEADLINE_S = 30.0
MAX_WORKERS = 1024

_MAX_METADATA_BYTES = 16 * 1024
_MAX_STREAMS_PER_CONNECTION = 128
_HANDSHAKE_TIMEOUT_MS = 10_000
_KEEPALIVE_TIME_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 20_000
# a server tolerates pings somewhat more often than clients send them, so that jitter is not punished
_SHORTEST_PING_INTERVAL_MS = 10_000

Options = Sequence[tuple[str, int | str]]


def check_message_limit(max_message_bytes: int) -> int:
    """`max_message_bytes`, when it lies in 1 KiB .. 4 MiB; raises `ConfigError` otherwise."""
    if not 1024 <= max_message_bytes <= MAX_MESSAGE_BYTES:
        raise ConfigError(f"got a message limit of {max_message_bytes} bytes, expected 1024 to {MAX_MESSAGE_BYTES}")
    return max_message_bytes


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[IPv6]:port"; raises `ConfigError` for anything else, URIs and sockets too."""
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    well_formed = (
        bool(colon) and 0 < len(bare) <= 253 and all(c.isascii() and (c.isalnum() or c in ".-:_%") for c in bare)
    )
    if not well_formed or (":" in bare and bare == host) or not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise ConfigError(f"got address {address[:120]!r}, expected host:port or [IPv6]:port")
    if int(port) > 65535:
        raise ConfigError(f"got port {port}, expected 0 to 65535")
    return bare, int(port)


def client_options(address: str, server_name: str, max_message_bytes: int) -> Options:
    """Options of a channel to `address` whose server must hold a certificate for the DNS name `server_name`."""
    host, _ = split_address(address)
    options: list[tuple[str, int | str]] = [
        ("grpc.ssl_target_name_override", server_name),
        # never shares a connection with a channel of other credentials
        ("grpc.use_local_subchannel_pool", 1),
        # a call is made once; whoever repeats it decides so knowingly
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        # not a pause, whatever its name: how long one attempt may take, from TCP and TLS to the first frame of HTTP/2
        ("grpc.min_reconnect_backoff_ms", _HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        *_common(max_message_bytes),
    ]
    if host in ("localhost", "::1") or host.startswith("127."):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def server_options(max_message_bytes: int) -> Options:
    """Options of a listening server."""
    return [
        # a second server on the same port must fail, not share it
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", _SHORTEST_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        *_common(max_message_bytes),
    ]


def _common(max_message_bytes: int) -> list[tuple[str, int | str]]:
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # an idle stream must notice a dead peer too
        ("grpc.http2.max_pings_without_data", 0),
    ]
