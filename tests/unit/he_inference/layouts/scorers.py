"""Three ways to score with one layout: in the clear, through a scheme that hides nothing, and under encryption."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from he_inference.encoding.slots import Bfv, Ckks, slot_codec
from he_inference.engine.compute import Compute
from he_inference.layouts.seam import Floats, Integers, Layout
from he_inference.ring import plain
from he_inference.ring.moduli import find_primes, moduli
from he_inference.scheme import SecretKey
from tests.unit.he_inference.ring.polynomials import centred


class Scorer(Protocol):
    def __init__(self, layout: Layout, rows: Floats) -> None: ...

    def scores(self, vector: Floats) -> Floats: ...


class InTheClear:
    def __init__(self, layout: Layout, rows: Floats) -> None:
        self._codec, self._rows = slot_codec(layout.parameters), rows

    def scores(self, vector: Floats) -> Floats:
        result: Floats = self._codec.quantised(self._rows) @ self._codec.quantised(vector)
        return result


def blocks_of(layout: Layout, rows: Floats) -> list[Integers]:
    size = layout.block_items
    return [layout.item_polynomials(rows[b * size : (b + 1) * size], b) for b in range(layout.blocks)]


class NoScheme:
    """A layout's polynomials through the arithmetic of the seam, in plain numpy: slots are multiplied, rotated,
    added."""

    BITS = 62

    def __init__(self, layout: Layout, rows: Floats) -> None:
        self._layout, self._codec = layout, slot_codec(layout.parameters)
        self._blocks = blocks_of(layout, rows)
        parameters = layout.parameters
        self._modulus = parameters.data_primes[0] * parameters.data_primes[1]
        self._ring = moduli(parameters.degree, find_primes(parameters.degree, (28, 28, 28)))

    def scores(self, vector: Floats) -> Floats:
        query = self._layout.query_polynomials(vector)
        numbers = [self._slots(query, block) if self._layout.galois_elements else self._product(query, block)
                   for block in self._blocks]  # fmt: skip
        places = self._layout.coefficient_places()
        taken = np.stack(numbers) if places is None else np.stack(numbers)[:, places]
        return self._layout.scores(taken, self.BITS)

    def _product(self, query: Integers, block: Integers) -> Integers:
        """sum of query[k] * block[k] modulo X^N + 1, in units of Q / 2^BITS."""
        q = self._ring.q[:, None]
        total = np.zeros((len(self._ring.primes), self._ring.degree), np.uint64)
        for ours, theirs in zip(query, block, strict=True):
            product = plain.forward(plain.residues(ours, self._ring), self._ring).astype(np.uint64)
            total = (total + product * plain.forward(plain.residues(theirs, self._ring), self._ring)) % q
        exact = centred(plain.inverse(total, self._ring), self._ring)
        result: Integers = ((exact << self.BITS) // self._modulus).astype(np.int64)
        return result

    def _slots(self, query: Integers, block: Integers) -> Integers:
        layout = self._layout
        items, (start,) = self._values(block, item=True), self._values(query, item=False)
        rotated = [np.roll(start, -k, axis=-1) for k in range(layout.rotations)]
        total = np.zeros_like(start)
        for group in range(layout.groups - 1, -1, -1):
            total = np.roll(total, -layout.group_step, axis=-1)
            for k in range(layout.rotations):
                total = total + items[group * layout.rotations + k] * rotated[k]
        return self._coefficients(total)

    def _values(self, polynomials: Integers, *, item: bool) -> NDArray[np.complex128] | Integers:
        codec, n = self._codec, self._layout.parameters.degree
        if isinstance(codec, Ckks):
            spectrum = np.fft.ifft(polynomials * codec._twist.conj(), axis=-1) * n
            return spectrum[..., codec._places]
        assert isinstance(codec, Bfv)
        t = codec._t
        message = polynomials if item else np.rint(polynomials * (t / self._modulus)).astype(np.int64)
        residues = np.mod(message, t)[..., None, :].astype(np.uint64)
        return plain.forward(residues, codec._ring)[..., 0, :].astype(np.int64)[..., codec._places]

    def _coefficients(self, values: NDArray[np.complex128] | Integers) -> Integers:
        codec, n = self._codec, self._layout.parameters.degree
        if isinstance(codec, Ckks):
            coefficients = codec._coefficients(np.stack([values.real, values.imag]))
            return np.rint(coefficients * (2.0**self.BITS / self._modulus)).astype(np.int64)
        assert isinstance(codec, Bfv)
        spread = np.zeros((1, n), np.uint64)
        spread[0, codec._places] = np.mod(values, codec._t)
        numbers = plain.inverse(spread, codec._ring)[0].astype(object)
        result: Integers = (numbers * (1 << self.BITS) // codec._t).astype(np.int64)
        return result


class Encrypted:
    def __init__(self, layout: Layout, rows: Floats) -> None:
        self.layout, self.compute, self.key = layout, Compute(layout), SecretKey(layout.parameters)
        self.index = np.stack([self.compute.encode(block) for block in blocks_of(layout, rows)])
        self.keys = (
            self.compute.read_keys(self.key.evaluation_keys(layout.galois_elements))
            if layout.galois_elements
            else np.empty(0, np.uint32)
        )

    def scores(self, vector: Floats) -> Floats:
        query = self.compute.read_query(self.key.encrypt(self.layout.query_polynomials(vector)))
        results = [data for part in self.compute.score(self.index, [query], [self.keys]) for data in part[0]]
        return self.layout.scores(*self.key.decrypt(results, self.layout.coefficient_places()))
