"""Plaintext references on the same encoded rows: what joint training gives up is measured against these.

Guarantee: no noise, no budget, all columns in one place; the ridge, the epoch and the model's size are chosen on dev.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from baseline.tabular.alternatives import ridge_logistic
from baseline.tabular.material import Encoded
from baseline.tabular.scores import auc

RIDGES: Final = (1.0, 3.0, 10.0, 30.0)
_SIZES: Final = (4, 8)

Float64 = npt.NDArray[np.float64]
Logits = dict[str, Float64]


def logistic(encoded: Encoded, ridge: float) -> Logits:
    """Logistic regression with ridge/2 ||w||^2 on the summed loss, public intercept; logits of dev and test."""
    bias = math.log(encoded.rate / (1.0 - encoded.rate))
    weights = ridge_logistic(encoded.features("train"), encoded.labels["train"], bias=bias, ridge=ridge)
    return {split: encoded.features(split) @ weights + bias for split in ("dev", "test")}


def best_logistic(encoded: Encoded) -> tuple[float, Logits]:
    """The ridge with the best AUC on dev, and its logits."""
    found = {ridge: logistic(encoded, ridge) for ridge in RIDGES}
    best = max(found, key=lambda ridge: auc(encoded.labels["dev"], found[ridge]["dev"]))
    return best, found[best]


def best_neural(encoded: Encoded, kind: str, *, seed: int = 1, epochs: int = 12) -> Logits:
    """A factorisation machine ("machine") or a perceptron ("perceptron") by Adam; size, decay and epoch by dev AUC."""
    from baseline.tabular.neural import FactorisationMachine, Perceptron, fit_plain, logits_of

    bias = math.log(encoded.rate / (1.0 - encoded.rate))
    rows = {split: encoded.features(split) for split in ("train", "dev", "test")}
    make = FactorisationMachine if kind == "machine" else Perceptron
    best, kept = -1.0, {}
    for size in _SIZES:
        for decay in (0.0, 0.3):
            model = make(rows["train"].shape[1], size, bias, seed)

            def watch() -> float:
                return auc(encoded.labels["dev"], logits_of(model, rows["dev"]))  # noqa: B023

            fit_plain(
                model, rows["train"], encoded.labels["train"], epochs=epochs, learning_rate=0.02, decay=decay,
                seed=seed, watch=watch,
            )  # fmt: skip
            score = watch()
            if score > best:
                best, kept = score, {split: logits_of(model, rows[split]) for split in ("dev", "test")}
    return kept
