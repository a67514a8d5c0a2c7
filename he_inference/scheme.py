"""CKKS by SEAL: the only file that imports TenSEAL, and only its low-level binding.

Guarantee: what `CkksEvaluator` loads has been checked for the parameter set, level, scale, size and validity before it
is computed with; keys are made for named Galois elements only; no multiplication by a zero plaintext (its result would
be a transparent ciphertext) can happen, because zero encodes to None. `CkksSession` holds the secret key and prints
nothing of it. Objects pass through memory files, since the binding reads and writes paths only.

CKKS decryptions are noisy in a way that depends on the key: they must not be sent back to the server at full precision
(Li and Micciancio, eprint 2020/1533; docs/threat-model.md). Scheme: Cheon, Kim, Kim, Song, eprint 2016/421.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tenseal
import tenseal.sealapi as seal
from numpy.typing import NDArray

from he_inference import seal_file
from he_inference.parameters import Parameters
from he_inference.rounding import Dither
from he_inference.seam import ComplexVector
from veil.errors import CiphertextError, ConfigError, InputError

# What SEAL raises, as pybind11 maps it: invalid_argument, logic_error and out_of_range, bad_alloc.
_SEAL_ERRORS = (ValueError, RuntimeError, IndexError, MemoryError)


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


def _saved(save: Callable[[str], None]) -> bytes:
    with _memory_file() as (path, descriptor):
        save(str(path))
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _loaded(load: Callable[[Any, str], None], context: Any, data: bytes, what: str) -> None:
    with _memory_file(data) as (path, _):
        try:
            load(context, str(path))
        except _SEAL_ERRORS:
            # SEAL's own sentence may name internals of the object; the class of the problem is enough.
            raise _misfit(what) from None


def _misfit(what: str) -> CiphertextError:
    return CiphertextError(
        f"got {what} that is malformed or made under other parameters",
        hint="ask the server for its parameters and make it anew",
    )


class _Context:
    """SEAL's precomputed tables of one parameter set."""

    def __init__(self, parameters: Parameters) -> None:
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(parameters.poly_modulus_degree)
        chosen.set_coeff_modulus(
            seal.CoeffModulus.Create(parameters.poly_modulus_degree, list(parameters.coeff_modulus_bits))
        )
        self.context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ConfigError(f"SEAL refuses {parameters.name}: {self.context.parameters_error_message()}")
        self.parameters = parameters
        self.encoder = seal.CKKSEncoder(self.context)
        self.level = self.context.first_parms_id()

    def ciphertext(self, data: bytes, what: str, scale: float) -> Any:
        """A ciphertext of two polynomials under the data prime, at `scale`; raises `CiphertextError` for any other."""
        ciphertext = seal.Ciphertext()
        _loaded(ciphertext.load, self.context, data, what)
        fits = (
            seal.is_valid_for(ciphertext, self.context)
            and ciphertext.size() == 2
            and ciphertext.parms_id() == self.level
            and ciphertext.is_ntt_form()
            and ciphertext.scale == scale
            and not ciphertext.is_transparent()
        )
        if not fits:
            raise _misfit(what)
        return ciphertext


class CkksEvaluator:
    """The server's side: encoded items, ciphertexts and evaluation keys."""

    def __init__(self, parameters: Parameters) -> None:
        self._tables = _Context(parameters)
        self._evaluator = seal.Evaluator(self._tables.context)
        self._scale = 2.0**parameters.item_scale_bits
        self._dither = Dither(parameters.poly_modulus_degree)

    @property
    def parameters(self) -> Parameters:
        """The parameter set of everything that this evaluator accepts."""
        return self._tables.parameters

    def encode(self, values: ComplexVector) -> Any | None:
        """Encodes complex128[slots] at the item scale, rounded without bias; None when it is the zero polynomial."""
        plaintext = seal.Plaintext()
        dithered = values + self._dither.slots(values) / self._scale
        self._tables.encoder.encode(dithered.tolist(), self._tables.level, self._scale, plaintext)
        return None if plaintext.is_zero() else plaintext

    def unit(self) -> Any:
        """The smallest plaintext that is not zero: 2^-item_scale_bits in every slot."""
        plaintext = seal.Plaintext()
        self._tables.encoder.encode(1.0 / self._scale, self._tables.level, self._scale, plaintext)
        return plaintext

    def load_query(self, data: bytes) -> Any:
        """Reads a fresh query; raises `CiphertextError` unless it is exactly what `CkksSession.encrypt` makes."""
        seal_file.check(data, "a query", limit_bytes=self.parameters.max_query_bytes)
        return self._tables.ciphertext(data, "a query", 2.0**self.parameters.query_scale_bits)

    def load_keys(self, data: bytes, elements: tuple[int, ...]) -> Any:
        """Reads evaluation keys; raises `CiphertextError` unless they are for exactly those Galois elements."""
        what = "evaluation keys"
        seal_file.check(data, what, limit_bytes=self.parameters.max_key_bytes(len(elements)))
        keys = seal.GaloisKeys()
        context = self._tables.context
        _loaded(keys.load, context, data, what)
        try:
            fits = (
                keys.parms_id() == context.key_parms_id()
                and keys.size() == len(elements)
                and all(keys.has_key(element) for element in elements)
                # SEAL 4.3.3 reads past a slot that holds fewer keys than there are data primes (fixed in 4.4.0).
                and all(len(keys.key(element)) == 1 for element in elements)
                and seal.is_valid_for(keys, context)
                and all(_sound_key(key, context) for element in elements for key in keys.key(element))
            )
        except _SEAL_ERRORS:
            fits = False
        if not fits:
            raise _misfit(what)
        return keys

    def multiply(self, ciphertext: Any, plaintext: Any) -> Any:
        """The product with an encoded plaintext, slot by slot."""
        product = seal.Ciphertext()
        self._evaluator.multiply_plain(ciphertext, plaintext, product)
        return product

    def add_into(self, total: Any, ciphertext: Any) -> None:
        """Adds `ciphertext` into `total`."""
        self._evaluator.add_inplace(total, ciphertext)

    def rotate(self, ciphertext: Any, step: int, keys: Any) -> Any:
        """Slot s of the result is slot s + step of `ciphertext`; `keys` must hold the element of that step."""
        rotated = seal.Ciphertext()
        self._evaluator.apply_galois(ciphertext, self.parameters.element(step), keys, rotated)
        return rotated

    def save(self, ciphertext: Any) -> bytes:
        """The bytes of a result. A set has one data prime, so it is at its smallest without a modulus switch."""
        return _saved(ciphertext.save)


def _sound_key(key: Any, context: Any) -> bool:
    content = key.data()
    return bool(
        content.size() == 2
        and content.is_ntt_form()
        and seal.is_valid_for(key, context)
        and not content.is_transparent()
    )


class CkksSession:
    """The client's side: holds the secret key, which leaves it by `secret_bytes` only."""

    def __init__(self, parameters: Parameters, secret: bytes | None = None) -> None:
        """A new key, or the one that `secret_bytes` gave; raises `CiphertextError` when that is not a key."""
        self._tables = _Context(parameters)
        context = self._tables.context
        if secret is None:
            self._generator = seal.KeyGenerator(context)
        else:
            key = seal.SecretKey()
            _loaded(key.load, context, secret, "a secret key")
            if not seal.is_valid_for(key, context):
                raise _misfit("a secret key")
            self._generator = seal.KeyGenerator(context, key)
        self._secret = self._generator.secret_key()
        self._encryptor = seal.Encryptor(context, self._secret)
        self._decryptor = seal.Decryptor(context, self._secret)

    def __repr__(self) -> str:
        return f"CkksSession({self.parameters.name}, secret key hidden)"

    @property
    def parameters(self) -> Parameters:
        """The parameter set of the key."""
        return self._tables.parameters

    def encrypt(self, values: NDArray[np.float64]) -> bytes:
        """A fresh seeded ciphertext of float64[slots] at the query scale, |value| <= 1."""
        if values.shape != (self.parameters.slots,) or not np.all(np.abs(values) <= 1.0 + 1e-9):
            raise InputError(f"got values outside of float64[{self.parameters.slots}] in [-1, 1]")
        plaintext = seal.Plaintext()
        self._tables.encoder.encode(
            values.tolist(), self._tables.level, 2.0**self.parameters.query_scale_bits, plaintext
        )
        return _saved(self._encryptor.encrypt_symmetric(plaintext).save)

    def evaluation_keys(self, elements: tuple[int, ...]) -> bytes:
        """Seeded keys for exactly those Galois elements (odd, 3 to 2N - 1)."""
        largest = 2 * self.parameters.poly_modulus_degree
        if not elements or any(element % 2 == 0 or not 3 <= element < largest for element in elements):
            raise ConfigError(f"got Galois elements {elements}, expected odd ones from 3 to {largest - 1}")
        return _saved(self._generator.create_galois_keys(list(elements)).save)

    def decrypt(self, data: bytes) -> ComplexVector:
        """complex128[slots] of a result; raises `CiphertextError` when `data` is not one under these parameters."""
        what = "a response"
        seal_file.check(data, what, limit_bytes=self.parameters.max_response_bytes)
        scale = 2.0 ** (self.parameters.query_scale_bits + self.parameters.item_scale_bits)
        ciphertext = self._tables.ciphertext(data, what, scale)
        plaintext = seal.Plaintext()
        self._decryptor.decrypt(ciphertext, plaintext)
        return np.asarray(self._tables.encoder.decode_complex(plaintext), dtype=np.complex128)

    def secret_bytes(self) -> bytes:
        """The secret key, for a key file. Never log or send it."""
        return _saved(self._secret.save)


class TensealMatmul:
    """What TenSEAL itself offers for the same task, by its usual recipe; `veil bench score` measures against it.

    N = 8192, primes of 60, 40 and 60 bits, scale 2^40, one thread. `items` is float64[M, d]; they are multiplied 4096
    at a time, as one call with more columns than slots gives wrong numbers without an error.
    """

    _SLOTS = 4096

    def __init__(self, items: NDArray[np.float64]) -> None:
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 60], n_threads=1
        )
        self._context.global_scale = 2.0**40
        self._context.generate_galois_keys()
        self._columns = [items[start : start + self._SLOTS].T.tolist() for start in range(0, len(items), self._SLOTS)]

    def key_bytes(self) -> int:
        """Bytes of the public context that a client must upload once."""
        public = {"save_public_key": True, "save_secret_key": False, "save_galois_keys": True, "save_relin_keys": False}
        return len(self._context.serialize(**public))

    def encrypt(self, query: NDArray[np.float64]) -> Any:
        """An encrypted float64[d]."""
        return tenseal.ckks_vector(self._context, query.tolist())

    def score(self, query: Any) -> list[Any]:
        """The encrypted products with all items, 4096 in each."""
        return [query.matmul(columns) for columns in self._columns]

    @staticmethod
    def decrypt(scores: list[Any]) -> NDArray[np.float64]:
        """float64[M]."""
        return np.concatenate([np.asarray(part.decrypt(), dtype=np.float64) for part in scores])

    @staticmethod
    def size_bytes(*vectors: Any) -> int:
        """Serialised size of encrypted vectors."""
        return sum(len(vector.serialize()) for vector in vectors)
