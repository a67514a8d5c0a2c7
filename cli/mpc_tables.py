"""What `veil bench mpc` and `mpc-all` print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = ("ms", "best_ms", "bytes_per_party", "rounds", "max_abs_error")
# A table whose numbers are cut off is of no use: a narrow terminal wraps it instead.
_WIDTH = 120


def show(figures: dict[str, Any]) -> None:
    """One case: figures beside those of the peers, then a line for each bar."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    head = f"{figures['case']}, {figures['parties']} parties, triples {figures['triples']}, {figures['operators']}"
    head += {"grpc": ", over gRPC", "gloo": ", over gloo without TLS"}.get(figures.get("plane", ""), "")
    machine = figures["machine"]
    console.print(
        f"{head}; {machine['processor']}, {machine['cores']} cores, load {figures['load_average']:.1f}", markup=False
    )
    console.print(table_of(figures))
    for line in notes(figures):
        console.print(line, markup=False)
    console.print()


def table_of(figures: dict[str, Any]) -> Table:
    """A row for Veil and one for each peer that could be measured."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in (*_SHOWN, "Veil's time"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("veil", *(_shown(figures.get(key)) for key in _SHOWN), "")
    for name, peer in figures["peers"].items():
        if "error" in peer:
            table.add_row(name, "not measured", *("" for _ in _SHOWN))
            continue
        ratio = f"{figures['ms'] / peer['ms']:.3g} x" if peer.get("ms") else ""
        table.add_row(name, *(_shown(peer.get(key)) for key in _SHOWN), ratio)
    return table


def notes(figures: dict[str, Any]) -> Iterator[str]:
    """What the table has no columns for, a line each."""
    for name, bar in figures["bars"].items():
        yield f"{name} {_shown(bar['value'])}, bar {_shown(bar['limit'])}: {'met' if bar['met'] else 'missed'}"
    for name, peer in figures["peers"].items():
        if "error" in peer:
            yield f"{name}: {peer['error']}"
        elif "setting" in peer:
            yield f"{name} {peer.get('version', '')}: {peer['setting']}".replace(" :", ":")
    if "offline_ms" in figures:
        yield f"offline {figures['offline_ms']:.4g} ms a step, online {figures['ms']:.4g} ms"
    if "worker_ms" in figures:
        yield f"in workers behind their parties' daemons, as jobs run: {figures['worker_ms']:.4g} ms"
    if "prepare_ms" in figures:
        once = figures.get("prepare_bytes", 0.0)
        yield f"once a job before the first step: {figures['prepare_ms']:.4g} ms, {once:,.0f} bytes a party"
    if "auc" in figures:
        yield (
            f"{figures['seconds']:.3g} s an epoch, {figures['bytes_per_party']:,.0f} bytes a party;"
            f" AUC {figures['auc']:.5f}, plaintext {figures['auc_plaintext']:.5f}"
        )
    if "bytes_least" in figures:
        yield (
            f"{figures['elements']:,} numbers: at least {figures['bytes_least']:,} bytes a party;"
            f" everyone to everyone would be {figures['bytes_all_to_all']:,}"
        )


def bars_table(done: dict[str, dict[str, Any]]) -> Table:
    """Every bar of every case."""
    from rich.table import Table

    table = Table("case", "bar", "limit", "measured", "", title="bars", title_justify="left", box=None, pad_edge=False)
    for name, figures in done.items():
        for bar, found in figures["bars"].items():
            table.add_row(
                name, bar, _shown(found["limit"]), _shown(found["value"]), "met" if found["met"] else "missed"
            )
    return table


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:,.2f}"
