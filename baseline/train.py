"""The plaintext twin: the same linear model trained on all the data in one place, without clipping, grid or noise.

Guarantee: scoring form, objective and split are those of the private trainer (`veil.trainers.subspace.algorithm`): rows
y_u = D x_u less the popularity direction, at unit norm; a rank-d linear autoencoder of them by orthogonal iteration;
the same terms, mixed linearly. What privacy forbids it does use: exact counts, no clipping, more rounds and dimensions,
the leave-one-out form of the objective, and mixing weights fitted on held-out items of the training data.

Leave-one-out: the objective sum_u |E^T y_u|^2 counts how well an item predicts itself, which ranking new items never
uses. Without those terms the second moment sum_u y_u y_u^T loses its diagonal (as in Steck, "Embarrassingly Shallow
Autoencoders for Sparse Data", WWW 2019, where the diagonal of the weights is held at 0).

The matrix products and factorisations run in torch on the given device.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save as dump_safetensors

from baseline import mixing
from veil.errors import ConfigError, InputError
from veil.files import atomic_directory
from veil.jobs.spec import canonical
from veil.recsys import postprocess
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.model import MAX_DIMENSIONS, Model
from veil.recsys.splits import leave_one_out, sample_negatives
from veil.recsys.trained import Trained
from veil.trainers.subspace.algorithm import DEGENERATE

_log = logging.getLogger("veil.baseline")

Float64 = npt.NDArray[np.float64]

DIMENSIONS: Final = 96
ROUNDS: Final = 12
POPULARITY_POWER: Final = 0.25
_NEGATIVES: Final = 99
_SEED: Final = 20261
_EXTRA_DIRECTIONS: Final = 16


def choose_device(name: str) -> torch.device:
    """The torch device of that name ("cpu", "cuda", "cuda:1"); raises `ConfigError` when this machine lacks it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"got device {name!r}, expected cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"got device {name!r}, expected cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"got device {name!r}, which this machine lacks", hint="use --device cpu")
    return device


def train(
    interactions: Interactions,
    catalogue: Catalogue,
    device: torch.device | str = "cpu",
    *,
    dimensions: int = DIMENSIONS,
    rounds: int = ROUNDS,
    power: float = POPULARITY_POWER,
    leave_one_out_objective: bool = True,
) -> Trained:
    """Trains on everything: exact counts, then `rounds` steps of orthogonal iteration from the public directions.

    dimensions: of the collaborative part; the content part gets what is left of a user vector.
    """
    if interactions.items != catalogue.items:
        raise InputError(f"got interactions on {interactions.items} items, expected {catalogue.items}")
    where = choose_device(str(device))
    dimensions = max(1, min(dimensions, catalogue.items - 2))
    lengths = np.maximum(interactions.lengths(), 1)
    sums: Float64 = np.bincount(
        interactions.indices,
        weights=np.repeat(1.0 / np.sqrt(lengths), interactions.lengths()),
        minlength=interactions.items,
    ).astype(np.float64)
    design = postprocess.feature_design(catalogue.features)
    counts = postprocess.posterior_counts(sums, 0.0, design)
    weight, direction = postprocess.item_weights(counts, power)
    directions = postprocess.public_directions(design, counts, weight, direction)
    moment = _SecondMoment(interactions, weight, direction, where, without_diagonal=leave_one_out_objective)
    # A few directions more than wanted, dropped at the end: the last ones converge slowest.
    width = min(dimensions + _EXTRA_DIRECTIONS, catalogue.items - 1)
    basis = torch.as_tensor(directions.start(width), dtype=torch.float32, device=where)
    for number in range(rounds):
        basis = torch.linalg.qr(moment.times(basis))[0]
        _log.debug("round %d of %d", number + 1, rounds)
    # Rayleigh-Ritz: eigenvectors within the found subspace, strongest first.
    small = basis.T @ moment.times(basis)
    strength, rotation = torch.linalg.eigh((small + small.T).double() / 2)
    order = torch.argsort(strength, descending=True)[:dimensions]
    found = basis.double() @ rotation[:, order]
    return Trained(
        counts=counts,
        power=power,
        directions=directions,
        content_dimensions=max(0, MAX_DIMENSIONS - postprocess.USER_TERMS - dimensions),
        basis=found.cpu().numpy(),
        strength=np.maximum(strength[order].cpu().numpy(), 0.0),
    )


def plaintext_model(
    interactions: Interactions,
    catalogue: Catalogue,
    device: torch.device | str = "cpu",
    *,
    dimensions: int = DIMENSIONS,
) -> Model:
    """The plaintext model of all the data; its mixing weights are fitted on training items held out for that.

    The held-out item of a user is the latest where times are known, otherwise a random one (seeded); after fitting, the
    model is trained again on everything.
    """
    order = "latest" if interactions.time is not None else "random"
    held = leave_one_out(interactions, order=order, seed=_SEED)  # type: ignore[arg-type]
    users = np.flatnonzero(held.test_items >= 0)
    if not len(users):
        raise InputError("got no user with two items, expected some to fit mixing weights on")
    count = min(_NEGATIVES, interactions.items - 1 - int(interactions.lengths().max()))
    if count < 1:
        raise InputError("got a user who met all items, expected at least one item to sample", hint="drop that user")
    part, test_items = held.train.rows(users), held.test_items[users]
    negatives = sample_negatives(part, test_items, count=count, seed=_SEED)
    trial = train(held.train, catalogue, device, dimensions=dimensions)
    names, problem = mixing.columns(trial, part, test_items, negatives)
    weights = mixing.fit(names, [problem])
    return train(interactions, catalogue, device, dimensions=dimensions).model(weights)


def save_plaintext(directory: Path, model: Model) -> None:
    """Writes model.safetensors and model.json into a new directory. Unsigned: not an artifact that a server accepts."""
    with atomic_directory(directory) as temporary:
        arrays = {"item_factors": model.item_factors, "fold_in": model.fold_in, "norm_terms": model.norm_terms}
        (temporary / "model.safetensors").write_bytes(dump_safetensors(arrays))
        numbers = {
            "schema": "veil.plaintext-model/1",
            "collaborative": model.collaborative,
            "taste_centre": model.taste_centre,
            "score_scale": model.score_scale,
        }
        (temporary / "model.json").write_text(canonical(numbers) + "\n", encoding="ascii")


class _SecondMoment:
    """sum_u y_u y_u^T, perhaps without its diagonal, as a linear map that never makes a dense row.

    y_u = r_u (D x_u - t_u mu) with t_u = mu.(D x_u) and r_u = 1 / |D x_u - t_u mu|, so that products with the sparse
    rows D x_u and two rank-one corrections suffice.
    """

    def __init__(
        self,
        interactions: Interactions,
        weight: Float64,
        direction: Float64,
        device: torch.device,
        *,
        without_diagonal: bool,
    ) -> None:
        row, met, users = interactions.row_of(), interactions.indices.astype(np.int64), interactions.users
        along = np.bincount(row, weights=(weight * direction)[met], minlength=users)
        total = np.bincount(row, weights=np.square(weight)[met], minlength=users)
        squared = total - np.square(along)
        sound = squared > DEGENERATE * total
        scale = np.where(sound, 1.0 / np.sqrt(np.where(sound, squared, 1.0)), 0.0)

        def on_device(values: npt.ArrayLike) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        places = torch.as_tensor(np.stack([row, met]), device=device)
        values = on_device(weight[met] * scale[row])
        # Scaled rows r_u D x_u, (users, items), and their transpose.
        shape = (users, interactions.items)
        self._rows = torch.sparse_coo_tensor(places, values, shape, check_invariants=True).coalesce()
        self._columns = self._rows.t().coalesce()
        self._along = on_device(along * scale)[:, None]
        self._direction = on_device(direction)[:, None]
        diagonal = np.zeros(interactions.items)
        if without_diagonal:
            share = np.square(scale)
            met_share = np.bincount(met, weights=share[row], minlength=interactions.items)
            met_along = np.bincount(met, weights=(share * along)[row], minlength=interactions.items)
            diagonal = np.square(weight) * met_share - 2.0 * weight * direction * met_along
            diagonal += np.square(direction) * float(share @ np.square(along))
        self._diagonal = on_device(diagonal)[:, None]

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        """The map applied to float32[items, d]."""
        projected: torch.Tensor = torch.sparse.mm(self._rows, vectors) - self._along * (self._direction.T @ vectors)
        product: torch.Tensor = torch.sparse.mm(self._columns, projected) - self._direction * (
            self._along.T @ projected
        )
        return product - self._diagonal * vectors
