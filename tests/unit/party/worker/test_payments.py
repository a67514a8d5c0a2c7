"""Steps are paid for before they are settled, a group at a time, and never far ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from party.worker.payments import Payments
from veil.errors import BudgetError, PeerLost, RevealError
from veil.jobs.spec import Release
from veil.privacy.ledger import Ledger
from veil.trainers.columns.terms import PAID_TOGETHER as GROUP
from veil.trainers.columns.terms import step_name


def releases(count: int) -> list[Release]:
    return [Release(name=step_name(step), shape=(4,), sensitivity=100, sigma=5000) for step in range(count)]


class Daemon:
    """Writes when it is waited for; `events` in their order."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.events = ledger, list[str]()

    def pay(self, asked: Sequence[Release]) -> Callable[[], None]:
        self.events.append(f"asked {len(asked)}")

        def paid() -> None:
            self.ledger.record("ab12", bytes(32), *asked)
            self.events.append(f"paid {len(asked)}")

        return paid


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(Ledger(tmp_path / "ledger.db", epsilon_limit=2.0, delta=1e-5))


@pytest.mark.parametrize("count", [1, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP - 1])
def test_each_step_is_on_record_before_it_is_settled_and_few_are_beyond(daemon: Daemon, count: int) -> None:
    payments = Payments(daemon.pay, releases(count))
    for step in range(count):
        payments.begin(step)
        payments.settle(step)
        recorded = [entry.release.name for entry in daemon.ledger.entries()]
        assert recorded == [step_name(one) for one in range(len(recorded))]
        assert step < len(recorded) <= step + 1 + GROUP
    assert len(daemon.ledger.entries()) == count
    # one commit for each group, and the next group is asked for before this one's last step is settled
    assert sum(event.startswith("paid") for event in daemon.events) == -(-count // GROUP)
    if count > GROUP:
        assert daemon.events[:3] == [f"asked {GROUP}", f"paid {GROUP}", f"asked {min(GROUP, count - GROUP)}"]


def test_nothing_settles_twice_or_out_of_order_or_unasked(daemon: Daemon) -> None:
    payments = Payments(daemon.pay, releases(3))
    with pytest.raises(RevealError, match="begun"):
        payments.settle(0)
    payments.begin(0)
    with pytest.raises(RevealError, match="step 1"):
        payments.settle(1)
    payments.settle(0)
    for step in (0, 2, 3):
        with pytest.raises(RevealError):
            payments.settle(step)
    assert repr(payments) == "Payments(settled=1, asked=3, planned=3)"


def test_a_refusal_reaches_whoever_waits_and_leaves_nothing_on_record(daemon: Daemon) -> None:
    free = [one.model_copy(update={"sigma": 2**40}) for one in releases(2 * GROUP)]
    planned = [*free[:GROUP], *(one.model_copy(update={"sigma": 50}) for one in free[GROUP:])]
    payments = Payments(daemon.pay, planned)
    for step in range(GROUP):
        payments.begin(step)
        payments.settle(step)
    with pytest.raises(BudgetError):
        payments.settle(GROUP)
    assert len(daemon.ledger.entries()) == GROUP


def test_whoever_asks_again_after_a_refusal_does_not_get_a_later_groups_payment_for_it(daemon: Daemon) -> None:
    dear = [one.model_copy(update={"sigma": 50}) for one in releases(2 * GROUP)[:GROUP]]
    payments = Payments(daemon.pay, [*dear, *releases(2 * GROUP)[GROUP:]])
    payments.begin(0)
    payments.begin(GROUP - 1)  # asks for the second group, which the budget covers
    for _ in range(2):
        with pytest.raises(BudgetError):
            payments.settle(0)
    assert daemon.ledger.entries() == []


def test_what_could_not_be_asked_for_is_not_taken_for_asked() -> None:
    def gone(asked: Sequence[Release]) -> Callable[[], None]:
        raise PeerLost("the daemon has gone")

    payments = Payments(gone, releases(1))
    with pytest.raises(PeerLost):
        payments.begin(0)
    with pytest.raises(RevealError, match="begun"):
        payments.settle(0)
