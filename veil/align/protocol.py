"""Aligns records of 2 to 16 parties by their ids: the same rows in the same order at every party, no id disclosed.

The parties are semi-honest: they follow the protocol and remember everything. All messages go over the mesh, under
its mutual TLS.

Everybody learns the plan (declared sizes) and, where it says `padded = false`, how many ids each party brings.
                     "reveal"                                  "hidden"
  each party         which of its rows all parties hold (that  of no row whether another holds it, and not how many
                     is the result); nothing of other rows     are common: only that the union fits
  the collector      for every combination of parties, how     the same numbers
                     many ids exactly these hold
  up to n-1          these numbers (without the collector, of  the same
  colluding          lists that end at them), and what they
                     imply: if only one of their ids is held
                     by one combination of them, whether the
                     last party holds it
  who listens        nothing but sizes of messages, which      nothing: sizes follow from the plan
                     follow from plan and size of the result

A refused result tells everybody that its size was out of bounds. With two parties and "reveal" the collector's numbers
are the size of the result, so nothing beyond the result leaks; with two parties and "hidden" they are the number of
common ids. Dummies count as ids that their owner alone holds. Pairwise intersections are never revealed, whatever the
number of parties. Where no number at all may become known, `veil.align.join` does the work, with a dealer's help.

What remains outside: a party may enter ids that it does not hold (no protocol without signed ids can tell); in
"reveal" it learns membership for those, which is why the result is bounded. A collector that departs from the protocol
can leave rows out of a revealed result, but not put rows in; with three and more parties it can also have points
unwrapped that are not common, and guess ids (`veil.align.reveal`). Sizes and numbers of messages say no more than the
table; their times may: the curve's work, nearly all there is, follows from the plan, but the work on own ids before the
first point, some microseconds each, does not.

(1) the parties compare plan and job; (2) they draw a key together, for this run only and bound to job and plan, and
every id becomes a pseudonym under it (`veil.align.ids`), so two runs have no message in common; (3) the lists, filled
up and shuffled, go round the ring (`veil.align.mixing`); (4) the collector gets them and the parties reveal
(`veil.align.reveal`) or hide (`veil.align.hidden`); (5) the order of the result, sorted by values that are random to
everybody, is permuted by a second key drawn together after everything else is fixed, so row numbers say nothing of
anybody's order; (6) the parties compare digests of the result.

Measured with two parties of a million ids each (`veil bench psi`), "reveal": 205 s of one core at either, 83 MB sent by
either, peak memory some 450 bytes an id beside what the program takes. With a hundred thousand, "hidden" takes twice
the time and traffic an id, and 700 bytes. Messages are at most 264 KiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from veil.align.curve import Curve, Scalar
from veil.align.exchange import AlignmentExchange
from veil.align.hidden import hide
from veil.align.ids import check_ids, dummies, pseudonyms
from veil.align.mixing import Secrets, collect, mix
from veil.align.ordering import joint_key, permutation, private_permutation
from veil.align.plan import Alignment, AlignmentPlan, Progress
from veil.align.reveal import reveal
from veil.errors import InputError, ProtocolMismatch
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.randomness import KEY_BYTES

__all__ = ["Alignment", "AlignmentPlan", "align"]


def align(
    communicator: TensorCommunicator,
    ids: Sequence[str | bytes],
    plan: AlignmentPlan,
    job_digest: bytes,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Alignment:
    """One party's part; all call it at the same time with the same plan and digest (32 bytes).

    ids: one for each row of this party's table, distinct, 1 to 256 bytes each. Equal means equal bytes: spelling is
    made uniform before. workers: threads for the curve, which is nearly all of the work.

    Raises `InputError` or `DataError` for own ids, before anything is sent; `PolicyError` when the result is not of
    the declared size, `ProtocolMismatch` or `PeerLost` naming who sent something else, or nothing.
    """
    if len(plan.sizes) != communicator.world_size:
        raise InputError(f"got a plan for {len(plan.sizes)} parties, expected {communicator.world_size}")
    if len(job_digest) != KEY_BYTES:
        raise InputError(f"got a job digest of {len(job_digest)} bytes, expected {KEY_BYTES}")
    encoded = check_ids(ids, plan.sizes[communicator.rank])
    communicator.agree(b"align/" + job_digest + plan.text())  # (1)
    binding = hashlib.sha256(job_digest + plan.text()).digest()
    names = pseudonyms(encoded, joint_key(communicator, binding, b"ids"))  # (2)
    real = len(names)
    sizes = plan.sizes if plan.padded else _announce(communicator, plan, real)
    filled = np.concatenate([names, dummies(sizes[communicator.rank] - real)])
    order = private_permutation(len(filled))
    own = filled[order]
    with Curve(workers) as curve:
        exchange = AlignmentExchange(communicator, plan, curve, progress)
        secrets = Secrets(Scalar.draw(), Scalar.draw())
        mixed = mix(exchange, own, sizes, secrets)  # (3)
        lists = collect(exchange, mixed, sizes)  # (4)
        if mixed.renamed is None:
            shared, found = reveal(exchange, lists, mixed, own, secrets)
        else:
            shared, found = hide(exchange, lists, mixed.renamed, secrets)
    rows = np.full(len(found), -1, dtype=np.int64)
    rows[found >= 0] = order[found[found >= 0]]
    rows[rows >= real] = -1  # the own dummies
    final = permutation(joint_key(communicator, binding, b"order"), len(shared))  # (5)
    communicator.agree(b"aligned/" + hashlib.sha256(shared[final].tobytes()).digest())  # (6)
    return Alignment(rows[final])


def _announce(communicator: TensorCommunicator, plan: AlignmentPlan, own: int) -> tuple[int, ...]:
    """The true sizes of all lists, none beyond the declared one."""
    told = communicator.all_gather(torch.tensor([own], dtype=torch.int64))
    sizes = tuple(int(size[0]) for size in told)
    culprits = [
        communicator.names[rank]
        for rank, (size, most) in enumerate(zip(sizes, plan.sizes, strict=True))
        if not 0 <= size <= most
    ]
    if culprits:
        raise ProtocolMismatch(
            f"got a number of ids beyond the declared one from {', '.join(culprits)}, expected at most {plan.sizes}",
            culprits=culprits,
        )
    return sizes
