"""`veil recommend`: recommendations for a history that the server never sees."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from he_inference.client import Recommendation, ScoringClient

_PIPE_WIDTH = 400
_MAX_HISTORY_BYTES = 4 * 1024 * 1024
_PASSPHRASE_VARIABLE = "VEIL_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable


def recommend(
    server: Annotated[str, typer.Option(help="Address of the scoring server, host:port.")],
    credentials: Annotated[
        Path,
        typer.Option(
            help="Directory with key.pem, cert.pem and authority.pem, role client; or authority.pem and token."
        ),
    ],
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
    one_shot: Annotated[
        bool, typer.Option(help="Ask without keys at the server, if it offers that; for somebody who asks once.")
    ] = False,
    from_history: Annotated[
        bool, typer.Option(help="Let the server fold the encrypted history in, if it offers that; no model is fetched.")
    ] = False,
    params: Annotated[
        str | None, typer.Option(help="Parameter sets to accept, comma-separated; default: all that are known.")
    ] = None,
    released: Annotated[
        bool, typer.Option(help="Scores fit to be shown to others: noised, rounded, counted until keys rotate.")
    ] = False,
    rotate_keys: Annotated[bool, typer.Option(help="Make a new secret key first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Ask a server for recommendations without showing it the history.

    The scores are for this machine: in the hands of the server's owner they would tell the secret key. --released gives
    ones that may be shown to anyone.

    Example: veil recommend --server scores.example.org:7440 --credentials certs/client-main --history liked.txt -k 10
    """
    from he_inference.client import ScoringClient, load_credentials, scoring_server

    items = read_history(history)
    own = load_credentials(credentials)
    secret = _passphrase() if ask_passphrase or _PASSPHRASE_VARIABLE in os.environ else None
    with ScoringClient(
        server,
        own,
        scoring_server(own, server_name),
        keys or credentials / "scoring-keys",
        passphrase=secret,
        one_shot=one_shot,
        from_history=from_history,
        sets=[name.strip() for name in params.split(",")] if params is not None else None,
    ) as client:
        if rotate_keys:
            client.rotate_keys()
        if released:
            found, bound = _released(client, items, k, include_seen, skip_unknown)
        else:
            found, bound = client.recommend(items, k, exclude_seen=not include_seen, skip_unknown=skip_unknown), None
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
    if bound is not None:
        console.print(f"[dim]each score within {bound:.4g} of the model's; may be shown to anyone[/dim]")
    if report is not None:
        console.print(
            f"[dim]the server saw {report.query_bytes:,} bytes of ciphertext and returned {report.response_bytes:,}; "
            f"{1000 * report.total_s:.0f} ms, {1000 * report.server_s:.0f} ms of them its arithmetic[/dim]"
        )


def _released(
    client: ScoringClient, items: list[str], k: int, include_seen: bool, skip_unknown: bool
) -> tuple[list[Recommendation], float]:
    from he_inference.client import Recommendation

    catalogue = client.items
    numbers = catalogue.numbers(items, skip_unknown=skip_unknown)
    scores = client.score_history(items, skip_unknown=skip_unknown)
    shown = client.release(scores, k, exclude=() if include_seen else numbers.tolist())
    found = [
        Recommendation(catalogue.ids[number], catalogue.titles[number], score)
        for number, score in zip(shown.numbers, shown.scores, strict=True)
    ]
    return found, shown.bound


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
