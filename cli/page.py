"""A report as two files: `report.json` for machines and a self-contained `report.html`, from one dictionary.

Guarantee: the page refers to nothing outside itself, so that it opens anywhere offline: plots are inline SVG, styles
stand in `page.html.j2`. What goes into it is escaped; a value that is missing is an error, not a blank. A number that
JSON does not have (NaN, infinity) is an error before anything is written.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from veil.files import write_atomic

_TEMPLATES = Path(__file__).parent


def write(document: Mapping[str, Any], render: Callable[[], str], directory: Path) -> None:
    """Writes `report.json`, the document, and `report.html`, what `render` returns, into `directory`.

    Raises `ValueError` for a number that JSON does not have, `jinja2.UndefinedError` for a missing value; neither file
    is written then.
    """
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    page = render()
    write_atomic(directory / "report.json", text.encode())
    write_atomic(directory / "report.html", page.encode())


def render(template: str, *, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """The page that a template of this folder makes of `values`; raises `jinja2.UndefinedError` for a missing one."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template).render(**values)


def plain_axes(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of that many inches with one plain set of axes."""
    figure, axes = plt.subplots(figsize=(width, height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def svg(figure: Figure) -> Markup:
    """The figure as an element for the page; closes it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    # Its description of itself names addresses; the page refers to nothing outside.
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Matplotlib made this text from numbers and labels, and escapes them itself.
    return Markup(text)  # noqa: S704
