"""Dither for encoding: makes the rounding of polynomial coefficients unbiased whatever the values are.

A CKKS encoder rounds each of the N coefficients to a multiple of 1 / scale. For values that fill the slots at random
the errors are random too. For structured values they are not: a lone item in slot 0 has smooth coefficients, and one
whose entries lie below N / (2 scale) vanishes altogether. Adding noise that is uniform on (-1/2, 1/2) in units of the
rounding step turns rounding to the nearest into stochastic rounding.

Guarantee: the error of each coefficient then has mean 0 and variance at most 1/4, independently of the others, so that
of a slot has a standard deviation of at most sqrt(N) / (2 scale) (complex). Zero stays exactly zero. The dither is a
function of the values, so that equal items are encoded equally by every worker.

Source: L. Schuchman, "Dither signals and their effect on quantization noise", IEEE Trans. Comm. 12(4), 1964.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from he_inference.seam import ComplexVector


class Dither:
    """The dither of one ring degree N, as slot values."""

    def __init__(self, degree: int) -> None:
        self._degree = degree
        exponents = np.arange(degree)
        # zeta = exp(i pi / N); slot j holds the value at zeta^(3^j), and zeta^(2 k + 1) is the FFT's k-th point.
        self._twist = np.exp(1j * np.pi * exponents / degree)
        powers = np.array([pow(3, slot, 2 * degree) for slot in range(degree // 2)])
        self._order: NDArray[np.int64] = (powers - 1) // 2

    def slots(self, values: ComplexVector) -> ComplexVector:
        """complex128[N/2], the dither of `values` in units of the rounding step."""
        seed = hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()
        noise = np.random.default_rng(int.from_bytes(seed, "little")).uniform(-0.5, 0.5, self._degree)
        # sum over n of noise[n] zeta^(n (2k + 1)): an inverse FFT without its 1/N
        spectrum: ComplexVector = np.fft.ifft(noise * self._twist) * self._degree
        return spectrum[self._order]
