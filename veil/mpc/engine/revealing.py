"""The one way in which a value of the engine becomes known: listed by the job, stated by all parties, logged.

Guarantee: `open` sends nothing unless the job's policy lists this name with this shape and it has not been opened, and
every party has stated that it is about to open the same under the same job; what opened is logged by digest.
"""

from __future__ import annotations

from torch import Tensor

from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.values import Value
from veil.mpc.policy import Opening, RevealPolicy


class Revealing:
    """Openings of one job at one party."""

    def __init__(self, communicator: TensorCommunicator, policy: RevealPolicy, job_digest: bytes) -> None:
        self._communicator = communicator
        self._policy = policy
        self._digest = job_digest

    def __repr__(self) -> str:
        return f"Revealing({len(self._policy.log)} opened)"

    @property
    def log(self) -> tuple[Opening, ...]:
        """Everything opened so far, in order."""
        return self._policy.log

    def open(self, engine: Engine, name: str, value: Value, *, mechanism: str) -> Tensor:
        """int64 of the value's shape, over 2^value.bits, at every party. Raises `RevealError`, `ProtocolMismatch`.

        mechanism: for the log, what makes this opening private.
        """
        self._policy.admit_opening(name, value.shape)
        self._communicator.agree(b"engine-open/" + self._digest + f"/{name}/{value.shape}/{value.bits}".encode())
        opened = engine.combine(value)
        self._policy.record(name, mechanism, opened)
        return opened
