"""The shell around the state machine: one event at a time, written first, then told.

Guarantee: nothing is told to anybody before it is on disk; an event that cannot be written has not happened. Nothing
here waits for a party or for a watcher: their streams read from bounded outlets.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from coordinator import messages as m
from coordinator.convert import command_to_wire, welcome_to_wire
from coordinator.outlet import Outlet
from coordinator.rounds import step
from coordinator.schema import plan_of
from coordinator.states import Ended, Job, Phase, Rules, State, phase_of
from coordinator.store import Row, Store
from coordinator.watchers import Watchers
from veil.errors import InputError, StateError, VeilError
from veil.jobs.reports import Failure
from veil.jobs.spec import JobSpec, digest
from veil.wire.v1 import coordinator_pb2 as wire

TICK_S = 0.5
_LOG = logging.getLogger("veil.coordinator")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the coordinator takes on."""

    open_jobs: int = 32
    members: int = 64
    watchers: int = 32
    heartbeat_interval_ms: int = 5_000


@dataclass(frozen=True, slots=True)
class Line:
    """A party's stream: `session` tells its streams apart, `outlet` is what goes down."""

    party: str
    session: int
    outlet: Outlet[wire.JoinResponse]


def system_clock() -> Callable[[], int]:
    """Unix time in milliseconds that never goes back: wall clock at the start, steady clock from there on."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    return lambda: (time.monotonic_ns() + offset_ns) // 1_000_000


class Switchboard:
    """Holds the state and carries out commands. Calls may come from any thread."""

    def __init__(
        self,
        store: Store,
        *,
        rules: Rules,
        limits: Limits,
        clock: Callable[[], int] | None = None,
        tick_s: float = TICK_S,
    ) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock or system_clock()
        self._lock = threading.RLock()
        self._lines: dict[str, Line] = {}
        self._watchers = Watchers(limits.watchers)
        self._sessions = 0
        self._closed = False
        self._state = State(rules=rules, jobs={job.job_id: job for job in store.resume()})
        self._apply(m.Interrupted("the coordinator was restarted while the job ran"))
        self._tick_s = tick_s
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="coordinator-clock", daemon=True)
        self._ticker.start()

    # --- parties ----------------------------------------------------------------------------------------------------

    def join(self, party: str, address: str, software: str, outlet: Outlet[wire.JoinResponse]) -> Line:
        """Puts a party through: the welcome and what is on hand for it go into `outlet`; its older stream ends."""
        with self._lock:
            self._check_open()
            if party not in self._lines and len(self._lines) >= self._limits.members:
                raise StateError(f"got more than {self._limits.members} parties, expected at most that many")
            self._sessions += 1
            line = Line(party, self._sessions, outlet)
            outlet.put(welcome_to_wire(self._limits.heartbeat_interval_ms))
            older = self._lines.get(party)
            self._lines[party] = line
            try:
                self._apply(m.Joined(party, line.session, address, software), older)
            except BaseException:
                self._lines.pop(party)
                if older is not None:
                    self._lines[party] = older
                raise
            _LOG.info("%s joined from mesh address %s, Veil %s", party, address, software)
            return line

    def leave(self, line: Line, sentence: str) -> None:
        """The stream has ended; without effect when a newer one is up."""
        with self._lock:
            line.outlet.close()
            if self._lines.get(line.party) is not line:
                return
            del self._lines[line.party]
            _LOG.info("%s %s", line.party, sentence)
            self._apply(m.Left(line.party, line.session, sentence))

    def report(self, line: Line, event: m.PartyEvent) -> None:
        """Takes in what a party says on its stream, unless a newer stream is up."""
        with self._lock:
            if self._lines.get(line.party) is not line or self._closed:
                return
            if isinstance(event, m.JobEvent):
                self._recall(event.job_id)
            self._apply(event)  # type: ignore[arg-type]  # the classes of PartyEvent are those of Event

    def disown(self, line: Line, job_id: str) -> None:
        """Tells a party to stop a job that nobody here knows."""
        failure = Failure("STATE", "the coordinator does not know this job")
        line.outlet.put(command_to_wire(m.Stop(line.party, job_id, failure), "", b""))

    # --- operators --------------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, operator: str) -> Row:
        """Registers a job and proposes it. The same text again gives the job that it made, while that is open."""
        text = spec.text()
        with self._lock:
            self._check_open()
            known = self._store.find_digest(digest(text))
            if known is not None and isinstance(known.job, Ended):
                raise StateError(
                    f"got the text of job {known.job.job_id}, which has ended", hint="submit again with a new nonce"
                )
            if known is not None:
                return self.find(known.job.job_id)
            if self._state.open_jobs >= self._limits.open_jobs:
                raise StateError(
                    f"got a job beyond the {self._limits.open_jobs} that may be open at once",
                    hint="cancel one, or raise max_open_jobs in the coordinator's config",
                )
            plan = plan_of(secrets.token_hex(16), spec, self._clock())
            self._apply(m.Submitted(plan, operator), text=text)
            return self.find(plan.job_id)

    def cancel(self, job_id: str, operator: str) -> Phase:
        """Stops a job that has not ended; returns its phase afterwards."""
        with self._lock:
            self._check_open()
            self.find(job_id)
            self._apply(m.CancelAsked(job_id, operator))
            return phase_of(self.find(job_id).job)

    def find(self, job_id: str) -> Row:
        """The job as it stands; raises `InputError` when there is none of that identifier."""
        with self._lock:
            row = self._store.find(job_id)
            if row is None:
                raise InputError(f"got job {job_id}, expected one that is registered here", hint="see `veil job list`")
            return Row(self._state.jobs.get(job_id, row.job), row.text)

    def job(self, job_id: str) -> Job | None:
        """The job as it stands, or None."""
        with self._lock:
            live = self._state.jobs.get(job_id)
            if live is not None:
                return live
            row = self._store.find(job_id)
            return None if row is None else row.job

    def newest(self, limit: int) -> list[Row]:
        """The newest jobs first."""
        with self._lock:
            return [Row(self._state.jobs.get(row.job.job_id, row.job), row.text) for row in self._store.newest(limit)]

    def watch(self, job_id: str) -> Outlet[wire.WatchJobResponse]:
        """The history of a job and what comes after it, until the job ends; close the outlet to stop watching."""
        with self._lock:
            self._check_open()
            row = self.find(job_id)
            return self._watchers.add(job_id, self._store.history(job_id), ended=isinstance(row.job, Ended))

    # --- the machine ------------------------------------------------------------------------------------------------

    def _apply(self, event: m.Event, older: Line | None = None, *, text: str = "") -> None:
        now_ms = self._clock()
        after, commands = step(self._state, event, now_ms)
        records = [command for command in commands if isinstance(command, m.Record)]
        changed = {record.job_id: after.jobs[record.job_id] for record in records}
        entries = []
        if records:
            entries = self._store.commit(list(changed.values()), records, now_ms, text=text)
        self._state = after.without_settled()
        for entry in entries:
            record = entry.record
            level = logging.INFO if record.progress is None else logging.DEBUG
            _LOG.log(level, "job %s %s: %s", record.job_id[:8], record.phase.name, record.line)
            self._watchers.show(entry)
        for command in commands:
            self._carry_out(command, now_ms, older)

    def _carry_out(self, command: m.Command, now_ms: int, older: Line | None) -> None:
        match command:
            case m.Record():
                pass  # written and shown before everything else
            case m.Refresh():
                self._watchers.refresh(command, now_ms)
            case m.Close():
                self._watchers.end(command.job_id)
            case m.HangUp():
                self._hang_up(command, older)
            case m.Propose() | m.Start() | m.Stop() | m.Confirm():
                line = self._lines.get(command.party)
                if line is not None:
                    row = self._store.find(command.job_id) if isinstance(command, m.Propose) else None
                    text, job_digest = (row.text, row.job.plan.digest) if row else ("", b"")
                    line.outlet.put(command_to_wire(command, text, job_digest))

    def _hang_up(self, command: m.HangUp, older: Line | None) -> None:
        for line in (older, self._lines.get(command.party)):
            if line is not None and line.session == command.session:
                _LOG.info("%s %s: its stream is ended", command.party, command.sentence)
                line.outlet.close(StateError(f"{command.party}: {command.sentence}"))
                if self._lines.get(command.party) is line:
                    del self._lines[command.party]

    def _recall(self, job_id: str) -> None:
        """Puts a job that has ended long ago back before the machine, which then answers late reports of it."""
        if job_id not in self._state.jobs:
            row = self._store.find(job_id)
            if row is not None:
                jobs = {**self._state.jobs, job_id: row.job}
                self._state = State(self._state.rules, self._state.members, jobs)

    def _tick(self) -> None:
        while not self._stopping.wait(self._tick_s):
            with self._lock:
                if self._closed:
                    return
                try:
                    self._apply(m.Ticked())
                except VeilError:
                    _LOG.exception("the clock's tick could not be written; it will be tried again")

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("got a call while the coordinator stops, expected later", hint="try again in a moment")

    def close(self) -> None:
        """Fails what runs, tells everybody, ends all streams and closes the store."""
        self._stopping.set()
        with self._lock:
            if self._closed:
                return
            try:
                self._apply(m.Interrupted("the coordinator was stopped while the job ran"))
            finally:
                self._closed = True
                for line in self._lines.values():
                    line.outlet.close(StateError("the coordinator stops", hint="join again in a moment"))
                self._watchers.close(StateError("the coordinator stops", hint="watch again in a moment"))
                self._lines.clear()
        self._ticker.join(timeout=5)
        self._store.close()
