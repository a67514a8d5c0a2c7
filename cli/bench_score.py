"""`veil bench score` and `score-all`: encrypted scoring beside its peers and its limits, in one run on one machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.score_case import Case, Progress, measure
from cli.score_tables import bars_table, show, sound, speedups
from veil.errors import ConfigError, StateError

_PEER_QUERIES = 5

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the server's arithmetic; default all cores.")]
Seed = Annotated[int, typer.Option(min=0, help="What items and queries follow from.")]


def score(
    items: Annotated[int, typer.Option(min=1, help="Number of items.")] = 4096,
    dim: Annotated[int, typer.Option(min=1, help="Dimensions of a vector.")] = 128,
    params: Annotated[
        str | None,
        typer.Option(
            help="Parameter set: fast, pq, exact, keyless, keyless-small, history; default pq, or history's own."
        ),
    ] = None,
    layout: Annotated[str | None, typer.Option(help="session, keyless or history; default what suits the set.")] = None,
    packing: Annotated[
        int | None,
        typer.Option(min=0, help="Of keyless: dimensions a ciphertext; of history: answers an item."),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, max=256, help="Ask with that many clients at the same time.")] = 1,
    queries: Annotated[int, typer.Option(min=1, max=100_000, help="Random queries.")] = 1000,
    peers: Annotated[bool, typer.Option("--peers", help="Measure TenSEAL's matmul and plaintext too.")] = False,
    engine: Annotated[
        str, typer.Option(help="As the server's: process, or cuda for products with items on the first GPU.")
    ] = "process",
    threads: Threads = None,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """Time encrypted scoring, and check every query's scores against plaintext.

    With --layout history queries are random histories, which the server folds in; peers are asked with the user vectors
    that a client with the model would have made of them.

    Exit status 1 when a score was wrong by more than the stated error.

    Example: veil bench score --items 4096 --dim 128 --params fast --peers --json out/score.json
    """
    _calm()
    case = Case(
        items,
        dim,
        params or ("history" if layout == "history" else "pq"),
        layout,
        packing,
        clients,
        queries,
        min(queries, _PEER_QUERIES) if peers else 0,
        threads,
        seed,
        engine,
    )
    with _bar() as progress:
        figures = measure(case, progress)
    show(figures)
    if json_file is not None:
        _write(json_file, figures)
    _require_sound(figures, "this case")


def _calm() -> None:
    """Plaintext is computed between queries; threads of the linear algebra that spin after it would slow those."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@dataclass(frozen=True)
class Bar:
    """A figure that must be at most (or at least) so much. key: names separated by points."""

    key: str
    limit: float
    at_least: bool = False
    per_item: bool = False

    def value(self, figures: dict[str, Any]) -> float:
        """The figure that it is about."""
        found: Any = figures
        for name in self.key.split("."):
            found = found[name]
        number = float(found)
        return number / figures["items"] if self.per_item else number

    def met(self, figures: dict[str, Any]) -> bool:
        """Whether the figure is within."""
        value = self.value(figures)
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{self.key}{' an item' if self.per_item else ''} {sign} {self.limit:,g}"


# The cases of `make bench-score`, with what they must show.
CASES: dict[str, tuple[Case, tuple[Bar, ...]]] = {
    "fast-4096x128": (
        Case(4096, 128, "fast", peer_queries=_PEER_QUERIES),
        (
            Bar("server_ms_p50", 6),
            Bar("speedup.tenseal_matmul", 40, at_least=True),
            Bar("query_bytes", 34_000),
            Bar("key_bytes", 130_000),
            Bar("response_bytes", 36_000),
        ),
    ),
    "pq-4096x128": (Case(4096, 128, "pq", peer_queries=_PEER_QUERIES), (Bar("server_ms_p50", 14),)),
    "exact-4096x128": (
        Case(4096, 128, "exact", peer_queries=_PEER_QUERIES),
        (Bar("max_abs_error_of_rounded", 1e-9),),
    ),
    "history-4096x128": (
        Case(4096, 128, "history", peer_queries=_PEER_QUERIES),
        (
            Bar("speedup.tenseal_matmul", 1, at_least=True),
            Bar("query_bytes", 83_000),
            Bar("key_bytes", 680_000),
            Bar("response_bytes", 123_000),
        ),
    ),
    "fast-100000x64": (
        Case(100_000, 64, "fast", clients=32),
        (
            Bar("server_ms_p50", 45),
            Bar("response_bytes", 8.5, per_item=True),
            Bar("throughput.service.gain", 1.8, at_least=True),
        ),
    ),
    "keyless-100000x64": (
        Case(100_000, 64, "keyless", clients=32),
        (Bar("throughput.service.gain", 2.5, at_least=True),),
    ),
    "fast-1000000x64": (
        Case(1_000_000, 64, "fast"),
        (
            Bar("server_ms_p50", 300),
            Bar("index_bytes", 10 * 64, per_item=True),
            Bar("index_build_s", 60),
            Bar("memory.share", 0.6, at_least=True),
        ),
    ),
}


def score_all(
    out: Annotated[Path, typer.Option(help="Folder for one JSON file a case.")] = Path("out/bench-score"),
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CASES)}.")] = None,
    queries: Annotated[int, typer.Option(min=1, max=100_000, help="Random queries a case.")] = 1000,
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Every case of encrypted scoring in docs/benchmarks.md, and whether each is within its limits.

    A limit that is missed is shown, no more: machines differ. Exit status 1 when a score was wrong by more than the
    stated error. With 1,000 queries a case it takes about half an hour.

    Example: veil bench score-all --out out/bench-score
    """
    from rich.console import Console

    unknown = sorted(set(only or ()) - set(CASES))
    if unknown:
        raise ConfigError(f"got case {unknown[0][:40]!r}, expected one of {', '.join(CASES)}")
    _calm()
    done: dict[str, dict[str, Any]] = {}
    for name, (case, bars) in CASES.items():
        if only and name not in only:
            continue
        asked = replace(case, queries=queries, peer_queries=min(queries, case.peer_queries), threads=threads, seed=seed)
        with _bar(name) as progress:
            figures = measure(asked, progress)
        figures["speedup"] = speedups(figures)
        figures["bars"] = {str(bar): {"value": bar.value(figures), "met": bar.met(figures)} for bar in bars}
        done[name] = figures
        show(figures, name)
        # After each case: an interrupted run keeps what it has.
        _write(out / f"{name}.json", figures)
    Console().print(bars_table(done))
    for name, figures in done.items():
        _require_sound(figures, name)


def _require_sound(figures: dict[str, Any], name: str) -> None:
    if not sound(figures):
        raise StateError(
            f"got scores in {name} that are wrong by up to {figures['max_abs_error']:.3g}, expected at most"
            f" {figures['max_abs_error_stated']:g}, the ten best within it and the same results alone and together",
            hint="do not serve with this parameter set; a score error beyond its bound is a defect of Veil",
        )


@contextmanager
def _bar(title: str = "") -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # On the side of messages, and gone when it is done: the output is the table.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(f"{title} {what}".strip(), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def _write(path: Path, figures: dict[str, Any]) -> None:
    from veil.files import write_atomic

    write_atomic(path, (json.dumps(figures, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())
