"""`veil baseline`: what privacy is measured against, and what it would cost on data that one holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from baseline.evaluate import Row

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="The same model in plaintext on all the data: what privacy is measured against.",
)

_DATA = "synthetic, or NAME:FOLDER with NAME of ml-1m, ml-100k, amazon-grocery, retailrocket."
# The first two rank among 99 sampled negatives, Recall@20 among the whole catalogue. --json has more.
_COLUMNS = {"hr_at_10": "HR@10", "ndcg_at_10": "NDCG@10", "recall_at_20": "Recall@20"}

Data = Annotated[str, typer.Option(help=_DATA)]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]
Text = Annotated[bool, typer.Option("--text/--no-text", help="Embed titles, or use categories and years alone.")]


@app.command()
def train(
    data: Data = "synthetic",
    device: Annotated[str, typer.Option(help="Where matrix products run: cpu, cuda, cuda:N.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Directory to make with the plaintext model's arrays.")] = None,
    json_file: JsonFile = None,
    text: Text = True,
) -> None:
    """Train the plaintext twin and the references on all the data and print their metrics.

    Same scoring form, objective and split as the private model; exact counts, no clipping, no noise, more rounds. Not
    private: it is for data that one may hold in one place.

    Example: veil baseline train --data ml-1m:../shared/data/ml-1m --device cuda
    """
    from baseline.evaluate import Row, model_metrics, reference_metrics
    from baseline.material import load
    from baseline.train import choose_device, plaintext_model, save_plaintext

    choose_device(device)
    dataset, catalogue = load(data, text=text)
    started = time.monotonic()
    model = plaintext_model(dataset.train, catalogue, device)
    seconds = time.monotonic() - started
    rows = [Row(f"plaintext, {device}", (model_metrics(model, dataset),))]
    references = reference_metrics(dataset)
    rows += [Row("iALS", (references["ials"],)), Row("popularity", (references["popularity"],))]
    _show(rows, f"{dataset.name}: {dataset.train.users} users, {dataset.train.items} items; trained in {seconds:.1f} s")
    if out is not None:
        save_plaintext(out, model)
    _write(json_file, {"dataset": dataset.name, "device": device, "seconds": seconds, **_figures(rows)})


@app.command()
def private(
    data: Data = "synthetic",
    epsilon: Annotated[list[float] | None, typer.Option(help="Budget; may be given again.")] = None,
    delta: Annotated[float, typer.Option(help="Delta.")] = 1e-5,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many noise draws.")] = 3,
    noise: Annotated[Literal["dealer", "parties"], typer.Option(help="Who draws the noise.")] = "dealer",
    parties: Annotated[int, typer.Option(min=2, max=16, help="Parties, which matters for --noise parties.")] = 3,
    json_file: JsonFile = None,
    text: Text = True,
) -> None:
    """SIMULATION: what the private model would score, on data that you hold in one place anyway.

    Runs the real integer mechanism centrally, once for each noise seed. It charges no ledger and its output is not
    private: do not publish figures of data that must stay private. A joint run is `veil job submit`.

    Example: veil baseline private --data ml-1m:../shared/data/ml-1m --epsilon 3 --epsilon 10 --seeds 5
    """
    from baseline.evaluate import private_comparison
    from baseline.material import load

    dataset, catalogue = load(data, text=text)
    rows = list(
        private_comparison(
            dataset,
            catalogue,
            epsilons=epsilon or [3.0],
            delta=delta,
            seeds=range(1, seeds + 1),
            noise_source=noise,
            parties=parties,
        )
    )
    title = (
        f"{dataset.name}: simulation, delta {delta:g}, per user, add-or-remove-one-user, mean of {seeds} noise draws"
    )
    _show(rows, title)
    _write(json_file, {"dataset": dataset.name, "simulation": True, "delta": delta, "seeds": seeds, **_figures(rows)})


def _show(rows: Iterable[Row], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        mean, deviation = row.mean(), row.deviation()
        cells = [
            f"{mean[name]:.4f} ±{deviation[name]:.3f}" if len(row.runs) > 1 else f"{mean[name]:.4f}"
            for name in _COLUMNS
        ]
        table.add_row(row.name, *cells)
    console = Console()
    console.print(title)
    console.print(table)


def _figures(rows: Iterable[Row]) -> dict[str, Any]:
    return {"rows": [{"name": row.name, "mean": row.mean(), "deviation": row.deviation()} for row in rows]}


def _write(path: Path | None, document: dict[str, Any]) -> None:
    from veil.files import write_atomic

    if path is not None:
        write_atomic(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
