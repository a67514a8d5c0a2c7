"""`veil bench privacy`: what a budget buys, measured; and `--all`, every utility figure of docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from baseline.utility import Case

EPSILONS = (1.0, 3.0, 5.0, 10.0)
_REAL = ("ml-1m", "ml-100k", "amazon-grocery", "retailrocket")
_POPULATIONS = (30_000, 100_000, 1_000_000)

Trainer = Literal["subspace", "als", "gradient"]


def privacy(
    data: Annotated[str, typer.Option(help="synthetic, synthetic:USERS, or NAME:FOLDER.")] = "synthetic",
    trainer: Annotated[Trainer, typer.Option(help="Which trainer.")] = "subspace",
    module: Annotated[Path | None, typer.Option(help="For gradient: the module file, which has scores().")] = None,
    epsilon: Annotated[float, typer.Option(min=0.01, max=1000, help="Budget.")] = 3.0,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Noise draws.")] = 5,
    noise: Annotated[Literal["dealer", "parties"], typer.Option(help="Who draws the noise.")] = "dealer",
    colluding: Annotated[
        int | None, typer.Option(min=0, max=15, help="For parties: how many may pool their draws; default all others.")
    ] = None,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Item texts, or categories and years alone.")] = True,
    plaintext: Annotated[bool, typer.Option("--plaintext/--no-plaintext", help="Train the plaintext twin too.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Utility at a budget beside the floor (no collaborative part) and the plaintext twin, three parties, delta 1e-5.

    The real mechanism run in one place, once a noise seed; user level, add or remove one user. HR@10 and NDCG@10 among
    99 negatives, and HR@50 among all items. An evaluation of data that you hold anyway: its figures are not private.

    Example: veil bench privacy --data ml-1m:../shared/data/ml-1m --trainer subspace --epsilon 3 --seeds 5
    """
    from baseline.utility import Case, measure

    case = Case(
        data,
        epsilon,
        trainer,
        module,
        seeds,
        noise_source=noise,
        colluding=colluding,
        text=text,
        plaintext=plaintext,
    )
    figures = {**measure(case), **_machine()}
    _table([figures], "what a budget buys")
    if json_file is not None:
        _write(json_file, figures)


def privacy_all(
    folder: Annotated[Path, typer.Option("--data", help="Folder that holds the real data sets, one folder each.")],
    out: Annotated[Path, typer.Option(help="Folder for JSON files and tables.")] = Path("out/bench-privacy"),
    part: Annotated[
        list[str] | None,
        typer.Option(help="Of utility, populations, text, distribution, cold-start, gradient (slow)."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Noise draws a case.")] = 5,
) -> None:
    """Every utility figure of docs/benchmarks.md: data sets, budgets, trainers, populations, noise sources, cold start.

    Example: veil bench privacy-all --data ../shared/data --out out/bench-privacy
    """
    from rich.progress import Progress

    from baseline.utility import measure

    chosen = part or ["utility", "populations", "text", "distribution", "cold-start"]
    unknown = sorted(set(chosen) - {"utility", "populations", "text", "distribution", "cold-start", "gradient"})
    if unknown:
        raise typer.BadParameter(f"got {', '.join(unknown)}", param_hint="--part")
    out.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        if name == "cold-start":
            _cold_start(folder, out)
            continue
        cases = list(_cases(name, folder, seeds))
        done = []
        with Progress() as progress:
            bar = progress.add_task(name, total=len(cases))
            for case in cases:
                progress.update(bar, description=f"{case.data.split(':')[0]} {case.trainer} epsilon {case.epsilon:g}")
                done.append(measure(case))
                # After each case: an interrupted run keeps what it has.
                _write(out / f"{name}.json", {"cases": done, **_machine()})
                progress.advance(bar)
        _table(done, name)


def _cases(part: str, folder: Path, seeds: int) -> Iterator[Case]:
    from baseline.utility import Case

    real = [f"{name}:{folder / name}" for name in _REAL if (folder / name).is_dir()]
    trainers: tuple[Trainer, ...] = ("subspace", "als")
    if part == "utility":
        for data in real:
            for trainer in trainers if "ml-" in data else trainers[:1]:
                for epsilon in EPSILONS:
                    yield Case(data, epsilon, trainer, seeds=seeds)
    elif part == "gradient":
        modules = Path(__file__).resolve().parents[1] / "examples"
        timed = f"ml-1m-timed:{folder / 'ml-1m'}"
        for data, module in (
            (real[0], "two_tower"),
            (real[1], "two_tower"),
            (timed, "sequence"),
            (real[1], "sequence"),
        ):
            for epsilon in (3.0, 10.0):
                # A run takes minutes.
                yield Case(data, epsilon, "gradient", modules / f"{module}.py", min(seeds, 3))
    elif part == "populations":
        for users in _POPULATIONS:
            # One seed where a run takes minutes: the noise is the same, and small there.
            few = seeds if users < 100_000 else 1
            yield Case(f"synthetic:{users}", 1.0, seeds=few, text=False, plaintext=users <= 100_000)
    elif part == "text":
        for data in real[:2]:
            for epsilon in (1.0, 3.0, 10.0):
                yield Case(data, epsilon, seeds=seeds, text=False)
    elif part == "distribution":
        for epsilon in (1.0, 3.0, 10.0):
            yield Case(real[0], epsilon, seeds=seeds)
            for colluding in (0, 1, 2):
                yield Case(real[0], epsilon, seeds=seeds, noise_source="parties", colluding=colluding)


def _cold_start(folder: Path, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from baseline.cold_start import cold_start
    from veil.recsys.datasets import load_dataset
    from veil.text.encoder import default_encoder

    encoder = default_encoder(None)
    figures = cold_start(
        load_dataset(f"ml-1m:{folder / 'ml-1m'}"),
        embed=None if encoder is None else encoder.encode,
        encoder="none" if encoder is None else encoder.label,
    )
    _write(out / "cold-start.json", {**figures, **_machine()})
    table = Table("way", "epsilon", "HR@10", "NDCG@10", title="items without interactions, ml-1m", title_justify="left")
    rows: Any = figures["rows"]
    for row in rows:
        budget = "plaintext" if row["epsilon"] is None else f"{row['epsilon']:g}"
        table.add_row(
            row["way"], budget, f"{row['hr_at_10']:.3f} ±{row['hr_at_10_sd']:.3f}", f"{row['ndcg_at_10']:.3f}"
        )
    Console().print(table)


def _table(done: list[dict[str, Any]], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("data", "trainer", "eps", "noise"):
        table.add_column(heading, no_wrap=True)
    for heading in ("HR@10", "NDCG", "HR@50", "floor", "plain", "pop", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in done:
        source = one["noise_source"]
        if source == "parties":
            source = f"parties {'n-1' if one['colluding'] is None else one['colluding']}"
        table.add_row(
            one["data"] + ("" if one["text"] else "*"),
            one["trainer"],
            f"{one['epsilon']:g}",
            source,
            f"{_share(one['hr_at_10'])}±{_share(one['hr_at_10_sd'])}",
            _share(one["ndcg_at_10"]),
            _share(one["full_hr_at_50"]),
            _share(one["floor"]["hr_at_10"]),
            "–" if one["plaintext"] is None else _share(one["plaintext"]["hr_at_10"]),
            _share(one["popularity"]["hr_at_10"]),
            f"{one['seconds']:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(
        "HR@10, NDCG@10 among 99 negatives, HR@50 among all items; floor, plain, pop: HR@10; * without item text"
    )


def _share(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def _machine() -> dict[str, Any]:
    from cli.machine import machine

    return {"machine": machine()}


def _write(path: Path, document: dict[str, Any]) -> None:
    from veil.files import write_atomic

    write_atomic(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
