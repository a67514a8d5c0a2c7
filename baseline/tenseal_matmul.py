"""TenSEAL's own encrypted matrix product: the peer that encrypted scoring is measured against.

Guarantee: TenSEAL is used by its usual recipe, and in its favour where there is a choice: its keys are generated before
any clock runs, and the columns of items are Python lists already, which is what it reads.

Sources: OpenMined/TenSEAL, tutorials 2 and 4 (N = 8192, primes of 60, 40 and 60 bits, scale 2^40); Halevi and Shoup's
diagonals, eprint 2014/106, in tenseal/cpp/tensors/ckksvector.cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tenseal
from numpy.typing import NDArray


class TensealMatmul:
    """`CKKSVector.matmul` with the matrix of all items, one thread.

    `items` is float64[M, d]; they are multiplied 4096 at a time, as one call with more columns than slots gives wrong
    numbers without an error.
    """

    SLOTS = 4096

    def __init__(self, items: NDArray[np.float64]) -> None:
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=2 * self.SLOTS, coeff_mod_bit_sizes=[60, 40, 60], n_threads=1
        )
        self._context.global_scale = 2.0**40
        self._context.generate_galois_keys()
        self._columns = [items[start : start + self.SLOTS].T.tolist() for start in range(0, len(items), self.SLOTS)]

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
