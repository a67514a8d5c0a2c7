"""A small catalogue with several categories an item, users on it, and jobs that ask about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pytest

from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, Noise, Privacy
from veil.queries.plan import plan_queries
from veil.recsys.catalogue import Catalogue, ItemTable
from veil.recsys.interactions import Interactions

PARTIES = ("alpha", "beta", "gamma")
CATEGORIES = ("comedy", "drama", "horror", "war")

MakeSpec = Callable[..., JobSpec]


@pytest.fixture(scope="package")
def catalogue() -> Catalogue:
    """24 items; item i has category i mod 4, every third also the next one, item 23 none."""
    categories = [
        (CATEGORIES[i % 4], CATEGORIES[(i + 1) % 4]) if i % 3 == 0 else (CATEGORIES[i % 4],) for i in range(24)
    ]
    categories[23] = ()
    table = ItemTable(
        ids=tuple(f"i{number}" for number in range(24)),
        titles=tuple(f"Title {number}" for number in range(24)),
        categories=tuple(categories),
    )
    return Catalogue(table, np.random.default_rng(1).standard_normal((24, 3)).astype(np.float32))


@pytest.fixture(scope="package")
def interactions() -> Interactions:
    """200 users with 0 to 23 items."""
    generator = np.random.default_rng(2)
    histories = [generator.choice(24, generator.integers(0, 24), replace=False) for _ in range(200)]
    rows = np.repeat(np.arange(200), [len(history) for history in histories])
    return Interactions.from_pairs(rows, np.concatenate(histories), users=200, items=24)


@pytest.fixture(scope="package")
def make_spec(catalogue: Catalogue) -> MakeSpec:
    """A job of the given questions."""

    def make(
        *questions: Mapping[str, Any],
        epsilon: float = 2.0,
        source: Literal["dealer", "parties"] = "dealer",
        nonce: str = "0" * 32,
        colluding: int | None = None,
    ) -> JobSpec:
        trainer, releases = plan_queries(questions, epsilon=epsilon, delta=1e-6, items=24, categories=4)
        return JobSpec(
            name="figures",
            nonce=nonce,
            consortium="trial",
            parties=PARTIES,
            dealer="main",
            catalogue=jobs.Catalogue(digest=catalogue.digest, items=24, features=3),
            privacy=Privacy(epsilon=epsilon, delta=1e-6, noise=Noise(source=source, colluding=colluding)),
            trainer=trainer,
            releases=releases,
            versions={"veil": "0.1.0"},
        )

    return make
