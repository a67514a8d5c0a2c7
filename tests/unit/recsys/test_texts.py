from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from veil.errors import ConfigError, DataError
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.reading_texts import TextReadConfig, TextsReport, read_texts
from veil.recsys.texts import LabelledTexts

KEY = PseudonymKey(b"\x07" * 32)
LABELS = ("Action", "Comedy", "Drama")
SECRET = "alice-4711"
GOOD = 'user,text,labels\nb,"Heat, again",Action|Drama\na,Clueless,Comedy\nb,Fargo, Drama | Comedy |\n'


def read(path: Path, text: str, **options: object) -> tuple[LabelledTexts, TextsReport]:
    path.write_text(text)
    columns = {"user": "user", "text": "text", "labels": "labels"}
    return read_texts(path, TextReadConfig.model_validate({"columns": columns, **options}), LABELS, KEY)


def of_user(found: LabelledTexts, user_id: str) -> list[tuple[str, list[str]]]:
    assert found.pseudonyms is not None
    number = found.pseudonyms.index(KEY.pseudonym(user_id))
    return [
        (found.text[row], [LABELS[place] for place in np.flatnonzero(found.label[row])])
        for row in np.flatnonzero(found.user == number)
    ]


def test_texts_labels_and_users(tmp_path: Path) -> None:
    found, report = read(tmp_path / "x.csv", GOOD)
    assert of_user(found, "a") == [("Clueless", ["Comedy"])]
    assert of_user(found, "b") == [("Heat, again", ["Action", "Drama"]), ("Fargo", ["Comedy", "Drama"])]
    assert found.names == LABELS and found.users == 2
    assert list(found.pseudonyms or ()) == sorted(found.pseudonyms or ())
    assert report == TextsReport(rows_read=3, rows_kept=3, users=2)
    assert repr(found) == "LabelledTexts(users=2, texts=3, labels=3)"


def test_parquet_reads_alike_and_may_hold_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pl.DataFrame({"user": ["a"], "text": ["two\nlines"], "labels": ["Drama"]}).write_parquet(path)
    columns = {"user": "user", "text": "text", "labels": "labels"}
    found, _ = read_texts(path, TextReadConfig.model_validate({"columns": columns}), LABELS, KEY)
    assert found.text == ("two\nlines",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f"{SECRET},,Drama", "no text"),
        (f"{SECRET},{'x' * 4097},Drama", "longer than 4096"),
        (f"{SECRET},Heat,", "no label"),
        (f"{SECRET},Heat, | ", "no label"),
        (f"{SECRET},Heat,Drama|{SECRET}", "not in the public list"),
        (",Heat,Drama", "no user id"),
        (f"{SECRET},Heat", "wrong number of fields"),
    ],
)
def test_bad_rows_are_told_by_line_and_never_by_value(tmp_path: Path, row: str, reason: str) -> None:
    with pytest.raises(DataError) as wrong:
        read(tmp_path / "x.csv", GOOD + row + "\n")
    assert wrong.value.lines == (5,) and reason in str(wrong.value)
    assert SECRET not in str(wrong.value) and "Heat" not in str(wrong.value)
    found, report = read(tmp_path / "x.csv", GOOD + row + "\n", on_bad_row="skip")
    assert len(found.text) == 3 and report.rows_bad == 1 and report.bad_lines[0][0] == 5


def test_unknown_labels_may_be_left_out(tmp_path: Path) -> None:
    text = GOOD + "c,Alien,Horror\na,Gremlins,Horror|Comedy|Horror\n"
    found, report = read(tmp_path / "x.csv", text, on_unknown_label="drop")
    assert of_user(found, "a") == [("Clueless", ["Comedy"]), ("Gremlins", ["Comedy"])]
    assert found.users == 2  # the user whose one text has no public label is not among them
    assert (report.rows_read, report.rows_kept, report.rows_unlabelled, report.labels_dropped) == (5, 4, 1, 2)
    with pytest.raises(DataError, match="public list"):
        read(tmp_path / "x.csv", "user,text,labels\nc,Alien,Horror\n", on_unknown_label="drop")


def test_long_texts_may_be_cut(tmp_path: Path) -> None:
    found, report = read(tmp_path / "x.csv", f"user,text,labels\na,{'é' * 5000},Drama\n", on_long_text="cut")
    assert found.text == ("é" * 4096,) and report.texts_cut == 1


def test_what_identifies_in_texts_is_masked(tmp_path: Path) -> None:
    rows = (
        "a,write to eve.b+c@mail.example.org or www.example.org/~eve,Drama\n"
        "a,call +44 20 7946 0958 in 1999 about HTTPS://x.example/1234567890,Drama\n"
        "a,the years 1968 2001 and 12 Angry Men,Drama\n"
    )
    found, report = read(tmp_path / "x.csv", "user,text,labels\n" + rows, mask=["email", "url", "number"])
    assert found.text == (
        "write to [email] or [url]",
        "call [number] in 1999 about [url]",
        "the years [number] and 12 Angry Men",
    )
    assert report.masked == {"email": 1, "url": 2, "number": 2}
    alike = "a,tel 0151\u2013234\u20135678 or 0151\u00a0234\u00a05678 or o'brien@x.ie or eve\uff20x.org,Drama\n"
    found, _ = read(tmp_path / "x.csv", "user,text,labels\n" + alike, mask=["email", "url", "number"])
    assert found.text == ("tel [number] or [number] or [email] or [email]",)
    untouched, report = read(tmp_path / "x.csv", "user,text,labels\n" + rows)
    assert "eve.b+c@mail.example.org" in untouched.text[0] and report.masked == {}


@pytest.mark.parametrize("labels", [[], ["a", "a"], ["a|b"], [" a"], [""]])
def test_labels_that_a_file_cannot_tell_apart(tmp_path: Path, labels: list[str]) -> None:
    config = TextReadConfig.model_validate({"columns": {"user": "user", "text": "text", "labels": "labels"}})
    with pytest.raises(ConfigError, match="labels"):
        read_texts(tmp_path / "absent.csv", config, labels, KEY)


@pytest.mark.parametrize(
    "changes",
    [
        {"user": np.array([0])},
        {"user": np.array([1, 0])},
        {"user": np.array([0, 2])},
        {"user": np.array([0, 1], np.int32)},
        {"label": np.zeros((2, 0), bool)},
        {"label": np.zeros((2, 2), np.int8)},
        {"text": ["x", "y" * 4097]},
        {"names": ("a",)},
        {"names": ("a", "a")},
        {"pseudonyms": ["p"]},
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object]) -> None:
    good: dict[str, object] = {
        "users": 2,
        "user": np.array([0, 1]),
        "text": [SECRET, SECRET],
        "label": np.zeros((2, 2), bool),
    }
    assert LabelledTexts(**good).users == 2  # type: ignore[arg-type]
    with pytest.raises(DataError) as wrong:
        LabelledTexts(**{**good, **changes})  # type: ignore[arg-type]
    assert SECRET not in str(wrong.value)
