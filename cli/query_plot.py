"""Bars of published answers with the intervals of their noise, as one figure with a panel for each question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from cli.query import label, ranked
from veil.errors import ConfigError
from veil.queries.answers import Answer

_FORMATS = (".png", ".svg", ".pdf")
_MOST_CHARACTERS = 40
_COLOUR = "#0072b2"


def write(answers: Sequence[Answer], path: Path, top: int) -> None:
    """Writes the figure; at most `top` groups a question. Raises `ConfigError` for a suffix it does not know."""
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"got {path.name}, expected a name that ends in {', '.join(_FORMATS)}")
    shown = [ranked(answer, top) for answer in answers]
    rows = [0.28 * len(places) + 1.1 for places in shown]
    figure, panels = plt.subplots(
        len(answers), 1, figsize=(8, sum(rows)), height_ratios=rows, squeeze=False, layout="constrained"
    )
    for axes, answer, places in zip(panels[:, 0], answers, shown, strict=True):
        # A dollar sign would start mathematics.
        names = [label(answer, place)[:_MOST_CHARACTERS].replace("$", r"\$") for place in places]
        axes.barh(
            range(len(places)),
            [answer.values[place] for place in places],
            xerr=answer.interval_95,
            color=_COLOUR,
            ecolor="#333333",
            capsize=2,
            height=0.7,
        )
        axes.set_yticks(range(len(places)), names, fontsize=8)
        axes.invert_yaxis()
        axes.axvline(0, color="#333333", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        axes.set_title(answer.question.name, loc="left", fontsize=10)
        axes.set_xlabel(f"{answer.question.measure}; lines: 95% of the noise", fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
