"""The budget of queries: what an attacker gets within it, and that nothing makes it larger."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from he_inference.service.access import Client
from he_inference.service.budget import BudgetSettings, QueryBudget, request_digest
from veil import settings
from veil.errors import ConfigError, QueryBudgetError, StateError, WireError

APP, OTHER = Client("token/app1"), Client("certificate/app1")
MODEL, NEXT = b"\x01" * 32, b"\x02" * 32
D = 64
DAY_S = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def fresh() -> bytes:
    return secrets.token_bytes(32)


def use_up(budget: QueryBudget, client: Client = APP, model: bytes = MODEL, dimensions: int = D) -> int:
    """How many queries are answered before the budget is spent."""
    for number in range(1_000_000):
        try:
            budget.spend(client, model, dimensions, fresh())
        except QueryBudgetError:
            return number
    raise AssertionError("never spent")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "budget.db"


# --- what it is for


def test_queries_within_the_default_budget_leave_half_of_every_item_unknown(path: Path) -> None:
    """The attack that the budget is against, on plain numbers: it succeeds without it."""
    generator = np.random.default_rng(3)
    items = generator.normal(size=(200, D))
    items /= np.linalg.norm(items, axis=1)[:, None]

    def recovered(queries: int) -> float:
        asked = generator.normal(size=(queries, D))
        guess = np.linalg.lstsq(asked, asked @ items.T, rcond=None)[0].T
        return float(np.mean(np.sum((guess - items) ** 2, axis=1)))

    with QueryBudget(path, BudgetSettings()) as budget:
        allowed = use_up(budget)
    assert allowed == D // 2
    assert 0.4 < recovered(allowed) < 0.6
    with QueryBudget(path.with_name("off.db"), BudgetSettings(enabled=False)) as off:
        assert all(off.spend(APP, MODEL, D, fresh()) is None for _ in range(D))
    assert recovered(D) < 1e-12


def test_every_query_counts_and_says_what_is_left(path: Path) -> None:
    with QueryBudget(path, BudgetSettings(queries_per_dimension=2.0)) as budget:
        assert budget.left(APP, MODEL, D) == 128
        assert [budget.spend(APP, MODEL, D, fresh()) for _ in range(128)] == list(range(127, -1, -1))
        assert budget.left(APP, MODEL, D) == 0
        with pytest.raises(QueryBudgetError):
            budget.spend(APP, MODEL, D, fresh())


def test_clients_and_models_have_budgets_of_their_own(path: Path) -> None:
    chosen = BudgetSettings(accounts={"certificate/app1": 0.25})
    with QueryBudget(path, chosen) as budget:
        assert use_up(budget, APP, MODEL) == 32
        assert use_up(budget, OTHER, MODEL) == 16
        assert use_up(budget, APP, NEXT) == 32
        assert use_up(budget, Client("token/small"), MODEL, 1) == 1


def test_an_exempt_client_is_not_counted(path: Path) -> None:
    with QueryBudget(path, BudgetSettings(exempt=("certificate/app1",), queries_per_dimension=0.01)) as budget:
        assert budget.left(OTHER, MODEL, D) is None
        assert all(budget.spend(OTHER, MODEL, D, fresh()) is None for _ in range(200))
        assert use_up(budget, APP) == 1


# --- retries


def test_the_same_request_counts_once_and_is_answered_even_when_the_budget_is_spent(path: Path) -> None:
    with QueryBudget(path, BudgetSettings()) as budget:
        request = fresh()
        assert budget.spend(APP, MODEL, D, request) == 31
        assert budget.spend(APP, MODEL, D, request) == 31
        assert use_up(budget) == 31
        assert budget.spend(APP, MODEL, D, request) == 0
        # to another client or of another model it is another request
        assert budget.spend(OTHER, MODEL, D, request) == 31
        assert budget.spend(APP, NEXT, D, request) == 31


def test_a_repetition_after_a_restart_counts_once(path: Path) -> None:
    requests = [fresh() for _ in range(5)]
    with QueryBudget(path, BudgetSettings()) as budget:
        assert [budget.spend(APP, MODEL, D, request) for request in requests] == [31, 30, 29, 28, 27]
    for _ in range(3):
        with QueryBudget(path, BudgetSettings()) as budget:
            assert [budget.spend(APP, MODEL, D, request) for request in requests] == [27] * 5
            # of another client or model it is another request still
            assert budget.left(OTHER, MODEL, D) == budget.left(APP, NEXT, D) == 32
    with QueryBudget(path, BudgetSettings()) as budget:
        assert use_up(budget) == 27
        assert budget.spend(APP, MODEL, D, requests[0]) == 0


_ONE_SPENDER = """
import sys, time
from pathlib import Path
from he_inference.service.access import Client
from he_inference.service.budget import BudgetSettings, QueryBudget
budget = QueryBudget(Path(sys.argv[1]), BudgetSettings(queries_per_dimension=8))
for number in range(int(sys.argv[2])):
    budget.spend(Client("token/app1"), bytes([1]) * 32, 64, bytes([number]) * 32)
sys.stdout.write("x")
sys.stdout.flush()
time.sleep(600)
"""


@pytest.mark.parametrize("queries", [1, 2, 33, 40])
def test_a_repetition_after_kill_9_counts_once(path: Path, queries: int) -> None:
    """Of a first query of a step, which is written with the count, and of later ones, which are written alone."""
    with subprocess.Popen(
        [sys.executable, "-c", _ONE_SPENDER, str(path), str(queries)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        process.kill()
    with QueryBudget(path, BudgetSettings(queries_per_dimension=8)) as budget:
        left = budget.left(APP, MODEL, D)
        # steps of 32: what the killed process had counted ahead is gone, nothing else
        assert left == 512 - 32 * -(-queries // 32)
        for _ in range(2):
            assert {budget.spend(APP, MODEL, D, bytes([number]) * 32) for number in range(queries)} == {left}
        assert budget.spend(APP, MODEL, D, fresh()) == left - 1


def test_a_repetition_at_another_process_counts_once(path: Path) -> None:
    first, second = (QueryBudget(path, BudgetSettings()) for _ in range(2))
    request = fresh()
    # the step of two is the first one's
    assert first.spend(APP, MODEL, D, request) == 31
    assert second.spend(APP, MODEL, D, request) == 30
    assert first.left(APP, MODEL, D) == 31
    first.close()
    second.close()


def test_a_query_that_cannot_be_remembered_is_neither_counted_nor_answered(path: Path) -> None:
    with QueryBudget(path, BudgetSettings()) as budget:
        refuse = "CREATE TRIGGER full BEFORE INSERT ON asked BEGIN SELECT RAISE(FAIL, 'disk full'); END"
        budget._connection.execute(refuse)
        with pytest.raises(StateError):
            budget.spend(APP, MODEL, D, fresh())
        assert budget.left(APP, MODEL, D) == 32
        budget._connection.execute("DROP TRIGGER full")
        budget.spend(APP, MODEL, D, fresh())
        budget._connection.execute(refuse)
        # this one was counted ahead, and stays to be had
        with pytest.raises(StateError) as caught:
            budget.spend(APP, MODEL, D, fresh())
        assert "disk" not in str(caught.value)
        assert budget.left(APP, MODEL, D) == 31
        budget._connection.execute("DROP TRIGGER full")
        assert use_up(budget) == 31


def test_neither_ids_nor_clients_are_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    request = request_digest(b"0123456789abcdef", b"o" * 32, b"", b"query")
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            budget = QueryBudget(path, BudgetSettings(queries_per_dimension=16))
            budget.spend(APP, MODEL, D, request)
            budget._connection.execute("DROP TABLE spent")
            with pytest.raises(StateError) as caught:
                budget.spend(APP, NEXT, D, request)
            budget.close()
    said = caplog.text + str(caught.value)
    assert "could not be given back" in said
    for secret in (
        request.hex(),
        request.hex()[:8],
        "0123456789abcdef",
        b"0123456789abcdef".hex(),
        "app1",
        repr(request),
    ):
        assert secret not in said
    # nor can the id be read off the file
    assert all(b"0123456789abcdef" not in file.read_bytes() for file in path.parent.iterdir())


def test_one_request_id_does_not_pay_for_two_queries() -> None:
    one = request_digest(b"i" * 16, b"o" * 32, b"k" * 32, b"query one")
    assert one == request_digest(b"i" * 16, b"o" * 32, b"k" * 32, b"query one")
    others = [
        request_digest(b"i" * 16, b"o" * 32, b"k" * 32, b"query two"),
        request_digest(b"j" * 16, b"o" * 32, b"k" * 32, b"query one"),
        request_digest(b"i" * 16, b"p" * 32, b"k" * 32, b"query one"),
        request_digest(b"i" * 16, b"o" * 32, b"l" * 32, b"query one"),
        request_digest(b"i" * 16, b"o" * 32, b"", b"k" * 32 + b"query one"),
    ]
    assert len({one, *others}) == 6
    for length in (0, 15, 17, 1000):
        with pytest.raises(WireError, match="expected 16"):
            request_digest(b"i" * length, b"", b"", b"")


# --- renewal


def test_it_renews_after_the_window_and_says_when(path: Path) -> None:
    clock = Clock()
    with QueryBudget(path, BudgetSettings(window_days=30), clock=clock) as budget:
        assert use_up(budget) == 32
        clock.now += 29 * DAY_S
        with pytest.raises(QueryBudgetError, match=r"renews in 24\.0 hours") as caught:
            budget.spend(APP, MODEL, D, fresh())
        assert caught.value.retry_after_s == pytest.approx(DAY_S)
        assert "32" in caught.value.message and "64 dimensions" in caught.value.message
        assert "app1" not in str(caught.value)
        clock.now += DAY_S
        assert budget.left(APP, MODEL, D) == 32
        assert use_up(budget) == 32


def test_what_was_counted_ahead_does_not_pass_into_the_next_window(path: Path) -> None:
    clock = Clock()
    with QueryBudget(path, BudgetSettings(queries_per_dimension=16, window_days=1), clock=clock) as budget:
        # a step of 64 is counted, 63 of which are still to be had
        budget.spend(APP, MODEL, D, fresh())
        clock.now += DAY_S
        assert use_up(budget) == 1024


def test_a_clock_that_goes_back_renews_nothing(path: Path) -> None:
    clock = Clock()
    with QueryBudget(path, BudgetSettings(window_days=30), clock=clock) as budget:
        assert use_up(budget) == 32
        clock.now -= 400 * DAY_S
        with pytest.raises(QueryBudgetError):
            budget.spend(APP, MODEL, D, fresh())


def test_without_a_window_it_never_renews(path: Path) -> None:
    clock = Clock()
    with QueryBudget(path, BudgetSettings(window_days=0), clock=clock) as budget:
        assert use_up(budget) == 32
        clock.now += 5000 * DAY_S
        with pytest.raises(QueryBudgetError, match="does not renew") as caught:
            budget.spend(APP, MODEL, D, fresh())
        assert caught.value.retry_after_s is None


# --- durability


def test_it_survives_a_restart_to_the_query(path: Path) -> None:
    for _ in range(4):
        with QueryBudget(path, BudgetSettings(queries_per_dimension=4)) as budget:
            for _ in range(50):
                budget.spend(APP, MODEL, D, fresh())
    with QueryBudget(path, BudgetSettings(queries_per_dimension=4)) as budget:
        assert budget.left(APP, MODEL, D) == 256 - 200
        assert use_up(budget) == 56
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


_SPENDER = """
import secrets, sys
from pathlib import Path
from he_inference.service.access import Client
from he_inference.service.budget import BudgetSettings, QueryBudget
budget = QueryBudget(Path(sys.argv[1]), BudgetSettings(queries_per_dimension=8))
while True:
    budget.spend(Client("token/app1"), bytes([1]) * 32, 64, secrets.token_bytes(32))
    sys.stdout.write("x")
    sys.stdout.flush()
"""


def test_kill_9_can_only_count_too_much(path: Path) -> None:
    answered, limit, step = 0, 8 * D, 32
    generator = np.random.default_rng(5)
    kills = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", _SPENDER, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        # killed somewhere in the middle of what it does
        started = len(process.stdout.read(1))
        time.sleep(float(generator.uniform(0, 0.004)))
        os.kill(process.pid, signal.SIGKILL)
        answered += started + len(process.stdout.read())
        process.wait()
        process.stdout.close()
        kills += 1
    with QueryBudget(path, BudgetSettings(queries_per_dimension=8)) as budget:
        left = budget.left(APP, MODEL, D)
    assert left is not None
    # never more answers than are counted, and never more than one step for a kill counted too much (an answer that was
    # given and not yet written down here is among them)
    assert answered <= limit - left <= answered + kills * (step + 1)


def test_several_processes_share_one_budget(path: Path) -> None:
    first, second = (QueryBudget(path, BudgetSettings()) for _ in range(2))
    answered = 0
    spent: set[QueryBudget] = set()
    while len(spent) < 2:
        for budget in (first, second):
            try:
                budget.spend(APP, MODEL, D, fresh())
                answered += 1
            except QueryBudgetError:
                spent.add(budget)
    assert answered == 32
    first.close()
    second.close()


def test_threads_that_ask_at_once_get_no_more_than_there_is(path: Path) -> None:
    answered: list[int] = []
    with QueryBudget(path, BudgetSettings(queries_per_dimension=3)) as budget:
        threads = [threading.Thread(target=lambda: answered.append(use_up(budget))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(answered) == 192


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["restart", "kill"]),
            st.tuples(st.sampled_from([APP, OTHER]), st.integers(0, 40)),
            st.floats(0, 0.6).map(lambda days: days * DAY_S),
        ),
        max_size=60,
    )
)
def test_in_any_order_no_window_has_more_answers_than_the_budget(tmp_path: Path, happenings: list[object]) -> None:
    """Against a model that knows every answer: queries, repetitions, restarts, kills and the passing of time."""
    path = tmp_path / secrets.token_hex(8) / "budget.db"
    clock = Clock()
    chosen = BudgetSettings(queries_per_dimension=0.5, window_days=1)
    budget = QueryBudget(path, chosen, clock=clock)
    # when each was answered first
    answers: dict[Client, dict[bytes, float]] = {APP: {}, OTHER: {}}
    for happening in happenings:
        if isinstance(happening, float):
            clock.now += happening
        elif isinstance(happening, tuple):
            client, number = happening
            request = bytes([number]) * 32
            known = request in answers[client]
            left = budget.left(client, MODEL, 16)
            assert left is not None
            try:
                budget.spend(client, MODEL, 16, request)
            except QueryBudgetError:
                assert not known and left == 0
                continue
            # whatever happened between the two, the second time costs nothing
            assert budget.left(client, MODEL, 16) == left - (not known)
            answers[client].setdefault(request, clock.now)
        elif happening == "restart":
            budget.close()
            budget = QueryBudget(path, chosen, clock=clock)
        else:
            # nothing is given back: as if the process had been killed
            budget = QueryBudget(path, chosen, clock=clock)
    for times in answers.values():
        for start in times.values():
            # any span of a window's length meets two windows at most
            within = [at for at in times.values() if start <= at < start + DAY_S]
            assert len(within) <= 2 * chosen.queries(APP.account, 16)
    budget.close()


# --- what can go wrong


def test_when_it_cannot_be_counted_nothing_is_answered(path: Path) -> None:
    budget = QueryBudget(path, BudgetSettings(queries_per_dimension=0.1))
    budget.spend(APP, MODEL, D, fresh())
    budget._connection.execute("DROP TABLE spent")
    with pytest.raises(StateError, match="no count of this query"):
        budget.spend(OTHER, MODEL, D, fresh())
    budget.close()
    with pytest.raises(StateError):
        budget.spend(OTHER, MODEL, D, fresh())


def test_a_count_that_fails_pays_for_nothing(path: Path) -> None:
    with QueryBudget(path, BudgetSettings()) as budget:
        budget._connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON spent BEGIN SELECT RAISE(FAIL, 'disk full'); END"
        )
        for _ in range(3):
            with pytest.raises(StateError):
                budget.spend(APP, MODEL, D, fresh())
        budget._connection.execute("DROP TRIGGER full")
        assert use_up(budget) == 32


def test_an_unusable_file_stops_the_start(tmp_path: Path) -> None:
    rubbish = tmp_path / "budget.db"
    rubbish.write_bytes(b"not a database" * 1000)
    with pytest.raises(StateError, match="no query may be answered"):
        QueryBudget(rubbish, BudgetSettings())
    with pytest.raises(StateError):
        QueryBudget(tmp_path, BudgetSettings())


def test_memory_of_clients_is_bounded_and_forgetting_gives_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("he_inference.service.budget._REMEMBERED_CLIENTS", 8)
    with QueryBudget(path, BudgetSettings(queries_per_dimension=4)) as budget:
        for number in range(40):
            budget.spend(Client(f"token/app{number}"), MODEL, D, fresh())
        assert len(budget._leases) == 8
        assert all(budget.left(Client(f"token/app{number}"), MODEL, D) == 255 for number in range(40))


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries_per_dimension": 0},
        {"queries_per_dimension": float("nan")},
        {"window_days": -1},
        {"accounts": {"app1": 1.0}},
        {"accounts": {"token/app1": 0.0}},
        {"exempt": ["party/alpha"]},
        {"exempt": ["token/app1\n"]},
        {"more": 1},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        settings.check(wrong, BudgetSettings, source="test", explained_in="x")
