"""SEAL's own encoder, evaluator and decryptor at the level of two data primes: the reference of the kernels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tenseal.sealapi as seal
import zstandard
from numpy.typing import NDArray

from he_inference.ring.moduli import Words, find_primes

BITS = (27, 27, 27, 28)


class SealTwin:
    def __init__(self, degree: int) -> None:
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(degree)
        chosen.set_coeff_modulus(seal.CoeffModulus.Create(degree, list(BITS)))
        self.context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        self.degree, self.primes = degree, find_primes(degree, BITS)
        self.scale = 2.0**26
        generator = seal.KeyGenerator(self.context)
        self.generator, self.secret = generator, generator.secret_key()
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)
        self.encryptor = seal.Encryptor(self.context, self.secret)
        level = self.context.first_context_data().next_context_data()
        self.level = level.parms_id()
        assert len(level.parms().coeff_modulus()) == 2

    def encode(self, slots: NDArray[np.floating] | NDArray[np.complexfloating]) -> Any:
        plaintext = seal.Plaintext()
        self.encoder.encode([complex(value) for value in slots], self.level, self.scale, plaintext)
        return plaintext

    def encrypt(self, plaintext: Any) -> Any:
        ciphertext = seal.Ciphertext()
        self.encryptor.encrypt_symmetric(plaintext, ciphertext)
        return ciphertext

    def sum_of_products(self, ciphertexts: list[Any], plaintexts: list[Any]) -> Any:
        total = None
        for ciphertext, plaintext in zip(ciphertexts, plaintexts, strict=True):
            product = seal.Ciphertext()
            self.evaluator.multiply_plain(ciphertext, plaintext, product)
            if total is None:
                total = product
            else:
                self.evaluator.add_inplace(total, product)
        return total

    def apply_galois(self, ciphertext: Any, element: int) -> Any:
        keys = seal.GaloisKeys()
        self.generator.create_galois_keys([element], keys)
        result = seal.Ciphertext()
        self.evaluator.apply_galois(ciphertext, element, keys, result)
        return result

    def plain_residues(self, plaintext: Any) -> Words:
        """uint32[2, N]."""
        return self._tail(plaintext, (2, self.degree))

    def cipher_residues(self, ciphertext: Any) -> Words:
        """uint32[2, 2, N]."""
        return self._tail(ciphertext, (2, 2, self.degree))

    def secret_bytes(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            self.secret.save(str(Path(folder) / "x"))
            return (Path(folder) / "x").read_bytes()

    def _tail(self, thing: Any, shape: tuple[int, ...]) -> Words:
        with tempfile.TemporaryDirectory() as folder:
            thing.save(str(Path(folder) / "x"))
            data = (Path(folder) / "x").read_bytes()
        content = zstandard.ZstdDecompressor().decompressobj().decompress(data[16:])
        size = 8 * int(np.prod(shape))
        return np.frombuffer(content[-size:], "<u8").reshape(shape).astype(np.uint32)
