"""Reports of jobs: what a worker says is checked before it is kept, and reads back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.job_forecast import compared, forecast_of, link_of
from party.job import report
from tests.unit.trainers.columns.clicks import BANK, job
from veil.errors import ConfigError, WireError


def measured() -> dict[str, Any]:
    row = {"phase": "descend", "operation": "all_reduce", "rounds": 4, "waited_s": 0.5}
    traffic = {"bytes_sent": 100, "messages_sent": 4, "bytes_received": 90, "messages_received": 4}
    return {
        "seconds": {"descend": 1.5},
        "communication": {
            "schema": "veil.communication/1",
            "party": BANK,
            "operations": [{**row, "seconds": 1.0}],
            "peers": [{**row, **traffic, "peer": "shop"}],
        },
    }


def test_a_report_is_kept_for_the_owner_and_shown_beside_the_forecast(tmp_path: Path) -> None:
    spec = job()
    path = report.write(tmp_path, "0f" * 16, BANK, spec.text(), measured())
    assert path.stat().st_mode & 0o777 == 0o600
    found = report.read(path.read_bytes())
    assert found.totals("descend") == (4, 100, 90) and found.totals("align") == (0, 0, 0)
    lines = list(compared(found, forecast_of(spec, link_of("1Gbit", "1ms"))))
    descend = next(line for line in lines if line.startswith("descend"))
    assert "/4 " in descend and "/100 B" in descend and "/1.50" in descend
    with pytest.raises(ConfigError, match="stranger"):
        list(compared(found.model_copy(update={"party": "stranger"}), []))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("seconds"), "seconds"),
        (lambda d: d["seconds"].update({"a\nb": 1.0}), "seconds"),
        (lambda d: d["seconds"].update(descend=float("nan")), "seconds"),
        (lambda d: d["communication"]["peers"][0].update(bytes_sent=-1), "bytes_sent"),
        (lambda d: d["communication"]["peers"].extend(d["communication"]["peers"] * 5000), "peers"),
        (lambda d: d.update(rows=[1, 2, 3]), "rows"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    document = measured()
    change(document)
    with pytest.raises(WireError, match=says):
        report.write(tmp_path, "0f" * 16, BANK, job().text(), document)
    assert not (tmp_path / "reports").exists()
    with pytest.raises(WireError):
        report.read(b"{}")
