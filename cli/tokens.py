"""`veil tokens`: bearer tokens for clients of a scoring server that have no certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="""Bearer tokens of a scoring server's clients: add, list, revoke.

    A token is shown once, when it is made; the file keeps a keyed hash of it. A running server notices changes of the
    file at the next call.
    """,
)

File = Annotated[Path, typer.Option("--file", help="The file of tokens; [access] tokens in scoring.toml names it.")]


@app.command()
def add(
    file: File,
    name: Annotated[str, typer.Option("--name", help="Name of the client: a-z, 0-9 and '-'.")],
    days: Annotated[int, typer.Option("--days", help="Days until it expires.")] = 90,
) -> None:
    """Make a token and show it, this once: it goes to standard output alone, so that it can be piped.

    A second token of the same name is the same client, with the same budget: revoke the old one once the new one is in
    use.

    Example: veil tokens add --file tokens.json --name app1 --days 90 > app1.token
    """
    from he_inference.service import tokens

    token, entry = tokens.add(file, name, days)
    typer.echo(f"token {entry.id} of {entry.name}, until {entry.expires}; it is not shown again:", err=True)
    typer.echo(token)


@app.command("list")
def show(file: File) -> None:
    """List the tokens: ids, names and dates, never a token or its hash.

    Example: veil tokens list --file tokens.json
    """
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    from he_inference.service import tokens

    table = Table("id", "client", "created", "expires", "state", box=None, pad_edge=False)
    now = datetime.now(UTC)
    for entry in tokens.entries(file):
        state = "valid" if entry.valid(now) else f"revoked {entry.revoked}" if entry.revoked else "expired"
        table.add_row(entry.id, entry.name, entry.created, entry.expires, state)
    Console(width=None if Console().is_terminal else 160).print(table)


@app.command()
def revoke(
    file: File,
    which: Annotated[str, typer.Argument(help="Id of a token, or name of a client for all of its tokens.")],
) -> None:
    """End a token at once.

    Example: veil tokens revoke --file tokens.json app1
    """
    from he_inference.service import tokens

    ended = tokens.revoke(file, which)
    typer.echo(f"{ended} valid token{'' if ended == 1 else 's'} revoked")
