"""Inputs of the benchmarks of secure computation, the same files for Veil and for every peer, and what plaintext gets.

Features and numbers lie on a grid of 2^-16, so that fixed point holds them exactly and differences are the protocols'.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GRID = 2.0**16
_LARGEST = 8.0


@dataclass(frozen=True)
class Logistic:
    """A logistic regression by stochastic gradient descent: step i takes batch i modulo their number, and moves by
    learning_rate / batch times the sum over its rows, for a last batch that is short too.

    Features are standard normal, cut at 4; labels are drawn from a logistic model whose logits have deviation 2.
    """

    rows: int
    features: int
    batch: int
    steps: int
    warmup: int
    # 2^-1: its quotient with a batch of 1024 is exact in everybody's fixed point.
    learning_rate: float = 0.5
    test_rows: int = 20_000
    seed: int = 0

    @property
    def batches(self) -> int:
        """How many; the last one may be short."""
        return -(-self.rows // self.batch)

    def options(self) -> dict[str, float]:
        """For programs and peers, by name."""
        names = ("rows", "features", "batch", "batches", "steps", "warmup", "learning_rate")
        return {name: getattr(self, name) for name in names}

    def write(self, folder: Path) -> None:
        """features.npy float64[rows, features] and labels.npy float64[rows]; test-*.npy for ranking."""
        import numpy as np

        generator = np.random.default_rng(self.seed)
        truth = generator.standard_normal(self.features) * 2 / np.sqrt(self.features)
        for prefix, rows in (("", self.rows), ("test-", self.test_rows)):
            drawn = np.clip(generator.standard_normal((rows, self.features)), -4, 4)
            features = np.round(drawn * _GRID) / _GRID
            labels = generator.random(rows) < 1 / (1 + np.exp(-features @ truth))
            np.save(folder / f"{prefix}features.npy", features)
            np.save(folder / f"{prefix}labels.npy", labels.astype(np.float64))

    def plaintext(self, folder: Path, steps: int) -> NDArray[Any]:
        """float64[features], the weights after so many steps from zero."""
        import numpy as np

        features, labels = np.load(folder / "features.npy"), np.load(folder / "labels.npy")
        weights = np.zeros(self.features)
        for step in range(steps):
            rows = self.batch_rows(step)
            own = features[rows]
            miss = 1 / (1 + np.exp(-own @ weights)) - labels[rows]
            weights -= self.learning_rate / self.batch * (own.T @ miss)
        return weights

    def batch_rows(self, step: int) -> slice:
        """Rows of one step's batch."""
        return batch_rows(step, self.rows, self.batch)

    def ranking(self, folder: Path, weights: NDArray[Any]) -> float:
        """Area under the ROC curve on the test rows."""
        import numpy as np

        return area_under_curve(np.load(folder / "test-features.npy") @ weights, np.load(folder / "test-labels.npy"))


def batch_rows(step: int, rows: int, batch: int) -> slice:
    """Rows of one step's batch; the last batch of an epoch may be short."""
    start = step % -(-rows // batch) * batch
    return slice(start, min(start + batch, rows))


def area_under_curve(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """The probability that a random positive scores above a random negative; ties count half (Mann and Whitney)."""
    from scipy.stats import rankdata

    positive = labels > 0
    ones, zeros = int(positive.sum()), int((~positive).sum())
    return float((rankdata(scores)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


@dataclass(frozen=True)
class Numbers:
    """A vector a party, uniform on the grid between -8 and 8, which is what Flower's SecAgg+ clips at."""

    parties: int
    elements: int
    seed: int = 0

    def write(self, folder: Path) -> None:
        """numbers-RANK.npy float32[elements] each: exact, the grid has 20 bits."""
        import numpy as np

        bound = int(_LARGEST * _GRID)
        for rank in range(self.parties):
            generator = np.random.default_rng((self.seed, rank))
            drawn = generator.integers(1 - bound, bound, self.elements, dtype=np.int32)
            np.save(folder / f"numbers-{rank}.npy", (drawn / _GRID).astype(np.float32))

    def total(self, folder: Path) -> NDArray[Any]:
        """float64[elements]: the sum, exact."""
        import numpy as np

        total = np.zeros(self.elements)
        for rank in range(self.parties):
            total += np.load(folder / f"numbers-{rank}.npy")
        return total
