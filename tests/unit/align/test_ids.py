"""Ids from outside: bounds, repetitions, and pseudonyms that depend on key and id alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.align.ids import MAX_ID_BYTES, PSEUDONYM_BYTES, check_ids, dummies, pseudonyms
from veil.errors import DataError, InputError

KEY = bytes(32)


def test_text_and_bytes_are_one() -> None:
    assert check_ids(["é", b"raw\x00"], 2) == ["é".encode(), b"raw\x00"]
    assert check_ids([], 2) == []


@pytest.mark.parametrize("wrong", ["", b"", "x" * (MAX_ID_BYTES + 1), "é" * MAX_ID_BYTES, "\ud800", 7, None])
def test_what_is_no_id_is_refused_by_row(wrong: object) -> None:
    with pytest.raises(DataError) as caught:
        check_ids(["fine", wrong, "good"], 3)  # type: ignore[list-item]
    assert caught.value.lines == (2,)


def test_the_longest_id_passes() -> None:
    assert check_ids(["x" * MAX_ID_BYTES], 1) == [b"x" * MAX_ID_BYTES]


def test_repetitions_are_refused_by_row_and_never_shown() -> None:
    with pytest.raises(DataError) as caught:
        check_ids(["secret-one", "two", b"secret-one", "two", "two"], 5)
    assert caught.value.lines == (3, 4, 5)
    assert "secret-one" not in str(caught.value) and "two" not in str(caught.value)


def test_more_than_declared_is_refused() -> None:
    with pytest.raises(InputError, match="got 3 ids, expected at most the 2"):
        check_ids(["a", "b", "c"], 2)


@given(st.lists(st.binary(min_size=1, max_size=40), unique=True, max_size=30))
def test_pseudonyms_are_distinct_and_keyed(ids: list[bytes]) -> None:
    first, again, other = pseudonyms(ids, KEY), pseudonyms(ids, KEY), pseudonyms(ids, bytes([1]) * 32)
    assert first.shape == (len(ids), PSEUDONYM_BYTES) and np.array_equal(first, again)
    assert len({bytes(row) for row in first} | {bytes(row) for row in other}) == 2 * len(ids)


def test_a_known_answer() -> None:
    import hashlib
    import hmac

    expected = hmac.new(KEY, b"veil/align-id/v1\x00user-1", hashlib.sha256).digest()[:16]
    assert bytes(pseudonyms([b"user-1"], KEY)[0]) == expected


def test_dummies_differ() -> None:
    rows = dummies(1000)
    assert rows.shape == (1000, PSEUDONYM_BYTES) and len({bytes(row) for row in rows}) == 1000
    assert dummies(0).shape == (0, PSEUDONYM_BYTES)
