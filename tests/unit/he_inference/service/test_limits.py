"""Rates and running calls, with a clock that the test moves."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from he_inference.service.access import Client
from he_inference.service.limits import Limiter, LimitSettings
from veil.errors import LimitError

APP, OTHER = Client("token/app1"), Client("token/app2")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def settings(**changed: float) -> LimitSettings:
    usual = {"per_client_rate_s": 2.0, "per_client_burst": 3, "overall_rate_s": 10.0, "overall_burst": 100}
    return LimitSettings.model_validate(usual | changed)


def passes(limiter: Limiter, client: Client = APP) -> bool:
    try:
        with limiter.query(client):
            return True
    except LimitError:
        return False


def looks_up(limiter: Limiter, client: Client = APP) -> bool:
    try:
        limiter.lookup(client)
    except LimitError:
        return False
    return True


def streams(limiter: Limiter, client: Client = APP) -> bool:
    try:
        with limiter.stream(client):
            return True
    except LimitError:
        return False


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    limiter = Limiter(settings(), clock=clock)
    assert [passes(limiter) for _ in range(5)] == [True, True, True, False, False]
    with pytest.raises(LimitError, match="2 queries a second of one client") as caught, limiter.query(APP):
        pass
    assert caught.value.retry_after_s == pytest.approx(0.5)
    clock.now += 0.5
    assert [passes(limiter) for _ in range(2)] == [True, False]
    clock.now += 1000
    assert [passes(limiter) for _ in range(5)] == [True, True, True, False, False]


def test_waiting_as_long_as_is_said_is_enough() -> None:
    clock = Clock()
    limiter = Limiter(settings(per_client_rate_s=3.0, per_client_burst=1), clock=clock)
    for _ in range(1000):
        assert passes(limiter)
        with pytest.raises(LimitError) as caught, limiter.query(APP):
            pass
        assert caught.value.retry_after_s is not None
        clock.now += caught.value.retry_after_s


def test_one_client_does_not_spend_anothers_and_all_share_the_whole() -> None:
    clock = Clock()
    limiter = Limiter(settings(overall_burst=5), clock=clock)
    assert sum(passes(limiter, APP) for _ in range(9)) == 3
    assert sum(passes(limiter, OTHER) for _ in range(9)) == 2
    with pytest.raises(LimitError, match="of all clients"), limiter.query(OTHER):
        pass
    # what the whole refused took nothing from the client: one is left to it
    clock.now += 0.1
    assert passes(limiter, OTHER)


def test_a_refused_client_takes_nothing_from_the_whole() -> None:
    clock = Clock()
    limiter = Limiter(settings(overall_burst=4), clock=clock)
    for _ in range(50):
        passes(limiter, APP)
    assert passes(limiter, OTHER)


def test_look_ups_have_a_burst_and_a_rate_of_their_own() -> None:
    clock = Clock()
    limiter = Limiter(settings(lookup_rate_s=0.5, lookup_burst=4), clock=clock)
    assert [looks_up(limiter) for _ in range(6)] == [True] * 4 + [False] * 2
    with pytest.raises(LimitError, match=r"0\.5 look-ups a second of one client") as caught:
        limiter.lookup(APP)
    assert caught.value.retry_after_s == pytest.approx(2.0) and caught.value.code == "LIMIT"
    assert "app1" not in str(caught.value)
    # nobody else's, and neither queries nor streams of the same client
    assert looks_up(limiter, OTHER)
    assert [passes(limiter) for _ in range(4)] == [True, True, True, False]
    with limiter.stream(APP):
        pass
    # nor do queries that are refused take a look-up
    clock.now += 2.0
    assert [looks_up(limiter) for _ in range(2)] == [True, False]


def test_waiting_as_long_as_is_said_is_enough_for_a_look_up() -> None:
    clock = Clock()
    limiter = Limiter(settings(lookup_rate_s=7.0, lookup_burst=1), clock=clock)
    for _ in range(1000):
        assert looks_up(limiter)
        with pytest.raises(LimitError) as caught:
            limiter.lookup(APP)
        assert caught.value.retry_after_s is not None
        clock.now += caught.value.retry_after_s


def test_other_streams_have_a_burst_and_a_rate_of_their_own() -> None:
    """However few run at a time: keys that are refused one after another cost the server a check each."""
    clock = Clock()
    limiter = Limiter(settings(stream_rate_s=0.5, stream_burst=4, streams_at_once=1), clock=clock)
    assert [streams(limiter) for _ in range(6)] == [True] * 4 + [False] * 2
    with pytest.raises(LimitError, match=r"0\.5 streams of keys or files a second of one client") as caught:
        limiter.stream(APP).__enter__()
    assert caught.value.retry_after_s == pytest.approx(2.0)
    assert streams(limiter, OTHER) and looks_up(limiter) and passes(limiter)
    clock.now += 2.0
    with limiter.stream(APP):
        assert not streams(limiter)  # one is running: takes nothing
        clock.now += 2.0
    assert [streams(limiter) for _ in range(2)] == [True, False]


def test_clients_that_only_look_up_are_bounded_and_not_forgotten_early() -> None:
    clock = Clock()
    limiter = Limiter(settings(most_clients=10, lookup_rate_s=0.1, lookup_burst=2, stream_burst=1), clock=clock)
    for number in range(10):
        assert looks_up(limiter, Client(f"token/c{number}"))
    # the buckets of queries are full, those of look-ups are not: nobody is forgotten, a stranger waits
    with pytest.raises(LimitError, match="more than 10 clients") as caught:
        limiter.lookup(Client("token/more"))
    assert caught.value.retry_after_s == 20.0
    assert [looks_up(limiter, Client("token/c3")) for _ in range(2)] == [True, False]
    clock.now += 20.0
    for number in range(200):
        clock.now += 10.0
        assert looks_up(limiter, Client(f"token/d{number}"))
        assert len(limiter) <= 10


def test_threads_share_one_burst_of_look_ups() -> None:
    limiter = Limiter(settings(lookup_burst=50), clock=Clock())
    counted: list[int] = []
    threads = [
        threading.Thread(target=lambda: counted.append(sum(looks_up(limiter) for _ in range(30)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted) == 50


def test_running_queries_and_streams_are_counted_apart_and_end() -> None:
    limiter = Limiter(settings(per_client_burst=100, per_client_at_once=2, streams_at_once=1), clock=Clock())
    with ExitStack() as running:
        running.enter_context(limiter.query(APP))
        running.enter_context(limiter.query(APP))
        running.enter_context(limiter.stream(APP))
        with pytest.raises(LimitError, match="more than 2 queries of one client") as caught, limiter.query(APP):
            pass
        assert caught.value.retry_after_s is None
        with pytest.raises(LimitError, match="more than 1 streams"), limiter.stream(APP):
            pass
        with limiter.query(OTHER), limiter.stream(OTHER):
            pass
    with limiter.query(APP), limiter.query(APP), limiter.stream(APP):
        pass


def test_a_call_that_fails_ends_too() -> None:
    limiter = Limiter(settings(per_client_burst=100, per_client_at_once=1), clock=Clock())
    for _ in range(20):
        with pytest.raises(ZeroDivisionError), limiter.query(APP):
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), limiter.stream(APP):
            raise ZeroDivisionError
    with limiter.query(APP):
        pass


def test_clients_that_only_begin_streams_are_not_forgotten_early() -> None:
    clock = Clock()
    limiter = Limiter(settings(most_clients=2, stream_rate_s=0.1, stream_burst=1, lookup_burst=1), clock=clock)
    assert streams(limiter, APP) and streams(limiter, OTHER)
    with pytest.raises(LimitError, match="more than 2 clients") as caught:
        limiter.lookup(Client("token/more"))
    assert caught.value.retry_after_s == 10.0
    assert not streams(limiter, APP)
    clock.now += 10.0
    assert looks_up(limiter, Client("token/more"))


def test_memory_is_bounded_and_forgetting_helps_nobody() -> None:
    clock = Clock()
    limiter = Limiter(settings(most_clients=10, overall_burst=1_000_000, overall_rate_s=1e6), clock=clock)
    for number in range(10):
        assert passes(limiter, Client(f"token/c{number}"))
    # nobody's bucket is full again: a stranger is refused, and no bucket is forgotten for it
    with pytest.raises(LimitError, match="more than 10 clients") as caught, limiter.query(Client("token/more")):
        pass
    assert caught.value.retry_after_s
    assert len(limiter) == 10
    assert [passes(limiter, Client("token/c3")) for _ in range(3)] == [True, True, False]
    clock.now += 60
    for number in range(1000):
        clock.now += 1.5
        assert passes(limiter, Client(f"token/d{number}"))
        assert len(limiter) <= 10


def test_a_running_call_is_not_forgotten() -> None:
    clock = Clock()
    limiter = Limiter(settings(most_clients=2, per_client_at_once=1), clock=clock)
    with limiter.query(APP):
        clock.now += 1000
        for number in range(20):
            clock.now += 10
            passes(limiter, Client(f"token/c{number}"))
        with pytest.raises(LimitError, match="at a time"), limiter.query(APP):
            pass


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 2)), max_size=80),
    st.integers(1, 6),
    st.floats(0.1, 10),
)
def test_no_span_of_time_has_more_than_burst_and_rate_allow(
    asked: list[tuple[float, int]], burst: int, rate_s: float
) -> None:
    clock = Clock()
    limiter = Limiter(settings(per_client_burst=burst, per_client_rate_s=rate_s, most_clients=2), clock=clock)
    passed: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for wait_s, number in asked:
        clock.now += wait_s
        if passes(limiter, Client(f"token/c{number}")):
            passed[number].append(clock.now)
    for times in passed.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                assert last - first + 1 <= burst + rate_s * (times[last] - times[first]) + 1e-6


def test_threads_share_one_burst() -> None:
    limiter = Limiter(settings(per_client_burst=50, per_client_at_once=1000), clock=Clock())
    counted: list[int] = []
    threads = [
        threading.Thread(target=lambda: counted.append(sum(passes(limiter) for _ in range(30)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted) == 50
