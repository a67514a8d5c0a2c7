"""How parties on gloo find each other: addresses pass over a transport that has shown who its peers are.

Guarantee: what gloo connects to is what the peer of that name has told over that transport, of the length that own
addresses have. No store of torch.distributed is opened to the network, and no key but a party's own is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from veil.errors import ConfigError, InputError, PeerLost, ProtocolMismatch, StateError, VeilError
from veil.mpc.transport import PeerSilent, Transport

_ADDRESS_BYTES = 64 * 2**10


def meet(meeting: Transport, names: Sequence[str], host: str, timeout_s: float) -> Any:
    """The process group of gloo that joins the parties, every pair of which is up.

    meeting: how addresses are exchanged; nothing else may use it meanwhile. host: own address or name, on which gloo
    opens a port. Raises `ConfigError` for a host that this machine does not have, `PeerLost` or `ProtocolMismatch` for
    peers.
    """
    if len(names) != meeting.world_size:
        raise InputError(f"got {len(names)} names, expected one for each of {meeting.world_size} parties")
    backend: Any = getattr(dist, "ProcessGroupGloo", None)
    if backend is None:
        raise ConfigError("got a torch without gloo, expected one that has it")
    try:
        device = backend.create_device(hostname=host)
    except RuntimeError as error:
        reason = "this torch has no such gloo" if "unsupported" in str(error) else "gloo cannot listen there"
        raise ConfigError(f"got host {host[:80]!r} for gloo, expected one of this machine: {reason}") from None
    options = backend._Options()
    options._devices, options._threads, options._timeout = [device], 1, timedelta(seconds=timeout_s)
    book = AddressBook(meeting, names, timeout_s)
    try:
        return backend(book, meeting.rank, meeting.world_size, options)
    except (RuntimeError, VeilError):
        if book.error is not None:
            raise book.error from None
        others = tuple(name for rank, name in enumerate(names) if rank != meeting.rank)
        raise PeerLost(
            f"got no gloo connection with {', '.join(others)} in {timeout_s:g} s, expected one with every party",
            culprits=others,
            hint="check that the parties' gloo hosts reach each other on any port",
        ) from None


class AddressBook(dist.Store):  # type: ignore[name-defined, misc]
    """What gloo meets through: each party's addresses, exchanged over a transport that knows its peers."""

    def __init__(self, meeting: Transport, names: Sequence[str], timeout_s: float) -> None:
        super().__init__()
        self._meeting, self._names, self._timeout_s = meeting, names, timeout_s
        self._found: dict[str, bytes] = {}
        self.error: VeilError | None = None
        """Why an exchange failed: gloo passes on no more than that one did."""

    def set(self, key: str, value: str | bytes) -> None:
        """Tells own addresses to every peer."""
        own = value.encode("latin-1") if isinstance(value, str) else bytes(value)
        space, _, rank = key.rpartition("/")
        if rank != str(self._meeting.rank) or key in self._found or not 0 < len(own) <= _ADDRESS_BYTES:
            raise StateError("got another key of gloo than that of own addresses, expected this version's of torch")
        self._found[key] = own
        try:
            for peer in range(self._meeting.world_size):
                if peer != self._meeting.rank:
                    self._meeting.send(peer, own)
            for peer in range(self._meeting.world_size):
                if peer != self._meeting.rank:
                    self._found[f"{space}/{peer}"] = self._addresses(peer, len(own))
        except VeilError as error:
            self.error = error
            raise

    def _addresses(self, peer: int, size_bytes: int) -> bytes:
        name = self._names[peer]
        try:
            found = bytes(self._meeting.recv(peer, self._timeout_s))
        except PeerSilent:  # which may know ranks only
            raise PeerLost(
                f"got no address of gloo from {name} in {self._timeout_s:g} s, expected it",
                culprits=(name,),
                hint=f"see whether {name} runs and is overloaded",
            ) from None
        # All have as many pairs: other lengths are of other versions of torch, whose addresses gloo would misread.
        if len(found) != size_bytes:
            raise ProtocolMismatch(
                f"got addresses of {len(found)} bytes from {name}, expected {size_bytes}",
                culprits=(name,),
                hint="the parties need the same version of torch",
            )
        return found

    def get(self, key: str) -> bytes:
        """The addresses under this key."""
        return self._found[key]

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        return all(key in self._found for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Nothing to wait for: all addresses have come when own ones have gone."""
        if not self.check(keys):
            raise StateError("got a wait of gloo for addresses that nobody tells, expected this version's of torch")
