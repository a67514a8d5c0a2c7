"""The benchmark of side information: what it reads, what it measures, and that the budget covers all of it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from baseline.evaluate import private_metrics
from cli.bench_side import DELTA, PROFILES, budgets, measure, profiles, schema_of
from cli.job import app
from tests.unit.trainers.side.shops import BANK, SHOP, USERS, World, catalogue, dataset
from veil.errors import ConfigError, DataError
from veil.tabular.reading import PartyTable


def test_budgets_are_numbers_or_inf() -> None:
    assert budgets("1, 5,inf,5") == (1.0, 5.0, 1000.0)
    for text in ("", "1,x", "0", "nan", "1001"):
        with pytest.raises(ConfigError, match="expected up to 16 numbers"):
            budgets(text)


def test_profiles_are_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "users.tsv"
    path.write_text("user\tgender\tage\toccupation\tzip\n0\tF\t1\t10\t48067\n1\tM\t56\t16\t70072\n")
    table = profiles(path, 2)
    assert (table.rows, table.party.width) == (2, 30)
    with pytest.raises(DataError, match="other users"):
        profiles(path, 3)


def test_a_line_costs_its_budget_and_has_every_way() -> None:
    own = schema_of(USERS).of(PROFILES)
    texts = (["F", "M"], ["1", "56"], ["3", "20"])
    columns = tuple(pl.Series([two[n % 2] for n in range(USERS)]) for two in texts)
    table = PartyTable(own, tuple(map(str, range(USERS))), columns, None)
    line = measure(dataset(), catalogue(), table, 5.0, 1)
    assert 4.9 < line["spent"] <= 5.0
    for way in ("cold", "cold_side", "cold_alone", "warm", "warm_side", "warm_alone"):
        assert 0 <= line[way]["ndcg_at_10"] <= line[way]["hr_at_10"] <= 1
    # Both references have the whole budget, and are what the recommender's own benchmark measures.
    alone = private_metrics(dataset(), catalogue(), epsilon=5.0, delta=DELTA, seeds=[1]).runs[0]
    assert line["warm_alone"]["hr_at_10"] == alone.hr_at_10
    assert line["cold_alone"]["hr_at_10"] != line["warm_alone"]["hr_at_10"]


def test_the_plan_of_a_job_is_printed_before_it_runs(tmp_path: Path) -> None:
    catalogue().save(tmp_path / "catalogue")
    schema = World().schema().model_dump_json(exclude={"slots"})
    (tmp_path / "side.json").write_text(schema)
    (tmp_path / "job.toml").write_text(
        f'name = "side"\nparties = ["{SHOP}", "{BANK}"]\n[catalogue]\npath = "catalogue"\n'
        f'[privacy]\nepsilon = 6.0\ndelta = 1e-5\n[trainer]\nkind = "side"\nitems = "{SHOP}"\n'
        'schema_file = "side.json"\nrounds = 1\ndimensions = 4\n'
        '[trainer.alignment]\nmode = "reveal"\nsizes = [160, 160]\nresult = 150\n'
    )
    shown = CliRunner().invoke(app, ["plan", str(tmp_path / "job.toml")])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert [line.split()[1] for line in lines[1:6]] == ["align", "rounds", "statistics", "outer", "model"]
    assert "from the dealer" in lines[6]
