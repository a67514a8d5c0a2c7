"""Who watches which job, and what they are shown: its history, what comes after it, and now and then newer numbers.

Guarantee: showing waits for nobody; outlets are bounded, and who does not read is closed by its own outlet. Calls come
one at a time (`coordinator.switchboard` holds its lock).
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator import messages as m
from coordinator.convert import entry_to_wire, refresh_to_wire
from coordinator.outlet import Outlet
from coordinator.store import Entry
from veil.errors import StateError
from veil.wire.v1 import coordinator_pb2 as wire

_REFRESH_INTERVAL_MS = 250
_MOST_LIVE_EVENTS = 1_000


class Watchers:
    """The outlets of all watched jobs; `most`: of all jobs together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._outlets: dict[str, list[Outlet[wire.WatchJobResponse]]] = {}
        self._sequences: dict[str, int] = {}
        self._refreshed: dict[str, dict[str, int]] = {}

    def __repr__(self) -> str:
        return f"Watchers({sum(map(len, self._outlets.values()))} of {self._most})"

    def add(self, job_id: str, history: Sequence[Entry], *, ended: bool) -> Outlet[wire.WatchJobResponse]:
        """An outlet with a job's history, and, unless it has ended, with what is shown of it from now on."""
        self._outlets = {
            key: kept for key, outlets in self._outlets.items() if (kept := [one for one in outlets if not one.closed])
        }
        if sum(map(len, self._outlets.values())) >= self._most:
            raise StateError(f"got more than {self._most} watchers, expected at most that many")
        outlet: Outlet[wire.WatchJobResponse] = Outlet(len(history) + _MOST_LIVE_EVENTS)
        for entry in history:
            outlet.put(entry_to_wire(entry))
        if ended:
            outlet.close()
        else:
            self._sequences[job_id] = history[-1].sequence
            self._outlets.setdefault(job_id, []).append(outlet)
        return outlet

    def show(self, entry: Entry) -> None:
        """Something happened to a job."""
        job_id = entry.record.job_id
        for outlet in self._outlets.get(job_id, ()):
            self._sequences[job_id] = entry.sequence
            outlet.put(entry_to_wire(entry))

    def refresh(self, command: m.Refresh, now_ms: int) -> None:
        """Shows newer numbers, a few times a second at most: a watcher's outlet is bounded."""
        outlets = self._outlets.get(command.job_id, ())
        shown = self._refreshed.setdefault(command.job_id, {}) if outlets else {}
        if not outlets or now_ms - shown.get(command.party, 0) < _REFRESH_INTERVAL_MS:
            return
        shown[command.party] = now_ms
        message = refresh_to_wire(command, self._sequences[command.job_id], now_ms)
        for outlet in outlets:
            outlet.put(message)

    def end(self, job_id: str) -> None:
        """A job has ended: its watchers have seen everything."""
        for outlet in self._outlets.pop(job_id, []):
            outlet.close()
        self._sequences.pop(job_id, None)
        self._refreshed.pop(job_id, None)

    def close(self, error: StateError) -> None:
        """Ends all outlets with an error."""
        for outlets in self._outlets.values():
            for outlet in outlets:
                outlet.close(error)
