from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.errors import DataError
from veil.recsys.interactions import Interactions

_TRIPLES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(-50, 50)), max_size=60)


def _build(triples: list[tuple[int, int, int]]) -> Interactions:
    user, item, time = (np.array([triple[k] for triple in triples], np.int64) for k in range(3))
    names = [f"p{number}" for number in range(7)]
    return Interactions.from_pairs(user, item, users=7, items=9, time=time, value=-time, pseudonyms=names)


@given(_TRIPLES)
def test_from_pairs_keeps_each_pair_once_with_earliest_time_and_largest_value(
    triples: list[tuple[int, int, int]],
) -> None:
    earliest: dict[tuple[int, int], int] = {}
    for user, item, time in triples:
        earliest[user, item] = min(time, earliest.get((user, item), time))
    built = _build(triples)
    assert built.time is not None and built.value is not None
    pairs = list(zip(built.row_of().tolist(), built.indices.tolist(), strict=True))
    assert pairs == sorted(earliest)
    assert built.time.tolist() == [earliest[pair] for pair in pairs]
    assert built.value.tolist() == [-earliest[pair] for pair in pairs]
    assert built.counts().tolist() == [sum(item == j for _, item in pairs) for j in range(9)]
    assert built.lengths().tolist() == [sum(user == u for user, _ in pairs) for u in range(7)]


@given(_TRIPLES, st.lists(st.integers(0, 6), max_size=10))
def test_rows_are_the_chosen_users_in_order(triples: list[tuple[int, int, int]], chosen: list[int]) -> None:
    whole = _build(triples)
    part = whole.rows(np.array(chosen, np.int64))
    assert part.users == len(chosen)
    assert [part.history(k).tolist() for k in range(len(chosen))] == [whole.history(user).tolist() for user in chosen]
    assert part.pseudonyms == tuple(f"p{user}" for user in chosen)
    assert part.time is not None and len(part.time) == part.nnz


@given(_TRIPLES)
def test_dense_sparse_and_contains_agree(triples: list[tuple[int, int, int]]) -> None:
    built = _build(triples)
    dense = built.dense(slice(None))
    assert np.array_equal(built.to_sparse().toarray(), dense)
    assert np.array_equal(built.contains(np.arange(7)[:, None], np.arange(9)[None]), dense > 0)
    assert np.array_equal(built.dense(np.arange(7) % 2 == 0), dense[::2])


@given(_TRIPLES, st.integers(0, 6))
def test_parts_join_to_the_whole(triples: list[tuple[int, int, int]], cut: int) -> None:
    whole = _build(triples)
    joined = Interactions.concatenate([whole.rows(slice(0, cut)), whole.rows(slice(cut, None))])
    for name in ("indptr", "indices", "time", "value"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))
    assert joined.pseudonyms == whole.pseudonyms


def test_keep_drops_interactions_and_keeps_users() -> None:
    whole = _build([(0, 1, 5), (0, 2, 6), (3, 2, 7)])
    kept = whole.keep([False, True, False])
    assert kept.users == 7 and kept.history(0).tolist() == [2] and kept.history(3).tolist() == []
    with pytest.raises(DataError):
        whole.keep([True])


def test_arrays_are_read_only_and_independent_of_the_callers() -> None:
    indices = np.array([0, 1], np.int32)
    built = Interactions(users=1, items=2, indptr=np.array([0, 2]), indices=indices)
    indices[0] = 1
    assert built.indices.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        built.indices[0] = 1


def test_repr_shows_shape_only() -> None:
    text = repr(_build([(0, 1, 5)]))
    assert text == "Interactions(users=7, items=9, nnz=1, with=['time', 'value', 'pseudonyms'])"
    assert "p0" not in text


@pytest.mark.parametrize(
    ("indptr", "indices"),
    [
        ([0, 1], [0]),  # too few row starts
        ([0, 2, 1], [0]),  # falls
        ([1, 1, 1], [0]),  # does not begin at 0
        ([0, 1, 1], [3]),  # item out of range
        ([0, 1, 1], [-1]),
        ([0, 2, 2], [1, 1]),  # repeated
        ([0, 2, 2], [1, 0]),  # not sorted
        ([0, 1, 2], [[0, 1]]),  # not one-dimensional
    ],
)
def test_inconsistent_rows_are_refused(indptr: list[int], indices: list[int]) -> None:
    with pytest.raises(DataError):
        Interactions(users=2, items=3, indptr=np.array(indptr), indices=np.array(indices))


def test_items_may_fall_from_one_user_to_the_next() -> None:
    built = Interactions(users=4, items=3, indptr=np.array([0, 0, 1, 2, 2]), indices=np.array([2, 0]))
    assert built.lengths().tolist() == [0, 1, 1, 0]


def test_wrong_columns_are_refused() -> None:
    with pytest.raises(DataError, match="time"):
        Interactions.from_pairs([0], [0], users=1, items=1, time=[1, 2])
    with pytest.raises(DataError, match="outside"):
        Interactions.from_pairs([1], [0], users=1, items=1)
    with pytest.raises(DataError, match="pseudonyms"):
        Interactions.from_pairs([0], [0], users=1, items=1, pseudonyms=["a", "b"])
    with pytest.raises(DataError, match="one catalogue"):
        Interactions.concatenate([Interactions.from_pairs([], [], users=1, items=n) for n in (1, 2)])
