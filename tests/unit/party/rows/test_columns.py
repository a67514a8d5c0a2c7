"""A party's columns for joint models: what is kept, what is refused, and under which configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from party.config import Columns, PartyConfig, load
from party.rows import store
from party.rows.columns import SCRATCH, fresh_scratch, prepare, read_columns, scratch
from tests.unit.trainers.columns.clicks import BANK, SHOP, schema, section, write_tables
from veil.errors import ConfigError, DataError, StateError

ROOT = Path(__file__).parents[4]
TABLE = "member,item,visits,bought,secret\na,tea,3,1,x\nb,salt,,0,y\nc,tea,9,,z\n"


def held(folder: Path, text: str, **changes: Any) -> Any:
    source = folder / "shop.csv"
    source.write_text(text)
    return prepare(Columns.model_validate({**section(SHOP, source), **changes}), folder)


def test_only_listed_columns_are_kept_for_the_owner_alone(tmp_path: Path) -> None:
    found = held(tmp_path, TABLE)
    assert found.path.stat().st_mode & 0o777 == 0o600
    assert pl.read_parquet(found.path).columns == ["member", "item", "visits", "bought"]
    assert (found.rows, found.report.rows_kept) == (3, 3)
    assert b"secret" not in found.path.read_bytes()


def test_rows_without_a_label_take_no_part_where_labels_are(tmp_path: Path) -> None:
    table = read_columns(held(tmp_path, TABLE).path, schema(), SHOP)
    assert table.identifiers == ("a", "b")
    assert table.labels is not None
    np.testing.assert_array_equal(table.labels, [1, 0])
    bank = tmp_path / "bank"
    bank.mkdir()
    path = write_tables(bank)[BANK]
    assert read_columns(prepare(Columns.model_validate(section(BANK, path)), bank).path, schema(), BANK).rows == 150


def test_fractions_of_a_typed_file_stay_fractions(tmp_path: Path) -> None:
    """As categories they are refused: 7.0 would be another category than the 7 of a text file."""
    source = tmp_path / "shop.parquet"
    frame = pl.read_csv(TABLE.encode(), columns=["member", "item", "visits", "bought"])
    frame.with_columns(pl.col("visits").cast(pl.Float64)).write_parquet(source)
    found = prepare(Columns.model_validate(section(SHOP, source)), tmp_path)
    kept = pl.read_parquet(found.path)
    assert kept["visits"].to_list() == [3.0, None, 9.0] and kept["item"].to_list() == ["tea", "salt", "tea"]
    assert read_columns(found.path, schema(), SHOP).identifiers == ("a", "b")
    frame.with_columns(item=pl.Series([1.0, 2.0, 1.0])).write_parquet(source)
    wrong = prepare(Columns.model_validate(section(SHOP, source)), tmp_path)
    with pytest.raises(DataError, match="item"):
        read_columns(wrong.path, schema(), SHOP)


def test_a_header_of_very_many_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at most 16384"):
        held(tmp_path, "member" + ",x" * 20_000 + "\na\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TABLE + "a,tea,1,0,w\n", "more than one row"),
        (TABLE + ",tea,1,0,w\n", "without an identifier"),
        (TABLE + "é" * 200 + ",tea,1,0,w\n", "more than 256 bytes"),
        (TABLE + "d,tea\n", "do not parse"),
        ("member,item,visits,bought\n", "no rows"),
        ("member,item,visits\na,tea,3\n", "column"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as refused:
        held(tmp_path, text)
    assert "tea" not in str(refused.value)


def party_file(folder: Path, body: str) -> Path:
    file = folder / "party.toml"
    file.write_text(
        'listen = "127.0.0.1:1"\nadvertise = "127.0.0.1:1"\ncredentials = "c"\nstate = "state"\n'
        + body
        + '[coordinator]\naddress = "127.0.0.1:2"\n[dealer]\naddress = "127.0.0.1:3"\n'
        "[budget]\nepsilon = 1.0\ndelta = 1e-5\n[approval]\nmax_epsilon_per_job = 1.0\n"
    )
    return file


COLUMNS = '[columns]\nsource = "shop.csv"\nidentifier = "member"\nuse = ["item", "visits"]\nlabels = ["bought"]\n'


def test_a_party_may_have_columns_alone(tmp_path: Path) -> None:
    config = load(party_file(tmp_path, COLUMNS))
    assert config.columns is not None and config.catalogue is None
    assert config.columns.source == tmp_path / "shop.csv"
    (tmp_path / "shop.csv").write_text(TABLE)
    (tmp_path / "state" / "rows" / f"{SCRATCH}left").mkdir(parents=True)
    prepared = store.prepare(config, None)
    assert prepared.columns is not None and prepared.report.users == 3
    # what a crash left of an earlier job's correlations is gone
    assert [path.name for path in prepared.columns.path.parent.iterdir()] == ["columns.parquet"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "neither"),
        ('[data]\nsource = "x.csv"\npseudonym_key = "k"\n[data.read.columns]\nuser = "u"\nitem = "i"\n', "catalogue"),
        (COLUMNS.replace('"visits"', '"member"'), "twice"),
        (COLUMNS.replace('use = ["item", "visits"]', "use = []"), "columns.use"),
    ],
)
def test_configurations_that_are_none(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(party_file(tmp_path, body))


def test_the_section_in_comments_is_a_real_one(tmp_path: Path) -> None:
    lines = (ROOT / "deploy" / "party.toml").read_text().splitlines()
    start = lines.index("# [columns]")
    section_lines = []
    for line in lines[start:]:
        if not line.startswith("#"):
            break
        section_lines.append(line.removeprefix("#").removeprefix(" "))
    config: PartyConfig = load(party_file(tmp_path, "\n".join(section_lines) + "\n"))
    assert config.columns is not None and config.columns.labels == ("click",)


def test_what_a_dead_run_left_of_its_correlations_is_removed_and_not_used(tmp_path: Path) -> None:
    digest = bytes(range(32))
    left = scratch(tmp_path, digest)
    left.mkdir()
    (left / "items").write_bytes(b"shares of masks")
    assert fresh_scratch(tmp_path, digest) == left
    assert list(left.iterdir()) == [] and left.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["file", "link", "dangling"])
def test_where_no_folder_for_correlations_can_be_made_the_error_says_so(tmp_path: Path, what: str) -> None:
    digest, elsewhere = bytes(32), tmp_path / "elsewhere"
    if what == "file":
        scratch(tmp_path, digest).write_bytes(b"")
    else:
        scratch(tmp_path, digest).symlink_to(elsewhere)
        if what == "link":
            elsewhere.mkdir()
            (elsewhere / "kept").write_bytes(b"")
    with pytest.raises(StateError, match="got no new folder for correlations at correlations-0000"):
        fresh_scratch(tmp_path, digest)
    assert what != "link" or (elsewhere / "kept").exists()
