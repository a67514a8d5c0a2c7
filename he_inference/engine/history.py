"""Scores of encrypted histories: folding under three data primes, then a session's arithmetic under two of them.

Guarantee: as `he_inference.engine.compute`: what is computed depends on the index and the layout only; a query's answer
is the same bytes alone and in a batch; nothing here can decrypt, and nothing raises for any content of checked
messages.

Keys are made once, for all primes. A key modulo Q P is one modulo Q' P for any divisor Q' of Q, by its residues for the
primes of Q' and P: b = -a s + e + P sigma(s) holds modulo each prime by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from he_inference import messages
from he_inference.encoding.slots import slot_codec
from he_inference.engine.blocks import Blocks, HostBlocks, Place, placed
from he_inference.engine.rotation import horner, images, rotations_of, steps
from he_inference.index.store import Index
from he_inference.layouts.history import HistoryLayout, whole_layout
from he_inference.layouts.history_parts import FoldInLayout, OutputLayout
from he_inference.layouts.seam import Integers
from he_inference.ring import ntt, plain
from he_inference.ring.accumulate import tiled_queries
from he_inference.ring.moduli import TILE, Moduli, Words, moduli
from he_inference.ring.response import packed, truncated
from veil.errors import ArtifactError, ConfigError

# Ciphertexts that are held rotated at a time, of 0.7 MB each.
_MOST_ROTATED = 192
# Results that are rotated and packed at a time.
_MOST_RESULTS = 32


class HistoryCompute:
    """The evaluator of one history layout; its methods are those of `Compute`."""

    def __init__(self, layout: HistoryLayout, fold_in: Words, place: Place = HostBlocks) -> None:
        """fold_in: uint32[ciphertexts, *fold_in_shape], the first part of the index (`encode_fold_in`).

        place: where products with that part are summed up.
        """
        parameters = layout.parameters
        n, data, special = parameters.degree, parameters.data_primes, parameters.special_primes
        self.layout = layout
        self._fold = layout.fold_in
        self._dropped, self._kept = moduli(n, data[:1]), moduli(n, data[1:])
        self._turn, self._turn_kept = rotations_of(n, data, special), rotations_of(n, data[1:], special)
        self._places = [self._turn.places(element) for element in layout.galois_elements]
        self._inverse = np.array([pow(data[0], -1, prime) for prime in data[1:]], np.uint64)[:, None]
        self._constant = self._tiled_constant()
        if fold_in.shape != (layout.query_ciphertexts, *self.fold_in_shape):
            raise ValueError(f"got a fold-in part of shape {fold_in.shape}, expected that of its layout")
        self._fold_in = place(fold_in, self._turn.data.q)

    @property
    def ring(self) -> Moduli:
        """The data primes by which blocks of the second part are encoded."""
        return self._kept

    @property
    def fold_in_shape(self) -> tuple[int, int, int, int]:
        """Shape of a block of the first part: [primes, tiles, terms, TILE]."""
        n = self.layout.parameters.degree
        return (len(self._turn.data.primes), n // TILE, self._fold.padded, TILE)

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """Shape of a block of the second part: [primes, tiles, terms, TILE]."""
        return (len(self._kept.primes), *self.fold_in_shape[1:])

    def encode(self, polynomials: Integers) -> Words:
        """A block of the second part from `HistoryLayout.item_polynomials`."""
        return _encoded(polynomials, self._kept)

    def read_query(self, data: bytes) -> Words:
        """uint32[ciphertexts, 2, primes, N] in the order of kernels; raises `CiphertextError`."""
        query = messages.read_query(self.layout.parameters, data, self.layout.query_ciphertexts)
        return np.ascontiguousarray(query[..., self._turn.data.order])

    def read_keys(self, data: bytes) -> Words:
        """uint32[elements, 2, all primes, N], prepared for kernels; raises `CiphertextError`."""
        return self._turn.prepared(messages.read_keys(self.layout.parameters, data, self.layout.galois_elements))

    def score(
        self, index: Words | Blocks, queries: Sequence[Words], keys: Sequence[Words]
    ) -> Iterator[list[list[bytes]]]:
        """Results of the blocks of the second part, uint32[blocks, *block_shape], some at a time: [query][block]."""
        tiled = self._rotated(self.user_vectors(queries, keys), keys)
        at_a_time = max(1, _MOST_RESULTS // len(queries))
        for sums in placed(index, self._kept.q).sums(tiled, at_a_time):
            yield self._packed(self._turned(sums, keys))

    def user_vectors(self, queries: Sequence[Words], keys: Sequence[Words]) -> Words:
        """uint32[queries, 2, kept primes, N]: encrypted user vectors, ready to be scored with."""
        at_a_time = max(1, _MOST_ROTATED // (self.layout.query_ciphertexts * self._fold.rotations))
        starts = range(0, len(queries), at_a_time)
        return np.concatenate([self._folded(queries[s : s + at_a_time], keys[s : s + at_a_time]) for s in starts])

    def _folded(self, queries: Sequence[Words], keys: Sequence[Words]) -> Words:
        stacked, by_element = np.stack(queries), np.ascontiguousarray(np.stack(keys, axis=1))
        count, ciphertexts = stacked.shape[:2]
        rotated = self._rotated_histories(stacked, np.repeat(by_element[0], ciphertexts, axis=0))
        q = self._turn.data.q.astype(np.uint32)[:, None]
        sums = np.zeros((self._fold.groups, count, *stacked.shape[2:]), np.uint32)
        for number in range(ciphertexts):
            tiled = tiled_queries(rotated[:, :, number])
            for products in self._fold_in[number : number + 1].sums(tiled, 1):
                sums += products[0]
            np.minimum(sums, sums - q, out=sums)
        return self._traced(sums, by_element)

    def _rotated_histories(self, stacked: Words, first: Words) -> Words:
        """uint32[baby steps, queries, ciphertexts, 2, primes, N]; first: keys of step 1 for each ciphertext."""
        flat = stacked.reshape(-1, *stacked.shape[2:])
        rotated = steps(self._turn, flat, self._places[0], first, self._fold.rotations)
        return rotated.reshape(self._fold.rotations, *stacked.shape)

    def _traced(self, sums: Words, by_element: Words) -> Words:
        """User vectors from uint32[groups, queries, 2, primes, N]: giant steps, all images, the rescaling."""
        held = horner(self._turn, sums, self._places[1], by_element[1])
        for element, images_made in zip((2, 3), self._fold.trace_steps, strict=True):
            held = images(self._turn, held, self._places[element], by_element[element], images_made)
        return self._rescaled(self._turn.divided(held))

    def _rotated(self, vectors: Words, keys: Sequence[Words]) -> Words:
        """Baby steps of user vectors, in the order of the kernel; the keys of step 1 for the primes that are left."""
        first = np.ascontiguousarray(np.stack([key[0, :, 1:] for key in keys]))
        return tiled_queries(steps(self._turn_kept, vectors, self._places[0], first, self._fold.rotations))

    def _turned(self, sums: Words, keys: Sequence[Words]) -> Words:
        """uint32[blocks, queries, 2, primes, N]: giant steps over the sums of groups."""
        blocks, groups, count = sums.shape[:3]
        second = np.ascontiguousarray(np.stack([key[1, :, 1:] for key in keys]))
        rows = np.ascontiguousarray(sums.swapaxes(0, 1)).reshape(groups, blocks * count, *sums.shape[3:])
        held = horner(self._turn_kept, rows, self._places[1], np.tile(second, (blocks, 1, 1, 1)))
        totals = self._turn_kept.divided(held)
        return totals.reshape(blocks, count, *totals.shape[1:])

    def _rescaled(self, total: Words) -> Words:
        """Division by the first data prime, with rounding; the constant of the user terms added."""
        prime = self._dropped.primes[0]
        rest = np.ascontiguousarray(total[:, :, :1])
        ntt.inverse(rest, self._dropped)
        numbers = rest[:, :, 0].astype(np.int64)
        numbers -= (numbers > prime // 2) * np.int64(prime)
        lifted = plain.residues(numbers, self._kept)
        ntt.forward(lifted, self._kept)
        q = self._kept.q[:, None]
        result = (total[:, :, 1:].astype(np.uint64) + q - lifted) * self._inverse % q
        result[:, 0] += self._constant
        result[:, 0] %= q
        return result.astype(np.uint32)

    def _packed(self, totals: Words) -> list[list[bytes]]:
        blocks, queries, _, primes, n = totals.shape
        first_bits, second_bits = self.layout.parameters.response_bits
        halves = np.ascontiguousarray(totals.transpose(2, 1, 0, 3, 4)).reshape(2, -1, primes, n)
        first = packed(truncated(halves[0], self._kept, first_bits), first_bits)
        second = packed(truncated(halves[1], self._kept, second_bits), second_bits)
        rows = [b.tobytes() + a.tobytes() for a, b in zip(first, second, strict=True)]
        return [rows[query * blocks : (query + 1) * blocks] for query in range(queries)]

    def _tiled_constant(self) -> Words:
        """uint32[kept primes, N]: 1 in the last place but two of each tile; 0 where there are no user terms."""
        rows = np.zeros((2, self.layout.parameters.slots))
        if self.layout.packing > 1:
            rows[0, self.layout.dimensions - 3 :: self._fold.padded] = 1.0
        values = plain.residues(slot_codec(self.layout.output.parameters).encode_query(rows), self._kept)
        ntt.forward(values, self._kept)
        return values


class HistoryEngine:
    """An `Engine[Words, Words]` over the two files of an index; both stay the caller's."""

    def __init__(self, fold_in: Index, output: Index, place: Place = HostBlocks) -> None:
        """place: where products with items are summed up.

        Raises `ConfigError` when they are not the parts of one index, `ArtifactError` when of different models.
        """
        if not isinstance(fold_in.layout, FoldInLayout) or not isinstance(output.layout, OutputLayout):
            raise ConfigError(
                f"got indexes {fold_in.layout.kind} and {output.layout.kind}, expected those of a history"
            )
        made_of = [(part.model_digest, part.item_ids_digest) for part in (fold_in, output)]
        if made_of[0] != made_of[1]:
            raise ArtifactError("got the parts of an index from different models, expected the same", hint="build both")
        self._compute = HistoryCompute(whole_layout(fold_in.layout, output.layout), fold_in.blocks, place)
        self._blocks = place(output.blocks, self._compute.ring.q)
        self.read_query = self._compute.read_query
        self.read_keys = self._compute.read_keys

    @property
    def layout(self) -> HistoryLayout:
        """The layout of both parts together."""
        return self._compute.layout

    def score(self, queries: Sequence[Words], keys: Sequence[Words | None]) -> Iterator[list[list[bytes]]]:
        """Results of all blocks, some blocks at a time: [query][block]."""
        return self._compute.score(self._blocks, queries, [key for key in keys if key is not None])

    def close(self) -> None:
        """Nothing is held."""


def encode_fold_in(layout: HistoryLayout, polynomials: Integers) -> Words:
    """uint32[primes, tiles, terms, TILE]: a block of the first part from `HistoryLayout.fold_in_polynomials`."""
    return _encoded(polynomials, moduli(layout.parameters.degree, layout.parameters.data_primes))


def _encoded(polynomials: Integers, ring: Moduli) -> Words:
    values = plain.residues(polynomials, ring)
    ntt.forward(values, ring)
    terms, primes, n = values.shape
    return np.ascontiguousarray(values.reshape(terms, primes, n // TILE, TILE).transpose(1, 2, 0, 3))
