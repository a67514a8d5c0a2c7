"""The client's cryptography: the only file that imports TenSEAL, and only its low-level binding (Microsoft SEAL).

SEAL draws the secret key and every error: `encrypt_zero_symmetric` gives a fresh pair (b, a) with b + a s = e. What is
built on it is linear:

    query    c1 = U(seed), c0 = (b + a s) - c1 s + m       a seeded ciphertext: SEAL's error, a mask that need not
    travel key      a' = U(seed), b' = (b + a s) - a' s + P sigma(s)      for the automorphism sigma, P the special
    primes' product result   y0 + y1 s modulo 2^bits                        from the leading bits that the server sent

Why this is as secure as SEAL's own seeded encryption. b + a s is SEAL's error e exactly, since equality modulo the
primes holds with no rounding, and e is independent of a, which is thrown away and never shown. So c0 = e - c1 s + m
with c1 from the seed is one sample of ring learning with errors, its error drawn by SEAL, its public half by
`ring.expand` instead of by SEAL: uniform if AES-256 with a public key is modelled as a random function, as SEAL's own
generator (and that of Kyber) is. Samples under one key are independent as long as no public half and no error is used
twice: every call takes 32 new random bytes as seed, a label of its own for each polynomial (`messages.query_mask`,
`key_mask`; queries and keys differ in it) and a new SEAL error for each. Using one error for two ciphertexts would give
m - m' away; it is never done.

Evaluation keys are such samples modulo Q P that hide P sigma(s) instead of a message: a server that holds them learns
nothing under the circular form of the same assumption (encryptions of functions of the key under itself), which every
scheme with rotations makes (Fan and Vercauteren, section 4; SEAL's own `create_galois_keys` makes the same samples).
Their modulus is the largest one under this key, and `Parameters` checks Q P, not Q, against the security tables.

Guarantee: the secret key leaves an object as `secret_bytes` only and is printed nowhere; every ciphertext and key takes
a fresh seed and a fresh SEAL error; no bytes from outside reach SEAL but a secret key of this file's own
(`keys.KeyRing`).

CKKS decryptions are noisy in a way that depends on the key: they must not be sent back to the server at full precision
(Li and Micciancio, eprint 2020/1533; docs/threat-model.md). Schemes: Cheon, Kim, Kim, Song, eprint 2016/421; Fan,
Vercauteren, eprint 2012/144. Seeded ciphertexts: SEAL, `Encryptor::encrypt_symmetric`.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import tenseal.sealapi as seal
import zstandard
from numpy.typing import NDArray

from he_inference import messages
from he_inference.parameters import Parameters
from he_inference.ring import plain
from he_inference.ring.expand import SEED_BYTES
from he_inference.ring.moduli import galois_places, moduli
from veil.errors import CiphertextError, ConfigError

# What SEAL raises, as pybind11 maps it: invalid_argument, logic_error and out_of_range, bad_alloc.
_SEAL_ERRORS = (ValueError, RuntimeError, IndexError, MemoryError)
# Of a file: magic number, version, compression, size. Then come the members, each array with such a header and a
# length: of a plaintext, identity of the parameters (32), count, scale; of a ciphertext, identity, form (1), three
# counts, scale, correction factor.
_SEAL_HEADER_BYTES = 16
_PLAINTEXT_BYTES = 32 + 2 * 8 + _SEAL_HEADER_BYTES + 8
_CIPHERTEXT_BYTES = 32 + 1 + 5 * 8 + _SEAL_HEADER_BYTES + 8
Integers = NDArray[np.int64]
Longs = NDArray[np.uint64]


@contextmanager
def _memory_file(data: bytes = b"") -> Iterator[tuple[Path, int]]:
    """Path and descriptor of a file that lies in memory, or in a private folder where the system has no such files."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("veil", os.MFD_CLOEXEC)
        try:
            _write(descriptor, data)
            yield Path(f"/proc/self/fd/{descriptor}"), descriptor
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="veil-") as folder:  # mode 0700
        path = Path(folder) / "object"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write(descriptor, data)
            yield path, descriptor
        finally:
            os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _saved(thing: Any) -> bytes:
    with _memory_file() as (path, descriptor):
        thing.save(str(path))
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _residues(thing: Any, header_bytes: int, shape: tuple[int, ...]) -> Longs:
    """uint64[shape]: the residues of a SEAL object, which follow its members; SEAL compresses both by Zstandard."""
    count = math.prod(shape)
    most = header_bytes + 8 * count
    content = zstandard.ZstdDecompressor().decompressobj().decompress(_saved(thing)[_SEAL_HEADER_BYTES:])
    if len(content) != most:
        raise ConfigError(
            f"got a SEAL object of {len(content)} bytes, expected {most}",
            hint="this version reads files of SEAL 4 only",
        )
    return np.frombuffer(content, "<u8", offset=header_bytes).reshape(shape)


class SecretKey:
    """One secret key. Threads may share it."""

    def __init__(self, parameters: Parameters, secret: bytes | None = None) -> None:
        """A fresh key, or the one that `secret_bytes` gave. Raises `CiphertextError` when those are of another set."""
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(parameters.degree)
        bits = [prime.bit_length() for prime in parameters.primes]
        chosen.set_coeff_modulus(seal.CoeffModulus.Create(parameters.degree, bits))
        context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not context.parameters_set():
            raise ConfigError(f"SEAL refuses {parameters.name}: {context.parameters_error_message()}")
        if tuple(prime.value() for prime in chosen.coeff_modulus()) != parameters.primes:
            raise ConfigError(f"SEAL takes other primes for {parameters.name} than this version, expected the same")
        self.parameters = parameters
        self._context = context
        self._secret = _loaded(context, secret) if secret is not None else seal.KeyGenerator(context).secret_key()
        self._encryptor = seal.Encryptor(context, self._secret)
        self._levels = _levels(context)
        self._ring = moduli(parameters.degree, parameters.primes)
        self._s = _residues(self._secret, _PLAINTEXT_BYTES, (len(parameters.primes), parameters.degree))
        first = plain.inverse(self._s, self._ring)[0].astype(np.int64)
        coefficients = np.where(first > 1, first - parameters.primes[0], first)
        if not np.isin(coefficients, (-1, 0, 1)).all():
            raise CiphertextError("got a secret key with coefficients beyond -1, 0 and 1, expected one that SEAL made")
        n = parameters.degree
        self._twist = np.exp(1j * np.pi * np.arange(n) / n)
        self._spectrum = scipy.fft.fft(coefficients * self._twist)

    def __repr__(self) -> str:
        return f"SecretKey({self.parameters.name})"

    def secret_bytes(self) -> bytes:
        """The secret key, for a key file. Never log or send it."""
        return _saved(self._secret)

    def encrypt(self, polynomials: Integers) -> bytes:
        """The query of int64[ciphertexts, N] (`Layout.query_polynomials`)."""
        parameters = self.parameters
        data = len(parameters.data_primes)
        ring = moduli(parameters.degree, parameters.data_primes)
        seed = secrets.token_bytes(SEED_BYTES)
        plaintexts = plain.forward(plain.residues(polynomials, ring), ring)
        q = ring.q[:, None]
        first_halves = []
        for number, plaintext in enumerate(plaintexts):
            mask = messages.query_mask(parameters, seed, number).astype(np.uint64)
            error = self._fresh_error(data)
            first_halves.append((error + plaintext + q - mask * self._s[:data] % q) % q)
        return messages.write_query(parameters, seed, np.stack(first_halves).astype(np.uint32))

    def evaluation_keys(self, elements: Sequence[int]) -> bytes:
        """Keys for exactly those Galois elements."""
        parameters = self.parameters
        q = self._ring.q[:, None]
        product = 1
        for prime in parameters.special_primes:
            product *= prime
        factor = np.array([product % prime for prime in parameters.primes], np.uint64)[:, None]
        seed = secrets.token_bytes(SEED_BYTES)
        first_halves = []
        for element in elements:
            mask = messages.key_mask(parameters, seed, element).astype(np.uint64)
            turned = self._s[:, galois_places(parameters.degree, element)]
            first_halves.append(
                (self._fresh_error(len(parameters.primes)) + factor * turned % q + q - mask * self._s % q) % q
            )
        stacked = np.stack(first_halves) if first_halves else np.empty((0, len(parameters.primes), parameters.degree))
        return messages.write_keys(parameters, seed, stacked.astype(np.uint32))

    def decrypt(self, results: Sequence[bytes], places: NDArray[np.int64] | None) -> tuple[Integers, int]:
        """int64[results, used coefficients] and the number of bits that they are modulo 2 to the power of.

        places: `Layout.coefficient_places`. Raises `CiphertextError` when a result has another length.
        """
        n = self.parameters.degree
        used = n if places is None else len(places)
        first_bits, bits = self.parameters.response_bits
        out = np.empty((len(results), used), np.int64)
        half = 1 << (bits - 1)
        for row, data in enumerate(results):
            first, second = messages.read_result(self.parameters, data, used)
            # y1 s in the ring, by floating point: |y1| < 2^31 and s ternary, so a sum stays below 2^44 and errors far
            # below 1/2.
            centred = second.astype(np.int64)
            centred = ((centred + half) & ((1 << bits) - 1)) - half
            product = scipy.fft.ifft(scipy.fft.fft(centred * self._twist) * self._spectrum)
            exact = np.rint((product * self._twist.conj()).real).astype(np.int64)
            if places is not None:
                exact = exact[places]
            total = (exact + (first.astype(np.int64) << (bits - first_bits))) & ((1 << bits) - 1)
            out[row] = ((total + half) & ((1 << bits) - 1)) - half
        return out, bits

    def _fresh_error(self, primes: int) -> Longs:
        """uint64[primes, N]: a fresh error of SEAL's, transformed, modulo the first primes."""
        zero = seal.Ciphertext()
        self._encryptor.encrypt_zero_symmetric(self._levels[primes], zero)
        if not zero.is_ntt_form():
            raise ConfigError("SEAL gave a ciphertext that is not transformed, expected one that is")
        b, a = _residues(zero, _CIPHERTEXT_BYTES, (2, primes, self.parameters.degree))
        q = self._ring.q[:primes, None]
        error: Longs = (b + a * self._s[:primes] % q) % q
        return error


def _levels(context: Any) -> dict[int, Any]:
    """SEAL's name for the parameters with so many primes; each level drops the last prime of the one before."""
    level, result = context.key_context_data(), {}
    while level is not None:
        result[len(level.parms().coeff_modulus())] = level.parms_id()
        level = level.next_context_data()
    return result


def _loaded(context: Any, secret: bytes) -> Any:
    key = seal.SecretKey()
    with _memory_file(secret) as (path, _):
        try:
            key.load(context, str(path))
        except _SEAL_ERRORS:
            # SEAL's own sentence may name internals of the object; the class of the problem is enough.
            raise CiphertextError(
                "got a secret key that is malformed or of another parameter set", hint="make a new one: rotate the keys"
            ) from None
    return key
