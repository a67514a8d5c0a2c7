"""`veil score-rows`: scores of rows by published models that a server has, without showing it a feature or a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from he_inference.client import RowScores
    from veil.tabular.reading import PartyTable
    from veil.tabular.schema import TabularSchema

_DECIMALS = 6  # of what is written


def score_rows(
    server: Annotated[str, typer.Option(help="Address of the scoring server, host:port.")],
    credentials: Annotated[
        Path,
        typer.Option(
            help="Directory with key.pem, cert.pem and authority.pem, role client; or authority.pem and token."
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", help="CSV or Parquet file with all parties' columns; or PARTY=FILE for each party in turn."
        ),
    ],
    identifier: Annotated[
        str, typer.Option("--identifier", help="Column that names the rows, where a file has another than the schema.")
    ] = "",
    party: Annotated[
        str, typer.Option("--party", help="Score this party's columns alone: its part of the log odds.")
    ] = "",
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Name of a model, repeatable; default: all that are served.")
    ] = None,
    linear_part: Annotated[
        bool, typer.Option("--linear-part", help="Take models that are more than linear: their linear part alone.")
    ] = False,
    signers: Annotated[
        str | None, typer.Option(help="Parties that must have signed each model, comma-separated.")
    ] = None,
    server_name: Annotated[str, typer.Option(help="Name in the server's certificate.")] = "main",
    params: Annotated[
        str | None, typer.Option(help="Parameter sets to accept, comma-separated; default: all that are known.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write CSV here in place of printing it.")] = None,
) -> None:
    """Ask a server for scores of rows that it never sees. Prints CSV: identifier, model, probability.

    Columns, standardisation and intercept come from the models that the parties signed; their signatures are verified
    first. A row is encoded and encrypted here; the server learns how many rows there are, not what is in them. Of a
    model with hidden units the linear part alone can be scored this way: --linear-part, and the column says so.

    Example: veil score-rows --server scores.example.org:7440 --credentials certs/client-main --data rows.csv

    Example: veil score-rows --server scores.example.org:7440 --credentials certs/client-main --party shop --data s.csv
    """
    from he_inference.client import ScoringClient, load_credentials, scoring_server
    from he_inference.client import score_rows as scored
    from veil.errors import ConfigError
    from veil.identity.names import Identity, Role

    own = load_credentials(credentials)
    expect = scoring_server(own, server_name)
    required = [Identity(expect.consortium, Role.PARTY, name.strip()) for name in (signers or "").split(",") if name]
    if party and len(data) > 1:
        raise ConfigError(f"got {len(data)} --data for the columns of {party}, expected one")
    with ScoringClient(
        server,
        own,
        expect,
        None,
        require_signers=required or None,
        one_shot=True,
        sets=[name.strip() for name in params.split(",")] if params is not None else None,
    ) as client:
        schema = client.linear.schema
        tables = [_one_table(schema, data[0], party, identifier)] if party else _tables(schema, data, identifier)
        with _progress() as advance:
            found = scored(client, tables, names=model, linear_part=linear_part, progress=advance)
        partly = any(client.linear.parts[number].units for number in client.linear.chosen(model, linear_part=True))
    _write(found, "linear_part_" if partly else "", out)
    typer.echo(_facts(found), err=True)


def _write(found: RowScores, kind: str, out: Path | None) -> None:
    import csv
    import io
    import sys

    from veil.files import write_atomic

    values = found.probabilities if found.whole else found.scores
    what = "probability" if found.whole else f"{found.parties[0]}_log_odds"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["identifier", "model", kind + what])
    for identifier, row in zip(found.identifiers, values, strict=True):
        writer.writerows(
            (identifier, name, f"{value:.{_DECIMALS}f}") for name, value in zip(found.names, row, strict=True)
        )
    if out is None:
        sys.stdout.write(text.getvalue())
    else:
        write_atomic(out, text.getvalue().encode(), mode=0o600)


def _facts(found: RowScores) -> str:
    """One line on what it cost, and how exact the numbers are."""
    rows = max(1, len(found.identifiers))
    bound = found.probability_error if found.whole else float(found.errors.max(initial=0.0))
    bound += 0.5 * 10.0**-_DECIMALS
    what = "probability" if found.whole else f"{found.parties[0]}'s part of the log odds"
    keys = (
        "each row had a key of its own"
        if found.fresh_keys
        else "all rows under one key: keep them on this machine, a keyless offer would give each row a key of its own"
    )
    return (
        f"each {what} within {_upward(bound)} of the model's; {found.queries} queries, a row"
        f" {found.query_bytes / rows:,.0f} bytes up, {found.response_bytes / rows:,.0f} down,"
        f" {1000 * found.total_s / rows:.1f} ms, {1000 * found.server_s / rows:.1f} of them the server's arithmetic;"
        f" {keys}"
    )


def _upward(bound: float) -> str:
    """Two digits, never below the bound."""
    from decimal import ROUND_UP, Context

    return f"{float(Context(prec=2, rounding=ROUND_UP).create_decimal_from_float(bound)):.2g}"


def _tables(schema: TabularSchema, data: list[str], identifier: str) -> list[PartyTable]:
    from cli.predict import read_tables

    return read_tables(schema, data, identifier)


def _one_table(schema: TabularSchema, data: str, party: str, identifier: str) -> PartyTable:
    from veil.tabular.reading import read_party
    from veil.tabular.schema import MOST_ROWS

    name, separator, file = data.partition("=")
    path = Path(file) if separator and name == party else Path(data)
    mine = schema.of(party)
    if identifier:
        mine = mine.model_copy(update={"identifier": identifier})
    parties = tuple(mine if one.party == party else one for one in schema.parties)
    changed = schema.model_copy(update={"slots": MOST_ROWS, "parties": parties})
    return read_party(path, changed, party, labelled=False)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task("rows", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
