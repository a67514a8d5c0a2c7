"""The rounds of one job at one party: own sum, secure opening, public state, until the model stands.

Guarantee: the only thing computed from rows that this module hands on is the integer sum given to `Rounds.open`; all
else is a function of what has opened. Steps are numbered as in docs/protocol.md, "A round" and "Publishing".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from veil.errors import ProtocolMismatch
from veil.jobs.spec import JobSpec, Release
from veil.trainers.rows import PartyRows
from veil.trainers.seam import Algorithm, PublicState

_LEAD = 0


class Rounds(Protocol):
    """What the trainer needs of the secure session; a central twin runs the same trainer in tests."""

    @property
    def rank(self) -> int:
        """Own rank."""
        ...

    def open(self, release: Release, own: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The noised total over all parties, int64[release.shape]; pays at the ledger before a byte leaves."""
        ...

    def broadcast(self, data: bytes | None) -> bytes:
        """Public bytes of the lead (rank 0), at every party. The lead passes them, the others pass None."""
        ...


def train(
    spec: JobSpec,
    algorithm: Algorithm,
    rows: PartyRows,
    rounds: Rounds,
    finished: Callable[[str], None],
) -> PublicState:
    """Runs every release of the job and returns the last public state, the same at every party.

    `finished` is told the name of each step when it is done.
    """
    state: PublicState = {}
    for step in algorithm.steps:
        release = spec.release(step)
        own = algorithm.contribution(step, rows, state)  # (1)
        opened = rounds.open(release, own)  # (2) to (5)
        del own
        lead = _saved(algorithm.advance(step, opened, state)) if rounds.rank == _LEAD else None
        state = _loaded(rounds.broadcast(lead), spec)  # (6)
        finished(step)
    return state


def _saved(state: PublicState) -> bytes:
    # The format takes memory as it lies: a column-major array would arrive with its entries out of place.
    return save_arrays({name: np.ascontiguousarray(array) for name, array in state.items()})


def _loaded(data: bytes, spec: JobSpec) -> PublicState:
    try:
        arrays = load_arrays(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ProtocolMismatch(
            f"got a public state that does not parse: {error}", culprits=(spec.parties[_LEAD],)
        ) from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ProtocolMismatch(
                f"got non-finite numbers in the public state {name!r}", culprits=(spec.parties[_LEAD],)
            )
    return dict(arrays)
