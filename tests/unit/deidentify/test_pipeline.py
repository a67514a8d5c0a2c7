from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from veil import settings
from veil.deidentify.pipeline import Anonymity, AttributeRule, Pipeline
from veil.deidentify.report import LIMITS, Report, UserCounts
from veil.deidentify.source import RawUsers, UserReadConfig, read_users
from veil.errors import ConfigError, DataError
from veil.recsys.attributes import UserAttributes
from veil.recsys.pseudonyms import PseudonymKey

KEY = PseudonymKey(b"\x07" * 32)
SECRET = "alice-4711"
AGE = {"name": "age", "role": "quasi-identifier", "steps": [{"bin": [18, 35], "coarser": [[35]]}]}
SEX = {"name": "sex", "role": "quasi-identifier", "steps": [{"values": ["F", "M"]}]}
ILL = {"name": "ill", "role": "sensitive", "steps": [{"values": ["yes", "no"]}]}
MAIL = {"name": "mail", "role": "identifier", "steps": [{"drop": True}]}
HOUSE = {"name": "house", "role": "identifier", "steps": [{"pseudonym": True, "buckets": 4}]}


def pipeline(*rules: dict[str, object], **anonymity: object) -> Pipeline:
    checked = [settings.check(rule, AttributeRule, source="test", explained_in="test") for rule in rules]
    return Pipeline(checked, Anonymity.model_validate(anonymity), KEY)


def raw(path: Path, text: str, made: Pipeline, **options: object) -> RawUsers:
    path.write_text(text)
    columns = [rule.source_column for rule in made.rules if not rule.dropped]
    return read_users(path, UserReadConfig.model_validate({"columns": {"user": "user"}, **options}), columns, KEY)


def run(path: Path, text: str, made: Pipeline) -> tuple[UserAttributes, UserCounts, list[str]]:
    read = raw(path, text, made)
    found, counts = made.run(read)
    assert found is not None
    return found, counts, list(read.pseudonyms)


def users(ages: list[str]) -> str:
    return "user,age,sex,ill,mail,house\n" + "".join(
        f"{SECRET}-{number},{age},{'FM'[number % 2]},{'yes' if number % 3 else 'no'},m{number}@x.org,h{number}\n"
        for number, age in enumerate(ages)
    )


def test_steps_codes_and_report(tmp_path: Path) -> None:
    text = users(["17"] * 6 + ["40"] * 6 + ["", "old"])
    found, counts, pseudonyms = run(tmp_path / "x.csv", text, pipeline(AGE, SEX, ILL, MAIL, HOUSE, k=2))
    assert found.names == ("age", "sex", "ill", "house")
    assert found.categories[0] == ("under 18", "18 to under 35", "35 and over")
    ages = {
        number: int(found.column("age")[pseudonyms.index(KEY.pseudonym(f"{SECRET}-{number}"))]) for number in range(14)
    }
    assert ages == {number: 0 if number < 6 else 2 if number < 12 else -1 for number in range(14)}
    age, sex, _, mail, house = counts.attributes
    assert (age.users_empty, age.users_outside, age.users_suppressed, age.users_known) == (1, 1, 0, 12)
    assert (age.steps[0].users_changed, age.steps[0].users_unknown) == (12, 1)
    assert (age.steps[0].distinct_before, age.steps[0].distinct_after) == (3, 2)
    assert (sex.steps[0].users_changed, sex.categories) == (0, 2)
    assert not mail.kept and house.categories == 4
    assert counts.anonymity is not None and counts.anonymity.quasi_identifiers == ("age", "sex")


def test_the_prepared_table_is_k_anonymous_and_the_counts_add_up(tmp_path: Path) -> None:
    text = users(["17"] * 9 + ["20"] * 2 + ["40"] * 30)
    found, counts, _ = run(tmp_path / "x.csv", text, pipeline(AGE, SEX, ILL, k=5))
    classes = Counter(map(tuple, found.codes[:, :2].tolist()))
    assert min(classes.values()) >= 5
    anonymity = counts.anonymity
    assert anonymity is not None and anonymity.holds
    assert anonymity.prepared.smallest == min(classes.values()) and anonymity.prepared.classes == len(classes)
    assert anonymity.declared.smallest == 1 and anonymity.declared.users_below_k == 6
    hidden = sum(one.users_suppressed for one in counts.attributes)
    assert hidden == anonymity.values_suppressed > 0
    for one in counts.attributes:
        assert one.users_known + one.users_empty + one.users_outside + one.users_suppressed == 41
    assert anonymity.diversity[0].attribute == "ill" and anonymity.diversity[0].smallest == 2


def test_generalisation_takes_coarser_categories_for_everybody(tmp_path: Path) -> None:
    made = pipeline(AGE, SEX, k=5, small_classes="generalise", suppress_at_most=0.0)
    found, counts, _ = run(tmp_path / "x.csv", users(["17"] * 9 + ["20"] * 2 + ["40"] * 30), made)
    assert found.categories_of("age") == ("under 35", "35 and over")
    assert counts.attributes[0].raised == 1 and counts.attributes[0].categories == 2
    assert counts.anonymity is not None and counts.anonymity.values_suppressed == 0
    assert Counter(found.column("age").tolist()) == {0: 11, 1: 30}


def test_generalisation_up_to_nothing(tmp_path: Path) -> None:
    made = pipeline(AGE, k=30, small_classes="generalise", suppress_at_most=0.0)
    found, counts, _ = run(tmp_path / "x.csv", users(["17"] * 20 + ["40"] * 20), made)
    assert found.categories_of("age") == () and (found.codes == -1).all()
    assert counts.attributes[0].raised == 2 and counts.attributes[0].users_known == 0


def test_stop_refuses_and_tells_counts_only(tmp_path: Path) -> None:
    made = pipeline(AGE, SEX, k=5, small_classes="stop")
    with pytest.raises(DataError, match="6 users in classes of fewer than 5") as wrong:
        run(tmp_path / "x.csv", users(["17"] * 9 + ["20"] * 2 + ["40"] * 30), made)
    assert SECRET not in str(wrong.value)
    found, _, _ = run(tmp_path / "x.csv", users(["17"] * 10 + ["40"] * 30), made)
    assert (found.codes >= 0).all()


def test_fewer_users_than_k_show_nothing(tmp_path: Path) -> None:
    found, counts, _ = run(tmp_path / "x.csv", users(["17"] * 9), pipeline(AGE, SEX))
    assert (found.codes == -1).all()
    assert counts.anonymity is not None and not counts.anonymity.holds
    assert "every value is unknown" in "\n".join(Report(9, counts).lines())


def test_only_declared_columns_that_are_kept_are_read(tmp_path: Path) -> None:
    made = pipeline(AGE, MAIL, k=2)
    read = raw(tmp_path / "x.csv", users(["17"] * 4), made)
    assert read.distinct == (("17",),)  # neither the undeclared columns nor the dropped one
    only_dropped = pipeline(MAIL)
    found, counts = only_dropped.run(raw(tmp_path / "x.csv", users(["17"] * 4), only_dropped))
    assert found is None and [one.kept for one in counts.attributes] == [False]


def test_users_are_aligned_with_other_rows(tmp_path: Path) -> None:
    made = pipeline({**AGE, "role": "insensitive"})
    ages = {f"{SECRET}-{number}": age for number, age in enumerate(["17", "20", "40"] * 20)}
    read = raw(tmp_path / "x.csv", users(list(ages.values())), made)
    wanted = [*list(ages)[7:31], "somebody-else"]
    of_pseudonym = {KEY.pseudonym(user): user for user in wanted}
    found, counts = made.run(read.aligned(sorted(of_pseudonym)))
    code = {"17": 0, "20": 1, "40": 2, None: -1}
    assert found is not None
    assert found.column("age").tolist() == [code[ages.get(of_pseudonym[one])] for one in sorted(of_pseudonym)]
    assert (counts.users_read, counts.users_left_out, counts.users_without_row) == (60, 36, 1)
    assert counts.attributes[0].users_empty == 1


def test_a_user_without_a_row_counts_in_the_classes(tmp_path: Path) -> None:
    made = pipeline(AGE, k=2)
    read = raw(tmp_path / "x.csv", users(["17", "17"]), made)
    found, _ = made.run(read.aligned(sorted(KEY.pseudonym(user) for user in (f"{SECRET}-0", f"{SECRET}-1", "other"))))
    # The one of whom nothing is known stands out; the one class that there is joins them.
    assert found is not None and found.column("age").tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (f"{SECRET}-0,17,F,no,m,h", "row came before"),
        (f"{SECRET}-x,{'9' * 257},F,no,m,h", "value longer"),
        (f"{SECRET}-x,1\x077,F,no,m,h", "control character in a value"),
        (",17,F,no,m,h", "no user id"),
        (f"{SECRET}-x,17", "wrong number of fields"),
    ],
)
def test_bad_rows_are_told_by_line_and_never_by_value(tmp_path: Path, row: str, reason: str) -> None:
    made = pipeline(AGE, SEX, k=2)
    with pytest.raises(DataError) as wrong:
        raw(tmp_path / "x.csv", users(["17"] * 4) + row + "\n", made)
    assert wrong.value.lines == (6,) and reason in str(wrong.value) and SECRET not in str(wrong.value)
    read = raw(tmp_path / "x.csv", users(["17"] * 4) + row + "\n", made, on_bad_row="skip")
    assert read.users == 4 and sum(read.bad_reasons.values()) == 1


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({**MAIL, "steps": [{"values": ["a"]}]}, "identifier"),
        ({**MAIL, "steps": [{"pseudonym": True}, {"values": ["a"]}]}, "identifier"),
        ({**AGE, "steps": [{"pseudonym": True}]}, "role identifier"),
        ({**AGE, "steps": [{"bin": [3]}, {"drop": True}]}, "alone"),
        ({**AGE, "steps": []}, "0 steps"),
        ({**AGE, "role": "public"}, "role"),
        ({**AGE, "steps": [{"mask": {"keep_first": 1}}]}, "declared list"),
        ({**AGE, "steps": [{"bin": [18]}, {"values": ["under 18"]}]}, "1 of the 2 results"),
        ({**AGE, "steps": [{"values": ["a", "b"]}, {"bin": [1]}]}, "2 of the 2 results"),
    ],
)
def test_rules_that_do_not_fit_are_refused_before_any_row_is_read(rule: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pipeline(rule)


def test_two_attributes_of_one_name() -> None:
    with pytest.raises(ConfigError, match="distinct"):
        pipeline(AGE, AGE)


def test_steps_follow_one_another(tmp_path: Path) -> None:
    groups = {"minor": ["under 18"], "adult": ["18 to under 35", "35 and over"]}
    steps = [{"bin": [18, 35]}, {"hierarchy": {"groups": groups}}, {"mask": {"keep_first": 3, "fill": "."}}]
    made = pipeline({"name": "age", "role": "insensitive", "steps": steps})
    found, counts, _ = run(tmp_path / "x.csv", users(["17"] * 2 + ["20", "40", "x"]), made)
    assert found.categories_of("age") == ("min.", "adu.")
    assert Counter(found.column("age").tolist()) == {0: 2, 1: 2, -1: 1}
    assert [(one.distinct_before, one.distinct_after) for one in counts.attributes[0].steps] == [(4, 3), (3, 2), (2, 2)]


def test_the_report_holds_counts_and_no_value(tmp_path: Path) -> None:
    text = users(["17"] * 9 + ["20"] * 2 + ["40"] * 30)
    _, counts, pseudonyms = run(tmp_path / "x.csv", text, pipeline(AGE, SEX, ILL, MAIL, HOUSE, k=5))
    report = Report(41, counts)
    document = json.loads(report.json())
    assert document["schema"] == "veil.deidentification/1"
    assert document["attributes"]["anonymity"]["prepared"]["smallest"] >= 5
    assert document["attributes"]["attributes"][3]["kept"] is False
    for shown in (report.json(), report.markdown(), "\n".join(report.lines()), str(counts)):
        assert SECRET not in shown and "@x.org" not in shown and "yes" not in shown
        assert not any(pseudonym in shown for pseudonym in pseudonyms)
    assert LIMITS in report.lines() and "not differential privacy" in report.markdown()
    widths = {line.count("|") for line in report.markdown().splitlines() if line.startswith("| age")}
    assert widths == {7, 8}


@pytest.mark.data
@pytest.mark.parametrize("small_classes", ["suppress", "generalise"])
def test_movielens_users_at_k_10(shared_data: Callable[[str], Path], small_classes: str) -> None:
    zip_code = {"mask": {"keep_first": 3, "characters": "0123456789"}}
    rules: list[dict[str, object]] = [
        {"name": "gender", "role": "quasi-identifier", "steps": [{"values": ["F", "M"]}]},
        {
            "name": "age",
            "role": "quasi-identifier",
            "steps": [{"bin": [18, 25, 35, 45, 50, 56], "coarser": [[25, 45], [45]]}],
        },
        {"name": "zip", "role": "quasi-identifier", "steps": [zip_code]},
        {"name": "occupation", "role": "sensitive", "steps": [{"values": [str(n) for n in range(21)]}]},
    ]
    made = pipeline(*rules, k=10, small_classes=small_classes)
    columns = [rule.source_column for rule in made.rules]
    config = UserReadConfig.model_validate({"columns": {"user": "user"}})
    read = read_users(shared_data("ml-1m") / "users.tsv", config, columns, KEY)
    found, counts = made.run(read)
    assert found is not None and found.users == 6040
    assert min(Counter(map(tuple, found.codes[:, :3].tolist())).values()) >= 10
    anonymity = counts.anonymity
    assert anonymity is not None and anonymity.source.smallest == 1
    assert anonymity.source.users_below_k > 6000  # nearly everybody stands out by gender, age and zip code
    if small_classes == "suppress":
        assert found.categories_of("zip")[480] == "480*"
    else:
        # A first digit of the zip code is as much as 10 alike allow, and it costs little else.
        assert len(found.categories_of("zip")) == 10
        assert anonymity.values_suppressed < 0.05 * 3 * 6040
    assert np.array_equal(np.sort(np.unique(found.column("occupation"))), np.arange(21))


def test_a_column_has_one_role() -> None:
    copy = {"name": "exact", "column": "age", "role": "insensitive", "steps": [{"bin": [17, 18, 19]}]}
    with pytest.raises(ConfigError, match="'age' as insensitive and as quasi-identifier"):
        pipeline(AGE, copy)
    assert len(pipeline(AGE, {**copy, "role": "quasi-identifier"}).rules) == 2
