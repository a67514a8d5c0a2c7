"""`veil recommend`: recommendations for a history that the server never sees."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

_PIPE_WIDTH = 400
_MAX_HISTORY_BYTES = 4 * 1024 * 1024
_PASSPHRASE_VARIABLE = "VEIL_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable


def recommend(
    server: Annotated[str, typer.Option(help="Address of the scoring server, host:port.")],
    credentials: Annotated[Path, typer.Option(help="Directory with key.pem, cert.pem and authority.pem, role client.")],
    history: Annotated[str, typer.Option(help='Item ids, one a line or a JSON list; "-" reads standard input.')],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many items.")] = 10,
    server_name: Annotated[str, typer.Option(help="Name in the server's certificate.")] = "main",
    keys: Annotated[
        Path | None,
        typer.Option(help="Directory for the secret key, mode 0700. Default: scoring-keys in --credentials."),
    ] = None,
    ask_passphrase: Annotated[
        bool, typer.Option(help=f"Encrypt keys on disk under a passphrase, asked for or in ${_PASSPHRASE_VARIABLE}.")
    ] = False,
    include_seen: Annotated[bool, typer.Option(help="Recommend items of the history too.")] = False,
    skip_unknown: Annotated[bool, typer.Option(help="Ignore ids that the catalogue does not have.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Ask a server for recommendations without showing it the history.

    Example: veil recommend --server scores.example.org:7440 --credentials certs/client-main --history liked.txt -k 10
    """
    from he_inference.client import ScoringClient
    from veil.identity.credentials import Credentials
    from veil.identity.names import Identity, Role

    items = read_history(history)
    own = Credentials.load(credentials)
    expect = Identity(own.identity.consortium, Role.SCORING, server_name)
    secret = _passphrase() if ask_passphrase or _PASSPHRASE_VARIABLE in os.environ else None
    with ScoringClient(server, own, expect, keys or credentials / "scoring-keys", passphrase=secret) as client:
        found = client.recommend(items, k, exclude_seen=not include_seen, skip_unknown=skip_unknown)
        report = client.last_query
    if as_json:
        document = [{"item_id": one.item_id, "title": one.title, "score": round(one.score, 6)} for one in found]
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "item", "title", "score", box=None)
    for place, one in enumerate(found, 1):
        table.add_row(str(place), one.item_id, one.title, f"{one.score:.4f}")
    console = Console()
    if not console.is_terminal:
        # A pipe has no width: no title is folded for one.
        console = Console(width=_PIPE_WIDTH)
    console.print(table)
    if report is not None:
        console.print(
            f"[dim]the server saw {report.query_bytes:,} bytes of ciphertext and returned {report.response_bytes:,}; "
            f"{1000 * report.total_s:.0f} ms, {1000 * report.server_s:.0f} ms of them its arithmetic[/dim]"
        )


def read_history(source: str) -> list[str]:
    """Item ids from a file or, for "-", from standard input. Raises `InputError`; its messages hold no ids."""
    from veil.errors import InputError
    from veil.files import read_bounded

    if source == "-":
        data = sys.stdin.buffer.read(_MAX_HISTORY_BYTES + 1)
        if len(data) > _MAX_HISTORY_BYTES:
            raise InputError(f"got more than {_MAX_HISTORY_BYTES} bytes of history, expected at most that many")
    else:
        data = read_bounded(Path(source), _MAX_HISTORY_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("got a history that is not UTF-8 text, expected item ids") from None
    if text.lstrip().startswith("["):
        try:
            ids = json.loads(text)
        except ValueError as error:
            raise InputError(f"got a history that starts like JSON but is not: {error}") from None
        if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in ids):
            raise InputError("got a JSON history with other things than ids, expected a list of texts or integers")
        return [str(item) for item in ids]
    return [line.strip() for line in text.splitlines() if line.strip()]


def _passphrase() -> bytes:
    from getpass import getpass

    return (os.environ.get(_PASSPHRASE_VARIABLE) or getpass("passphrase of the scoring keys: ")).encode()
