"""A click model on columns that lie with three organisations, trained by three daemons, which then score new users.

A shop has counts and the clicks, an ad network and a profile provider have categories of the same users. Nobody shows
anybody a row: users are aligned by private set intersection, features, labels and gradients stay secret-shared, and
what opens is noised statistics and the weights, which depend on noised sums alone. Then users that the model has not
seen are scored between the daemons, and the shop alone learns the scores. Real processes, certificates and mutual TLS;
the files of the Criteo sample stand for the organisations' tables.

    python examples/joint_clicks.py ../shared/data/ctr-samples
    python examples/joint_clicks.py ../shared/data/ctr-samples --data criteo --parties 2 --epsilon 8 --noise parties
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from baseline.tabular.ctr import SPLITS, CtrOptions, ctr_schema, load_frames, write_party_files
from baseline.tabular.scores import auc
from cli import job_client
from cli.job_forecast import compared, forecast_of, link_of, read_report
from cli.job_view import plan_lines, show_plainly
from cli.local import LocalConsortium
from veil.errors import VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs.spec import parse
from veil.tabular.reading import read_party
from veil.tabular.schema import TabularSchema
from veil.trainers.columns.publication import load_columns

_BUDGET = 20.0
NEW = ("dev", "test")


def main() -> None:
    """Reads the command line, runs one job, prints how well the published model ranks rows that it has not seen."""
    parser = argparse.ArgumentParser(description="Train a click model on columns of several organisations.")
    parser.add_argument("folder", type=Path, help="where criteo_train.csv.gz and its like lie")
    parser.add_argument("--data", choices=("criteo", "avazu"), default="criteo")
    parser.add_argument("--parties", type=int, choices=(2, 3), default=3)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--noise", choices=("dealer", "parties"), default="dealer")
    parser.add_argument("--mode", choices=("reveal", "hidden"), default="reveal")
    parser.add_argument("--model", choices=("logistic", "perceptron", "towers"), default="logistic")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="joint-clicks-") as folder:
            _run(Path(folder), arguments)
    except VeilError as error:
        sys.exit(f"{error}")


def _run(root: Path, arguments: argparse.Namespace) -> None:
    frames = load_frames(arguments.data, arguments.folder)
    rows = len(frames["train"])
    slots = rows if arguments.mode == "reveal" else rows * arguments.parties
    schema = ctr_schema(arguments.data, arguments.parties, CtrOptions(slots=slots))
    paths = write_party_files(frames, schema, root / "tables")
    fresh = pl.concat([frames[split] for split in NEW])
    new = write_party_files({"new": fresh}, schema, root / "tables")["new"]
    names = [party.party for party in schema.parties]
    recipient = schema.label_party
    with LocalConsortium(root, names) as consortium:
        consortium.start_coordinator()
        consortium.start_dealer()
        for party, source, rows_to_score in zip(schema.parties, paths["train"], new, strict=True):
            section = {
                "source": str(source),
                "identifier": party.identifier,
                "use": [column.name for column in party.columns],
                "labels": [schema.label.name] if schema.label_party == party.party else [],
            }
            # The outcome stands in the shop's file here; where rows are scored it is not read.
            told = [] if party.party == recipient else [recipient]
            predictions = {"source": str(rows_to_score), "recipients": told, "rows_a_day": len(fresh)}
            consortium.start_columns_party(party.party, section, epsilon=_BUDGET, predictions=predictions)
        job = _submit(consortium, root, schema, arguments, rows)
        authority = Credentials.load(consortium.credentials(Role.OPERATOR)).authority_pem
        signers = [Identity(consortium.consortium, Role.PARTY, name) for name in names]
        print(f"\n{names[0]}: forecast for this machine, which runs all parties, beside what it was")
        report = read_report(root / f"party-{names[0]}" / "reports" / f"{job}.json")
        found = forecast_of(parse(report.job_text), link_of("10Gbit", "100us"), cores=os.cpu_count())
        print("\n".join(compared(report, found)))
        # Every party holds the same directory; any copy will do.
        model = load_columns(root / f"party-{names[-1]}" / "models" / job, authority, require_signers=signers)
        scored = _score(consortium, root, job, recipient, len(fresh))
        print("\nranking by the published model on rows in one place, and by scores made between the parties")
        for split in SPLITS:
            tables = [read_party(path, schema, name) for path, name in zip(paths[split], names, strict=True)]
            outcomes = next(table.labels for table in tables if table.labels is not None)
            labels, whole = outcomes.astype(np.float64), model.predict(tables)
            line = f"{split:5}  {len(labels):5} rows  AUC {auc(labels, whole):.4f}"
            if split in NEW:
                apart = np.array([scored[user] for user in tables[0].identifiers])
                line += f"  between the parties {auc(labels, apart):.4f}, largest difference of a probability"
                line += f" {np.abs(apart - whole).max():.1e}"
            print(line)


def _score(consortium: LocalConsortium, root: Path, job: str, recipient: str, rows: int) -> dict[str, float]:
    """Scores the new rows between the daemons; what the recipient finds in its state folder, by user."""
    file = root / "predict.toml"
    parties = list(consortium.parties)
    file.write_text(
        f'name = "scores"\nparties = {parties}\n[trainer]\nkind = "predictions"\nrecipient = "{recipient}"\n'
        f'published = "party-{recipient}/models/{job}"\n[trainer.alignment]\nmode = "reveal"\n'
        f"sizes = {[rows] * len(parties)}\nresult = {rows}\n"
    )
    desk = job_client.Desk(consortium.address("coordinator"), Credentials.load(consortium.credentials(Role.OPERATOR)))
    spec = job_client.plan_job(file, consortium.consortium)
    print("\n" + "\n".join(list(plan_lines(spec))[1:]))
    made = job_client.submit_job(desk, spec)
    show_plainly(job_client.watch_job(desk, made.job_id))
    with (root / f"party-{recipient}" / "predictions" / f"{made.job_id}.csv").open(newline="") as lines:
        return {row["identifier"]: float(row["probability"]) for row in csv.DictReader(lines)}


def _submit(
    consortium: LocalConsortium, root: Path, schema: TabularSchema, arguments: argparse.Namespace, rows: int
) -> str:
    """Writes job.toml and the schema, proposes the job, follows it to its end; its identifier."""
    (root / "columns.json").write_text(schema.model_dump_json())
    file = root / "job.toml"
    file.write_text(
        f'name = "clicks"\nparties = {list(consortium.parties)}\n'
        f'[privacy]\nepsilon = {arguments.epsilon}\ndelta = 1e-5\nnoise = "{arguments.noise}"\n'
        f'[trainer]\nkind = "columns"\nmodel = "{arguments.model}"\nschema_file = "columns.json"\n'
        f'[trainer.alignment]\nmode = "{arguments.mode}"\nsizes = {[rows] * len(consortium.parties)}\n'
        f"result = {schema.slots}\n"
    )
    desk = job_client.Desk(consortium.address("coordinator"), Credentials.load(consortium.credentials(Role.OPERATOR)))
    spec = job_client.plan_job(file, consortium.consortium)
    print("\n".join(list(plan_lines(spec))[1:]))
    job = job_client.submit_job(desk, spec)
    show_plainly(job_client.watch_job(desk, job.job_id))
    return str(job.job_id)


if __name__ == "__main__":
    main()
