"""Which of a server's offers a client takes.

Guarantee: only parameter sets that are known here by name are ever taken (`he_inference.exchange` has checked the
rest).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from he_inference import parameters
from he_inference.exchange import Offer
from veil.errors import ConfigError, StateError

# Layouts that are asked with a user vector.
_KINDS = ("session", "keyless")


@dataclass(frozen=True)
class Wishes:
    """What a client wants of an offer. Raises `ConfigError`.

    one_shot: no keys at the server, so a keyless offer first. from_history: histories travel, encrypted, not vectors.
    sets: names of the parameter sets that will do; None for all that are known here.
    """

    one_shot: bool = False
    from_history: bool = False
    sets: Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.one_shot and self.from_history:
            raise ConfigError("got one_shot and from_history, expected one of them: a history is asked with keys")
        if self.sets is None:
            return
        if isinstance(self.sets, str) or not self.sets or not set(self.sets) <= set(parameters.NAMES):
            raise ConfigError(f"got parameter sets {self.sets!r}, expected some of {', '.join(parameters.NAMES)}")

    def choose(self, offers: Sequence[Offer], peer: str) -> Offer:
        """The first offer, in the server's order, of the preferred layout. Raises `StateError` when none will do.

        A client that keeps keys sends a tenth of the bytes; one that asks once would send keys for a single query.
        """
        kinds = ("history",) if self.from_history else _KINDS
        fitting = [
            offer
            for offer in offers
            if offer.layout.kind in kinds and (self.sets is None or offer.layout.parameters.name in self.sets)
        ]
        if not fitting:
            offered = ", ".join(f"{offer.layout.parameters.name} ({offer.layout.kind})" for offer in offers)
            raise StateError(f"got from {peer} the offers {offered}, expected one that this client was told to accept")
        preferred = "keyless" if self.one_shot else "session"
        return min(fitting, key=lambda offer: offer.layout.kind != preferred)
