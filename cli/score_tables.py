"""What `veil bench score` and `score-all` print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_SIZES = ("query_bytes", "response_bytes", "key_bytes", "index_bytes")
_SHOWN = (
    "server_ms_p50",
    "server_ms_p99",
    "server_ms_best",
    "server_cpu_ms_p50",
    "client_ms_p50",
    *_SIZES,
    "index_build_s",
    "max_abs_error",
    "top10_overlap",
    "queries_per_s",
)
# A table whose numbers are cut off is of no use: a narrow terminal wraps it instead.
_WIDTH = 110


def show(figures: dict[str, Any], title: str = "") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    head = f"{title}: " if title else ""
    head += (
        f"{figures['items']:,} items x {figures['dim']}, {figures['queries']:,} queries, {figures['threads']} threads;"
    )
    console.print(f"{head} {figures['machine']['processor']}, load {figures['load_average']:.1f}", markup=False)
    console.print(table_of(figures))
    for line in notes(figures):
        console.print(line, markup=False)
    console.print()


def table_of(figures: dict[str, Any]) -> Table:
    """The figures of one case beside those of its peers."""
    from rich.table import Table

    peers: dict[str, dict[str, Any]] = figures["peers"]
    name = f"{figures['params']}, {figures['layout']}"
    if figures["packing"]:
        name += f", {figures['packing']} answers" if figures["layout"] == "history" else f" g={figures['packing']}"
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in (name, *peers):
        table.add_column(column, justify="right", no_wrap=True)
    for key in _SHOWN:
        table.add_row(key, _shown(figures[key]), *(_shown(peer[key]) for peer in peers.values()))
    return table


def notes(figures: dict[str, Any]) -> Iterator[str]:
    """What the table has no columns for, a line each."""
    for peer, ratio in speedups(figures).items():
        yield f"{ratio:.3g} times as fast as {peer}"
    yield (
        f"stated error {figures['max_abs_error_stated']:.3g}, of which queries had {figures['max_error_of_stated']:.0%}"
        f" at most; in {figures['top10_within_bound']:.2%} of them the ten best are plaintext's but among scores closer"
        " than that"
    )
    if "max_abs_error_of_rounded" in figures:
        yield f"error to the scores of rounded vectors {figures['max_abs_error_of_rounded']:.2g}"
    yield f"server's time: {_stages(figures['stages'])}"
    if "memory" in figures:
        memory = figures["memory"]
        yield (
            f"kernel reads {memory['kernel_gb_per_s']:.1f} GB/s, {memory['share']:.0%} of what this machine can read,"
            f" {memory['read_gb_per_s']:.1f} GB/s; from a cache {memory['kernel_in_cache_gb_per_s']:.1f} GB/s"
        )
    if "throughput" in figures:
        many = figures["throughput"]
        for name in ("arithmetic", "service"):
            rates = many[name]
            yield (
                f"{name}: {many['clients']} clients one at a time {rates['one_at_a_time_per_s']:.1f} a second, together"
                f" {rates['together_per_s']:.1f}, {rates['gain']:.2f} times"
            )
        for name in ("one_at_a_time", "together"):
            cpu_ms, stages = many["arithmetic"][f"{name}_cpu_ms"], many["arithmetic"][f"{name}_stages"]
            yield f"{name.replace('_', ' ')}: {cpu_ms:.1f} ms of processor time a query; {_stages(stages)}"


def bars_table(done: dict[str, dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("case", "limit", "measured", "", title="limits", title_justify="left", box=None, pad_edge=False)
    for name, figures in done.items():
        for bar, found in figures["bars"].items():
            table.add_row(name, bar, _shown(found["value"]), "met" if found["met"] else "missed")
        stated = f"max_abs_error ≤ {figures['max_abs_error_stated']:.3g}, ten best within it"
        table.add_row(name, stated, _shown(figures["max_abs_error"]), "met" if sound(figures) else "missed")
    return table


def speedups(figures: dict[str, Any]) -> dict[str, float]:
    return {name: peer["server_ms_p50"] / figures["server_ms_p50"] for name, peer in figures["peers"].items()}


def _stages(shares: dict[str, float]) -> str:
    return ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items())


def sound(figures: dict[str, Any]) -> bool:
    """Whether every score was within its query's stated error, and the same alone and together."""
    parts = [figures, *([figures["throughput"]] if "throughput" in figures else [])]
    return all(
        part["max_abs_error"] <= part["max_abs_error_stated"]
        and part["max_error_of_stated"] <= 1.0
        and part["top10_within_bound"] == 1.0
        and part.get("same_bytes", True)
        for part in parts
    )


def _shown(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:,.2f}"
