"""Two figures: what a party has spent over time, and what epsilon buys."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from cli.expectation import Reference, ratio
from cli.privacy_plan import Plan, draw_variance
from cli.privacy_plan import expected as expected_of
from veil.files import write_atomic
from veil.privacy.accountant import noise_multiplier
from veil.privacy.history import Step, steps
from veil.privacy.ledger import Ledger

# Distinguishable without hue (Okabe and Ito 2008); in turns, when there are more jobs.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
_MOST_LABELS = 12
_POINTS = 25

Floats = npt.NDArray[np.float64]


def spent_over_time(book: Ledger, names: Mapping[str, str | None], path: Path) -> None:
    """Epsilon of everything on record after each opening, one colour a job, against the limits of the time."""
    history = steps(book.entries(), book.delta)
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    _plain(axes)
    colours = {
        job: _COLOURS[place % len(_COLOURS)] for place, job in enumerate(dict.fromkeys(s.job_id for s in history))
    }
    before, labelled = 0.0, set[str]()
    moments = [_moment(step.at) for step in history]
    # Openings of a job follow each other within seconds, jobs within weeks: one column an opening, dated at its foot.
    for place, step in enumerate(history):
        label = None
        if step.job_id not in labelled and len(labelled) < _MOST_LABELS:
            label = _label(step.job_id, names)
        labelled.add(step.job_id)
        axes.bar(place, before, 1.0, color="#dddddd", align="edge", linewidth=0)
        axes.bar(
            *(place, step.total - before, 1.0, before),
            color=colours[step.job_id],
            align="edge",
            linewidth=0,
            label=label,
        )
        before = step.total
    limits = _limits_in_force(book, history)
    axes.step(range(len(limits)), limits, where="post", color="#d55e00", linewidth=1.5, linestyle="--", label="limit")
    starts = [p for p, step in enumerate(history) if p == 0 or history[p - 1].job_id != step.job_id]
    shown: list[int] = []
    for place in starts:
        if not shown or place - shown[-1] >= 0.12 * len(history):
            shown.append(place)
    axes.set_xticks(shown, [moments[place].strftime("%Y-%m-%d\n%H:%M") for place in shown], fontsize=7)
    axes.set_xlim(0, max(1, len(history)))
    axes.set_ylim(0, 1.08 * max(*limits, before))
    axes.set_xlabel("openings on record, dated where a job begins (UTC)", fontsize=8)
    axes.set_ylabel(f"epsilon spent, at delta {book.delta:g}")
    if len(colours) > _MOST_LABELS:
        axes.plot([], [], " ", label=f"and {len(colours) - _MOST_LABELS} more jobs")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def _limits_in_force(book: Ledger, history: Sequence[Step]) -> list[float]:
    """The limit at the foot of every column, and the present one at the end."""
    changes = book.limit_changes()
    at_the_time = [[c.epsilon_limit for c in changes if c.number < step.number][-1] for step in history]
    return [*(at_the_time or [book.epsilon_limit]), book.epsilon_limit]


def what_epsilon_buys(plan: Plan, known: Sequence[Reference], path: Path) -> None:
    """Expected share of the plaintext gain, and the job's noise multiplier, over epsilon; the plan's own is marked."""
    wish = plan.wish
    references = [one.reference for one in expected_of(plan, known)]
    figure, panels = plt.subplots(
        2 if references else 1,
        1,
        figsize=(8, 6 if references else 3.2),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    epsilons = np.geomspace(min(0.1, wish.epsilon), max(20.0, wish.epsilon), _POINTS)
    multipliers = np.array([noise_multiplier(float(epsilon), wish.delta) for epsilon in epsilons])
    if references and wish.users is not None:
        ratios = [ratio(float(one), draw_variance(wish), wish.users) for one in multipliers]
        _shares(panels[0, 0], references, epsilons, ratios, wish.users)
    axes = panels[-1, 0]
    _plain(axes)
    axes.plot(epsilons, multipliers, color="#333333")
    axes.set_yscale("log")
    axes.set_ylabel("noise multiplier\nof the whole job, one draw")
    axes.set_xlabel(f"epsilon at delta {wish.delta:g}, per user")
    axes.set_xscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    for panel in panels[:, 0]:
        panel.axvline(wish.epsilon, color="#d55e00", linewidth=1.2, linestyle="--")
    _save(figure, path)


def _shares(axes: Any, references: Sequence[Reference], epsilons: Floats, ratios: Sequence[float], users: int) -> None:
    _plain(axes)
    for place, one in enumerate(references):
        colour = _COLOURS[place % len(_COLOURS)]
        shares = np.array([one.share(each) for each in ratios])
        inside = np.array([one.measured(each) for each in ratios])
        label = f"{one.data} ({one.users:,} users, {one.trainer})"
        axes.plot(epsilons, shares, color=colour, linewidth=0.8, linestyle=":")
        axes.plot(epsilons, np.where(inside, shares, np.nan), color=colour, linewidth=2, label=label)
    axes.axhline(0.0, color="#333333", linewidth=0.8)
    axes.axhline(1.0, color="#333333", linewidth=0.8, linestyle=":")
    axes.set_ylim(-1.0, 1.1)
    axes.set_ylabel("share of the plaintext gain\nover best-sellers (HR@10)")
    axes.set_title(
        f"what epsilon buys with {users:,} users, read off figures on public data (dotted: beyond them)",
        fontsize=9,
        loc="left",
    )
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def _label(job_id: str, names: Mapping[str, str | None]) -> str:
    name = names.get(job_id)
    # A dollar sign would start mathematics; a leading underscore would hide the label.
    return job_id[:8] if name is None else f"{name} ({job_id[:8]})".replace("$", r"\$").lstrip("_")


def _moment(at: str) -> datetime:
    return datetime.fromisoformat(at)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower().removeprefix("."), dpi=150)
    plt.close(figure)
    write_atomic(path, buffer.getvalue())
