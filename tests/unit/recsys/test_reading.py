from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from veil.errors import ConfigError, DataError, InputError, VeilError
from veil.recsys import table
from veil.recsys.interactions import Interactions
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.reading import Columns, ReadConfig, ReadReport, read_interactions

KEY = PseudonymKey(b"\x07" * 32)
ITEMS = ("i0", "i1", "i2", "i3")
COLUMNS = Columns(user="user", item="item", time="time")
SECRET = "alice-4711"


def read(path: Path, **options: object) -> tuple[Interactions, ReadReport]:
    return read_interactions(path, ReadConfig.model_validate({"columns": COLUMNS, **options}), ITEMS, KEY)


def history(interactions: Interactions, user_id: str) -> list[int]:
    assert interactions.pseudonyms is not None
    return interactions.history(interactions.pseudonyms.index(KEY.pseudonym(user_id))).tolist()


def written(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


GOOD = "user,item,time\na,i1,10\nb,i0,5\na,i0,20\n"


@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "x.csv.gz", "x.tsv", "x.tsv.gz", "x.parquet"])
def test_every_form_reads_alike(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pl.read_csv(io.BytesIO(GOOD.encode())).write_parquet(path)
    else:
        written(path, GOOD.replace(",", "\t") if ".tsv" in name else GOOD)
    got, report = read(path)
    assert history(got, "a") == [0, 1] and history(got, "b") == [0]
    assert got.time is not None and sorted(got.time.tolist()) == [5, 10, 20]
    assert (report.rows_read, report.rows_kept, report.users, report.rows_bad) == (3, 3, 2, 0)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.removesuffix("\n"),
        GOOD + "\n\n   \n",
        '"user","item","time"\n"a",i1,10\nb,"i0","5"\n "a" ,i0,20\n'.replace(' "a" ', '"a"'),
        " user , item ,time\n a ,i1, 10\nb,i0 ,5\na,i0,20\n",
    ],
    ids=["byte-order-mark", "crlf", "no-last-line-break", "blank-lines", "quoted", "spaces"],
)
def test_layout_does_not_matter(tmp_path: Path, text: str) -> None:
    got, report = read(written(tmp_path / "x.csv", text))
    assert history(got, "a") == [0, 1] and history(got, "b") == [0]
    assert report.rows_read == 3


def test_quoted_fields_may_hold_separators_and_quotes(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", 'user,item,time\n"a,""b""",i1,1\n')
    assert history(read(path)[0], 'a,"b"') == [1]


BAD_ROWS = {
    "too-few-fields": (f"{SECRET},i0", "fields"),
    "too-many-fields": (f"{SECRET},i0,1,1", "fields"),
    "no-separator": (SECRET, "fields"),
    "empty-user": (",i0,1", "user-empty"),
    "blank-user": ("  ,i0,1", "user-empty"),
    "long-user": (SECRET * 30 + ",i0,1", "user-long"),
    "control-in-user": (f"{SECRET}\x01,i0,1", "user-control"),
    "empty-item": (f"{SECRET},,1", "item-empty"),
    "long-item": (f"{SECRET},{'i' * 257},1", "item-long"),
    "control-in-item": (f"{SECRET},i\x7f0,1", "item-control"),
    "text-for-time": (f"{SECRET},i0,noon", "time"),
    "empty-time": (f"{SECRET},i0,", "time"),
    "nan-time": (f"{SECRET},i0,nan", "time"),
    "infinite-time": (f"{SECRET},i0,inf", "time"),
    "huge-time": (f"{SECRET},i0,1e300", "time"),
    "nul": (f"{SECRET}\x00,i0,1", "nul"),
    "nul-in-quotes": (f'"{SECRET}\x00",i0,1', "nul"),
    "open-quote": (f'"{SECRET},i0,1', "quote"),
    "text-after-quote": (f'"{SECRET}"x,i0,1', "quote"),
    "quoted-too-few": (f'"{SECRET},i0",1', "fields"),
    "not-utf-8": (SECRET.encode() + b"\xff,i0,1", "encoding"),
    "cut-utf-8": (SECRET.encode() + b"\xe2\x82,i0,1", "encoding"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_by_line_and_never_shown(tmp_path: Path, row: str | bytes, reason: str) -> None:
    data = row.encode() if isinstance(row, str) else row
    path = written(tmp_path / "x.csv", b"user,item,time\na,i1,1\n\n" + data + b"\nb,i2,2\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.lines == (4,)
    assert "line 4" in str(caught.value)
    assert SECRET not in str(caught.value) and SECRET not in repr(caught.value.args)
    got, report = read(path, on_bad_row="skip")
    assert got.nnz == 2
    assert report.rows_bad == 1 and report.bad_reasons == {reason: 1} and report.bad_lines == ((4, reason),)
    assert (report.rows_read, report.rows_kept) == (3, 2)


def test_only_the_first_twenty_bad_lines_are_listed(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", GOOD + "bad\n" * 50)
    with pytest.raises(DataError, match="got 50 bad rows among 53") as caught:
        read(path)
    assert caught.value.lines == tuple(range(5, 25))
    with pytest.raises(DataError, match="at most 49"):
        read(path, on_bad_row="skip", max_bad_rows=49)
    assert read(path, on_bad_row="skip", max_bad_rows=50)[1].rows_bad == 50


def test_line_numbers_and_rows_survive_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"u{number % 7},i{number % 4},{number}" for number in range(200)]
    rows[57], rows[150] = "bad", '"open,i0,1'
    path = written(tmp_path / "x.csv.gz", "user,item,time\n" + "\r\n".join(rows))
    whole = read(path, on_bad_row="skip")
    monkeypatch.setattr(table, "CHUNK_BYTES", 64)
    parts = read(path, on_bad_row="skip")
    assert parts[1] == whole[1]
    assert parts[1].bad_lines == ((59, "fields"), (152, "quote"))
    for name in ("indptr", "indices", "time"):
        assert np.array_equal(getattr(parts[0], name), getattr(whole[0], name))
    assert parts[0].pseudonyms == whole[0].pseudonyms


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).filter(
                lambda text: text.strip() == text and text != ""
            ),
            st.integers(0, 3),
            st.integers(-(2**53), 2**53),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_what_a_csv_writer_writes_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("round") / "x.csv"
    frame = pl.DataFrame(
        {"time": [row[2] for row in rows], "item": [ITEMS[row[1]] for row in rows], "user": [row[0] for row in rows]}
    )
    frame.write_csv(path)
    got, report = read(path)
    expected: dict[str, set[int]] = {}
    for user, item, _ in rows:
        expected.setdefault(user, set()).add(item)
    assert report.rows_read == len(rows) and report.users == len(expected)
    assert {user: history(got, user) for user in expected} == {user: sorted(own) for user, own in expected.items()}
    frame.write_parquet(path.with_suffix(".parquet"))
    same, _ = read(path.with_suffix(".parquet"))
    assert np.array_equal(same.indices, got.indices) and np.array_equal(same.indptr, got.indptr)


@given(
    st.binary(max_size=200) | st.text('ai012,;"\n\r\t\x00 -', max_size=80).map(str.encode),
    st.sampled_from(["x.csv", "x.tsv", "x.csv.gz", "x.parquet"]),
)
def test_arbitrary_bytes_give_rows_or_a_veil_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name
    header = b"" if name.endswith("parquet") else b"user,item,time\n".replace(b",", b"\t" if "tsv" in name else b",")
    written(path, header + data)
    try:
        got, report = read(path, on_bad_row="skip")
    except VeilError:
        return
    assert report.rows_kept == got.nnz > 0
    assert report.rows_read == report.rows_kept + report.rows_bad + report.rows_duplicate + report.rows_unknown_item


def test_repeated_pairs_keep_the_earliest_time_and_the_largest_value(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "user,item,time,stars\na,i1,30,2\na,i1,10,1\na,i1,20,5\n")
    got, report = read(path, columns={"user": "user", "item": "item", "time": "time", "value": "stars"})
    assert got.time is not None and got.value is not None
    assert (got.time.tolist(), got.value.tolist()) == ([10], [5.0])
    assert report.rows_duplicate == 2


def test_filters_and_unknown_items_are_counted(tmp_path: Path) -> None:
    text = "user,item,stars,what\na,i0,5,buy\na,i1,1,buy\na,i2,5,view\na,zzz,5,buy\nb,i3,x,buy\nb,i3,inf,buy\nb,i3,1,\n"
    path = written(tmp_path / "x.csv", text)
    options = {
        "columns": {"user": "user", "item": "item", "value": "stars", "event": "what"},
        "min_value": 3.0,
        "events": ["buy", "cart"],
        "on_bad_row": "skip",
    }
    got, report = read(path, **options)
    assert history(got, "a") == [0] and got.users == 1 and got.time is None
    assert (report.rows_below_min_value, report.rows_other_event, report.rows_unknown_item) == (1, 1, 1)
    assert report.bad_reasons == {"value": 2, "event": 1}
    left_out = report.rows_bad + report.rows_below_min_value + report.rows_other_event + report.rows_unknown_item
    assert report.rows_read == left_out + report.rows_duplicate + report.rows_kept
    _, strict = read(path, **options, on_unknown_item="bad")
    assert strict.bad_reasons == {"value": 2, "event": 1, "item-unknown": 1}


def test_a_file_without_header_takes_names_and_any_separator(tmp_path: Path) -> None:
    path = written(tmp_path / "ratings.dat.gz", b"a::i1::5::978300760.5\nb::i2::3::978302109\n\xe9::i3::1::0\n")
    options = {"names": ["user", "item", "stars", "time"], "separator": "::", "encoding": "latin-1"}
    got, _ = read(path, **options)
    assert got.time is not None and sorted(got.time.tolist()) == [0, 978300760, 978302109]
    assert history(got, "é") == [3]
    with pytest.raises(ConfigError, match="separator"):
        read(path)


@pytest.mark.parametrize(
    ("pattern", "text", "seconds"),
    [
        ("milliseconds", "1577923200999", 1577923200),
        ("seconds", "-1.5", -2),
        ("%Y-%m-%d %H:%M:%S", "2020-01-02 00:00:00", 1577923200),
        ("%Y-%m-%dT%H:%M:%S%z", "2020-01-02T01:00:00+0100", 1577923200),
    ],
)
def test_times(tmp_path: Path, pattern: str, text: str, seconds: int) -> None:
    got, _ = read(written(tmp_path / "x.csv", f"user,item,time\na,i0,{text}\n"), time_format=pattern)
    assert got.time is not None and got.time.tolist() == [seconds]


def test_parquet_types(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    frame = pl.DataFrame({"user": [7, 8, None], "item": ["i0", "i1", "i2"], "time": [0, 1, 2]})
    frame.with_columns(pl.from_epoch("time")).write_parquet(path)
    got, report = read(path, on_bad_row="skip")
    assert history(got, "7") == [0] and report.bad_lines == ((3, "user-empty"),)
    assert got.time is not None and sorted(got.time.tolist()) == [0, 1]
    frame.with_columns(item=pl.Series(["i0", "i\x00", "i2"])).write_parquet(path)
    assert read(path, on_bad_row="skip")[1].bad_reasons == {"nul": 1, "user-empty": 1}
    frame.with_columns(item=pl.Series([["i0"], ["i1"], []])).write_parquet(path)
    with pytest.raises(DataError, match="type"):
        read(path)
    frame.drop("item").write_parquet(path)
    with pytest.raises(DataError, match="no columns named 'item'"):
        read(path)
    frame.with_columns(user=pl.Series([7.5, 8.0, 9.0])).write_parquet(path)
    with pytest.raises(DataError, match="Float64"):
        read(path)
    with pytest.raises(DataError, match="Parquet"):
        read(written(path, b"PAR1 not really"))


def test_a_missing_column_is_named_and_the_header_is_not_repeated(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", f"{SECRET},i0,1\nb,i1,2\n")
    with pytest.raises(DataError, match="no columns named 'user' among 3") as caught:
        read(path)
    assert SECRET not in str(caught.value)
    with pytest.raises(DataError, match="2 columns named"):
        read(written(path, "user,user,item,time\n"))


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "user,item,time\na,1,1\nb,2,2\n")
    with pytest.raises(DataError, match="2 of unknown items"):
        read(path)
    for empty in ("", "\n", "user,item,time\n"):
        with pytest.raises(DataError):
            read(written(path, empty))


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = written(tmp_path / "x.csv.gz", "user,item,time\n" + "a,i0,1\n" * 200_000)
    with pytest.raises(InputError, match="bytes"):
        read(bomb, max_bytes=100_000)
    with pytest.raises(InputError, match="rows"):
        read(bomb, max_rows=1000)
    monkeypatch.setattr(table, "MAX_LINE_BYTES", 1000)
    with pytest.raises(DataError, match="line longer"):
        read(written(tmp_path / "long.csv", "user,item,time\n" + "a" * 5000))
    frame = pl.DataFrame({"user": ["a"] * 50, "item": ["i0"] * 50, "time": [1] * 50})
    frame.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="rows"):
        read(tmp_path / "x.parquet", max_rows=49)
    with pytest.raises(InputError, match="bytes"):
        read(tmp_path / "x.parquet", max_bytes=10)


def test_unreadable_files(tmp_path: Path) -> None:
    whole = gzip.compress(GOOD.encode() * 100)
    for name, data in {
        "cut.csv.gz": whole[:-20],
        "not.csv.gz": b"user,item",
        "bad.csv.gz": whole[:30] + b"?" * 99,
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError):
            read(tmp_path / name)
    for path in (tmp_path, tmp_path / "absent.csv", tmp_path / "absent.parquet"):
        with pytest.raises(InputError):
            read(path, separator=",")


@pytest.mark.parametrize(
    "options",
    [
        {"min_value": 1.0},
        {"events": ["buy"]},
        {"on_bad_row": "ignore"},
        {"time_format": "hours"},
        {"columns": {"user": "u"}},
        {"encoding": "utf-16"},
        {"surprise": 1},
        {"max_rows": 0},
    ],
)
def test_configurations_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ReadConfig.model_validate({"columns": {"user": "u", "item": "i"}, **options})


def test_users_come_in_order_of_pseudonym_and_ids_are_gone(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "user,item,time\n" + "".join(f"{SECRET}{n},i0,{n}\n" for n in range(50)))
    got, report = read(path)
    assert got.pseudonyms is not None and list(got.pseudonyms) == sorted(got.pseudonyms)
    assert SECRET not in f"{got!r} {report} {report!r} {got.pseudonyms}"
