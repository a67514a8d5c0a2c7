"""A click model on columns that lie with three organisations, trained by three daemons on this machine.

A shop has counts and the clicks, an ad network and a profile provider have categories of the same users. Nobody shows
anybody a row: users are aligned by private set intersection, features, labels and gradients stay secret-shared, and
what opens is noised statistics and the weights, which depend on noised sums alone. Real processes, certificates and
mutual TLS; the files of the Criteo sample stand for the organisations' tables.

    python examples/joint_clicks.py ../shared/data/ctr-samples
    python examples/joint_clicks.py ../shared/data/ctr-samples --data criteo --parties 2 --epsilon 8 --noise parties
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

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
    names = [party.party for party in schema.parties]
    with LocalConsortium(root, names) as consortium:
        consortium.start_coordinator()
        consortium.start_dealer()
        for party, source in zip(schema.parties, paths["train"], strict=True):
            section = {
                "source": str(source),
                "identifier": party.identifier,
                "use": [column.name for column in party.columns],
                "labels": [schema.label.name] if schema.label_party == party.party else [],
            }
            consortium.start_columns_party(party.party, section, epsilon=_BUDGET)
        job = _submit(consortium, root, schema, arguments, rows)
        authority = Credentials.load(consortium.credentials(Role.OPERATOR)).authority_pem
        signers = [Identity(consortium.consortium, Role.PARTY, name) for name in names]
        print(f"\n{names[0]}: forecast for 1 Gbit/s and 1 ms, beside what it was on this machine")
        report = read_report(root / f"party-{names[0]}" / "reports" / f"{job}.json")
        print("\n".join(compared(report, forecast_of(parse(report.job_text), link_of("1Gbit", "1ms")))))
        # Every party holds the same directory; any copy will do.
        model = load_columns(root / f"party-{names[-1]}" / "models" / job, authority, require_signers=signers)
        for split in SPLITS:
            tables = [read_party(path, schema, name) for path, name in zip(paths[split], names, strict=True)]
            labels = next(table.labels for table in tables if table.labels is not None)
            print(f"{split:5}  {len(labels):5} rows  AUC {auc(labels.astype(np.float64), model.predict(tables)):.4f}")


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
