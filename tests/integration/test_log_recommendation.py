"""The example that logs a recommendation privately, as written, against a real scoring server."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from he_inference.service.server import ScoringServer
from tests.integration.scoring_site import ANNA, Site
from veil.errors import BudgetError

pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).parents[2] / "examples" / "log_recommendation.py"


def test_the_example_logs_pays_and_stops_when_all_is_spent(
    site: Site, server: ScoringServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(EXAMPLE))["main"]
    arguments = (server.address, str(site.members[ANNA]), str(tmp_path / "keys"), "20")
    main(*arguments, "1001", "1002")
    out = capsys.readouterr().out
    assert out.count("\n") == 11
    assert "20 of 30 spent" in out
    with pytest.raises(BudgetError):
        main(*arguments, "1001", "1002")
    assert "log:" not in capsys.readouterr().out
    assert (tmp_path / "keys" / "logged.epsilon").read_text().strip() == "20000000"
