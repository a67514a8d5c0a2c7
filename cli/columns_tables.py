"""What `veil bench columns` shows: draws put together to lines, and lines as tables.

Guarantee: a line's figures are means and sample standard deviations of all its draws, none left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# A table whose numbers are cut off is of no use: a narrow terminal wraps it instead.
_WIDTH = 132
COLUMNS = ("AUC test", "AUC dev", "s", "s, forecast / is", "MB, forecast / is")


@dataclass(frozen=True)
class Draw:
    """One model. dev, test: AUC. seconds: of a job from proposal to publication, of a run without one of its training.

    bytes_per_party, forecast_bytes_per_party: sent, in rank order, the latter of jobs. phases: of a job at its first
    party, by phase, rounds, bytes and seconds, forecast and measured.
    """

    dev: float
    test: float
    seconds: float | None = None
    bytes_per_party: tuple[int, ...] = ()
    forecast_bytes_per_party: tuple[int, ...] = ()
    phases: dict[str, dict[str, float]] = field(default_factory=dict)


def line(model: str, draws: Sequence[Draw], *, epsilon: float | None = None, noise: str = "") -> dict[str, Any]:
    """A line of the table, as its JSON has it. epsilon None: no noise. Bytes are those of the party that sends most."""
    found: dict[str, Any] = {"model": model, "epsilon": epsilon, "noise": noise, "draws": len(draws)}
    for split in ("test", "dev"):
        values = [getattr(draw, split) for draw in draws]
        found[f"auc_{split}"] = statistics.fmean(values)
        found[f"auc_{split}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    found["seconds"] = _mean([draw.seconds for draw in draws if draw.seconds is not None])
    found["bytes_per_party"] = _most([draw.bytes_per_party for draw in draws])
    found["forecast_bytes_per_party"] = _most([draw.forecast_bytes_per_party for draw in draws])
    for name in ("forecast_s", "measured_s"):
        found[name] = _mean([sum(phase[name] for phase in draw.phases.values()) for draw in draws if draw.phases])
    found["each"] = [asdict(draw) for draw in draws]
    return found


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _most(values: Sequence[tuple[int, ...]]) -> int | None:
    return max((max(own) for own in values if own), default=None)


def standard_error(area: float, positive: int, negative: int) -> float:
    """Of an AUC measured on so many rows, by Hanley and McNeil 1982, "The meaning and use of the area under a receiver
    operating characteristic (ROC) curve", equation 1 with their approximation for exponential scores."""
    both, one = area / (2 - area), 2 * area**2 / (1 + area)
    spread = (area * (1 - area) + (positive - 1) * (both - area**2) + (negative - 1) * (one - area**2)) / (
        positive * negative
    )
    return math.sqrt(max(0.0, spread))


def show(figures: dict[str, Any]) -> None:
    """One case."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    for text in heading(figures):
        console.print(text, markup=False)
    console.print(table_of(figures))
    console.print()


def heading(figures: dict[str, Any]) -> Iterator[str]:
    """What the table's figures are of."""
    rows, machine = figures["rows"], figures["machine"]
    counts = ", ".join(f"{count} {split}" for split, count in rows.items())
    yield f"{figures['data']}, {figures['parties']} parties: rows {counts}; {figures['features']} features"
    errors = figures["standard_error"]
    yield f"standard error of one AUC by the rows themselves: test {errors['test']:.3f}, dev {errors['dev']:.3f}"
    yield f"{machine['processor']}, {machine['cores']} cores, load {figures['load_average']:.1f}"


def table_of(figures: dict[str, Any]) -> Table:
    """A row for each line."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "eps", "noise", "n"):
        table.add_column(column, no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for one in figures["lines"]:
        table.add_row(*cells(one))
    return table


def cells(one: dict[str, Any]) -> tuple[str, ...]:
    """A line as texts."""
    return (
        one["model"],
        "–" if one["epsilon"] is None else f"{one['epsilon']:g}",
        one["noise"],
        str(one["draws"]),
        _area(one, "test"),
        _area(one, "dev"),
        _number(one["seconds"], "{:.1f}"),
        _beside(one, "forecast_s", "measured_s", "{:.1f}"),
        _beside(one, "forecast_bytes_per_party", "bytes_per_party", "{:.2f}", 1e6),
    )


def _beside(one: dict[str, Any], forecast: str, measured: str, form: str, unit: float = 1.0) -> str:
    """Forecast / measured; what was measured alone where there is no forecast."""
    measured_text = _number(one[measured], form, unit)
    return measured_text if one[forecast] is None else f"{_number(one[forecast], form, unit)} / {measured_text}"


def _area(one: dict[str, Any], split: str) -> str:
    mean, spread = one[f"auc_{split}"], one[f"auc_{split}_sd"]
    text = f"{mean:.3f}".lstrip("0")
    return text if spread is None else f"{text} ± {spread:.3f}".replace("± 0.", "± .")


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "" if value is None else form.format(value / unit)
