"""Products with one peer, both ways, as messages: whoever carries the bytes is the business of the caller.

    asker                                         answerer
    hello() -> bytes               ------->       meet(bytes)
    request(plan, L) -> bytes      ------->       answer(plan, bytes, R) -> (bytes, share)
    finish(plan, bytes) -> share   <-------

The answerer may `hold` the request of a matrix and answer again and again, with another R each time.

Guarantee: what arrives is of one exact length and made of residues only; anything else raises `ProtocolMismatch` with
the peer's name before it is computed on. SEAL never reads it (`scheme`). Privacy and exactness: `keys`, `matrix`,
`vectors`.
"""

from __future__ import annotations

import secrets

from veil.errors import StateError
from veil.mpc.he import matrix, vectors
from veil.mpc.he.keys import PublicKey, SecretKey
from veil.mpc.he.matrix import MatrixPlan, PeerMatrix
from veil.mpc.he.residues import Integers
from veil.mpc.he.vectors import VectorPlan
from veil.mpc.randomness import KEY_BYTES, RingStream

Plan = MatrixPlan | VectorPlan


class PairProducts:
    """One party's side of the products with `peer`. One thread at a time.

    key: the party's own; several peers may share it, as every request is encrypted anew.
    """

    def __init__(self, peer: str, key: SecretKey | None = None) -> None:
        self.peer = peer
        self._key = key or SecretKey()
        self._peer_key: PublicKey | None = None
        self._masks = RingStream(secrets.token_bytes(KEY_BYTES), b"he-masks")

    def __repr__(self) -> str:
        return f"PairProducts({self.peer})"

    def hello(self) -> bytes:
        """The own public key, to be sent once; `keys.hello_bytes` long."""
        return self._key.hello()

    def meet(self, hello: bytes) -> None:
        """Takes the peer's public key. Raises `ProtocolMismatch`."""
        self._peer_key = PublicKey(hello, peer=self.peer)

    def request(self, plan: Plan, left: Integers) -> bytes:
        """What asks for L R: `plan.request_bytes` of them. L: int64, of the plan's shape and bounds."""
        return matrix.ask(plan, left, self._key) if isinstance(plan, MatrixPlan) else vectors.ask(plan, left, self._key)

    def hold(self, plan: MatrixPlan, request: bytes) -> PeerMatrix:
        """A peer's matrix, to be multiplied by many others. Raises `ProtocolMismatch`."""
        return PeerMatrix(plan, request, peer=self.peer)

    def answer(self, plan: Plan, request: bytes | PeerMatrix, right: Integers) -> tuple[bytes, Integers]:
        """The answer and the own share of L R. Raises `ProtocolMismatch`; `StateError` before `meet`."""
        if self._peer_key is None:
            raise StateError(f"got no public key of {self.peer}, expected its hello first")
        if isinstance(plan, VectorPlan):
            if isinstance(request, PeerMatrix):
                raise StateError("got a matrix to multiply a vector by, expected a request of this plan")
            return vectors.answer(plan, request, right, self._peer_key, self._masks)
        held = request if isinstance(request, PeerMatrix) else self.hold(plan, request)
        return held.answer(right, self._peer_key, self._masks)

    def finish(self, plan: Plan, answer: bytes, columns: int | None = None) -> Integers:
        """The own share of L R. columns: those of R; the plan's when left out. Raises `ProtocolMismatch`."""
        if isinstance(plan, MatrixPlan):
            return matrix.finish(plan, columns or plan.columns, answer, self._key, peer=self.peer)
        return vectors.finish(plan, answer, self._key, peer=self.peer)
