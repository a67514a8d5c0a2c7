"""The joint outer products are exact, and no user moves one by more than both norms' product."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dealer import engine_items
from tests.unit.mpc.engine.together import together
from veil.errors import ConfigError, InputError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.plan import plan
from veil.mpc.engine.values import Opened, Value
from veil.privacy.mechanism import to_grid
from veil.trainers.columns import outer
from veil.trainers.columns.outer import Factor, OuterProducts

ROWS = 500


def rows_of(width: int, norm: float, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(ROWS, width)) * 3
    return to_grid(drawn, norm, 12)


def program(rows: int, left: int, *rights: int, entries: int = 2**22, norms: tuple[int, int] = (2**12, 2**11)):  # type: ignore[no-untyped-def]
    factors = tuple(Factor(rank, 4, 12, norms[1]) for rank in rights)
    return OuterProducts(rows, Factor(left, 6, 12, norms[0]), factors, block_entries=entries)


@pytest.mark.parametrize(
    ("parties", "left", "rights", "entries"),
    [(2, 0, (1,), 2**22), (2, 1, (0,), 2**22), (3, 1, (2,), 600), (3, 2, (0, 1), 2**22), (3, 0, (1, 2), 1800)],
)
def test_the_sums_are_exact_whatever_the_blocks(parties: int, left: int, rights: tuple[int, ...], entries: int) -> None:
    held = {left: rows_of(6, 1.0, 0), **{rank: rows_of(4, 0.5, 1 + rank) for rank in rights}}
    made = program(ROWS, left, *rights, entries=entries)

    def part(engine: Engine) -> list[torch.Tensor]:
        mine = held.get(engine.rank)
        own = None if mine is None else lambda start, stop: torch.from_numpy(mine[start:stop])
        values = made.run(engine, None if engine.device.type == "meta" else own)
        return [engine.combine(value) for value in values]

    for results in together(parties, part):
        for rank, result in zip(rights, results, strict=True):
            np.testing.assert_array_equal(result.numpy(), held[left].T @ held[rank])
    planned = plan(part, left, parties)
    blocks = len(list(made.blocks()))
    assert planned.rounds == blocks * (1 + len(rights)) + len(rights)
    # the left rows leave once, however many parties they meet
    assert planned.sent_bytes < (parties - 1) * 8 * (ROWS * 6 + 24 * len(rights) + 10 * blocks + 20)


@pytest.mark.parametrize("parties", [2, 3, 5])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_any_rows_within_their_norm_give_the_exact_sum(parties: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 12))
    ranks = data.draw(st.permutations(range(parties)))
    left, rights = ranks[0], ranks[1 : 1 + data.draw(st.integers(1, parties - 1))]
    factors = {}
    for rank in (left, *rights):
        bits = data.draw(st.integers(1, 20))
        factors[rank] = Factor(rank, data.draw(st.integers(1, 3)), bits, data.draw(st.integers(1, 2**20)))
    held = {}
    for rank, one in factors.items():
        # A row has one entry that is not 0: of any size that its norm allows, the ends among them.
        entry = st.one_of(st.sampled_from([-one.norm, 0, one.norm]), st.integers(-one.norm, one.norm))
        held[rank] = np.zeros((rows, one.width), np.int64)
        for row in range(rows):
            held[rank][row, data.draw(st.integers(0, one.width - 1))] = data.draw(entry)
    made = OuterProducts(
        rows, factors[left], tuple(factors[rank] for rank in rights), block_entries=data.draw(st.integers(1, 40))
    )

    def part(engine: Engine) -> list[torch.Tensor]:
        mine = held.get(engine.rank)
        own = None if mine is None else lambda start, stop: torch.from_numpy(mine[start:stop])
        return [engine.combine(value) for value in made.run(engine, None if engine.device.type == "meta" else own)]

    for results in together(parties, part):
        for rank, result in zip(rights, results, strict=True):
            np.testing.assert_array_equal(result.numpy(), held[left].T @ held[rank])
            assert np.abs(result.numpy()).max() <= rows * made.sensitivity(factors[rank])


def test_no_user_moves_the_sum_by_more_than_the_sensitivity() -> None:
    y, g = rows_of(6, 1.0, 2), rows_of(4, 0.5, 3)
    made = program(ROWS, 0, 1)
    moved = [np.linalg.norm(np.outer(one, other)) for one, other in zip(y, g, strict=True)]
    bound = made.sensitivity(made.rights[0])
    assert 0.9 * bound < max(moved) <= bound == 2**23


def test_one_party_on_both_sides_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected two"):
        program(ROWS, 1, 1)
    with pytest.raises(ConfigError, match="nobody to meet"):
        program(ROWS, 1)


def test_rows_beyond_their_norm_are_refused_though_every_entry_is_within() -> None:
    made = OuterProducts(2, Factor(0, 2, 12, 100), (Factor(1, 1, 12, 100),))
    rows = {0: torch.tensor([[60, 80], [80, 80]]), 1: torch.tensor([[100], [-100]])}

    def part(engine: Engine) -> torch.Tensor:
        mine = rows[engine.rank]
        own = None if engine.device.type == "meta" else lambda start, stop: mine[start:stop]
        return engine.combine(made.run(engine, own)[0])

    with pytest.raises(InputError, match="norm above 100"):
        together(2, part)
    rows[0][1, 1] = 60
    assert together(2, part)[0].tolist() == [[60 * 100 - 80 * 100], [80 * 100 - 60 * 100]]


@pytest.mark.parametrize("row", [[-(2**63), 0], [-(2**63), -(2**63)], [2**63 - 1, 0], [2**32, 0], [-101, 0], [80, 61]])
def test_no_integer_passes_for_a_short_row(row: list[int]) -> None:
    # The least int64 has no magnitude, and squares of large ones are 0 modulo 2^64.
    with pytest.raises(InputError, match="norm above 100"):
        Factor(0, 2, 12, 100).check(torch.tensor([[1, 1], row]), 2)


def test_a_program_of_more_blocks_than_a_dealer_keeps_is_refused_before_anything_lists_them() -> None:
    assert outer.MOST_MASKS == engine_items.MOST_MASKS
    wide, narrow = Factor(0, 2**22, 12, 4), Factor(1, 2, 12, 4)  # a block is one row
    assert OuterProducts(2**17, wide, (narrow,)).rows == 2**17
    for rows in (2**17 + 1, 2**26):
        with pytest.raises(ConfigError, match="masks"):
            OuterProducts(rows, wide, (narrow,))


def test_products_of_blocks_are_summed_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    made = program(60, 0, 1, 2, entries=24)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    matmul = Engine.matmul

    def watched(self: Engine, *given: Opened, transposed: bool) -> Value:
        nonlocal most
        value = matmul(self, *given, transposed=transposed)
        alive.append(weakref.ref(value.share))
        most = max(most, sum(one() is not None for one in alive))
        return value

    monkeypatch.setattr(Engine, "matmul", watched)
    plan(lambda engine: made.run(engine, None), 0, 3)
    assert len(alive) == 2 * len(list(made.blocks())) > 20
    assert most <= 4
