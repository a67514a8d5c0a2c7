"""Two parties that have met."""

from __future__ import annotations

import pytest

from veil.mpc.he.products import PairProducts


@pytest.fixture(scope="session")
def pair() -> tuple[PairProducts, PairProducts]:
    """(asker, answerer): alpha, whose peer is beta, and beta."""
    alpha, beta = PairProducts("beta"), PairProducts("alpha")
    beta.meet(alpha.hello())
    alpha.meet(beta.hello())
    return alpha, beta
