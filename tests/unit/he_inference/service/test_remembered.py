"""What is remembered of queries: as much as is said, and no more."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from he_inference.service import remembered
from he_inference.service.remembered import OF_EACH, Remembered

MODEL, NEXT = b"\x01" * 32, b"\x02" * 32


def request(number: int) -> bytes:
    return number.to_bytes(32, "big")


def rows(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM asked").fetchone()[0])


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(tmp_path / "budget.sqlite", isolation_level=None)
    yield opened
    opened.close()


def test_the_last_of_each_client_and_model_are_remembered(connection: sqlite3.Connection) -> None:
    known = Remembered(connection)
    known.add("token/quiet", MODEL, request(0))
    known.add("token/app", NEXT, request(0))
    for number in range(3 * OF_EACH):
        assert not known.has("token/app", MODEL, request(number))
        known.add("token/app", MODEL, request(number))
        assert known.has("token/app", MODEL, request(number))
    assert [number for number in range(3 * OF_EACH) if known.has("token/app", MODEL, request(number))] == list(
        range(2 * OF_EACH, 3 * OF_EACH)
    )
    # what one asks pushes nothing of another's out
    assert known.has("token/quiet", MODEL, request(0)) and known.has("token/app", NEXT, request(0))
    assert rows(connection) == OF_EACH + 2


def test_the_same_one_again_takes_no_place(connection: sqlite3.Connection) -> None:
    known = Remembered(connection)
    for number in (0, 1, *([1] * 200)):
        known.add("token/app", MODEL, request(number))
    assert known.has("token/app", MODEL, request(0)) and rows(connection) == 2


def test_all_together_are_bounded_and_the_oldest_go_first(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "OF_ALL", 100)
    monkeypatch.setattr(remembered, "_LOOK_EVERY", 16)
    known = Remembered(connection)
    most = 0
    for number in range(1000):
        known.add(f"token/c{number}", MODEL, request(number))
        most = max(most, rows(connection))
    assert 100 <= most < 100 + 16
    assert known.has("token/c999", MODEL, request(999)) and known.has("token/c905", MODEL, request(905))
    assert not known.has("token/c880", MODEL, request(880))
    # processes that live for one query each keep the bound too
    for number in range(1000, 1200):
        Remembered(connection).add(f"token/c{number}", MODEL, request(number))
        assert rows(connection) <= most


def test_it_belongs_to_the_callers_transaction(connection: sqlite3.Connection, tmp_path: Path) -> None:
    known = Remembered(connection)
    connection.execute("BEGIN IMMEDIATE")
    known.add("token/app", MODEL, request(1))
    connection.execute("ROLLBACK")
    assert not known.has("token/app", MODEL, request(1))
    known.add("token/app", MODEL, request(2))
    other = sqlite3.connect(tmp_path / "budget.sqlite", isolation_level=None)
    assert Remembered(other).has("token/app", MODEL, request(2))
    other.close()
