"""The one way in which a value of the engine becomes known: listed by the job, stated by all parties, logged.

Guarantee: `open` and `open_to` send nothing unless the job's policy lists this name with this shape and recipient and
it has not been opened, and every party has stated that it is about to open the same under the same job; what `open`
opened is logged by digest, of `open_to` that it was done.

What `open_to` sends. A party's share of a value may be its own input as it stands (`Engine.own` shares without a
message), so each party adds its share of zero before it sends: z_i from one stream for each pair of parties
(`veil.mpc.randomness`, where the argument stands). The messages of the honest parties H are then uniform among all with
their sum. Whoever does not hold the keys of a pair sees uniform numbers; the recipient, with any others that pool what
they have, learns the sum over H of what H's parties hold, which is the opened value less what the colluders hold
themselves. With n - 1 colluders that sum is the one honest party's share, which they compute from the opened value in
any protocol. Keys are drawn for one `Zeros` each and its streams move on, so no share of zero serves twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from veil.errors import StateError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.values import Value
from veil.mpc.keys import agree_on_streams
from veil.mpc.policy import Opening, RevealPolicy


class Zeros(Protocol):
    """Where shares of zero come from."""

    def share(self, shape: Sequence[int]) -> Tensor:
        """This party's part of a fresh sharing of zero, int64."""
        ...


class PairwiseZeros:
    """Shares of zero from a stream for each pair of parties; keys of this object alone."""

    def __init__(self, communicator: TensorCommunicator, job_digest: bytes) -> None:
        """Agrees on keys with every peer; one round."""
        streams = agree_on_streams(communicator, job_digest)
        self._lower, self._higher = streams["prev"], streams["next"]

    def __repr__(self) -> str:
        return "PairwiseZeros()"

    def share(self, shape: Sequence[int]) -> Tensor:
        """See `Zeros.share`."""
        return self._lower.ring(shape) - self._higher.ring(shape)


class Revealing:
    """Openings of one job at one party. zeros: needed by `open_to` alone."""

    def __init__(
        self,
        communicator: TensorCommunicator,
        policy: RevealPolicy,
        job_digest: bytes,
        *,
        zeros: Zeros | None = None,
    ) -> None:
        self._communicator = communicator
        self._policy = policy
        self._digest = job_digest
        self._zeros = zeros

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

    def open_to(self, engine: Engine, name: str, value: Value, recipient: int, *, mechanism: str) -> Tensor | None:
        """As `open`, at the party of rank `recipient` alone; None elsewhere. Two rounds.

        Raises `StateError` when this object has no shares of zero: a share as it is may be the party's own input.
        """
        if self._zeros is None:
            raise StateError("got no shares of zero, expected some: a share alone would show what its party holds")
        to = self._communicator.names[recipient]
        self._policy.admit_opening(name, value.shape, to)
        statement = f"/{name}/{value.shape}/{value.bits}/to/{to}"
        self._communicator.agree(b"engine-open/" + self._digest + statement.encode())
        opened = engine.combine_at(value, self._zeros.share(value.shape), recipient)
        self._policy.record_directed(name, value.shape, mechanism, to, opened)
        return opened
