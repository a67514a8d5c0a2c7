"""The audit's report, as `cli.page` makes one: its plots and words.

Guarantee: every number in the page is a number in the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps

from cli import page
from cli.page import plain_axes, svg
from veil.privacy.audit.membership import largest_gaussian_tpr, largest_tpr

Figures = Mapping[str, Any]

# Okabe and Ito 2008: distinguishable without hue.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#999999"
_BOUNDS = {
    "general": ("any mechanism", _GREY, "s"),
    "gaussian": ("Gaussian, any scores", _ORANGE, "^"),
    "parametric": ("Gaussian, normal noise", _BLUE, "o"),
}


def write(figures: Figures, directory: Path) -> None:
    """Writes `report.json` and `report.html` into `directory`."""
    page.write(figures, lambda: render(figures), directory)


def render(figures: Figures) -> str:
    """The page."""
    plots = {
        "bounds": _bounds(figures),
        "scores": _scores(figures),
        "noise": _noise(figures["plots"]["noise_quantiles"]),
        "roc": _roc(figures) if figures["membership"] else None,
    }
    return page.render("audit.html.j2", figures=figures, plots=plots, bounds=_BOUNDS)


def _bounds(figures: Figures) -> Markup:
    figure, axes = plain_axes(7.2, 3.2)
    runs = figures["runs"]
    place = np.arange(1, len(runs) + 1)
    for name, (label, colour, marker) in _BOUNDS.items():
        axes.plot(place, [run[name] for run in runs], marker, color=colour, markersize=5, label=label)
        axes.plot([len(runs) + 1], [figures["pooled"][name]], marker, color=colour, markersize=9, fillstyle="none")
    axes.axhline(figures["claim"]["epsilon"], color=_RED, linewidth=1.5, label="claimed")
    step = max(1, len(runs) // 10)
    ticks = place[::step].tolist()
    axes.set_xticks([*ticks, len(runs) + 1], [*map(str, ticks), "all"])
    axes.set_xlabel("run (all: every run as one)")
    axes.set_ylabel("lower bound on epsilon")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return svg(figure)


def _scores(figures: Figures) -> Markup:
    figure, axes = plain_axes(7.2, 2.8)
    plots, mu = figures["plots"], figures["claim"]["mu"]
    for name, label, colour, sign in (("scores_out", "not in", _GREY, -1), ("scores_in", "in", _BLUE, 1)):
        values = np.asarray(plots[name])
        if not len(values):
            continue
        share = np.linspace(0, 1, len(values))
        axes.plot(values, share, color=colour, label=f"canaries {label}")
        grid = np.linspace(-4.5, 4.5, 200)
        allowed = np.asarray(largest_gaussian_tpr(_normal(grid), -sign * mu / 2))
        axes.plot(grid, allowed, color=colour, linestyle=":", linewidth=1)
    axes.set_xlabel("canary score (dotted: the widest separation that the claim allows)")
    axes.set_ylabel("share below")
    axes.set_xlim(-5, 5)
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def _noise(quantiles: Mapping[str, list[float]]) -> Markup:
    figure, axes = plain_axes(5.0, 4.2)
    colours = colormaps["cividis"]
    for index, (name, values) in enumerate(quantiles.items()):
        at = (np.arange(len(values)) + 0.5) / len(values)
        expected = _normal_quantile(at)
        axes.plot(expected, values, ".", markersize=3, color=colours(index / max(len(quantiles), 1)), label=name)
    axes.plot([-3.2, 3.2], [-3.2, 3.2], color=_RED, linewidth=1, label="as claimed")
    axes.set_xlabel("normal quantile")
    axes.set_ylabel("noise / claimed standard deviation")
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def _roc(figures: Figures) -> Markup:
    figure, axes = plain_axes(5.2, 4.6)
    claim, attack = figures["claim"], figures["membership"]
    curves = [("published model", attack["roc"], _BLUE)]
    if "without_noise" in attack:
        curves.append(("the same without noise", attack["without_noise"]["roc"], _GREEN))
    least = 1.0 / max(attack["others"], 2)
    for label, curve, colour in curves:
        fpr, tpr = np.asarray(curve["fpr"]), np.asarray(curve["tpr"])
        axes.step(np.maximum(fpr, least), np.maximum(tpr, least), where="post", color=colour, label=label)
    grid = np.logspace(np.log10(least), 0, 200)
    epsilon, delta = claim["epsilon"], claim["delta"]
    axes.plot(grid, largest_tpr(grid, epsilon, delta), color=_RED, label="allowed by (epsilon, delta)")
    axes.plot(grid, largest_gaussian_tpr(grid, claim["mu"]), color=_RED, linestyle="--", label="allowed by mu")
    axes.plot(grid, grid, color=_GREY, linestyle=":", label="guessing")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(least, 1)
    axes.set_ylim(least, 1.05)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return svg(figure)


def _normal(values: Any) -> Any:
    from scipy.special import ndtr

    return ndtr(values)


def _normal_quantile(values: Any) -> Any:
    from scipy.special import ndtri

    return ndtri(values)
