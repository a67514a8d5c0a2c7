"""Numbers in slots as polynomials: approximate (CKKS) and exact (BFV) encoding behind one seam.

A plaintext has two rows of S = N/2 numbers. Automorphism X -> X^(3^k) rotates both rows to the left by k, and a product
of polynomials multiplies slot by slot; that is all that layouts rely on.

    ckks  the pair in slot j is a complex number, the polynomial's value at zeta^(3^j), zeta = exp(i pi / N), times a
    scale bfv   row 0 holds the values at psi^(3^j), row 1 at psi^(-3^j), psi a 2N-th root of unity modulo t; integers
    mod t

Guarantee: `decode` undoes `encode_items` and `encode_query` up to rounding (ckks) or exactly (bfv); coefficients are
integers of either sign. Sources: Cheon, Kim, Kim, Song, eprint 2016/421, section 3; Smart, Vercauteren, eprint
2011/133.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from he_inference.parameters import Parameters
from he_inference.ring import plain
from he_inference.ring.moduli import moduli
from veil.number_theory import reversed_bits

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class SlotCodec(Protocol):
    """The seam between layouts and schemes. S = N/2; leading axes are free."""

    def encode_items(self, rows: Floats, noise: np.random.Generator) -> Integers:
        """int64[..., N] of float64[..., 2, S], entries of vectors of norm at most 1; `noise` dithers."""

    def encode_query(self, rows: Floats) -> Integers:
        """int64[..., N] of float64[..., 2, S], ready to be encrypted modulo Q."""

    def decode(self, numbers: Integers, bits: int) -> Floats:
        """float64[..., 2, S] of products: int64[..., N] modulo 2^bits, which stands for the modulus Q."""

    def quantised(self, values: Floats) -> Floats:
        """What a vector's entries are rounded to before encoding: themselves for ckks."""


@lru_cache(maxsize=16)
def slot_codec(parameters: Parameters) -> SlotCodec:
    """The codec of a parameter set."""
    return Ckks(parameters) if parameters.scheme == "ckks" else Bfv(parameters)


def _exponents(degree: int) -> Integers:
    """int64[S]: 3^j mod 2N."""
    powers = [1]
    for _ in range(degree // 2 - 1):
        powers.append(powers[-1] * 3 % (2 * degree))
    return np.array(powers, np.int64)


class Ckks:
    """Approximate numbers by the discrete Fourier transform.

    Items are dithered: noise uniform on (-1/2, 1/2) before rounding makes the error of each coefficient unbiased and
    independent of its neighbours whatever the values are (Schuchman 1964); without it a lone item in slot 0, whose
    coefficients are smooth, would have an error that does not average out. Zero polynomials stay zero.
    """

    def __init__(self, parameters: Parameters) -> None:
        n = parameters.degree
        powers = _exponents(n)
        self._n = n
        self._places, self._mirrored = (powers - 1) // 2, (2 * n - powers - 1) // 2
        self._twist = np.exp(-1j * np.pi * np.arange(n) / n)
        self._item_scale = 2.0**parameters.item_scale_bits
        self._query_scale = 2.0**parameters.query_scale_bits
        product = 1
        for prime in parameters.data_primes[:2]:
            product *= prime
        self._modulus = float(product)

    def encode_items(self, rows: Floats, noise: np.random.Generator) -> Integers:
        values = self._coefficients(rows) * self._item_scale
        dither = noise.uniform(-0.5, 0.5, values.shape)
        dither[~values.any(axis=-1)] = 0.0
        return np.rint(values + dither).astype(np.int64)

    def encode_query(self, rows: Floats) -> Integers:
        return np.rint(self._coefficients(rows) * self._query_scale).astype(np.int64)

    def decode(self, numbers: Integers, bits: int) -> Floats:
        half = 1 << (bits - 1)
        centred = ((numbers + half) & ((1 << bits) - 1)) - half
        unit = self._modulus / 2.0**bits / (self._item_scale * self._query_scale)
        spectrum = scipy.fft.ifft(centred * unit * self._twist.conj(), axis=-1) * self._n
        values = spectrum[..., self._places]
        return np.stack([values.real, values.imag], axis=-2)

    def quantised(self, values: Floats) -> Floats:
        return values

    def _coefficients(self, rows: Floats) -> Floats:
        spectrum = np.empty((*rows.shape[:-2], self._n), np.complex128)
        values = rows[..., 0, :] + 1j * rows[..., 1, :]
        spectrum[..., self._places] = values
        spectrum[..., self._mirrored] = values.conj()
        result: Floats = (scipy.fft.fft(spectrum, axis=-1, overwrite_x=True) * (self._twist / self._n)).real
        return result


class Bfv:
    """Exact integers modulo t: vectors are rounded to multiples of 1 / `LEVELS` first, products are then exact.

    |<u, v>| LEVELS^2 stays below t / 2 for unit vectors of up to 1024 entries, rounding included: (LEVELS + 16)^2 < t /
    2.

    Items are lifted at random: a coefficient v in [0, t) is taken as v - t with probability v / t, else as v. Both are
    the same plaintext. With one lift for all, items that are alike (a catalogue of one row, over and over) have
    polynomials that are rotations of each other, the noise of the baby steps adds up in phase in a few coefficients,
    and at 1,024 dimensions those decrypt wrongly (tests/unit/he_inference/encoding/test_deviation.py). Lifts of mean 0
    that are independent let noise add up in squares, whatever the catalogue, for twice the variance. Zero
    polynomials stay zero.
    """

    LEVELS = 220

    def __init__(self, parameters: Parameters) -> None:
        n, t = parameters.degree, parameters.plain_modulus
        powers = _exponents(n)
        reverse = reversed_bits(n)
        self._places = np.stack([reverse[(powers - 1) // 2], reverse[(2 * n - powers - 1) // 2]])
        self._ring, self._t, self._n = moduli(n, (t,)), t, n
        self._modulus = parameters.data_primes[0] * parameters.data_primes[1]

    def encode_items(self, rows: Floats, noise: np.random.Generator) -> Integers:
        values = np.mod(self._coefficients(rows), self._t)
        lifted: Integers = values - self._t * (noise.random(values.shape) * self._t < values)
        return lifted

    def encode_query(self, rows: Floats) -> Integers:
        # round(Q m / t) without leaving 64 bits
        m = self._coefficients(rows)
        whole, rest = divmod(self._modulus, self._t)
        result: Integers = m * whole + np.rint(m * (rest / self._t)).astype(np.int64)
        return result

    def decode(self, numbers: Integers, bits: int) -> Floats:
        message = np.rint(numbers * (self._t / 2.0**bits)).astype(np.int64) % self._t
        values = plain.forward(message[..., None, :].astype(np.uint64), self._ring)[..., 0, :].astype(np.int64)
        values = np.where(values > self._t // 2, values - self._t, values)
        return values[..., self._places] / float(self.LEVELS**2)

    def quantised(self, values: Floats) -> Floats:
        return np.rint(values * self.LEVELS) / self.LEVELS

    def _coefficients(self, rows: Floats) -> Integers:
        values = np.zeros((*rows.shape[:-2], 1, self._n), np.uint64)
        values[..., 0, self._places] = np.mod(np.rint(rows * self.LEVELS).astype(np.int64), self._t)
        m = plain.inverse(values, self._ring)[..., 0, :].astype(np.int64)
        result: Integers = np.where(m > self._t // 2, m - self._t, m)
        return result
