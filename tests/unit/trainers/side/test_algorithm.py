"""What one user can move: brute force on neighbours, in integers, whatever the public numbers are."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import polars as pl
import pytest

from tests.unit.trainers.side.shops import BANK, SHOP, World, catalogue, dataset, table, total_noise
from veil.errors import InputError
from veil.privacy.mechanism import outer_sum
from veil.recsys.interactions import Interactions
from veil.recsys.model import Model
from veil.tabular.reading import PartyTable
from veil.tabular.statistics import Standardisation
from veil.trainers.linear import model_of
from veil.trainers.rows import PartyRows
from veil.trainers.seam import central_state
from veil.trainers.side.algorithm import SideAlgorithm, counts_of

USERS = 40


@lru_cache(maxsize=1)
def algorithm() -> SideAlgorithm:
    return SideAlgorithm(World().spec(rounds=0), catalogue())


@lru_cache(maxsize=1)
def recommender() -> Model:
    found = algorithm()
    rows = PartyRows(interactions=dataset().train)
    return model_of(
        central_state(found.recommender, found.recommender_spec, rows, lambda r: total_noise(found.spec, r))
    )


def bank_rows(values: list[tuple[str, float]]) -> PartyTable:
    regions, incomes = zip(*values, strict=True)
    own = table(BANK).party
    names = tuple(f"u{n}" for n in range(len(values)))
    return PartyTable(own, names, (pl.Series(regions), pl.Series(incomes)), None)


def histories(extra: list[np.ndarray]) -> Interactions:
    items = catalogue().items
    added = [
        Interactions.from_pairs(np.zeros(len(one)), one, users=1, items=items, time=np.zeros(len(one), np.int64))
        for one in extra
    ]
    return Interactions.concatenate([dataset().train.rows(slice(0, USERS)), *added])


def sums(interactions: Interactions, columns: PartyTable, positions: np.ndarray, found: Standardisation) -> dict:  # type: ignore[type-arg]
    """Everything that opens beside the recommender's own, before noise."""
    made = algorithm()
    rows = made.side_rows(columns, found, positions)
    items = made.item_rows(interactions, recommender(), positions)
    total = sum(outer_sum(items(a, b).numpy(), rows[a:b]) for a, b in made.terms.program.blocks())
    return {"statistics-bank": made.statistics(columns), "moment-bank": made.moment(rows), "outer-bank": total}


def test_a_user_at_all_parties_moves_every_sum_by_at_most_its_sensitivity() -> None:
    items, spec = catalogue().items, algorithm().spec
    generator = np.random.default_rng(0)
    people = [("north", 5.0), ("south", 80.0), ("east", 500.0), ("", -3.0)]
    before_rows = [people[n % 4] for n in range(USERS)]
    standardisations = [
        Standardisation(np.array([0.4, 0.3, 0.3, 0.0]), np.array([1.0, 1.0, 1.0, 2.0]), None, 100.0),
        Standardisation(np.zeros(4), np.full(4, 1e6), None, 1.0),  # whatever the opened sums made of it
    ]
    cases = [(np.arange(items), people[0]), (np.array([7]), people[2]), (np.array([items - 1]), people[3])]
    cases += [(generator.choice(items, size, replace=False), people[1]) for size in (2, 30)]
    largest = dict.fromkeys(("statistics-bank", "moment-bank", "outer-bank"), 0.0)
    for found in standardisations:
        order = np.arange(USERS)
        before = sums(histories([]), bank_rows(before_rows), order, found)
        for history, person in cases:
            # The new user's slot comes first, so that all others move to other slots.
            moved = np.concatenate([[USERS], order])
            after = sums(histories([np.sort(history)]), bank_rows([*before_rows, person]), moved, found)
            for name, value in before.items():
                # In Python's integers: the bound is exact, not up to rounding.
                squared = sum(int(entry) ** 2 for entry in (after[name] - value).ravel())
                bound = spec.release(name).sensitivity
                assert squared <= bound**2
                largest[name] = max(largest[name], squared**0.5 / bound)
    assert largest["moment-bank"] > 0.99
    assert largest["outer-bank"] > 0.97
    assert largest["statistics-bank"] > 0.6


def test_a_user_whom_one_party_lacks_adds_nothing_to_the_outer_product() -> None:
    found = Standardisation(np.zeros(4), np.ones(4), None, 100.0)
    people = [("north", 5.0)] * USERS
    made = algorithm()
    order = np.arange(USERS)
    there = sums(histories([]), bank_rows(people), order, found)["outer-bank"]
    lacking = np.where(order == 3, -1, order)
    rows = made.side_rows(bank_rows(people), found, order)
    items = made.item_rows(histories([]), recommender(), lacking)
    without = sum(outer_sum(items(a, b).numpy(), rows[a:b]) for a, b in made.terms.program.blocks())
    only = made.item_rows(histories([]), recommender(), np.array([3]))
    alone = outer_sum(only(0, 1).numpy(), rows[3:4])
    np.testing.assert_array_equal(there - without, alone)
    assert np.abs(alone).max() > 0


def test_rows_do_not_depend_on_blocks_or_on_the_users_beside_them() -> None:
    interactions, order = histories([]), np.arange(USERS)[::-1].copy()
    rows = algorithm().item_rows(interactions, recommender(), order)
    whole = rows(0, USERS).numpy()
    np.testing.assert_array_equal(np.concatenate([rows(0, 7).numpy(), rows(7, USERS).numpy()]), whole)
    assert not rows(USERS, USERS + 5).numpy().any()
    squares = [sum(int(v) ** 2 for v in row) for row in whole]
    assert max(squares) <= 4**16 < 1.01 * max(squares)


def test_positions_and_sizes_are_checked() -> None:
    made, found = algorithm(), Standardisation(np.zeros(4), np.ones(4), None, 100.0)
    people = bank_rows([("north", 5.0)] * 3)
    with pytest.raises(InputError, match="each row once"):
        made.side_rows(people, found, np.array([0, 1, 1]))
    with pytest.raises(InputError, match="rows that there are"):
        made.side_rows(people, found, np.array([0, 3]))
    with pytest.raises(InputError, match="rows that there are"):
        made.side_rows(people, found, np.full(made.terms.schema.slots + 1, -1))
    other = Interactions.from_pairs([0], [0], users=1, items=3)
    with pytest.raises(InputError, match="items"):
        made.item_rows(other, recommender(), np.array([0]))
    assert counts_of(recommender()).min() > 0
    assert SHOP not in made.side_parties
