"""Sets of rows against Python's sets, also where the first eight bytes do not decide."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from veil.align.sets import Bytes, SortedRows, common, distinct, has_repetitions

WIDTH = 10
# Few different heads, so that ties are frequent; zeros at both ends.
ROWS = st.builds(
    lambda head, tail: head * 8 + tail,
    st.sampled_from([b"\x00", b"\x01", b"\xff"]),
    st.sampled_from([b"\x00\x00", b"\x00\x01", b"\x01\x00", b"\xff\xff"]),
)
UNTIED = st.binary(min_size=WIDTH, max_size=WIDTH)
LISTS = st.lists(ROWS, max_size=12) | st.lists(UNTIED, max_size=12)


def array(rows: list[bytes]) -> Bytes:
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, WIDTH)


def rows_of(rows: Bytes) -> list[bytes]:
    return [bytes(row) for row in rows]


@given(LISTS)
def test_order_and_repetitions(rows: list[bytes]) -> None:
    ordered = SortedRows(array(rows))
    assert len(ordered) == len(rows) and rows_of(ordered.rows) == sorted(rows)
    assert has_repetitions(array(rows)) == (len(set(rows)) < len(rows))
    assert int(ordered.repeats.sum()) == len(rows) - len(set(rows))


@given(LISTS, LISTS)
def test_find(table: list[bytes], wanted: list[bytes]) -> None:
    found = SortedRows(array(table)).find(array(wanted)).tolist()
    for row, at in zip(wanted, found, strict=True):
        assert (at == -1 and row not in table) or table[at] == row


@given(
    st.lists(
        st.lists(ROWS, unique=True, max_size=12) | st.lists(UNTIED, unique=True, max_size=4), min_size=1, max_size=4
    )
)
def test_union_and_intersection(lists: list[list[bytes]]) -> None:
    arrays = [array(rows) for rows in lists]
    assert rows_of(distinct(arrays)) == sorted(set().union(*lists))
    assert rows_of(common(arrays)) == sorted(set(lists[0]).intersection(*lists[1:]))
