"""Secret keys and errors from Microsoft SEAL: the only file under veil that imports TenSEAL, its low-level binding.

SEAL draws, this package computes. A secret key is one of SEAL's `KeyGenerator`: N coefficients of -1, 0 and 1. What a
public-key encryption adds is drawn by SEAL's `Encryptor`: with a public key (b, a) it gives

    (b u + e0, a u + e1)        u of -1, 0, 1; e0, e1 centred binomial of standard deviation 3.24, at most 21

and here its public key is the constant pair (4096, 4096) in place of a real one, so that u, e0 and e1 can be read from
what comes back. They are small integers, the same whatever modulus they are used with later; the package uses each of
them once, in a ring of its own primes (`veil.mpc.he.keys`). Nothing that such a call returns leaves this file but u, e0
and e1, and no byte from outside of the process reaches SEAL, whose reader (4.3.3) is not hardened.

Guarantee: every draw is SEAL's own, from its generator (Blake2xb, seeded by the operating system), checked to lie in
the range above, fresh for each call.

Sources: SEAL 4.3, native/src/seal/{keygenerator,encryptor}.cpp and util/rlwe.cpp (`encrypt_zero_asymmetric`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tenseal.sealapi as seal
import zstandard
from numpy.typing import NDArray

from veil.errors import ConfigError
from veil.mpc.he import ntt
from veil.mpc.he.ring import find_primes, ring

# Of a file: magic number, version, compression (byte 5), size (bytes 8 to 16).
_HEADER_BYTES = 16
_UNCOMPRESSED = b"\x00"
_PRIME_BITS = 30
_KEY = 4096
_MOST_ERROR = 21
# Errors of 8 KB that wait for their use.
_MOST_SPARE = 256
Small = NDArray[np.int8]


@contextmanager
def _memory_file(data: bytes = b"") -> Iterator[tuple[str, int]]:
    """Path and descriptor of a file that lies in memory, or in a private folder where the system has no such files."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("veil", os.MFD_CLOEXEC)
        try:
            _write(descriptor, data)
            yield f"/proc/self/fd/{descriptor}", descriptor
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="veil-") as folder:  # mode 0700
        path = Path(folder) / "object"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write(descriptor, data)
            yield str(path), descriptor
        finally:
            os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _saved(thing: Any) -> bytes:
    with _memory_file() as (path, descriptor):
        thing.save(path)
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _content(saved: bytes, numbers: int) -> bytes:
    """Members and then `numbers` 64-bit residues, which SEAL compresses by Zstandard."""
    content = zstandard.ZstdDecompressor().decompressobj().decompress(saved[_HEADER_BYTES:])
    if len(content) <= 8 * numbers:
        raise _unlike(f"an object of {len(content)} bytes", f"more than {8 * numbers}")
    return content


def _unlike(got: str, expected: str) -> ConfigError:
    return ConfigError(f"got {got} from SEAL, expected {expected}", hint="this version reads files of SEAL 4 only")


class Sampler:
    """SEAL's secret keys and errors for one ring degree. Threads may share it."""

    def __init__(self, degree: int) -> None:
        """Raises `ConfigError` when SEAL refuses the degree at 128 bits of security or is of another kind."""
        self.degree = degree
        self._ring = ring(degree, find_primes(degree, _PRIME_BITS, 1))
        self._prime = self._ring.primes[0]
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        chosen.set_poly_modulus_degree(degree)
        chosen.set_coeff_modulus(seal.CoeffModulus.Create(degree, [_PRIME_BITS]))
        chosen.set_plain_modulus(2)
        self._context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self._context.parameters_set():
            raise ConfigError(f"SEAL refuses degree {degree}: {self._context.parameters_error_message()}")
        primes = [prime.value() for prime in chosen.coeff_modulus()]
        if primes != [self._prime]:
            raise _unlike(f"primes {primes}", str([self._prime]))
        self._encryptor = seal.Encryptor(self._context, self._constant_key())
        self._spare: list[tuple[int, Small]] = []

    def __repr__(self) -> str:
        return f"Sampler(degree={self.degree})"

    def secret(self) -> Small:
        """int8[N]: the coefficients of a fresh secret key."""
        key = seal.KeyGenerator(self._context).secret_key()
        content = _content(_saved(key), self.degree)
        values = np.frombuffer(content, "<u8")[-self.degree :] if len(content) % 8 == 0 else None
        if values is None or values.max() >= self._prime:
            raise _unlike("a secret key of another form", f"{self.degree} residues")
        places = np.ascontiguousarray(values[self._ring.transposed].astype(np.uint32)[None])
        ntt.inverse(places, self._ring)
        return self._small(places[0].astype(np.int64), 1)

    def error(self) -> Small:
        """int8[N]: a fresh error."""
        while self._spare:
            try:
                process, error = self._spare.pop()
            except IndexError:  # another thread was faster
                break
            if process == os.getpid():
                return error
        _, error, other = self._encryption()
        self._keep(other)
        return error

    def ternary(self) -> tuple[Small, Small]:
        """A fresh u of a public-key encryption and a fresh error, int8[N] each."""
        u, error, other = self._encryption()
        self._keep(other)
        return u, error

    def _keep(self, error: Small) -> None:
        # All three of an encryption are independent, so what is left serves another one: of this process, since one
        # that was forked off has a copy.
        if len(self._spare) < _MOST_SPARE:
            self._spare.append((os.getpid(), error))

    def _encryption(self) -> tuple[Small, Small, Small]:
        """u, e0 and e1 of a fresh public-key encryption, int8[N] each."""
        zero = seal.Ciphertext()
        self._encryptor.encrypt_zero(zero)
        if zero.is_ntt_form() or zero.size() != 2:
            raise _unlike("a ciphertext of another form", "two polynomials of coefficients")
        content = _content(_saved(zero), 2 * self.degree)
        values = np.frombuffer(content, "<u8", offset=len(content) - 16 * self.degree).astype(np.int64)
        halves = np.where(values > self._prime // 2, values - self._prime, values).reshape(2, self.degree)
        u = (halves + _KEY // 2) // _KEY
        if (u[0] != u[1]).any():
            raise _unlike("two halves that do not belong together", "one number for both")
        errors = halves - _KEY * u
        return self._small(u[0], 1), self._small(errors[0], _MOST_ERROR), self._small(errors[1], _MOST_ERROR)

    def _small(self, values: NDArray[np.int64], most: int) -> Small:
        centred = np.where(values > self._prime // 2, values - self._prime, values)
        if np.abs(centred).max() > most:
            raise _unlike("coefficients of another distribution", f"at most {most}")
        return centred.astype(np.int8)

    def _constant_key(self) -> Any:
        """The public key (4096, 4096): SEAL's own file of a real one, with other residues, uncompressed."""
        real = seal.PublicKey()
        seal.KeyGenerator(self._context).create_public_key(real)
        saved = _saved(real)
        content = _content(saved, 2 * self.degree)
        members = content[: len(content) - 16 * self.degree]
        # A constant polynomial has the same value everywhere.
        size = _HEADER_BYTES + len(content)
        header = saved[:5] + _UNCOMPRESSED + saved[6:8] + size.to_bytes(8, "little")
        residues = np.full(2 * self.degree, _KEY, "<u8").tobytes()
        key = seal.PublicKey()
        with _memory_file(header + members + residues) as (path, _):
            key.load(self._context, path)
        return key


@lru_cache(maxsize=4)
def sampler(degree: int) -> Sampler:
    """The sampler of a degree, made once in a process (20 ms)."""
    return Sampler(degree)
