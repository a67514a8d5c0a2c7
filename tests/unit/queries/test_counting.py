"""What a party contributes: right where bounds do not bite, within them for every user, independent of the others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.queries.conftest import CATEGORIES
from veil.errors import ConfigError
from veil.queries import counting
from veil.queries.counting import Count
from veil.queries.question import UNIT, from_mapping
from veil.recsys.attributes import UserAttributes
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.trainers.rows import PartyRows

NONCE = "0" * 32


def ask(catalogue: Catalogue, interactions: Interactions, nonce: str = NONCE, **keys: Any) -> dict[str, float]:
    """The answer without noise, by group."""
    count = Count(from_mapping({"name": "q", **keys}), catalogue, nonce)
    total = count.contribution(PartyRows(interactions))
    assert total.dtype == np.int64
    return dict(zip(count.labels, (total / UNIT).tolist(), strict=True))


def plain(catalogue: Catalogue, interactions: Interactions) -> tuple[Counter[str], Counter[str]]:
    """(users, interactions) by category, in plain Python and without bounds."""
    users: Counter[str] = Counter()
    meetings: Counter[str] = Counter()
    for user in range(interactions.users):
        own = Counter(name for item in interactions.history(user).tolist() for name in catalogue.categories[item])
        meetings.update(own)
        users.update(own.keys())
    return users, meetings


def single(history: list[int]) -> Interactions:
    return Interactions.from_pairs([0] * len(history), history, users=1, items=24)


def test_wide_bounds_give_the_plain_counts(catalogue: Catalogue, interactions: Interactions) -> None:
    users, meetings = plain(catalogue, interactions)
    assert ask(catalogue, interactions, by="category", groups_per_user=4) == dict(users)
    wide = {"groups_per_user": 4, "interactions_per_group": 24}
    assert ask(catalogue, interactions, by="category", measure="interactions", **wide) == dict(meetings)
    by_item = ask(catalogue, interactions, by="item", groups_per_user=24)
    assert list(by_item.values()) == interactions.counts().tolist()
    present = int((interactions.lengths() > 0).sum())
    assert ask(catalogue, interactions, by="nothing") == {"all": present}
    total = ask(catalogue, interactions, by="nothing", measure="interactions", interactions_per_group=24)
    assert total == {"all": interactions.nnz}


def test_activity_counts_each_user_once(catalogue: Catalogue, interactions: Interactions) -> None:
    lengths = interactions.lengths()
    found = ask(catalogue, interactions, by="activity", at_least=[1, 5, 20])
    assert found == {
        "1 to 4": int(((lengths >= 1) & (lengths < 5)).sum()),
        "5 to 19": int(((lengths >= 5) & (lengths < 20)).sum()),
        "20 or more": int((lengths >= 20).sum()),
    }


def test_filters_and_chosen_groups(catalogue: Catalogue, interactions: Interactions) -> None:
    some = ask(catalogue, interactions, by="item", groups_per_user=24, groups=["i5", "i2"])
    assert list(some.items()) == [("i5", interactions.counts()[5]), ("i2", interactions.counts()[2])]
    war = np.array(["war" in names for names in catalogue.categories])
    met = interactions.keep(war[interactions.indices])
    assert ask(catalogue, interactions, by="nothing", only_categories=["war"]) == {"all": (met.lengths() > 0).sum()}
    only = ask(catalogue, interactions, by="nothing", only_items=["i0", "i23"])
    assert only == {"all": interactions.contains(np.arange(200)[:, None], [[0, 23]]).any(axis=1).sum()}
    both = ask(catalogue, interactions, by="nothing", only_items=["i0", "i1"], only_categories=["drama"])
    drama = [i for i in (0, 1) if "drama" in catalogue.categories[i]]
    assert both == {"all": interactions.contains(np.arange(200)[:, None], [drama]).any(axis=1).sum()}


@settings(max_examples=60, deadline=None)
@given(
    history=st.sets(st.integers(0, 23)).map(sorted),
    k=st.integers(1, 5),
    m=st.integers(1, 7),
    by=st.sampled_from(["category", "item", "nothing"]),
    mechanism=st.sampled_from(["laplace", "gaussian"]),
)
def test_one_user_adds_at_most_the_sensitivity(
    catalogue: Catalogue, interactions: Interactions, history: list[int], k: int, m: int, by: str, mechanism: str
) -> None:
    question = from_mapping(
        {
            "name": "q",
            "measure": "interactions",
            "by": by,
            "groups_per_user": 1 if by == "nothing" else k,
            "interactions_per_group": 1 if by == "item" else m,
            "mechanism": mechanism,
        }
    )
    count = Count(question, catalogue, NONCE)
    bound = question.sensitivity(len(count.labels))
    # In front, so that every other user's position changes.
    joined = Interactions.concatenate([single(history), interactions])
    added = count.contribution(PartyRows(joined)) - count.contribution(PartyRows(interactions))
    np.testing.assert_array_equal(added, count.contribution(PartyRows(single(history))))
    entries = [int(entry) for entry in added]
    if mechanism == "laplace":
        assert sum(map(abs, entries)) <= bound
    else:
        assert sum(entry**2 for entry in entries) <= bound**2


def test_the_bound_is_reached(catalogue: Catalogue) -> None:
    keys = {"measure": "interactions", "groups_per_user": 2, "interactions_per_group": 3}
    question = from_mapping({"name": "q", "by": "category", **keys})
    everything = Count(question, catalogue, NONCE).contribution(PartyRows(single(list(range(24)))))
    assert everything.sum() == question.sensitivity(4)


def test_the_sum_does_not_depend_on_parties_or_blocks(
    catalogue: Catalogue, interactions: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Count(from_mapping({"name": "q", "by": "category", "groups_per_user": 2}), catalogue, NONCE)
    whole = count.contribution(PartyRows(interactions))
    shuffled = np.random.default_rng(5).permutation(200)
    parts = [interactions.rows(users) for users in np.array_split(shuffled, 3)]
    np.testing.assert_array_equal(sum(count.contribution(PartyRows(part)) for part in parts), whole)
    for size in (1, 7, 100):
        monkeypatch.setattr(counting, "_BLOCK_INTERACTIONS", size)
        np.testing.assert_array_equal(count.contribution(PartyRows(interactions)), whole)


def test_which_groups_are_kept_favours_none_and_changes_with_the_job(catalogue: Catalogue) -> None:
    # every user has every item, so that each is in all four categories and counts in one of them
    everybody = Interactions.concatenate([single(list(range(24)))] * 3)
    question = from_mapping({"name": "q", "by": "category", "groups_per_user": 1})
    kept: Counter[int] = Counter()
    for nonce in range(400):
        count = Count(question, catalogue, f"{nonce:032x}").contribution(PartyRows(everybody)) // UNIT
        assert sorted(count.tolist()) == [0, 0, 0, 3]  # equal rows, equal choice
        kept[int(count.argmax())] += 1
    # a binomial of 400 and 1/4: standard deviation 8.7
    assert all(abs(kept[group] - 100) < 60 for group in range(4))


def test_by_attribute(catalogue: Catalogue, interactions: Interactions) -> None:
    generator = np.random.default_rng(4)
    codes = generator.integers(-1, 3, (200, 2)).astype(np.int16)
    attributes = UserAttributes(("town", "age"), (("x", "y", "z"), ("young", "middle", "old")), codes)
    question = from_mapping({"name": "q", "by": "attribute:age", "groups": ["old", "young", "ancient"]})
    count = Count(question, catalogue, NONCE)
    total = count.contribution(PartyRows(interactions, attributes=attributes)) / UNIT
    present = interactions.lengths() > 0
    assert total.tolist() == [((codes[:, 1] == 2) & present).sum(), ((codes[:, 1] == 0) & present).sum(), 0]
    for absent in (None, UserAttributes(("town",), (("x", "y", "z"),), codes[:, :1])):
        with pytest.raises(ConfigError, match="attribute"):
            count.contribution(PartyRows(interactions, attributes=absent))


def test_what_the_catalogue_does_not_have_is_refused(catalogue: Catalogue) -> None:
    for keys in (
        {"by": "category", "groups_per_user": 1, "groups": ["comedy", "western"]},
        {"by": "item", "groups_per_user": 1, "groups": ["i99"]},
        {"by": "nothing", "only_items": ["i99"]},
        {"by": "nothing", "only_categories": ["western"]},
    ):
        with pytest.raises(ConfigError, match="expected names of the catalogue"):
            Count(from_mapping({"name": "q", **keys}), catalogue, NONCE)


def test_rows_of_another_catalogue_are_refused(catalogue: Catalogue) -> None:
    count = Count(from_mapping({"name": "q", "by": "nothing"}), catalogue, NONCE)
    with pytest.raises(ConfigError, match="expected 24"):
        count.contribution(PartyRows(Interactions.from_pairs([0], [0], users=1, items=7)))
    with pytest.raises(ConfigError, match="interactions"):
        count.contribution(PartyRows())


def test_no_users_at_all(catalogue: Catalogue) -> None:
    nobody = Interactions.from_pairs([], [], users=0, items=24)
    assert ask(catalogue, nobody, by="category", groups_per_user=2) == dict.fromkeys(CATEGORIES, 0.0)
    assert ask(catalogue, nobody, by="activity", at_least=[1, 2]) == {"1 to 1": 0.0, "2 or more": 0.0}
