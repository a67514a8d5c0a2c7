"""Noised sums of a job over CrypTen's sharing, each paid for at the party's ledger before anything of it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from veil.errors import WireError
from veil.jobs.spec import JobSpec, Release
from veil.mpc.provider import DealerProvider, party_noise
from veil.mpc.relay import RelayTransport
from veil.mpc.session import Session
from veil.privacy.sources import party_release

_PERMIT_TIMEOUT_S = 60.0


class SecureRounds:
    """`party.worker.trainer.Rounds` over a CrypTen session: noise inside the sharing, the ledger before the opening."""

    def __init__(
        self, session: Session, provider: DealerProvider, spec: JobSpec, rank: int, daemon: RelayTransport
    ) -> None:
        self._session = session
        self._provider = provider
        self._noise, self._parties = spec.privacy.noise, len(spec.parties)
        self._daemon = daemon
        self.rank = rank

    def open(self, release: Release, own: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """See `party.worker.trainer.Rounds.open`."""
        if self._noise.source == "dealer":
            noise = self._provider.noise_share(release)
        else:
            noise = party_noise(party_release(release, self._noise, self._parties))
        opened = self._session.open_noised_sum(release, torch.from_numpy(own), noise, self.permit)
        return np.asarray(opened.numpy(), dtype=np.int64)

    def broadcast(self, data: bytes | None) -> bytes:
        """See `party.worker.trainer.Rounds.broadcast`."""
        public = self._session.broadcast_public(data, src=0)
        if not isinstance(public, bytes):
            raise WireError("got a public tensor of the lead, expected public bytes")
        return public

    def permit(self, release: Release) -> None:
        """Returns when the daemon has put the release on the ledger; raises to refuse."""
        self.pay((release,))()

    def pay(self, releases: Sequence[Release]) -> Callable[[], None]:
        """Asks the daemon to put releases on the ledger, all or none; what it returns waits for that, or raises."""
        answered = self._daemon.ask("permit", {"releases": [release.name for release in releases]})

        def paid() -> None:
            answered(_PERMIT_TIMEOUT_S)

        return paid
