"""The set-up that all reports share: what a page escapes, what it refuses, and that nothing half-made is left."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import pytest

from cli import page


def test_both_reports_are_children_of_one_page() -> None:
    for name in ("report.html.j2", "audit.html.j2"):
        text = (Path(page.__file__).parent / name).read_text()
        assert text.startswith('{% extends "page.html.j2" %}') and "<style" not in text and "<html" not in text


def test_values_are_escaped_and_missing_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trial.html.j2").write_text("<p>{{ text }} {{ size|twice }}</p>")
    monkeypatch.setattr(page, "_TEMPLATES", tmp_path)
    filters = {"twice": lambda size: str(2 * size)}
    assert page.render("trial.html.j2", filters=filters, text="<b>", size=4) == "<p>&lt;b&gt; 8</p>"
    with pytest.raises(jinja2.UndefinedError, match="text"):
        page.render("trial.html.j2", filters=filters, size=4)


def test_a_figure_becomes_an_element_that_refers_to_nothing_and_is_closed() -> None:
    figure, axes = page.plain_axes(3.0, 2.0)
    axes.plot([0, 1], [0, 1], label="a < b & c")
    axes.legend()
    text = str(page.svg(figure))
    assert text.startswith("<svg") and text.rstrip().endswith("</svg>") and "<metadata" not in text
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]+)"', text))
    assert "a < b" not in text
    assert plt.get_fignums() == []
    figure, axes = page.plain_axes(3.0, 2.0)
    axes.plot([0, 1], [0, 1])
    assert "<dc:date>" not in str(page.svg(figure))


def test_both_files_are_written_or_neither(tmp_path: Path) -> None:
    def missing() -> str:
        raise jinja2.UndefinedError("no such value")

    for document, made, error in (
        ({"x": 1.0}, missing, jinja2.UndefinedError),
        ({"x": float("nan")}, lambda: "page", ValueError),
    ):
        with pytest.raises(error):
            page.write(document, made, tmp_path)
        assert list(tmp_path.iterdir()) == []
    page.write({"x": 1.5, "y": [1]}, lambda: "page", tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == {"x": 1.5, "y": [1]}
    assert (tmp_path / "report.html").read_text() == "page"
