"""What the trainers of linear recommenders have in common: the release of counts, and a model as public state.

Guarantee: a user's summand of the release of counts has an L2 norm of at most `count_sensitivity()` grid steps, in
integers; states that come from outside are checked for names, types and emptiness before use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from veil.errors import InputError, StateError
from veil.jobs.spec import JobSpec, Release
from veil.privacy.mechanism import vector_sensitivity
from veil.recsys.interactions import Interactions
from veil.recsys.model import Model
from veil.recsys.trained import Trained
from veil.trainers.rows import PartyRows
from veil.trainers.seam import Algorithm, Int64, PublicState

COUNTS: Final = "counts"
COUNT_BITS: Final = 20


class LinearAlgorithm(Algorithm, Protocol):
    """A trainer that ends in `Trained`."""

    def trained(self, step: str, opened: Int64, public_state: PublicState) -> Trained:
        """What is known after the last opening, before mixing weights make a model of it."""
        ...


def central_trained(
    algorithm: LinearAlgorithm, spec: JobSpec, interactions: Interactions, noise: Callable[[Release], Int64]
) -> Trained:
    """As `veil.trainers.seam.central_state`, but stops before mixing weights make a model of what was found: for
    fitting those (`baseline.mixing`)."""
    rows = PartyRows(interactions)
    state: PublicState = {}
    for step in algorithm.steps[:-1]:
        total = algorithm.contribution(step, rows, state) + noise(spec.release(step))
        state = algorithm.advance(step, total, state)
    step = algorithm.steps[-1]
    return algorithm.trained(step, algorithm.contribution(step, rows, state) + noise(spec.release(step)), state)


def count_sensitivity() -> int:
    """Bound on the L2 norm of one user's summand of the release "counts", in grid steps."""
    return vector_sensitivity(1.0, COUNT_BITS)


def count_sum(interactions: Interactions) -> Int64:
    """sum_u trunc(2^20 x_u / sqrt|x_u|), int64[items]: counts in which a user's row has norm 1 at most."""
    # Sensitivity: all n entries of a user's row are one integer v with n v^2 <= 2^40, so the norm is at most 2^20.
    lengths = interactions.lengths()
    present = np.maximum(lengths, 1)
    value = np.floor(2.0**COUNT_BITS / np.sqrt(present)).astype(np.int64)
    bound = np.int64(count_sensitivity()) ** 2
    value -= (present * np.square(value) > bound).astype(np.int64)
    if bool((present * np.square(value) > bound).any()):
        raise StateError("got a row above its norm, expected none")
    total = np.zeros(interactions.items, np.int64)
    np.add.at(total, interactions.indices, np.repeat(value, lengths))
    return total


def model_state(model: Model) -> PublicState:
    """The model's arrays as a public state."""
    return {
        "item_factors": model.item_factors,
        "fold_in": model.fold_in,
        "norm_terms": model.norm_terms,
        "collaborative": np.array([model.collaborative], np.int64),
        "taste_centre": np.array([model.taste_centre], np.float32),
        "score_scale": np.array([model.score_scale], np.float32),
    }


def model_of(state: PublicState) -> Model:
    """The model in a state of `model_state`: a copy of arrays, so equal at every party. Raises `StateError`."""
    if "item_factors" not in state:
        raise StateError("got a training that is not finished, expected the state after the last opening")
    return Model(
        item_factors=array_of(state, "item_factors"),
        fold_in=array_of(state, "fold_in"),
        norm_terms=array_of(state, "norm_terms"),
        collaborative=int(array_of(state, "collaborative", np.int64).flat[0]),
        taste_centre=float(array_of(state, "taste_centre").flat[0]),
        score_scale=float(array_of(state, "score_scale").flat[0]),
    )


def array_of(state: PublicState, name: str, dtype: type[np.generic] = np.float32) -> npt.NDArray[Any]:
    """The state's array of that name; raises `InputError` unless it is there, of that type and not empty."""
    array = state.get(name)
    if array is None or array.dtype != dtype or not array.size:
        raise InputError(f"got no {np.dtype(dtype)} array {name!r} in the public state, expected one")
    return array
