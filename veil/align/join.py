"""Brings the other parties' columns onto the rows of one party, the lead, as shares; nobody learns who is whose.

All rows of the lead stay. For every row and every other party p the parties end with additive shares of a bit, whether
p holds the lead's id, and of p's columns for that id, or of zeros where it does not.

The parties are semi-honest, and any n-1 may collude. Everybody learns the plan: declared sizes and numbers of columns.
Nobody learns anything else: not which rows are common, not how many, not how many ids anyone has. Messages depend on
the plan alone in number and size (of their times, `veil.align.protocol` says what depends on a party's own number of
ids). `veil.align.protocol` is cheaper and needs no dealer, but its collector learns how many ids are common.

This is circuit-PSI with payloads (Pinkas, Schneider, Tkachenko, Yanai, "Efficient circuit-based PSI with linear
communication", 2019), its oblivious programmable function made from the curve (`veil.align.curve`):

(1) the lead puts each id x into one of the three bins that the id has under a jointly drawn key (`cuckoo`), say by its
    choice i; what stands for the bin is the name (x, i), a random name if the bin is empty; bins are the rows;
(2) party p draws a secret k. The lead sends a*H(name) for every bin and gets k*a*H(name) back: it knows f(name) =
    k*H(name) for one name a bin, and p knows nothing of the names. Party p computes f(y, i) of its own ids y, i = 0..2;
(3) p draws for every bin a word t and masks u, and stores for each (y, i), which lies in bin b, the words
    (t_b, columns of y - u_b), masked by a hash of f(y, i), in a table of which it sends all (`okvs`). The lead decodes
    the name of each bin: where p holds the id it gets (t_b, columns - u_b), elsewhere random words;
(4) the lead's word xor p's word is 0 exactly where p holds the id (but for one chance in 2^64 a row): the circuit makes
    shares of that bit, and of its product with the sum of decoded columns and u (`circuit`).

The order of the rows is that of bins. It says nothing of anyone's order, but every party knows which ids may stand in
which bin: what is computed of single rows must stay shared, and only sums over rows may open.

Why it is safe. The lead evaluates f at one name a bin, so of t_b and u_b it sees at most one value each, uniform; names
of other ids decode to words masked by values of f that it does not know (DDH on P-256, SHAKE-256 as a random oracle),
and the table is uniform. Party p sees points under the unknown a. The circuit opens masked values only. Two names in
one bin would let the lead compare two words t_b: therefore names carry their choice, and one is asked for each bin.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veil.align import cuckoo, okvs
from veil.align.circuit import Circuit, Correlations
from veil.align.curve import POINT_BYTES, Curve, Scalar
from veil.align.exchange import Exchange, batches
from veil.align.ids import Pseudonyms, check_ids, dummies, pseudonyms
from veil.align.join_plan import JoinPlan
from veil.align.ordering import joint_key
from veil.align.plan import Progress, Rows
from veil.errors import InputError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.randomness import KEY_BYTES, RingStream

CIRCUIT_ROWS = 2**17
BLOCK_WORDS = 4


@dataclass(frozen=True, repr=False)
class Joined:
    """One party's part of the joined table.

    rows: at the lead, int64 (plan.rows,), the number of its own row in each joined row or -1; None elsewhere.
    members: by rank of the other parties, this party's additive share of their bits, int64 (plan.rows,), 0 or 1.
    columns: by rank, additive shares of their columns, int64 (plan.rows, plan.columns[rank]), zeros where no member.
    """

    rows: Rows | None
    members: dict[int, Tensor]
    columns: dict[int, Tensor]

    def __repr__(self) -> str:
        return f"Joined({ {rank: tuple(share.shape) for rank, share in self.columns.items()} })"


def join(
    communicator: TensorCommunicator,
    correlations: Correlations,
    ids: Sequence[str | bytes],
    columns: Tensor | None,
    plan: JoinPlan,
    job_digest: bytes,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Joined:
    """One party's part; all call it with the same plan and digest (32 bytes).

    ids: distinct, one for each row. columns: int64 ring elements, (ids, plan.columns[rank]); None at the lead, whose
    columns stay where they are (`Joined.rows` says in which order). Raises as `veil.align.protocol.align` does.
    """
    rank = communicator.rank
    if len(plan.sizes) != communicator.world_size or len(job_digest) != KEY_BYTES:
        raise InputError(f"got a plan for {len(plan.sizes)} parties, expected {communicator.world_size} and a digest")
    encoded = check_ids(ids, plan.sizes[rank])
    expected = None if rank == plan.lead else (len(encoded), plan.columns[rank])
    got = None if columns is None else tuple(columns.shape)
    if got != expected or (columns is not None and columns.dtype != torch.int64):
        raise InputError(f"got columns {got}, expected int64 {expected}")
    communicator.agree(b"join/" + job_digest + plan.text())
    binding = hashlib.sha256(job_digest + plan.text()).digest()
    name_key, bin_key = (joint_key(communicator, binding, label) for label in (b"names", b"bins"))
    options = cuckoo.choices(encoded, bin_key, plan.rows)
    with Curve(workers) as curve:
        exchange = Exchange(communicator, curve, progress)
        if rank == plan.lead:
            rows, words = _lead(exchange, plan, encoded, options, name_key)
        else:
            words = {rank: _other(exchange, plan, encoded, columns, options, name_key)}
            rows = None
    circuit = Circuit(communicator, correlations)
    members, joined = {}, {}
    exchange.begin("circuit", plan.rows * len(plan.others))
    for other in plan.others:
        share = words.get(other, np.zeros((plan.rows, 1 + plan.columns[other]), dtype=np.uint64))
        members[other], joined[other] = _select(exchange, circuit, torch.from_numpy(share.view(np.int64)))
    return Joined(rows, members, joined)


def _lead(
    exchange: Exchange, plan: JoinPlan, encoded: list[bytes], options: Rows, name_key: bytes
) -> tuple[Rows, dict[int, okvs.Words]]:
    """(1), (2) and (3) at the lead: its rows, and what it decodes from each other party."""
    tenant, choice = cuckoo.place(options, plan.rows, RingStream(os.urandom(KEY_BYTES), b"place"))
    names = dummies(plan.rows).copy()
    taken = np.flatnonzero(tenant >= 0)
    names[taken] = pseudonyms([bytes([choice[at]]) + encoded[tenant[at]] for at in taken], name_key)
    blind = Scalar.draw()
    inverse = blind.inverse()
    known = {peer: np.empty((plan.rows, POINT_BYTES), dtype=np.uint8) for peer in plan.others}
    parts = batches(plan.rows)
    exchange.begin("evaluate", plan.rows)
    for step in range(plan.steps):
        part = parts[step] if step < len(parts) else slice(0, 0)
        asked = exchange.curve.hash(names[part], blind)
        for peer in plan.others:
            exchange.send(asked, peer)
        for peer in plan.others:
            known[peer][part] = exchange.multiply(exchange.receive(len(asked), peer), inverse, peer)
        exchange.advance(len(asked))
    words = {}
    for peer in plan.others:
        seed = exchange.receive(1, peer, okvs.SEED_BYTES)[0].tobytes()
        layout = okvs.Layout(known.pop(peer), seed, okvs.entries(plan.names[peer]))
        words[peer] = np.empty((plan.rows, 1 + plan.columns[peer]), dtype=np.uint64)
        for number, block in enumerate(_blocks(words[peer])):
            table = exchange.receive_rows(layout.size, peer, 8 * block.shape[1])
            block[:] = layout.decode(table.view("<u8").astype(np.uint64), number)
    return tenant, words


def _other(
    exchange: Exchange, plan: JoinPlan, encoded: list[bytes], columns: Tensor | None, options: Rows, name_key: bytes
) -> okvs.Words:
    """(2) and (3) at another party: its words and masks of every bin."""
    rank, lead = exchange.rank, plan.lead
    secret = Scalar.draw()
    names = _names(encoded, plan.names[rank], name_key)
    keys = np.empty((len(names), POINT_BYTES), dtype=np.uint8)
    own_parts, asked_parts = batches(len(names)), batches(plan.rows)
    exchange.begin("evaluate", len(names))
    for step in range(plan.steps):
        if step < len(own_parts):
            part = own_parts[step]
            keys[part] = exchange.curve.hash(names[part], secret)
            exchange.advance(part.stop - part.start)
        asked = asked_parts[step] if step < len(asked_parts) else slice(0, 0)
        exchange.send(exchange.multiply(exchange.receive(asked.stop - asked.start, lead), secret, lead), lead)
    width = 1 + plan.columns[rank]
    drawn = RingStream(os.urandom(KEY_BYTES), b"bins").ring((plan.rows, width)).numpy().view(np.uint64)
    own = np.zeros((len(encoded), width), dtype=np.uint64)
    if columns is not None:
        own[:, 1:] = columns.contiguous().numpy().view(np.uint64)
    encoder = okvs.Encoder(keys)
    exchange.send(np.frombuffer(encoder.seed, dtype=np.uint8)[None], lead)
    for number, (held, block) in enumerate(zip(_blocks(own), _blocks(drawn), strict=True)):
        # Names of nobody store random words.
        values = np.frombuffer(os.urandom(8 * len(names) * block.shape[1]), dtype=np.uint64).reshape(len(names), -1)
        values = values.copy()
        for choice in range(cuckoo.CHOICES):
            there = block[options[:, choice]]
            stored = held - there
            if number == 0:
                stored[:, 0] = there[:, 0]  # t
            values[choice * len(encoded) : (choice + 1) * len(encoded)] = stored
        table = encoder.encode(values, number)
        exchange.send_all(table.astype("<u8").view(np.uint8).reshape(len(table), -1), (lead,))
    return drawn


def _blocks(words: okvs.Words) -> list[okvs.Words]:
    """Views of at most `BLOCK_WORDS` columns each, in order."""
    return [words[:, start : start + BLOCK_WORDS] for start in range(0, words.shape[1], BLOCK_WORDS)]


def _names(encoded: list[bytes], count: int, key: bytes) -> Pseudonyms:
    """(count, 16): names (y, 0) of all ids, then (y, 1), then (y, 2), then names of nobody."""
    tagged = [bytes([number]) + value for number in range(cuckoo.CHOICES) for value in encoded]
    return np.concatenate([pseudonyms(tagged, key), dummies(count - len(tagged))])


def _select(exchange: Exchange, circuit: Circuit, words: Tensor) -> tuple[Tensor, Tensor]:
    """(4): shares of the bits and of the columns, from each party's words; the lead's are decoded ones."""
    bits, selected = [], []
    for start in range(0, len(words), CIRCUIT_ROWS):
        chunk = words[start : start + CIRCUIT_ROWS]
        bit = circuit.is_zero(chunk[:, 0].contiguous())
        bits.append(bit)
        selected.append(circuit.select(bit, chunk[:, 1:].contiguous()) if chunk.shape[1] > 1 else chunk[:, 1:])
        exchange.advance(len(chunk))
    return torch.cat(bits), torch.cat(selected)
