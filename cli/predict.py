"""`veil predict`: what a published model on columns of several parties says of rows that one holds whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from veil.tabular.reading import PartyTable
    from veil.tabular.schema import TabularSchema


def predict(
    model: Annotated[Path, typer.Option("--model", help="The published directory; any party's copy will do.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", help="CSV or Parquet file with all parties' columns; or PARTY=FILE for each party in turn."
        ),
    ],
    authority: Annotated[Path, typer.Option("--authority", help="authority.pem of the consortium.")],
    identifier: Annotated[
        str, typer.Option("--identifier", help="Column that names the rows, where one file holds all columns.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Write CSV here in place of printing it.")] = None,
) -> None:
    """Probabilities of the positive outcome, one line a row, as CSV: identifier, probability.

    The model's signatures are verified first. Rows are read under the schema of the signed job; no label is needed.

    Example: veil predict --model models/JOB --data rows.csv --identifier user --authority credentials/authority.pem
    """
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
