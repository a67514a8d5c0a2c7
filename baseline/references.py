"""Reference recommenders that a report sets the models against: popularity and implicit matrix factorisation.

iALS is Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (ICDM 2008), as `implicit` has
it, with d = 64. Settings carried over from Rendle et al., "Revisiting the Performance of iALS on Item Recommendation
Benchmarks" (RecSys 2022), whose loss weighs all pairs by a0 = 0.3 and an observed one by 1 on top: divided by a0, an
observed pair weighs 1 + 1/a0 = 4.33, which is `implicit`'s confidence (alpha). That paper's penalty grows with the
length of a history; `implicit`'s is one constant, chosen on held-out training items of MovieLens-1M.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError
from veil.recsys.interactions import Interactions

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

IALS_DIMENSIONS = 64
IALS_ALPHA = 1.0 + 1.0 / 0.3
IALS_REGULARISATION = 40.0
IALS_SWEEPS = 12
IALS_SEED = 7


class Popularity:
    """Scores an item by how many users met it."""

    def __init__(self, train: Interactions) -> None:
        self._counts = train.counts().astype(np.float32)

    def __call__(self, users: Int64) -> Float32:
        """float32[users, items]: the same row for everyone."""
        return np.broadcast_to(self._counts, (len(users), len(self._counts)))


class Factorisation:
    """iALS, trained at construction, deterministic for a given machine.

    threads: of the solver; 0 for all cores. Raises `ConfigError` when the package `implicit` is absent.
    """

    def __init__(self, train: Interactions, *, dimensions: int = IALS_DIMENSIONS, threads: int = 0) -> None:
        try:
            from implicit.cpu.als import AlternatingLeastSquares
            from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
        except ImportError:
            raise ConfigError(
                "got no package implicit, expected it for the iALS reference",
                hint="install the extra: veil-recsys[demo]",
            ) from None
        # The solver has threads of its own, beside which those of the linear algebra library only get in the way.
        with threadpool_limits(limits=1, user_api="blas"):
            model = AlternatingLeastSquares(
                factors=min(dimensions, max(1, train.items - 1)),
                alpha=IALS_ALPHA,
                regularization=IALS_REGULARISATION,
                iterations=IALS_SWEEPS,
                random_state=IALS_SEED,
                num_threads=threads,
            )
            from scipy import sparse

            model.fit(sparse.csr_matrix(train.to_sparse(np.float32)), show_progress=False)
        self._users = np.asarray(model.user_factors, dtype=np.float32)
        self._items = np.asarray(model.item_factors, dtype=np.float32)

    def __call__(self, users: Int64) -> Float32:
        """float32[users, items]."""
        return np.asarray(self._users[users] @ self._items.T, dtype=np.float32)
