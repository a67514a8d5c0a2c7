"""Columns brought onto the lead's rows: right, whatever the sets; and messages that say nothing of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.align.company import DIGEST, NAMES, Hostile, Recorder, communicators, dealer, points, together
from tests.unit.mpc.operations import no_torch_randomness
from veil.align import exchange
from veil.align import join as module
from veil.align.curve import POINT_BYTES
from veil.align.ids import pseudonyms
from veil.align.join import Joined, join
from veil.align.join_plan import JoinPlan
from veil.errors import ConfigError, DataError, InputError, ProtocolMismatch

MOST = 8
IDS = [f"user-{number}" for number in range(12)]
OWN = st.lists(st.sampled_from(IDS), unique=True, max_size=MOST)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BATCH_ROWS", 16)
    monkeypatch.setattr(module, "CIRCUIT_ROWS", 32)


def table_of(rank: int, rows: int, columns: int) -> Tensor:
    """Values over the whole ring, none of them zero."""
    generator = np.random.default_rng(rank)
    return torch.from_numpy(generator.integers(-(2**63), 2**63, (rows, columns))) | 1


def run(lists: Sequence[Sequence[str]], plan: JoinPlan, parties: Any = None) -> list[Any]:
    size = len(lists)

    def act(party: Any) -> Joined:
        rank = party.rank
        own = None if rank == plan.lead else table_of(rank, len(lists[rank]), plan.columns[rank])
        return join(party, dealer(rank, size), lists[rank], own, plan, DIGEST)

    return together(parties or communicators(size)[0], act)


def check(lists: Sequence[Sequence[str]], plan: JoinPlan, results: Sequence[Any]) -> None:
    for result in results:
        assert isinstance(result, Joined), result
    rows = results[plan.lead].rows.tolist()
    assert len(rows) == plan.rows
    assert sorted(row for row in rows if row >= 0) == list(range(len(lists[plan.lead])))
    assert all(results[other].rows is None for other in plan.others)
    for other in plan.others:
        table = table_of(other, len(lists[other]), plan.columns[other])
        members = sum(result.members[other] for result in results)
        columns = sum(result.columns[other] for result in results)
        for row, member, values in zip(rows, members.tolist(), columns.tolist(), strict=True):
            name = lists[plan.lead][row] if row >= 0 else None
            held = name in lists[other]
            assert member == held
            assert values == (table[lists[other].index(str(name))].tolist() if held else [0] * plan.columns[other])


@st.composite
def companies(draw: st.DrawFn) -> tuple[list[list[str]], JoinPlan]:
    size = draw(st.sampled_from([2, 2, 3]))
    lead = draw(st.integers(0, size - 1))
    columns = tuple(0 if rank == lead else draw(st.sampled_from([0, 1, 3, 4, 9])) for rank in range(size))
    return [draw(OWN) for _ in range(size)], JoinPlan(lead, (MOST,) * size, columns)


@settings(deadline=None, max_examples=12)
@given(companies())
def test_columns_of_common_ids_and_zeros_elsewhere(company: tuple[list[list[str]], JoinPlan]) -> None:
    lists, plan = company
    check(lists, plan, run(lists, plan))


def test_unequal_sizes() -> None:
    lists = [[f"{row}" for row in range(90)], [f"{row}" for row in range(40, 160, 3)], ["7"]]
    plan = JoinPlan(0, (100, 45, 1), (0, 2, 1))
    check(lists, plan, run(lists, plan))
    plan = JoinPlan(2, (100, 45, 1), (2, 2, 0))
    check(lists, plan, run(lists, plan))


def test_no_share_shows_who_is_common() -> None:
    """Each party's shares of the bits and of the columns look random, also where they stand for zeros."""
    lists = [[f"{row}" for row in range(200)], [f"{row}" for row in range(100)]]
    results = run(lists, JoinPlan(0, (200, 100), (0, 4)))
    for result in results:
        for share in (result.members[1], result.columns[1]):
            words = share.numpy().reshape(-1)
            assert len(np.unique(words)) == len(words)
            bits = np.unpackbits(words.view(np.uint8))
            assert abs(bits.mean() - 0.5) < 6 * 0.5 / np.sqrt(bits.size)


def recorded(lists: Sequence[Sequence[str]], plan: JoinPlan) -> list[Recorder]:
    parties, recorders = communicators(len(lists))
    check(lists, plan, run(lists, plan, parties))
    return recorders


def test_messages_depend_on_the_plan_alone() -> None:
    plan = JoinPlan(1, (8, 8, 8), (1, 0, 2))
    same = [str(row) for row in range(8)]
    companies = [
        [same, same, same],
        [["a"], [], ["x"]],
        [same, ["1", "q"], []],
        [[f"{rank}-{row}" for row in range(8)] for rank in range(3)],
    ]
    shapes = [
        [[(peer, len(message)) for peer, message in recorder.sent] for recorder in recorded(lists, plan)]
        for lists in companies
    ]
    assert all(shape == shapes[0] for shape in shapes)


def test_no_id_no_pseudonym_no_column_travels_and_runs_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def spy(ids: Sequence[bytes], key: bytes) -> Any:
        keys.append(key)
        return pseudonyms(ids, key)

    monkeypatch.setattr(module, "pseudonyms", spy)
    lists = [[f"common-{row:03}" for row in range(5)], [f"common-{row:03}" for row in range(2, 7)]]
    plan = JoinPlan(0, (5, 5), (0, 2))
    runs = [recorded(lists, plan) for _ in range(2)]
    for recorders in runs:
        traffic = b"".join(message for recorder in recorders for _, message in recorder.sent)
        for name in {*lists[0], *lists[1]}:
            assert name.encode() not in traffic
            for key in set(keys):
                for choice in range(3):
                    assert bytes(pseudonyms([bytes([choice]) + name.encode()], key)[0]) not in traffic
        for value in table_of(1, 5, 2).reshape(-1).tolist():
            assert value.to_bytes(8, "little", signed=True) not in traffic
    assert len(points(runs[0])) == len(points(runs[1])) == 2 * plan.rows
    assert points(runs[0]).isdisjoint(points(runs[1]))


def test_only_the_cryptographic_source_is_drawn_from() -> None:
    lists = [["a", "b"], ["b", "c"]]
    plan = JoinPlan(0, (2, 2), (0, 1))
    tables = [None, torch.tensor([[5], [6]])]
    with no_torch_randomness():
        results = together(
            communicators(2)[0],
            lambda party: join(party, dealer(party.rank, 2), lists[party.rank], tables[party.rank], plan, DIGEST),
        )
    assert sorted(sum(result.columns[1] for result in results).reshape(-1).tolist())[-1] == 5


def test_own_input_is_checked_before_anything_is_sent() -> None:
    parties, recorders = communicators(2)
    plan = JoinPlan(0, (3, 3), (0, 2))
    fine = torch.zeros((2, 2), dtype=torch.int64)
    for party, ids, columns, error in (
        (parties[1], ["a", "a"], fine, DataError),
        (parties[1], ["a", "b"], None, InputError),
        (parties[1], ["a", "b"], fine.float(), InputError),
        (parties[1], ["a", "b"], fine[:1], InputError),
        (parties[1], ["a", "b"], fine[:, :1], InputError),
        (parties[0], ["a", "b"], fine, InputError),
        (parties[0], ["a", "b", "c", "d"], None, InputError),
    ):
        with pytest.raises(error):
            join(party, dealer(0, 2), ids, columns, plan, DIGEST)
    assert all(recorder.sent == [] for recorder in recorders)


@pytest.mark.parametrize(
    "arguments",
    [
        (0, (3,), (0,)),
        (0, (3, 3), (0,)),
        (0, (3, 0), (0, 1)),
        (0, (3, 2**23), (0, 1)),
        (0, (3, 3), (1, 1)),
        (0, (3, 3), (0, 257)),
        (0, (3, 3), (0, -1)),
        (2, (3, 3), (0, 0)),
        (0, (2**22, 3), (0, 256)),
    ],
)
def test_impossible_plans_are_refused(arguments: Any) -> None:
    with pytest.raises(ConfigError):
        JoinPlan(*arguments)


@pytest.mark.parametrize("hostile", [0, 1])
@pytest.mark.parametrize("what", ["no points", "one less", "numbers"])
def test_what_does_not_belong_is_refused_by_name(hostile: int, what: str) -> None:
    tampers = {
        "no points": lambda tensor: torch.full_like(tensor, 0xFF),
        "one less": lambda tensor: tensor[:-1],
        "numbers": lambda tensor: tensor.to(torch.int64),
    }
    lists = [["a", "b", "c"], ["b", "c", "d"]]
    parties, _ = communicators(2)
    bad = Hostile(parties[hostile].transport, NAMES[:2], timeout_s=20)
    bad.chosen = lambda number, tensor: tensor.shape[-1] == POINT_BYTES and number == 1
    bad.tamper = tampers[what]
    parties[hostile] = bad
    results = run(lists, JoinPlan(0, (3, 3), (0, 1)), parties)
    assert bad.tampered == 1
    victim = results[1 - hostile]
    assert isinstance(victim, ProtocolMismatch) and victim.culprits == (NAMES[hostile],)


def test_secrets_do_not_print() -> None:
    results = run([["a"], ["a"]], JoinPlan(0, (1, 1), (0, 2)))
    assert [repr(result) for result in results] == ["Joined({1: (162, 2)})"] * 2
