"""Whether a release may open: only once it is paid for, and once.

Guarantee: "A round", step (4) of docs/protocol.md: listed by the job, asked for the first time, within budget, written
down; then, and only then, yes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from veil.errors import RevealError
from veil.jobs.spec import JobSpec
from veil.privacy.ledger import Ledger

_LOG = logging.getLogger("veil.party.permits")


class Permits:
    """Of one job at one party."""

    def __init__(self, ledger: Ledger, job_id: str, spec: JobSpec, digest: bytes) -> None:
        self._ledger, self._job_id, self._spec, self._digest = ledger, job_id, spec, digest
        self._given: set[str] = set()

    def __repr__(self) -> str:
        return f"Permits({len(self._given)} given)"

    def permit(self, names: Sequence[str]) -> None:
        """Returns when all of these releases are paid for; raises and pays for none otherwise."""
        for name in names:
            if name in self._given:
                raise RevealError(f"got release {name!r} a second time, expected each once")
        releases = [self._spec.release(name) for name in names]
        self._ledger.record(self._job_id, self._digest, *releases)
        self._given.update(names)
        for one in releases:
            multiplier = one.sigma / one.sensitivity
            _LOG.info("job %s: %s paid for, noise multiplier %.3f", self._job_id[:8], one.name, multiplier)
