"""The signatures of all parties under one job, checked at each party before it runs.

Guarantee: `verify_approvals` returns only when every party of the job has signed the very text that this party signed.
"""

from __future__ import annotations

from collections.abc import Sequence

from veil.errors import PeerError, PolicyError, VeilError
from veil.jobs import signing
from veil.jobs.signing import Approval
from veil.jobs.spec import JobSpec


def verify_approvals(
    approvals: Sequence[Approval], spec: JobSpec, digest: bytes, authority_pem: bytes, *, here: str
) -> None:
    """Raises `PolicyError` for a party without a signature, `PeerError` naming whose does not fit. here: this party."""
    by_party = {approval.party: approval for approval in approvals}
    for party in spec.parties:
        approval = by_party.get(party)
        if approval is None:
            raise PolicyError(f"got no signature of {party}, expected one of every party")
        try:
            signing.verify(
                approval, consortium=spec.consortium, party=party, digest=digest, authority_pem=authority_pem
            )
        except VeilError as error:
            raise PeerError(
                f"the signature of {party} does not fit the job that {here} has signed: {error.message}",
                culprits=(party,),
            ) from error
