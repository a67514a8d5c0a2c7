"""Click models on columns of several organisations, scored on rows that the scoring server never sees.

Publishes logistic models as a job between the organisations would leave them (examples/joint_clicks.py trains one; here
they are fitted in one place, in plaintext, which takes a second), serves them from a real server over mutual TLS, and
scores the rows of the test split: encoded and encrypted by the client, multiplied by the weights at the server.

    python examples/encrypted_clicks.py ../shared/data/ctr-samples
    python examples/encrypted_clicks.py ../shared/data/ctr-samples --data avazu --parties 3 --models 4 --params pq
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from baseline.tabular.alternatives import ridge_logistic
from baseline.tabular.ctr import CtrOptions, ctr_schema
from baseline.tabular.material import Tables, encode, read_tables, statistics_of
from baseline.tabular.scores import auc
from he_inference.client import ScoringClient, score_rows, scoring_server
from he_inference.service.budget import BudgetSettings
from he_inference.service.config import ScoringConfig
from he_inference.service.limits import LimitSettings
from he_inference.service.server import start
from veil import __version__
from veil.errors import VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs.columns import AlignmentTerms
from veil.jobs.spec import JobSpec, Noise, Privacy
from veil.recsys.manifest import sign_manifest
from veil.recsys.signed import save_directory
from veil.tabular.rows import take_rows
from veil.tabular.schema import TabularSchema
from veil.trainers.columns.plan import plan_columns
from veil.trainers.columns.publication import ColumnsModel, ColumnsPublication

_RIDGES = (3.0, 10.0, 30.0, 100.0)


def main() -> None:
    """Reads the command line, then prints how well both ways rank the test rows, and what a row costs."""
    parser = argparse.ArgumentParser(description="Score clicks on encrypted features.")
    parser.add_argument("folder", type=Path, help="where criteo_train.csv.gz and its like lie")
    parser.add_argument("--data", choices=("criteo", "avazu"), default="criteo")
    parser.add_argument("--parties", type=int, choices=(2, 3), default=2)
    parser.add_argument("--models", type=int, choices=range(1, len(_RIDGES) + 1), default=1)
    parser.add_argument("--params", default="keyless-small", help="how to ask: keyless-small, keyless, pq, fast, exact")
    parser.add_argument("--rows", type=int, default=1000, help="at most so many rows of the test split")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="encrypted-clicks-") as folder:
            _run(Path(folder), arguments)
    except VeilError as error:
        sys.exit(f"{error}")


def _run(root: Path, arguments: argparse.Namespace) -> None:
    # A schema's slots are a bound here: no job aligns anything.
    schema = ctr_schema(arguments.data, arguments.parties, CtrOptions(slots=8192))
    tables = read_tables(arguments.data, arguments.folder, schema)
    names = [one.party for one in schema.parties]
    members = make_consortium(root / "certs", "clicks", names)
    models = {
        f"model-{number}": model for number, model in enumerate(_fitted(tables, _RIDGES[: arguments.models]), start=1)
    }
    spec = _job(schema)
    for name, model in models.items():
        _publish(root / "models" / name, model, spec, members)
    rows = np.arange(min(arguments.rows, tables.tables["test"][0].rows), dtype=np.int64)
    test = [take_rows(table, rows) for table in tables.tables["test"]]
    labels = tables.labels["test"][rows].astype(np.float64)
    config = ScoringConfig(
        listen="127.0.0.1:0",
        credentials=members[Identity("clicks", Role.SCORING, "main")],
        model=root / "models",
        require_signers=tuple(names),
        state=root / "state",
        offers=(arguments.params,),
        # Half a query for each feature would be the default: one client may not learn the weights from its answers.
        budget=BudgetSettings(enabled=False),
        limits=LimitSettings(per_client_rate_s=1e5, per_client_burst=100_000),
    )
    credentials = Credentials.load(members[Identity("clicks", Role.CLIENT, "main")])
    with (
        start(config) as server,
        ScoringClient(server.address, credentials, scoring_server(credentials), None, one_shot=True) as client,
    ):
        started = time.perf_counter()
        offer = client.offer
        print(f"{schema.width} features of {len(names)} organisations, {len(models)} models, {len(labels)} rows")
        print(f"offer: {offer.layout.kind}, {offer.layout.parameters.name}: {offer.layout.parameters.security}")
        linear = client.linear
        first_ms = 1000 * (time.perf_counter() - started)
        found = score_rows(client, test)
    print(f"fetched and verified {', '.join(linear.names)} in {first_ms:.0f} ms, no weights among it")
    print(f"{'model':<10} {'AUC plaintext':>14} {'AUC encrypted':>14} {'largest difference of a probability':>36}")
    for column, name in enumerate(found.names):
        plain, encrypted = models[name].predict(test), found.probabilities[:, column]
        print(
            f"{name:<10} {auc(labels, plain):>14.6f} {auc(labels, encrypted):>14.6f}"
            f" {np.abs(plain - encrypted).max():>36.2e}"
        )
    times, per_row = (1000 * found.total_s / len(labels), 1000 * found.server_s / len(labels)), len(labels)
    print(
        f"stated bound of a probability's error {found.probability_error:.3e}; a row:"
        f" {found.query_bytes / per_row:,.0f} bytes up, {found.response_bytes / per_row:,.0f} down,"
        f" {times[0]:.1f} ms, of them {times[1]:.2f} the server's arithmetic"
    )


def _fitted(tables: Tables, ridges: tuple[float, ...]) -> list[ColumnsModel]:
    """One model for each ridge, on one standardisation."""
    standardisations = statistics_of(tables, None, None, fill=1.0, least_users=0.0)
    encoded = encode(tables, standardisations)
    bias = math.log(encoded.rate / (1.0 - encoded.rate))
    offset, scale = (np.concatenate([getattr(one, name) for one in standardisations]) for name in ("offset", "scale"))
    rows, labels = encoded.features("train"), encoded.labels["train"]
    weights = [ridge_logistic(rows, labels, bias=bias, ridge=ridge)[:, None] for ridge in ridges]
    return [ColumnsModel(tables.schema, one, offset, scale, bias) for one in weights]


def _job(schema: TabularSchema) -> JobSpec:
    names, noise, slots = tuple(one.party for one in schema.parties), Noise(source="dealer"), schema.slots
    terms = AlignmentTerms(mode="reveal", sizes=(slots,) * len(names), result=slots)
    trainer, releases = plan_columns(schema, terms, epsilon=8.0, delta=1e-5, noise=noise)
    return JobSpec(
        name="clicks",
        nonce="0" * 32,
        consortium="clicks",
        parties=names,
        dealer="main",
        privacy=Privacy(epsilon=8.0, delta=1e-5, noise=noise),
        trainer=trainer,
        releases=releases,
        versions={"veil": __version__},
    )


def _publish(folder: Path, model: ColumnsModel, spec: JobSpec, members: dict[Identity, Path]) -> None:
    publication = ColumnsPublication(model)
    files = publication.files(spec)
    manifest = publication.manifest(spec, files, created_s=int(time.time()))
    own = {name: Credentials.load(members[Identity("clicks", Role.PARTY, name)]) for name in spec.parties}
    signed = [sign_manifest(manifest, name, one.certificate_pem, one.sign) for name, one in own.items()]
    folder.parent.mkdir(exist_ok=True)
    save_directory(folder, files, manifest, signed)


if __name__ == "__main__":
    main()
