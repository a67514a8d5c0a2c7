"""The ledger: what it permits, what it refuses, and that it neither forgets nor starts anew, whatever happens to it."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from veil.errors import BudgetError, ConfigError, InputError, StateError
from veil.jobs.spec import Release
from veil.privacy import ledger_rows
from veil.privacy.accountant import epsilon
from veil.privacy.composition import Composition
from veil.privacy.ledger import Ledger, LimitChange, _Affordable

WORKLOAD = Path(__file__).with_name("ledger_workload.py")
DELTA = 1e-5
DIGEST = bytes(range(32))


def release(name: str = "counts", sigma: int = 1000, sensitivity: int = 1000) -> Release:
    return Release(name=name, shape=(4, 2), sensitivity=sensitivity, sigma=sigma)


def opened(folder: Path, limit: float = 10.0) -> Ledger:
    return Ledger(folder / "ledger.db", epsilon_limit=limit, delta=DELTA)


def filled(folder: Path, count: int = 4) -> Path:
    ledger = opened(folder, 100.0)
    for i in range(count):
        ledger.record("ab12", DIGEST, release(f"r-{i}", 5000))
    return folder / "ledger.db"


def run_workload(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(WORKLOAD), *arguments], stdout=subprocess.PIPE, text=True)


def tamper(path: Path, *statements: str) -> None:
    """What somebody with the file in hand can do, triggers or not."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for trigger in ("entry_keeps", "entry_stays"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)


def test_records_survive_and_compose(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.spent() == 0.0 and ledger.entries() == []
    releases = [release("counts", 4000), release("round-1", 3000, 777)]
    for one in releases:
        ledger.record("ab12", DIGEST, one)
    ledger.record("cd34", DIGEST, releases[0])  # another job may use the same name
    for view in (ledger, opened(tmp_path)):
        assert [entry.release for entry in view.entries()] == [*releases, releases[0]]
        assert [entry.job_id for entry in view.entries()] == ["ab12", "ab12", "cd34"]
        assert all(entry.digest == DIGEST for entry in view.entries())
        assert view.spent() == epsilon([*releases, releases[0]], DELTA)
    # Two objects on one file see each other's records.
    second = opened(tmp_path)
    second.record("ef56", DIGEST, release("late", 4000))
    assert len(ledger.entries()) == 4 and ledger.spent() == second.spent()


def test_file_is_private_and_left_alone_by_reading(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "folder")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["ledger.db"]


def test_over_budget_is_refused_and_not_recorded(tmp_path: Path) -> None:
    ledger = opened(tmp_path, 5.0)
    plan = [release(f"r-{i}") for i in range(40)]
    recorded = 0
    with pytest.raises(BudgetError, match="expected at most 5"):
        for one in plan:
            ledger.record("ab12", DIGEST, one)
            recorded += 1
    assert recorded >= 1
    assert len(ledger.entries()) == recorded
    assert ledger.spent() == epsilon(plan[:recorded], DELTA) <= 5.0 < epsilon(plan[: recorded + 1], DELTA)
    # A cheaper one still fits, and the refusal left no trace that would stop it.
    ledger.record("ab12", DIGEST, release(f"r-{recorded}", 1_000_000))


def test_check_looks_at_a_whole_job(tmp_path: Path) -> None:
    ledger = opened(tmp_path, 5.0)
    job = [release("counts", 2500), release("round-1", 2000)]
    ledger.check(job)
    assert ledger.entries() == []
    with pytest.raises(BudgetError):
        ledger.check([*job, *(release(f"more-{i}") for i in range(3))])
    for one in job:
        ledger.record("ab12", DIGEST, one)
    with pytest.raises(BudgetError, match=f"{ledger.spent():.4f}"):
        ledger.check([release("again", 900)])


def test_nothing_is_recorded_twice(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.record("ab12", DIGEST, release("counts", 5000))
    for view in (ledger, opened(tmp_path)):
        with pytest.raises(StateError, match="second time"):
            view.record("ab12", DIGEST, release("counts", 9000))
    assert len(ledger.entries()) == 1


def test_several_are_recorded_together_or_none(tmp_path: Path) -> None:
    ledger = opened(tmp_path, 5.0)
    ledger.record("ab12", DIGEST, release("a", 5000), release("b", 6000), release("c", 7000))
    for refused, error in (
        ((release("d", 5000), release("a", 5000)), StateError),
        ((release("d", 5000), release("d", 5000)), StateError),
        ((release("d", 5000), release("e", 200)), BudgetError),
        ((), InputError),
    ):
        with pytest.raises(error):
            ledger.record("ab12", DIGEST, *refused)
    for view in (ledger, opened(tmp_path, 5.0)):
        assert [entry.release.name for entry in view.entries()] == ["a", "b", "c"]
        assert [entry.number for entry in view.entries()] == [2, 3, 4]
    ledger.record("ab12", DIGEST, release("d", 5000))


def test_a_job_that_was_reviewed_is_not_counted_again_at_each_payment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting one Gaussian takes some 50 ms of a core: more than all else that a step of a descent does."""
    ledger, job = opened(tmp_path), [release(f"r-{i}", 9000) for i in range(40)]
    ledger.check(job)
    counted: list[Composition] = []

    def count(whole: Composition, delta: float) -> float:
        counted.append(whole)
        return 0.1

    monkeypatch.setattr(Composition, "epsilon", count)
    for first in range(0, 40, 4):
        ledger.record("ab12", DIGEST, *job[first : first + 4])
    assert counted == []
    ledger.record("ab12", DIGEST, release("one-more", 9000))
    assert len(counted) == 1


def test_malformed_arguments_are_refused(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for job_id in ("", "AB12", "a b", "../x", "-a", "a" * 65, "ab12\n"):
        with pytest.raises(InputError):
            ledger.record(job_id, DIGEST, release())
    with pytest.raises(InputError):
        ledger.record("ab12", b"short", release())
    for limit, delta in ((0.0, DELTA), (-1.0, DELTA), (float("nan"), DELTA), (1001.0, DELTA), (1.0, 0.0), (1.0, 0.01)):
        with pytest.raises(ConfigError):
            Ledger(tmp_path / "other.db", epsilon_limit=limit, delta=delta)
    assert not (tmp_path / "other.db").exists()


def test_limits_are_logged_and_in_force_everywhere(tmp_path: Path) -> None:
    old = opened(tmp_path, 10.0)
    old.record("ab12", DIGEST, release("counts", 2000))
    lowered = opened(tmp_path, 1.0)
    # The object that was opened with 10 obeys too.
    for view in (old, lowered):
        with pytest.raises(BudgetError, match="expected at most 1"):
            view.check([release("more")])
        assert view.epsilon_limit == 1.0
    assert old.spent() > 1.0  # what is spent stays spent
    opened(tmp_path, 20.0).check([release("more")])
    opened(tmp_path, 20.0)  # no change, no record
    assert [change.epsilon_limit for change in old.limit_changes()] == [10.0, 1.0, 20.0]
    stricter = Ledger(tmp_path / "ledger.db", epsilon_limit=20.0, delta=1e-9)
    assert stricter.delta == old.delta == 1e-9
    assert old.spent() == epsilon([release("counts", 2000)], 1e-9)


@pytest.mark.parametrize("statement", ["UPDATE entry SET body = '{}'", "DELETE FROM entry WHERE number = 3"])
def test_rows_cannot_be_changed_by_accident(tmp_path: Path, statement: str) -> None:
    path = filled(tmp_path)
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="never"):
        connection.execute(statement)


TAMPERINGS = {
    "cheaper noise": "UPDATE entry SET body = replace(body, '\"sigma\":5000', '\"sigma\":9000') WHERE number = 3",
    "one byte of a hash": "UPDATE entry SET hash = zeroblob(32) WHERE number = 2",
    "another release name beside the text": "UPDATE entry SET release = 'other' WHERE number = 3",
    "a row gone from the middle": "DELETE FROM entry WHERE number = 3",
    "the last row gone": "DELETE FROM entry WHERE number = 5",
    "all rows gone": "DELETE FROM entry",
    "the count gone": "DELETE FROM head",
    "the count changed": "UPDATE head SET number = 4",
    "the table gone": "DROP TABLE entry",
    "another version": "PRAGMA user_version = 2",
    "another application": "PRAGMA application_id = 1",
}


@pytest.mark.parametrize("statement", TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_tampering_is_found(tmp_path: Path, statement: str) -> None:
    path = filled(tmp_path)
    watching = opened(tmp_path, 100.0)
    tamper(path, statement)
    before = path.read_bytes()
    with pytest.raises(StateError):
        opened(tmp_path, 100.0)
    assert path.read_bytes() == before
    if "number = 3" not in statement and "number = 2" not in statement:
        # An object that has read these rows already looks at the last of them and at the count.
        with pytest.raises(StateError):
            watching.record("ab12", DIGEST, release("late", 5000))


def test_a_row_moved_from_another_ledger_is_found(tmp_path: Path) -> None:
    path, other = filled(tmp_path / "a"), filled(tmp_path / "b")
    tamper(
        path,
        f"ATTACH '{other}' AS other",
        "DELETE FROM entry WHERE number = 4",
        "INSERT INTO entry SELECT * FROM other.entry WHERE number = 4",
    )
    with pytest.raises(StateError, match="row 4"):
        opened(tmp_path / "a", 100.0)


@pytest.mark.parametrize("keep", [0, 1, 100, 4096, 5000])
def test_a_truncated_file_is_never_a_new_ledger(tmp_path: Path, keep: int) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StateError):
        opened(tmp_path, 100.0)
    assert path.stat().st_size == keep


def test_random_damage_is_found_or_harmless(tmp_path: Path) -> None:
    """One byte flipped anywhere in the pages: either the ledger refuses, or it reads exactly what was written."""
    path = filled(tmp_path)
    whole, entries = path.read_bytes(), opened(tmp_path, 100.0).entries()
    found = 0
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        for leftover in (tmp_path / "ledger.db-wal", tmp_path / "ledger.db-shm"):
            leftover.unlink(missing_ok=True)
        try:
            assert opened(tmp_path, 100.0).entries() == entries
        except StateError:
            found += 1
    assert found > 10


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"user,item\n1,2\n" * 1000)
    (tmp_path / "ledger.db").chmod(0o600)
    with pytest.raises(StateError):
        opened(tmp_path)


def test_a_vanished_ledger_is_not_replaced(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    (tmp_path / "ledger.db").unlink()
    with pytest.raises(StateError, match="no readable ledger"):
        ledger.record("ab12", DIGEST, release("counts", 5000))
    assert not (tmp_path / "ledger.db").exists()
    # Nor when a log without its ledger shows that there was one.
    (tmp_path / "ledger.db-wal").write_bytes(b"")
    with pytest.raises(StateError, match="expected the ledger itself"):
        opened(tmp_path)


def test_a_ledger_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.chmod(0o620)
    with pytest.raises(StateError, match="0600"):
        opened(tmp_path)


def test_threads_share_one_ledger(tmp_path: Path) -> None:
    ledger = opened(tmp_path, 3.0)
    permitted: list[str] = []

    def work(who: int) -> None:
        for i in range(6):
            try:
                ledger.record(f"job-{who}", DIGEST, release(f"r-{i}", 4000))
            except BudgetError:
                continue
            permitted.append(f"job-{who} r-{i}")

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(permitted) == sorted(f"{e.job_id} {e.release.name}" for e in ledger.entries())
    assert 0 < len(permitted) < 24
    assert ledger.spent() <= 3.0


def test_processes_cannot_overspend_together(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    # From no file at all: the first to come makes it. Each could spend 14 releases; the limit covers about 28 in all.
    running = [run_workload("race", str(path), str(who), "14") for who in range(3)]
    permitted = [line for process in running for line in process.communicate(timeout=120)[0].splitlines()]
    assert [process.returncode for process in running] == [0, 0, 0]
    ledger = Ledger(path, epsilon_limit=3.0, delta=DELTA)
    assert sorted(permitted) == sorted(f"{e.job_id} {e.release.name}" for e in ledger.entries())
    assert ledger.spent() <= 3.0
    with pytest.raises(BudgetError):
        ledger.record("ab12", DIGEST, release("one-more", 750, 100))
    assert 14 < len(permitted) < 42


def test_a_full_disk_refuses_and_keeps_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    done = run_workload("full", str(path), "40000")
    *permitted, last = done.communicate(timeout=120)[0].splitlines()
    assert done.returncode == 0
    assert last.startswith("refused") and "cannot be written" in last
    assert len(permitted) > 5
    recorded = [f"{e.job_id} {e.release.name}" for e in opened(tmp_path, 1000.0).entries()]
    assert recorded[: len(permitted)] == permitted
    assert len(recorded) <= len(permitted) + 1


def test_a_restored_copy_reads_the_same(tmp_path: Path) -> None:
    path = filled(tmp_path / "a")
    (tmp_path / "b").mkdir()
    shutil.copy(path, tmp_path / "b" / "ledger.db")
    assert opened(tmp_path / "b", 100.0).entries() == opened(tmp_path / "a", 100.0).entries()


def test_looking_at_a_ledger_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(StateError, match="no readable ledger"):
        Ledger.existing(path)
    assert list(tmp_path.iterdir()) == []
    ledger = Ledger(path, epsilon_limit=3.0, delta=1e-5)
    looked = Ledger.existing(path)
    assert (looked.epsilon_limit, looked.delta, looked.spent(), looked.entries()) == (3.0, 1e-5, 0.0, [])
    assert len(ledger.limit_changes()) == 1


def mixed(count: int) -> list[Release]:
    """As a gradient job makes them: sampled rounds after counts on all users, and an answered question."""
    rounds = [Release(name=f"round-{i}", shape=(4,), sensitivity=1000, sigma=1500, sampling=0.1) for i in range(count)]
    question = Release(name="question", shape=(9,), sensitivity=10, sigma=100, mechanism="discrete-laplace")
    return [release("counts", 4000), *rounds, question]


def test_mixed_mechanisms_compose_and_survive(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    job = mixed(20)
    ledger.check(job)
    for one in job:
        ledger.record("ab12", DIGEST, one)
    for view in (ledger, opened(tmp_path), Ledger.existing(tmp_path / "ledger.db")):
        assert [entry.release for entry in view.entries()] == job
        assert view.spent() == epsilon(job, DELTA)
    assert epsilon([job[0]], DELTA) < ledger.spent() < 10.0


def test_over_budget_is_refused_for_mixed_mechanisms(tmp_path: Path) -> None:
    """By `check` for whole jobs, by `record` one at a time, announced or not, up to the limit and not beyond."""
    job = mixed(60)
    limit = epsilon(job, DELTA) * 1.01
    ledger = opened(tmp_path, limit)
    ledger.check(job)
    with pytest.raises(BudgetError, match=r"from 0\.0000 to"):
        ledger.check([*job, *(one.model_copy(update={"name": f"more-{one.name}"}) for one in job)])
    for one in job:
        ledger.record("ab12", DIGEST, one)
    assert ledger.spent() <= limit
    for other in (opened(tmp_path, limit), ledger):
        with pytest.raises(BudgetError):
            while True:
                name = f"r-{len(other.entries())}"
                other.record("cd34", DIGEST, job[1].model_copy(update={"name": name}))
        assert limit * 0.97 < other.spent() <= limit
        for refused in (release("more"), job[-1].model_copy(update={"name": "more"})):
            with pytest.raises(BudgetError):
                other.record("ef56", DIGEST, refused)


def test_what_was_affordable_is_not_after_the_limit_or_delta_changed(tmp_path: Path) -> None:
    """A ledger remembers sums that fitted; the limit in force decides, also one that another object has set."""
    job = mixed(20)
    ledger = opened(tmp_path)
    ledger.check(job)
    opened(tmp_path, 0.05)
    with pytest.raises(BudgetError, match=r"expected at most 0\.05"):
        ledger.record("ab12", DIGEST, job[1])
    Ledger(tmp_path / "ledger.db", epsilon_limit=epsilon(job, DELTA), delta=1e-9)
    with pytest.raises(BudgetError, match="1e-09"):
        ledger.check(job)
    opened(tmp_path).check(job)
    ledger.record("ab12", DIGEST, job[1])


def test_two_jobs_at_once_share_the_budget(tmp_path: Path) -> None:
    """Each was affordable alone; interleaved, what is on record stays within the limit, and refusals come in time."""
    job = mixed(30)
    limit = epsilon(job, DELTA) * 1.2
    ledger = opened(tmp_path, limit)
    ledger.check(job)
    ledger.check(job)
    recorded = []
    with pytest.raises(BudgetError):
        for one in job:
            for job_id in ("ab12", "cd34"):
                ledger.record(job_id, DIGEST, one)
                recorded.append(one)
    assert [entry.release for entry in ledger.entries()] == recorded
    assert epsilon(recorded, DELTA) == ledger.spent() <= limit


def test_rows_of_earlier_versions_verify_and_count_as_what_they_were(tmp_path: Path) -> None:
    """Their releases name no mechanism and no sampling. The text below is as version 0.1 wrote it."""
    path = tmp_path / "ledger.db"
    opened(tmp_path)
    previous = sqlite_rows(path)[-1][4]
    body = (
        '{"at":"2031-01-02T03:04:05.678+00:00","digest":"' + DIGEST.hex() + '","job_id":"ab12","kind":"release",'
        '"number":2,"release":{"name":"counts","sensitivity":1000,"shape":[4,2],"sigma":4000}}'
    )
    link = hashlib.sha256(b"veil/ledger/v1\x00" + previous + body.encode()).digest()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO entry VALUES (2, 'ab12', 'counts', ?, ?)", (body, link))
        connection.execute("UPDATE head SET number = 2")
    ledger = opened(tmp_path)
    assert [entry.release for entry in ledger.entries()] == [release("counts", 4000)]
    assert ledger.spent() == epsilon([release("counts", 4000)], DELTA)
    ledger.record("cd34", DIGEST, mixed(1)[1])
    assert len(opened(tmp_path).entries()) == 2


def sqlite_rows(path: Path) -> list[tuple[int, str, str, str, bytes]]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.execute("SELECT number, job, release, body, hash FROM entry ORDER BY number"))


def test_thousands_of_entries_are_read_and_counted(tmp_path: Path) -> None:
    """Rows are appended in one transaction here; the ledger's own code makes their texts and their chain."""
    path = tmp_path / "ledger.db"
    ledger = opened(tmp_path, 100.0)
    state = ledger._read()
    jobs = [
        Release(name=f"r-{i}", shape=(4,), sensitivity=1000, sigma=3000 + i // 2500, sampling=0.05) for i in range(5000)
    ]
    jobs += [release(f"g-{i}", 90_000) for i in range(2000)]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for one in jobs:
            row = ledger_rows.following(state, ledger_rows.release_body("ab12", DIGEST, one), "ab12", one.name)
            connection.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", row)
            state = ledger_rows.Verified(number=row[0], hash=row[4])
        connection.execute("UPDATE head SET number = ?", (state.number,))
        connection.execute("COMMIT")
    assert len(ledger.entries()) == 7000
    assert ledger.spent() == epsilon(jobs, DELTA)
    ledger.record("cd34", DIGEST, mixed(1)[1])
    assert ledger.spent() > epsilon(jobs, DELTA)


def test_a_check_while_another_thread_records_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon reviews a job while another one pays: what one remembers may change under the other's eyes."""
    ledger, job = opened(tmp_path, 20.0), mixed(4)
    ledger.check(job)
    allows = _Affordable.allows

    def interrupted(known: _Affordable, part: Composition, limit: LimitChange) -> bool:
        ledger._affordable.append(known)
        return allows(known, part, limit) and False

    monkeypatch.setattr(_Affordable, "allows", interrupted)
    ledger.check(job)
