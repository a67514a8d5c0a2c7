"""The demo's report, as `cli.page` makes one: its plots and words.

Guarantee: every number in the page is a number in the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.patches import Rectangle

from cli import page
from cli.page import plain_axes, svg

Report = dict[str, Any]

# One colour a model, the same in every plot; distinguishable without hue (Okabe and Ito 2008).
_COLOURS = {"private": "#0072b2", "plaintext": "#009e73", "ials": "#e69f00", "popularity": "#999999"}
_LABELS = {
    "private": "Veil, private",
    "plaintext": "same model, plaintext",
    "ials": "iALS, plaintext",
    "popularity": "popularity",
}
_METRICS = {"hr_at_10": "HR@10", "ndcg_at_10": "NDCG@10", "recall_at_20": "Recall@20"}


def write(report: Report, directory: Path) -> None:
    """Writes `report.json` and `report.html` into `directory`."""
    page.write(report, lambda: render(report), directory)


def render(report: Report) -> str:
    """The page."""
    plots = {
        "quality": _quality(report["metrics"]),
        "phases": _phases(report["train"]["phases"]),
        "traffic": _traffic(report["train"]["bytes_sent_per_party"]),
        "budget": _budget(report["train"]["releases"]),
        "latency": _latency(report["scoring"]),
        "agreement": _agreement(report["scoring"]["sample"]),
    }
    return page.render(
        "report.html.j2",
        filters={"bytes": readable_bytes},
        report=report,
        plots=plots,
        labels=_LABELS,
        metric_names=_METRICS,
    )


def readable_bytes(count: float) -> str:
    """1,234,567 -> "1.2 MB" (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _quality(metrics: Mapping[str, Mapping[str, float]]) -> Markup:
    figure, axes = plain_axes(7.2, 3.2)
    width = 0.8 / len(_LABELS)
    for position, (model, label) in enumerate(_LABELS.items()):
        places = [index + (position - (len(_LABELS) - 1) / 2) * width for index in range(len(_METRICS))]
        bars = axes.bar(places, [metrics[model][key] for key in _METRICS], width, label=label, color=_COLOURS[model])
        axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=1)
    axes.set_xticks(range(len(_METRICS)), list(_METRICS.values()))
    axes.grid(axis="x", visible=False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    axes.margins(y=0.25)
    return svg(figure)


def _phases(phases: Mapping[str, Mapping[str, float]]) -> Markup:
    figure, axes = plain_axes(7.2, 0.6 * len(phases) + 1.2)
    steps = list(dict.fromkeys(step for party in phases.values() for step in party))
    colours = colormaps["cividis"]
    for row, (_, seconds) in enumerate(phases.items()):
        left = 0.0
        for index, step in enumerate(steps):
            value = seconds.get(step, 0.0)
            axes.barh(row, value, left=left, color=colours(index / max(len(steps) - 1, 1)), height=0.6)
            left += value
    handles = [Rectangle((0, 0), 1, 1, color=colours(i / max(len(steps) - 1, 1))) for i in range(len(steps))]
    axes.legend(handles, steps, frameon=False, fontsize=8, ncols=len(steps), loc="lower left", bbox_to_anchor=(0, 1))
    axes.set_yticks(range(len(phases)), list(phases))
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.grid(axis="y", visible=False)
    return svg(figure)


def _traffic(sent: Mapping[str, int]) -> Markup:
    figure, axes = plain_axes(7.2, 0.45 * len(sent) + 0.8)
    bars = axes.barh(list(sent), [count / 1e6 for count in sent.values()], color="#0072b2", height=0.6)
    axes.bar_label(bars, fmt="%.1f MB", fontsize=8, padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("megabytes sent")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    return svg(figure)


def _budget(releases: list[Mapping[str, Any]]) -> Markup:
    figure, axes = plain_axes(7.2, 0.45 * len(releases) + 0.8)
    shares = [1 / release["noise_multiplier"] ** 2 for release in releases]
    total = sum(shares)
    bars = axes.barh(
        [release["name"] for release in releases],
        [100 * share / total for share in shares],
        color="#0072b2",
        height=0.6,
    )
    axes.bar_label(bars, fmt="%.0f %%", fontsize=8, padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("share of the budget (1 / noise multiplier squared), per cent")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
    return svg(figure)


def _latency(scoring: Mapping[str, Any]) -> Markup:
    figure, axes = plain_axes(7.2, 2.4)
    axes.hist(scoring["round_trip_ms"], bins=20, color="#0072b2")
    axes.axvline(scoring["median_ms"], color="#d55e00", linewidth=1.5, label=f"median {scoring['median_ms']:.1f} ms")
    axes.set_xlabel("milliseconds from vector to decrypted scores")
    axes.set_ylabel("queries")
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def _agreement(sample: Mapping[str, list[float]]) -> Markup:
    figure, axes = plain_axes(7.2, 3.0)
    errors = [encrypted - plain for plain, encrypted in zip(sample["plaintext"], sample["encrypted"], strict=True)]
    axes.scatter(sample["plaintext"], errors, s=4, color="#0072b2", linewidths=0, rasterized=False)
    axes.set_xlabel("score computed in plaintext")
    axes.set_ylabel("decrypted minus plaintext")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return svg(figure)
