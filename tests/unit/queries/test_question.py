"""Questions: what is refused, what is filled in, what one user can change."""

from __future__ import annotations

import math
from typing import Any

import pytest

from veil.errors import ConfigError
from veil.queries.question import UNIT, Question, from_mapping, from_text

GOOD: dict[str, Any] = {"name": "q", "by": "category", "groups_per_user": 3}


def test_text_is_canonical_and_comes_back() -> None:
    question = from_mapping({**GOOD, "groups": ["b", "a"]})
    assert from_text(question.text()) == question
    assert question.groups == ("b", "a")
    assert '"interactions_per_group":1' in question.text()


def test_text_that_is_not_canonical_is_refused() -> None:
    text = from_mapping(GOOD).text()
    for other in (text.replace(":", ": "), text.replace('"mechanism":"laplace",', ""), "{}", "no JSON"):
        with pytest.raises(ConfigError):
            from_text(other)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"groups_per_user": None}, "groups_per_user"),
        ({"groups_per_user": 0}, "groups_per_user"),
        ({"by": "colour"}, "by"),
        ({"by": "attribute:age", "groups_per_user": 1}, "public values"),
        ({"by": "nothing"}, "a user is in one group"),
        ({"by": "nothing", "groups_per_user": 1, "groups": ["a"]}, "expected none"),
        ({"by": "activity", "groups_per_user": 1}, "lower ends"),
        ({"by": "activity", "groups_per_user": 1, "at_least": [1, 5, 5]}, "lower ends"),
        ({"by": "activity", "groups_per_user": 1, "at_least": [0, 5]}, "at_least"),
        (
            {"by": "activity", "groups_per_user": 1, "at_least": [1], "measure": "interactions"}
            | {"interactions_per_group": 1},
            "expected users",
        ),
        ({"at_least": [1]}, "expected none"),
        ({"interactions_per_group": 2}, "expected 1"),
        ({"by": "item", "measure": "interactions", "interactions_per_group": 2}, "expected 1"),
        ({"measure": "interactions", "interactions_per_group": 400_000}, "product"),
        ({"groups": ["a", "a"]}, "twice"),
        ({"groups": [""]}, "groups"),
        ({"mechanism": "none"}, "mechanism"),
        ({"name": "Not a name"}, "name"),
        ({"colour": 1}, "colour"),
    ],
)
def test_questions_that_make_no_sense_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        from_mapping({**GOOD, **change})


@pytest.mark.parametrize(
    "question", [{"name": "q", "by": "category"}, {"name": "q", "by": "nothing", "measure": "interactions"}]
)
def test_bounds_that_matter_have_no_default(question: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"got nothing, expected how"):
        from_mapping(question)


@pytest.mark.parametrize(("k", "m", "groups"), [(1, 1, 5), (3, 1, 5), (3, 7, 5), (9, 4, 5), (1000, 1000, 10**6)])
def test_sensitivity_is_that_of_the_norm(k: int, m: int, groups: int) -> None:
    laplace = Question(name="q", by="category", measure="interactions", groups_per_user=k, interactions_per_group=m)
    gaussian = laplace.model_copy(update={"mechanism": "gaussian"})
    entries = min(k, groups)
    assert laplace.sensitivity(groups) == entries * m * UNIT
    # rounded up, to the next integer and no further
    exact = entries * (m * UNIT) ** 2
    assert gaussian.sensitivity(groups) ** 2 >= exact > (gaussian.sensitivity(groups) - 1) ** 2
    expected = gaussian.expected(groups)
    assert (expected.mechanism, expected.shape) == ("rounded-gaussian", (groups,))
    assert laplace.expected(groups).mechanism == "discrete-laplace"


def test_group_counts() -> None:
    def count(**keys: Any) -> int:
        return from_mapping({"name": "q", **keys}).group_count(items=24, categories=4)

    assert count(by="nothing") == 1
    assert count(by="category", groups_per_user=1) == 4
    assert count(by="category", groups_per_user=1, groups=["a"]) == 1
    assert count(by="item", groups_per_user=1) == 24
    assert count(by="activity", at_least=[1, 2, 3]) == 3
    assert count(by="attribute:age", groups=["young", "old"]) == 2
    with pytest.raises(ConfigError, match="0 groups"):
        from_mapping(GOOD).group_count(items=24, categories=0)
    with pytest.raises(ConfigError, match="expected 1 to 1000000"):
        from_mapping({**GOOD, "by": "item"}).group_count(items=10**7, categories=4)


def test_a_million_bound_fits_a_hundred_million_users() -> None:
    question = Question(
        name="q", by="nothing", measure="interactions", interactions_per_group=1_000_000, mechanism="laplace"
    )
    assert question.sensitivity(1) * 10**8 < 2**63
    assert math.log2(question.sensitivity(1)) < 52
