"""One batch through one compute process: the keys that it lacks are sent along, each query gets its answer.

Guarantee: every query of the batch is answered or refused for a reason of its own, unless an error says that the
process is of no use any more; those without an answer are the caller's then. A query is asked twice at most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from he_inference.service import frames
from he_inference.service.process import Answer, Process
from he_inference.service.tickets import Observer, Scores, Ticket
from veil.errors import PeerLost, StateError


def attend(process: Process, batch: Sequence[Ticket], deadline: float, observer: Observer | None) -> None:
    """Finishes the tickets of a batch: one registration, or queries of one index. deadline: of `time.monotonic`.

    Raises `FrameError` when the process ends, is late or answers otherwise, `StateError` when it has not the index.
    """
    first = batch[0]
    if first.index not in process.indexes:
        raise StateError("got a query for an index that is gone", hint="ask for the parameters and ask again")
    if first.load_keys is None:
        first.finish(error=process.register(first.index, first.name, first.data, deadline))
    else:
        _score(process, batch, deadline, observer)


def to_ask_again(batch: Sequence[Ticket]) -> list[Ticket]:
    """Of a batch whose process is lost: the tickets to be asked once more, alone; the others are finished."""
    again = []
    for ticket in batch:
        if ticket.done.is_set():
            continue
        if ticket.attempts:
            ticket.finish(
                error=PeerLost(
                    "the scoring process ended, or did not answer in time, twice while it worked on this request",
                    hint="it has been replaced; send the request again",
                )
            )
        else:
            ticket.attempts, ticket.alone = 1, True
            again.append(ticket)
    return again


def _score(process: Process, batch: Sequence[Ticket], deadline: float, observer: Observer | None) -> None:
    queue_us = [int(1e6 * (time.monotonic() - ticket.since)) for ticket in batch]
    keys: dict[Ticket, bytes | None] = {}
    for ticket in batch:
        needed = False
        if ticket.index.layout.galois_elements:
            needed = not process.knows(ticket.name)
            if observer is not None:
                observer.keys_found(not needed)
        _load(ticket, keys, needed)
    answer = Answer([])
    # Twice at most: what it lacks, against our own book, is sent along the second time.
    for _ in range(2):
        asked = [ticket for ticket in batch if ticket in keys]
        if not asked:
            return
        answer = process.score(asked[0].index, [(t.name, t.data, keys[t]) for t in asked], deadline)
        if not answer.lacking:
            break
        for place in answer.lacking:
            _load(asked[place], keys, needed=True)
    else:
        raise frames.FrameError("keys are lacking that were sent")
    if observer is not None:
        observer.batch_was(len(asked))
    for place, ticket in enumerate(asked):
        if place in answer.errors:
            ticket.finish(error=answer.errors[place])
            continue
        if len(answer.results[place]) != ticket.index.layout.blocks:
            raise frames.FrameError(f"{len(answer.results[place])} results, not {ticket.index.layout.blocks}")
        waited_us = queue_us[batch.index(ticket)]
        ticket.finish(Scores(answer.results[place], answer.compute_us, answer.read_us, waited_us, len(asked)))


def _load(ticket: Ticket, keys: dict[Ticket, bytes | None], needed: bool) -> None:
    """Notes the keys that go along with a query; one without them is answered here and not asked."""
    try:
        keys[ticket] = ticket.load_keys() if needed and ticket.load_keys is not None else None
    except Exception as error:  # noqa: BLE001
        # Whatever it is, it is this caller's, not the batch's.
        keys.pop(ticket, None)
        ticket.finish(error=error)
