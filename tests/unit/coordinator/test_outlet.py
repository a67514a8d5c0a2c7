"""The bounded queue between the machine and a stream."""

from __future__ import annotations

import threading

import pytest

from coordinator.outlet import Outlet
from veil.errors import PeerLost, StateError


def test_what_was_put_before_the_end_is_delivered() -> None:
    outlet: Outlet[int] = Outlet(10)
    outlet.put(1)
    outlet.put(2)
    outlet.close()
    outlet.put(3)
    assert list(outlet.read()) == [1, 2]


def test_an_error_comes_after_the_items() -> None:
    outlet: Outlet[int] = Outlet(10)
    outlet.put(1)
    outlet.close(PeerLost("gone"))
    outlet.close()
    items = outlet.read()
    assert next(items) == 1
    with pytest.raises(PeerLost):
        next(items)


def test_a_reader_that_falls_behind_is_cut_off() -> None:
    outlet: Outlet[int] = Outlet(3)
    for number in range(5):
        outlet.put(number)
    assert outlet.closed
    with pytest.raises(StateError, match="behind"):
        next(outlet.read())


def test_no_first_item_in_time() -> None:
    outlet: Outlet[int] = Outlet(3)
    with pytest.raises(StateError, match="Hello"):
        next(outlet.read(first_within_s=0.01))


def test_a_waiting_reader_wakes_up() -> None:
    outlet: Outlet[int] = Outlet(3)
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.extend(outlet.read()))
    reader.start()
    outlet.put(7)
    outlet.close()
    reader.join(10)
    assert seen == [7]
