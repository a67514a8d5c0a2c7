from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest

from cli import report
from cli.machine import machine

_MODELS = ("private", "plaintext", "ials", "popularity")


def _small() -> report.Report:
    return {
        "dataset": "synthetic",
        "users": 30_000,
        "items": 2_000,
        "parties": 2,
        "party_names": ["alpha", "beta"],
        "party_shares": ["65 %", "35 %"],
        "epsilon": 3.0,
        "epsilon_spent": 2.9998,
        "delta": 1e-5,
        "unit": "user",
        "neighbouring": "add-or-remove-one-user",
        "metrics": {
            model: {"hr_at_10": 0.6 + rank / 100, "ndcg_at_10": 0.4, "recall_at_20": 0.3}
            for rank, model in enumerate(_MODELS)
        },
        "train": {
            "seconds": 36.2,
            "rounds": 2,
            "noise_source": "dealer",
            "bytes_sent_per_party": {"alpha": 6_200_000, "beta": 1_400_000},
            "bytes_received_per_party": {"alpha": 1_400_000, "beta": 6_200_000},
            "phases": {"alpha": {"load": 2.0, "counts": 0.3}, "beta": {"load": 2.1}},
            "releases": [
                {"name": "counts", "shape": [2000], "sensitivity": 1024, "sigma": 2903, "noise_multiplier": 2.835},
                {"name": "round-1", "shape": [2000, 43], "sensitivity": 858, "sigma": 1370, "noise_multiplier": 1.597},
            ],
            "job_digest": "ab" * 32,
            "manifest_digest": "cd" * 32,
        },
        "scoring": {
            "median_ms": 32.1,
            "server_median_ms": 25.2,
            "round_trip_ms": [31.0, 32.1, 40.2],
            "query_bytes": 61_800,
            "response_bytes": 123_400,
            "key_bytes": 255_500,
            "max_abs_error": 9.2e-4,
            "top10_overlap": 1.0,
            "parameters": "pq",
            "sample": {"plaintext": [0.0, 1.0, 2.0], "encrypted": [0.0001, 1.0, 1.9998]},
            "example": [{"title": "Fish & <Chips>", "score": 4.2}],
        },
        "machine": machine(),
        "versions": {"torch": "2.13.0", "crypten": "0.4.1"},
        "command": "veil demo --data synthetic",
        "seconds": 88.0,
    }


class _Page(HTMLParser):
    """Tags, attributes, identifiers and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return report.render(_small())


def test_json_has_the_keys_that_readers_rely_on(tmp_path: Path) -> None:
    report.write(_small(), tmp_path)
    document: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert {"dataset", "parties", "epsilon", "delta", "metrics", "train", "scoring"} <= document.keys()
    assert set(_MODELS) <= document["metrics"].keys()
    for model in _MODELS:
        assert document["metrics"][model].keys() >= {"hr_at_10", "ndcg_at_10", "recall_at_20"}
    assert document["train"].keys() >= {"seconds", "rounds", "bytes_sent_per_party"}
    assert document["scoring"].keys() >= {
        "median_ms", "query_bytes", "response_bytes", "key_bytes", "max_abs_error", "top10_overlap",
    }  # fmt: skip
    assert document == _small()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_page_refers_to_nothing_outside_itself(html: str) -> None:
    page = _Page(html)
    referring = [(tag, value) for tag, name, value in page.attributes if name in {"src", "href", "xlink:href"}]
    assert referring, "the plots use their own definitions"
    assert all(value.startswith("#") for _, value in referring), referring
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "img", "iframe", "object"}
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]+)", html))
    assert "@import" not in html
    # Names of XML namespaces are the only addresses.
    assert {value for _, name, value in page.attributes if "://" in value and not name.startswith("xmlns")} == set()
    assert "://" not in page.text


def test_page_shows_the_numbers_and_no_gaps(html: str) -> None:
    text = " ".join(_Page(html).text.split())
    for expected in (
        "30,000 users", "2,000 items", "alpha, beta (65 % / 35 % of the users)", "3.000", "1e-05",
        "add-or-remove-one-user", "0.6000", "36.2 s", "32.1 ms", "61.8 kB", "123.4 kB", "255.5 kB", "0.00092",
        "100.0 %", "2000 x 43", "1.597", "ab" * 32, "cd" * 32, "torch 2.13.0, crypten 0.4.1.",
    ):  # fmt: skip
        assert expected in text, expected
    for wrong in ("Undefined", "None", "nan", "{{", "{%"):
        assert wrong not in text, wrong
    assert html.count("<svg") == 6


def test_titles_are_escaped(html: str) -> None:
    assert "Fish &amp; &lt;Chips&gt;" in html


@pytest.mark.parametrize("path", [("scoring", "server_median_ms"), ("command",), ("train", "noise_source")])
def test_missing_value_is_an_error_not_a_blank(path: tuple[str, ...]) -> None:
    document = copy.deepcopy(_small())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(jinja2.UndefinedError, match=path[-1]):
        report.render(document)


def test_not_a_number_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    document = _small()
    document["metrics"]["private"]["hr_at_10"] = float("nan")
    with pytest.raises(ValueError, match="JSON compliant"):
        report.write(document, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (5e12, "5000.0 GB")]
)
def test_readable_bytes(count: float, text: str) -> None:
    assert report.readable_bytes(count) == text
