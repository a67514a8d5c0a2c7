"""Whole runs of the coordinator as readable transcripts (`*.txt` beside this file), in the manner of etcd's raft.

A transcript is a sequence of blocks: one line that says what happens, `----`, and what the coordinator does about it.
Blocks end at a blank line; lines that begin with `#` are comments. The machine is the real one, over a real store that
is closed and opened again at `restart`. After a change that is meant, run with REWRITE_TRANSCRIPTS=1 and read the diff.

    submit JOB PARTY...            sign JOB PARTY        dispute JOB PARTY       refuse JOB PARTY SENTENCE
    join PARTY                     leave PARTY           heartbeat PARTY...      progress JOB PARTY STEP DONE/TOTAL
    done JOB PARTY MODEL [EPSILON] fail JOB PARTY CODE [CULPRIT,...]             cancel JOB
    wait DURATION (time passes)    keep DURATION (time passes, with heartbeats)     restart                 state
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator import messages as m
from coordinator.rounds import step
from coordinator.schema import plan_of
from coordinator.states import Ended, Rules, State, phase_of
from coordinator.store import Store
from veil.jobs.reports import Failure, Outcome, Progress
from veil.jobs.signing import Approval
from veil.jobs.spec import Catalogue, JobSpec, Noise, Privacy, Release, SubspaceTrainer

_HERE = Path(__file__).parent
_TICK_MS = 500


def _spec(name: str, parties: tuple[str, ...]) -> JobSpec:
    return JobSpec(
        name=name,
        nonce=hashlib.sha256(name.encode()).hexdigest()[:32],
        consortium="trial",
        parties=parties,
        dealer="main",
        catalogue=Catalogue(digest="sha256:" + "0" * 64, items=10, features=3),
        privacy=Privacy(epsilon=3.0, delta=1e-6, noise=Noise(source="dealer")),
        trainer=SubspaceTrainer(dimensions=2, content_dimensions=1, rounds=1, clip=0.5, popularity_power=0.2),
        releases=(
            Release(name="counts", shape=(10,), sensitivity=10, sigma=30),
            Release(name="round-1", shape=(10, 2), sensitivity=10, sigma=40),
        ),
        versions={"veil": "0.1.0"},
    )


def _milliseconds(text: str) -> int:
    for unit, factor in (("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)):
        if text.endswith(unit) and text.removesuffix(unit).replace(".", "").isdigit():
            return round(float(text.removesuffix(unit)) * factor)
    raise AssertionError(f"not a duration: {text}")


class Run:
    """One transcript at work."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "store.sqlite"
        self._store = Store(self._path)
        self._state = State(rules=Rules())
        self._now_ms = 1_000_000
        self._names: dict[str, str] = {}
        self._sessions: dict[str, int] = {}
        self._session = 0

    def close(self) -> None:
        self._store.close()

    def perform(self, line: str) -> list[str]:
        verb, *words = line.split()
        action: Callable[..., list[str]] = getattr(self, f"_do_{verb}")
        return action(*words)

    def _apply(self, event: m.Event, text: str = "") -> list[str]:
        before = self._state
        frozen = repr(before)
        after, commands = step(before, event, self._now_ms)
        again = step(before, event, self._now_ms)
        assert (after, commands) == again, "the same event gave two results"
        assert repr(before) == frozen, "the state that went in was changed"
        records = [command for command in commands if isinstance(command, m.Record)]
        touched = {record.job_id for record in records}
        unrecorded = {
            key for key in after.jobs if after.jobs[key] is not before.jobs.get(key) and key not in touched
        } - {command.job_id for command in commands if isinstance(command, m.Refresh)}
        assert not unrecorded, "a job changed without a record, so that the store would not know"
        if records:
            self._store.commit([after.jobs[key] for key in touched], records, self._now_ms, text=text)
        self._state = after.without_settled()
        return [self._shown(command) for command in commands]

    def _job(self, name: str) -> str:
        job_id = next(key for key, value in self._names.items() if value == name)
        if job_id not in self._state.jobs:
            row = self._store.find(job_id)
            assert row is not None
            self._state = State(self._state.rules, self._state.members, {**self._state.jobs, job_id: row.job})
        return job_id

    # --- what happens -----------------------------------------------------------------------------------------------

    def _do_submit(self, name: str, *parties: str) -> list[str]:
        spec = _spec(name, parties)
        job_id = f"{len(self._names) + 1:032x}"
        self._names[job_id] = name
        return self._apply(m.Submitted(plan_of(job_id, spec, self._now_ms), "olga"), spec.text())

    def _do_join(self, party: str) -> list[str]:
        self._session += 1
        self._sessions[party] = self._session
        return self._apply(m.Joined(party, self._session, f"{party}:7100", "0.1.0"))

    def _do_leave(self, party: str) -> list[str]:
        return self._apply(m.Left(party, self._sessions[party], "is gone"))

    def _do_heartbeat(self, *parties: str) -> list[str]:
        return [line for party in parties for line in self._apply(m.Heard(party))]

    def _do_sign(self, name: str, party: str) -> list[str]:
        approval = Approval(party, b"signature of " + party.encode(), b"certificate")
        return self._apply(m.Signed(party, self._job(name), approval))

    def _do_dispute(self, name: str, party: str) -> list[str]:
        return self._apply(m.Disputed(party, self._job(name), f"the signature of {party} does not fit"))

    def _do_refuse(self, name: str, party: str, *sentence: str) -> list[str]:
        return self._apply(m.Refused(party, self._job(name), Failure("POLICY", " ".join(sentence))))

    def _do_progress(self, name: str, party: str, step_name: str, share: str) -> list[str]:
        done, total = map(int, share.split("/"))
        return self._apply(m.Progressed(party, self._job(name), Progress(step_name, done, total)))

    def _do_done(self, name: str, party: str, model: str, epsilon: str = "3") -> list[str]:
        outcome = Outcome(hashlib.sha256(model.encode()).digest(), round(float(epsilon) * 1e6), "1e-06")
        return self._apply(m.Finished(party, self._job(name), outcome))

    def _do_fail(self, name: str, party: str, code: str, culprits: str = "") -> list[str]:
        sentence = f"lost {culprits}" if culprits else "its worker broke"
        named = tuple(culprits.split(",")) if culprits else ()
        return self._apply(m.Broke(party, self._job(name), Failure(code, sentence, named)))

    def _do_cancel(self, name: str) -> list[str]:
        return self._apply(m.CancelAsked(self._job(name), "olga"))

    def _do_wait(self, duration: str) -> list[str]:
        end_ms = self._now_ms + _milliseconds(duration)
        lines: list[str] = []
        # long waits in longer ticks: the machine must not depend on how often it is asked
        tick_ms = max(_TICK_MS, _milliseconds(duration) // 100)
        while self._now_ms < end_ms:
            self._now_ms = min(end_ms, self._now_ms + tick_ms)
            lines += self._apply(m.Ticked())
        return lines

    def _do_keep(self, duration: str) -> list[str]:
        end_ms = self._now_ms + _milliseconds(duration)
        lines: list[str] = []
        while self._now_ms < end_ms:
            self._now_ms = min(end_ms, self._now_ms + 10_000)
            for party in self._state.members:
                lines += self._apply(m.Heard(party))
            lines += self._apply(m.Ticked())
        return lines

    def _do_restart(self) -> list[str]:
        self._store.close()
        self._store = Store(self._path)
        self._state = State(rules=Rules(), jobs={job.job_id: job for job in self._store.resume()})
        self._sessions.clear()
        return self._apply(m.Interrupted("the coordinator was restarted while the job ran"))

    def _do_state(self) -> list[str]:
        lines = [f"joined: {', '.join(sorted(self._state.members)) or 'nobody'}"]
        for job_id, name in self._names.items():
            row = self._store.find(job_id)
            assert row is not None
            job = self._state.jobs.get(job_id, row.job)
            owed = f", owed to {', '.join(sorted(job.owed))}" if isinstance(job, Ended) and job.owed else ""
            signed = f", signed by {', '.join(job.signed_by)}" if job.unsigned and job.signed_by else ""
            lines.append(f"{name}: {type(job).__name__} ({phase_of(job).name}){signed}{owed}")
        return lines

    # --- what the coordinator does ----------------------------------------------------------------------------------

    def _shown(self, command: m.Command) -> str:
        match command:
            case m.Record():
                about = f" <{command.party}>" if command.party else ""
                failure = _failure(command.failure) if command.failure else ""
                return f"record {self._names[command.job_id]} {command.phase.name}{about}: {command.line}{failure}"
            case m.Propose():
                return f"  to {command.party}: consider {self._names[command.job_id]}"
            case m.Start():
                signed = ", ".join(approval.party for approval in command.approvals)
                peers = ", ".join(address for _, address in command.peers)
                return f"  to {command.party}: start {self._names[command.job_id]}, signed by {signed}, peers {peers}"
            case m.Stop():
                return f"  to {command.party}: stop {self._names[command.job_id]}{_failure(command.failure)}"
            case m.Confirm():
                return f"  to {command.party}: {self._names[command.job_id]} is confirmed"
            case m.HangUp():
                return f"  to {command.party}: hang up, {command.sentence}"
            case m.Refresh():
                return f"refresh {self._names[command.job_id]} <{command.party}>: {command.progress.step}"
            case m.Close():
                return f"close {self._names[command.job_id]}"


def _failure(failure: Failure) -> str:
    return f" [{failure.code}; at fault: {', '.join(failure.culprits) or 'not known'}]"


def _blocks(text: str) -> list[tuple[list[str], str]]:
    """(comment lines before it, what happens) of each block."""
    blocks, comments, inside = [], [], False
    for line in text.splitlines():
        if not line.strip():
            inside = False
            if comments and comments[-1] != "":
                comments.append("")
        elif line.startswith("#") and not inside:
            comments.append(line)
        elif not inside and line != "----":
            blocks.append((comments, line))
            comments, inside = [], True
    return blocks


@pytest.mark.parametrize("path", sorted(_HERE.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    run = Run(tmp_path)
    lines = []
    try:
        for comments, command in _blocks(text):
            lines += [*comments, command, "----", *(run.perform(command) or ["ok"]), ""]
    finally:
        run.close()
    replayed = "\n".join(lines)
    if os.environ.get("REWRITE_TRANSCRIPTS"):
        path.write_text(replayed)
    assert replayed == text


def test_there_are_transcripts() -> None:
    assert len(list(_HERE.glob("*.txt"))) >= 10
