"""`veil predict`: what a published model on columns of several parties says of rows, held whole or by the parties."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from veil.tabular.reading import PartyTable
    from veil.tabular.schema import TabularSchema


def predict(
    model: Annotated[
        Path | None, typer.Option("--model", help="The published directory; any party's copy will do.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="CSV or Parquet file with all parties' columns; or PARTY=FILE for each party in turn."
        ),
    ] = None,
    authority: Annotated[Path | None, typer.Option("--authority", help="authority.pem of the consortium.")] = None,
    identifier: Annotated[
        str, typer.Option("--identifier", help="Column that names the rows, where one file holds all columns.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Write CSV here in place of printing it.")] = None,
    job: Annotated[
        Path | None,
        typer.Option("--job", help="Score between the parties in place: job.toml of kind predictions, to submit."),
    ] = None,
    coordinator: Annotated[
        str, typer.Option("--coordinator", envvar="VEIL_COORDINATOR", help="With --job: host:port of the coordinator.")
    ] = "",
    credentials: Annotated[
        Path | None,
        typer.Option(
            "--credentials", envvar="VEIL_CREDENTIALS", help="With --job: directory with the operator's key and cert."
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--coordinator-name", help="Name that the coordinator's certificate must carry.")
    ] = "main",
) -> None:
    """Probabilities of the positive outcome by a published model on columns of several parties.

    With --model: of rows that one holds whole, printed as CSV: identifier, probability. The model's signatures are
    verified first. Rows are read under the schema of the signed job; no label is needed.

    With --job: of rows whose columns lie with the parties. They align their users and compute on shares; one party
    learns the scores of its own users, nobody anything else. Follows the job to its end.

    Example: veil predict --model models/JOB --data rows.csv --identifier user --authority credentials/authority.pem

    Example: veil predict --job job-predictions.toml --coordinator coordinator.example.org:7000 --credentials operator
    """
    if job is not None:
        if model is not None or data or authority is not None or identifier or out is not None:
            raise typer.BadParameter(
                "got options of --model with it, expected --coordinator, --credentials only", param_hint="--job"
            )
        if not coordinator or credentials is None:
            raise typer.BadParameter("expected --coordinator and --credentials with it", param_hint="--job")
        _between_parties(job, coordinator, credentials, name)
        return
    if model is None or not data or authority is None:
        raise typer.BadParameter("expected --model, --data and --authority, or --job", param_hint="--model")
    _whole_rows(model, data, authority, identifier, out)


def _whole_rows(model: Path, data: Sequence[str], authority: Path, identifier: str, out: Path | None) -> None:
    import csv
    import io
    import sys

    from veil.files import read_bounded, write_atomic
    from veil.trainers.columns.publication import load_columns

    loaded = load_columns(model, read_bounded(authority, 64 * 1024))
    tables = read_tables(loaded.schema, data, identifier)
    found = loaded.predict(tables)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["identifier", "probability"])
    writer.writerows(
        (name, f"{probability:.6f}") for name, probability in zip(tables[0].identifiers, found, strict=True)
    )
    if out is None:
        sys.stdout.write(text.getvalue())
    else:
        write_atomic(out, text.getvalue().encode(), mode=0o600)


def _between_parties(file: Path, coordinator: str, credentials: Path, name: str) -> None:
    import sys

    from cli import job_client
    from cli.job_view import plan_lines, show_live, show_plainly
    from veil.errors import ConfigError
    from veil.identity.credentials import Credentials
    from veil.jobs import request

    wish = request.load(file).trainer
    if wish.kind != "predictions":
        raise ConfigError(
            f"got {file.name} of kind {wish.kind!r}, expected predictions",
            hint="deploy/job-predictions.toml is an example; `veil job submit` takes jobs of every kind",
        )
    desk = job_client.Desk(coordinator, Credentials.load(credentials), name)
    spec = job_client.plan_job(file, desk.credentials.identity.consortium)
    for line in list(plan_lines(spec))[1:]:
        print(line)
    job = job_client.submit_job(desk, spec)
    print(f"job       {job.job_id}", flush=True)
    try:
        (show_live if sys.stdout.isatty() else show_plainly)(job_client.watch_job(desk, job.job_id))
    except KeyboardInterrupt:
        print(f"\nthe job goes on; see it again with: veil job watch {job.job_id}")
        return
    print(f"scores    at {wish.recipient}, in its state folder: predictions/{job.job_id}.csv")


def read_tables(schema: TabularSchema, data: Sequence[str], identifier: str) -> list[PartyTable]:
    """Each party's columns, rows in the order of the first file. Raises `ConfigError`, `DataError`, `InputError`."""
    import numpy as np

    from veil.errors import ConfigError, InputError
    from veil.tabular.reading import read_party
    from veil.tabular.rows import take_rows
    from veil.tabular.schema import MOST_ROWS

    names = [one.party for one in schema.parties]
    files = [Path(data[0])] * len(names)
    if len(data) > 1 or data[0].partition("=")[0] in names:
        given = {party: Path(file) for party, _, file in (one.partition("=") for one in data)}
        if set(given) != set(names):
            raise ConfigError(f"got --data for {', '.join(given)}, expected PARTY=FILE for each of {', '.join(names)}")
        files = [given[name] for name in names]
    if identifier:
        parties = tuple(one.model_copy(update={"identifier": identifier}) for one in schema.parties)
        schema = schema.model_copy(update={"parties": parties})
    # No party holds a label here: rows to be predicted have none.
    schema = schema.model_copy(update={"slots": MOST_ROWS, "label_party": ""})
    tables = [read_party(file, schema, name) for file, name in zip(files, names, strict=True)]
    first = tables[0].identifiers
    aligned = [tables[0]]
    for table in tables[1:]:
        place = {name: row for row, name in enumerate(table.identifiers)}
        if place.keys() != set(first):
            raise InputError("got files of different users, expected the same users in each")
        aligned.append(take_rows(table, np.array([place[name] for name in first], dtype=np.int64)))
    return aligned
