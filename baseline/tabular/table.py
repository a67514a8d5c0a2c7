"""The utility of joint models on split columns: plaintext, joint without noise, joint at a budget, and alternatives.

Guarantee: all rows of a table share data, splits, schema and seeds of noise; private rows pay for their statistics and
for every step as opened (`veil.tabular.plan`), with noise drawn by `veil.privacy.noise`. Nothing is charged to a
ledger: this is an evaluation of data that one holds anyway. Hyperparameters were tuned on train and dev without paying.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from baseline.tabular import alternatives, rates
from baseline.tabular.ctr import CtrOptions, DatasetName, ctr_schema
from baseline.tabular.descent import Link, descend, sigmoid
from baseline.tabular.material import Encoded, Tables, encode, read_tables, statistics_of
from baseline.tabular.scores import auc, log_loss
from veil.jobs.spec import Release
from veil.privacy.accountant import gaussian_epsilon, noise_multiplier
from veil.privacy.noise import ByteSource, keyed_source, rounded_gaussian
from veil.tabular.encoding import encode_features
from veil.tabular.mechanism import RESIDUAL_BITS, Family, gradient_sensitivity
from veil.tabular.plan import STATISTICS_SHARE, DescentOptions, default_descent, plan_releases

DELTA: Final = 1e-5
_RIDGE: Final = 10.0
_GRAM_SHARE: Final = 0.3
_GRAM_RIDGE: Final = 30.0
_PSEUDO: Final = 200.0
_HIDDEN: Final = 8
TOWERS_SLOPE: Final = 0.3

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One line of the table. `epsilon` None: no noise. Means and standard deviations over `seeds` draws of noise."""

    data: str
    parties: int
    model: str
    epsilon: float | None
    seeds: int
    test_auc: float
    test_auc_sd: float
    dev_auc: float
    dev_auc_sd: float
    test_log_loss: float

    def document(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


class Bench:
    """A sample split over parties, read once."""

    def __init__(self, name: DatasetName, folder: Path, parties: int, options: CtrOptions | None = None) -> None:
        """Raises `VeilError` when the files are absent or malformed."""
        self.name: DatasetName = name
        self.tables: Tables = read_tables(name, folder, ctr_schema(name, parties, options))
        self.schema = self.tables.schema
        self.plain = self._encode(None, None)

    def _encode(self, releases: Sequence[Release] | None, source: ByteSource | None) -> Encoded:
        if releases is None or source is None:
            return encode(self.tables, statistics_of(self.tables, None, None, fill=1.0, least_users=0.0))
        by_party = dict(zip((party.party for party in self.schema.parties), releases, strict=False))

        def draw(release: Release) -> npt.NDArray[np.int64]:
            return rounded_gaussian(release.size, release.sigma, source)

        return encode(self.tables, statistics_of(self.tables, by_party, draw, fill=1.0, least_users=0.0))

    def linear(
        self,
        epsilon: float | None,
        seeds: int = 5,
        *,
        descent: DescentOptions | None = None,
        link: Link = sigmoid,
        model: str = "noised descent, logistic",
    ) -> Line:
        """The recommended mechanism in integers (`baseline.tabular.descent`)."""
        options = descent or default_descent(epsilon, DELTA, self.schema.slots)

        def fit(seed: int) -> tuple[Encoded, Float64]:
            encoded, releases, source = self._prepared(epsilon, options.steps, self.schema.width, "linear", seed)

            def noise(step: int) -> npt.NDArray[np.int64]:
                del step  # all steps have equal noise
                return rounded_gaussian(self.schema.width, releases[-1].sigma, source)

            weights = descend(
                self.schema,
                encoded.rows["train"],
                self.tables.labels["train"],
                rate=encoded.rate,
                users=encoded.users,
                options=options,
                noise=noise if releases else None,
                link=link,
            )
            return encoded, weights

        return self._averaged(model, epsilon, seeds if epsilon is not None else 1, linear_scores(fit))

    def alternative(self, kind: str, epsilon: float, seeds: int = 5) -> Line:
        """kind: "objective perturbation", "sufficient statistics" or "naive Bayes counts"."""

        def fit(seed: int) -> tuple[Encoded, Float64]:
            encoded, releases, source = self._prepared(epsilon, 1, self.schema.width, "linear", seed)
            del releases
            rows, labels = encoded.features("train"), encoded.labels["train"]
            multiplier = noise_multiplier(epsilon, DELTA) / math.sqrt(1.0 - STATISTICS_SHARE)
            left = gaussian_epsilon(multiplier, DELTA)
            if kind == "objective perturbation":
                bias = math.log(encoded.rate / (1.0 - encoded.rate))
                return encoded, alternatives.objective_perturbation(
                    rows, labels, bias=bias, ridge=_RIDGE, epsilon=left, delta=DELTA, source=source
                )
            return encoded, alternatives.sufficient_statistics(
                rows, labels, ridge=_GRAM_RIDGE, epsilon=left, delta=DELTA, share=_GRAM_SHARE, source=source
            )

        def counts(seed: int) -> dict[str, Float64]:
            source = keyed_source(seed.to_bytes(16, "big"), b"baseline/tabular/counts")
            raw = {
                split: np.concatenate([encode_features(table) for table in found], axis=1)
                for split, found in self.tables.tables.items()
            }
            columns = sum(len(party.columns) for party in self.schema.parties)
            ratio = alternatives.naive_bayes(
                raw["train"], self.plain.labels["train"], columns=columns, pseudo=_PSEUDO, epsilon=epsilon,
                delta=DELTA, source=source,
            )  # fmt: skip
            return {split: raw[split] @ ratio for split in ("dev", "test")}

        return self._averaged(kind, epsilon, seeds, counts if kind == "naive Bayes counts" else linear_scores(fit))

    def rate_encoded(self, epsilon: float | None, seeds: int = 5) -> Line:
        """Category rates with noise, then descent on one feature a column (`baseline.tabular.rates`)."""
        raw = {
            split: np.concatenate([encode_features(table) for table in found], axis=1)
            for split, found in self.tables.tables.items()
        }
        places = [
            slice(place.start + self.schema.place(party.party).start, place.stop + self.schema.place(party.party).start)
            for party in self.schema.parties
            for place in party.slices()
        ]
        options = DescentOptions(10, 10.0)
        multiplier = 0.0 if epsilon is None else noise_multiplier(epsilon, DELTA)
        labels = self.plain.labels["train"]

        def score(seed: int) -> dict[str, Float64]:
            source = None if epsilon is None else keyed_source(seed.to_bytes(16, "big"), b"baseline/tabular/rates")
            found = rates.category_rates(
                raw["train"], labels, places, multiplier / math.sqrt(rates.COUNTS_SHARE), source
            )
            each = multiplier * math.sqrt(options.steps / (1.0 - rates.COUNTS_SHARE))
            train = rates.encoded(raw["train"], places, found)
            weights = rates.descent(train, labels, found.rate, options, each, source)
            bias = math.log(found.rate / (1.0 - found.rate))
            return {split: rates.encoded(raw[split], places, found) @ weights + bias for split in ("dev", "test")}

        return self._averaged("category rates, then descent", epsilon, seeds if epsilon is not None else 1, score)

    def neural(self, kind: Family, epsilon: float | None, seeds: int = 5) -> Line:
        """Bounded perceptron or towers by noised descent; `kind`: "perceptron" or "towers"."""
        from baseline.tabular.neural import BoundedPerceptron, BoundedTowers, NeuralOptions, descend_model, logits_of

        base = default_descent(epsilon, DELTA, self.schema.slots)
        options = NeuralOptions(base.steps, base.learning_rate, base.momentum)
        cut, width = self.schema.parties[0].width, self.schema.width
        size = width * _HIDDEN + (width if kind == "towers" else 0)
        slope = TOWERS_SLOPE if kind == "towers" else 1.0

        def score(seed: int) -> dict[str, Float64]:
            encoded, releases, source = self._prepared(epsilon, options.steps, size, kind, seed, slope)
            bias = math.log(encoded.rate / (1.0 - encoded.rate))
            model = (
                BoundedTowers(width, cut, _HIDDEN, slope, 2.0, bias, seed)
                if kind == "towers"
                else BoundedPerceptron(width, _HIDDEN, slope, 0.3, bias, seed)
            )

            def noise(step: int, parameters: int) -> Float64:
                del step  # all steps have equal noise
                return rounded_gaussian(parameters, releases[-1].sigma, source) / 2.0 ** (
                    self.schema.bits + RESIDUAL_BITS
                )

            descend_model(
                model, encoded.features("train"), encoded.labels["train"], options, users=encoded.users,
                noise=noise if releases else None,
            )  # fmt: skip
            return {split: logits_of(model, encoded.features(split)) for split in ("dev", "test")}

        return self._averaged(f"noised descent, {kind}", epsilon, seeds if epsilon is not None else 1, score)

    def scored(self, model: str, logits: dict[str, Float64]) -> Line:
        """A line of a model without noise, from its logits of dev and test."""
        return self._averaged(model, None, 1, lambda seed: logits)

    def _prepared(
        self, epsilon: float | None, steps: int, parameters: int, family: Family, seed: int, slope: float = 1.0
    ) -> tuple[Encoded, tuple[Release, ...], ByteSource]:
        """Rows under noised statistics, the job's releases, and the source of the noise of this seed."""
        source = keyed_source(seed.to_bytes(16, "big"), b"baseline/tabular/noise")
        if epsilon is None:
            return self.plain, (), source
        releases = plan_releases(
            self.schema, epsilon=epsilon, delta=DELTA, steps=steps, parameters=parameters, family=family, slope=slope
        )
        return self._encode(releases, source), releases, source

    def _averaged(
        self, model: str, epsilon: float | None, seeds: int, score: Callable[[int], dict[str, Float64]]
    ) -> Line:
        found = [score(seed) for seed in range(1, seeds + 1)]
        test = [auc(self.plain.labels["test"], one["test"]) for one in found]
        dev = [auc(self.plain.labels["dev"], one["dev"]) for one in found]
        losses = [log_loss(self.plain.labels["test"], one["test"]) for one in found]
        return Line(
            self.name, len(self.schema.parties), model, epsilon, seeds, float(np.mean(test)), deviation(test),
            float(np.mean(dev)), deviation(dev), float(np.mean(losses)),
        )  # fmt: skip

    def sensitivity(self) -> int:
        """Of a step's gradient, in grid steps."""
        return gradient_sensitivity(self.schema)


def linear_scores(fit: Callable[[int], tuple[Encoded, Float64]]) -> Callable[[int], dict[str, Float64]]:
    """Logits of dev and test rows from a fit that returns rows and weights."""

    def score(seed: int) -> dict[str, Float64]:
        encoded, weights = fit(seed)
        bias = math.log(encoded.rate / (1.0 - encoded.rate))
        return {split: encoded.features(split) @ weights + bias for split in ("dev", "test")}

    return score


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
