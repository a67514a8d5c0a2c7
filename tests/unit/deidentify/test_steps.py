from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from veil.deidentify.hierarchy import Hierarchy
from veil.deidentify.steps import Prepared, Step
from veil.errors import ConfigError
from veil.recsys.pseudonyms import PseudonymKey

KEY = PseudonymKey(b"\x07" * 32)
_STEP: TypeAdapter[Any] = TypeAdapter(Step)
TOWNS = [
    ["paris", "north", "france"],
    ["lille", "north", "france"],
    ["nice", "south", "france"],
    ["bonn", "rhine", "germany"],
]


def step(document: dict[str, object], key: PseudonymKey = KEY, name: str = "x") -> Prepared:
    prepared: Prepared = _STEP.validate_python(document).prepare(name, key)
    return prepared


def check_rungs(prepared: Prepared) -> None:
    """Each rung maps every category somewhere, and merges whole categories of the rung before."""
    assert prepared.categories is not None
    before = tuple(range(len(prepared.categories)))
    for rung in prepared.rungs:
        assert len(rung.of) == len(prepared.categories)
        assert set(rung.of) == set(range(len(rung.categories)))
        assert len({(fine, coarse) for fine, coarse in zip(before, rung.of, strict=True)}) == len(set(before))
        before = rung.of


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("17.99", "under 18"),
        ("-3", "under 18"),
        ("18", "18 to under 35"),
        ("34", "18 to under 35"),
        ("35.0", "35 and over"),
        ("900", "35 and over"),
        ("", None),
        ("old", None),
        ("1_8", None),
        ("nan", None),
        ("inf", None),
        ("١٨", None),
    ],
)
def test_bins(value: str, label: str | None) -> None:
    prepared = step({"bin": [18, 35]})
    assert prepared.transform(value) == label
    assert prepared.categories == ("under 18", "18 to under 35", "35 and over")


def test_coarser_bins_are_unions_of_finer_ones() -> None:
    prepared = step({"bin": [18, 25, 35, 50], "coarser": [[25, 50], [50]]})
    check_rungs(prepared)
    assert [rung.categories for rung in prepared.rungs] == [
        ("under 25", "25 to under 50", "50 and over"),
        ("under 50", "50 and over"),
    ]
    assert prepared.rungs[0].of == (0, 0, 1, 1, 2)


@pytest.mark.parametrize("form", ["rows", "file"])
def test_a_hierarchy_at_each_level(tmp_path: Path, form: str) -> None:
    source: dict[str, object] = {"rows": TOWNS}
    if form == "file":
        path = tmp_path / "towns.csv"
        path.write_text("\ufeff" + "\n".join(", ".join(row) for row in TOWNS) + "\n")
        source = {"file": str(path)}
    expected = [("paris", "lille", "nice", "bonn"), ("north", "south", "rhine"), ("france", "germany")]
    for level, categories in enumerate(expected):
        prepared = step({"hierarchy": source, "level": level})
        assert prepared.categories == categories
        assert prepared.transform("lille") == TOWNS[1][level]
        assert prepared.transform("rome") is None
        assert [rung.categories for rung in prepared.rungs] == expected[level + 1 :]
        check_rungs(prepared)
    with pytest.raises(ConfigError, match="level 3"):
        step({"hierarchy": source, "level": 3})


def test_groups_are_a_hierarchy_of_one_level() -> None:
    prepared = step({"hierarchy": {"groups": {"health": ["doctor", "nurse"], "school": ["teacher"]}}})
    assert prepared.transform("nurse") == "health" and prepared.categories == ("health", "school")


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [["a"]],
        [["a", "x"], ["a", "y"]],
        [["a", "x"], ["b"]],
        [["a", "x"], ["b", ""]],
        [["a", "x", "one"], ["b", "x", "two"]],
        [["a", " x"]],
    ],
    ids=["empty", "no-group", "value-twice", "ragged", "no-label", "no-tree", "space"],
)
def test_what_is_no_hierarchy_is_refused(rows: list[list[str]]) -> None:
    with pytest.raises(ConfigError, match="towns"):
        Hierarchy.from_rows(rows, "towns")


@pytest.mark.parametrize(
    ("rule", "value", "shown"),
    [
        ({"keep_first": 3}, "48067", "480*"),
        ({"keep_first": 3}, "48067-1234", "480*"),
        ({"keep_first": 3}, "480", None),
        ({"keep_last": 2, "fill": "..."}, "48067", "...67"),
        ({"keep_first": 1, "keep_last": 1}, "48067", "4*7"),
        ({}, "48067", "*"),
        ({"keep_first": 2, "characters": "0123456789"}, "48067", "48*"),
        ({"keep_first": 2, "characters": "0123456789"}, "K1A 0B1", None),
    ],
)
def test_masks(rule: dict[str, object], value: str, shown: str | None) -> None:
    assert step({"mask": rule}).transform(value) == shown


def test_a_mask_with_characters_lists_its_results() -> None:
    prepared = step({"mask": {"keep_first": 2, "characters": "01"}})
    assert prepared.categories == ("00*", "01*", "10*", "11*")
    assert [(rung.categories, rung.of) for rung in prepared.rungs] == [(("0*", "1*"), (0, 0, 1, 1))]
    both = step({"mask": {"keep_first": 1, "keep_last": 1, "characters": "ab"}})
    assert both.categories == ("a*a", "a*b", "b*a", "b*b") and both.transform("axxb") == "a*b"
    assert step({"mask": {"keep_first": 2}}).categories is None


def test_values_and_other() -> None:
    assert step({"values": ["F", "M"]}).transform("X") is None
    with_other = step({"values": ["F", "M"], "other": "other"})
    assert with_other.transform("X") == "other" and with_other.categories == ("F", "M", "other")


def test_pseudonyms_depend_on_key_and_attribute_and_fill_their_groups() -> None:
    document: dict[str, object] = {"pseudonym": True, "buckets": 8}
    values = [f"household-{number}" for number in range(800)]
    one = [step(document).transform(value) for value in values]
    assert one == [step(document).transform(value) for value in values]
    # Chance agreement of two independent groups is 1/8: 100 of 800, standard deviation 9.4; 180 is 8.5 of those away.
    for other in (step(document, PseudonymKey(b"\x08" * 32)), step(document, name="y")):
        assert sum(a == other.transform(value) for a, value in zip(one, values, strict=True)) < 180
    categories = step(document).categories
    assert categories is not None and set(one) == set(categories)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"bin": [3, 2]}, "rising"),
        ({"bin": []}, "at least 1"),
        ({"bin": [1, 2], "coarser": [[3]]}, "part of"),
        ({"bin": [1], "coarser": [[1]]}, "part of"),
        ({"bin": [float("nan")]}, "finite"),
        ({"values": ["a", "a"]}, "twice"),
        ({"values": ["a"], "other": "a"}, "twice"),
        ({"mask": {"keep_first": 9, "characters": "0123456789"}}, "possible results"),
        ({"mask": {"characters": "00"}}, "twice"),
        ({"hierarchy": {}}, "expected one"),
        ({"hierarchy": {"rows": [["a", "b"]], "groups": {"b": ["a"]}}}, "expected one"),
        ({"pseudonym": False}, "True"),
        ({"top_n": 5}, "no known step"),
        ({"bin": [1], "values": ["a"]}, "no known step"),
        ({}, "no known step"),
        ("drop", "no known step"),
    ],
)
def test_what_is_no_step_is_refused(document: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        _STEP.validate_python(document)
