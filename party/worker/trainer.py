"""The rounds of one job at one party: own sum, secure opening, public state, until the model stands.

Guarantee: the only thing computed from rows that this module hands on is the integer sum given to `Rounds.open`; all
else is a function of what has opened. Where the public state is an exact function of the openings (`exact_state`, as
for questions), every party works it out for itself and believes the lead in nothing. Steps are numbered as in
docs/protocol.md, "A round" and "Publishing".
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

    `finished` is told the name of each step when it is done. Raises `ProtocolMismatch` that names the lead when its
    state does not parse, or is not what opened here where that can be told.
    """
    leads, exact = rounds.rank == _LEAD, bool(getattr(algorithm, "exact_state", False))
    state: PublicState = {}
    for step in algorithm.steps:
        release = spec.release(step)
        own = algorithm.contribution(step, rows, state)  # (1)
        opened = rounds.open(release, own)  # (2) to (5)
        del own
        advanced = algorithm.advance(step, opened, state) if leads or exact else {}
        state = shared(rounds, spec, advanced if leads else None)  # (6)
        if exact:
            _check_same(step, state, advanced, spec)
        finished(step)
    return state


def shared(rounds: Rounds, spec: JobSpec, state: PublicState | None) -> PublicState:
    """The lead's public state at every party; the others pass None. Raises `ProtocolMismatch`."""
    return _loaded(rounds.broadcast(None if state is None else _saved(state)), spec)


def _check_same(step: str, given: PublicState, own: PublicState, spec: JobSpec) -> None:
    fits = given.keys() == own.keys() and all(
        given[name].dtype == array.dtype and np.array_equal(given[name], array) for name, array in own.items()
    )
    if not fits:
        raise ProtocolMismatch(
            f"got a public state after {step} that is not what opened here, expected the same at every party",
            culprits=(spec.parties[_LEAD],),
            hint="the lead states another total than it saw, or a party sent different shares to different parties",
        )


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
