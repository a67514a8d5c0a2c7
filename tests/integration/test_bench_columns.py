"""`veil bench columns` with real processes: the engine without noise, and a whole job, on a made-up sample."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from cli.bench_columns import Asked, measure

pytestmark = pytest.mark.integration
ROWS = {"train": 300, "dev": 120, "test": 120}


def write_sample(folder: Path) -> None:
    """Files of the form of Criteo's: counts that tell of the label, categories of which one does."""
    generator = np.random.default_rng(3)
    for split, rows in ROWS.items():
        lines = []
        for _ in range(rows):
            label = int(generator.random() < 0.4)
            counts = [int(generator.poisson(8 + 6 * label)), *map(int, generator.integers(0, 20, 12))]
            categories = [f"{int(generator.integers(0, 3)) + 2 * label:08x}", *(f"{k:08x}" for k in range(25))]
            lines.append("\t".join(map(str, (label, *counts, *categories))))
        with gzip.open(folder / f"criteo_{split}.csv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")


def test_a_small_case(tmp_path: Path) -> None:
    write_sample(tmp_path)
    saved: list[str] = []
    asked = Asked("criteo", tmp_path, 2, (8.0,), 1)
    figures = measure(asked, save=lambda found: saved.append(json.dumps(found, allow_nan=False)))
    assert saved[-1] == json.dumps(figures)
    assert (figures["data"], figures["parties"], figures["rows"]) == ("criteo", 2, ROWS)
    own, scikit, descent, quiet, job = figures["lines"]
    assert [one["epsilon"] for one in figures["lines"]] == [None, None, None, None, 8.0]
    assert min(own["auc_test"], scikit["auc_test"], descent["auc_test"]) > 0.75

    # between processes as in one place
    for split in ("auc_dev", "auc_test"):
        assert quiet[split] == pytest.approx(descent[split], abs=0.01)
    assert quiet["bytes_per_party"] > 8 * ROWS["train"] * figures["features"] // 2

    # a whole job, and what its parties said of it
    assert 0.3 < job["auc_test"] < 1
    assert (job["noise"], job["draws"]) == ("dealer", 1)
    each = job["each"][0]
    assert list(each["phases"]) == ["start", "align", "statistics", "prepare", "descend", "reveal"]
    assert each["phases"]["descend"]["forecast_rounds"] == each["phases"]["descend"]["measured_rounds"] == 80
    assert each["forecast_bytes_per_party"] == pytest.approx(each["bytes_per_party"], rel=0.01)
    assert 0 < job["measured_s"] < job["seconds"]
