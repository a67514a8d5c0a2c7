"""Two towers: items from their public features, users from what they met. A module file for gradient rounds.

Item tower: e_i = W f_i, f_i the public features of item i (text embedding, categories, years). User tower: u = A m + c,
m the mean of e_j over the user's history. Score: u . e_i + g . f_i + s b_i, where b_i is a popularity of its own for
every item. A user's loss is the mean, over at most 40 items of the user, of the softmax cross-entropy of that item
against 256 public random ones, with the item itself taken out of the history.

About 11,000 numbers are trained for 3,700 items. The towers start from the principal directions of the features, so
that training starts from likeness of content: a private budget is too small to learn what is public.
Run it: python examples/train_gradient.py two-tower --data ml-100k:FOLDER --epsilon 3
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from veil.trainers.gradient.contract import Facts, Tensors, UserRows

ROWS = "interactions"

DIMENSIONS = 32
TARGETS = 40
NEGATIVES = 256


class TwoTower(torch.nn.Module):
    """`features`: float32[items, F], frozen. Trainable: W, A, c, g, b."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        size = int(facts.option("dimensions", DIMENSIONS))
        self.register_buffer("features", facts.features, persistent=False)
        self.start = facts.option("start", 4.0)
        self.popularity_scale = facts.option("popularity-scale", 8.0)
        centred = facts.features - facts.features.mean(dim=0)
        _, _, directions = torch.linalg.svd(centred, full_matrices=False)
        directions = torch.nn.functional.pad(directions[:size], (0, 0, 0, max(0, size - len(directions))))
        self.item = torch.nn.Parameter(directions.clone())
        self.user = torch.nn.Parameter(torch.eye(size) * self.start)
        self.centre = torch.nn.Parameter(-self.start * directions @ facts.features.mean(dim=0))
        self.taste = torch.nn.Parameter(torch.zeros(facts.features.shape[1]))
        self.popularity = torch.nn.Parameter(torch.zeros(facts.items))

    def users(self, profiles: torch.Tensor) -> torch.Tensor:
        """float32[n, dimensions] from means of features, float32[n, F]."""
        return profiles @ self.item.T @ self.user.T + self.centre

    def scores(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """float32[n, k] for the items of these numbers, int64[k]."""
        features = self.features[items]
        return (
            users @ (features @ self.item.T).T + features @ self.taste + self.popularity_scale * self.popularity[items]
        )


def build(facts: Facts) -> torch.nn.Module:
    """See `veil.trainers.gradient.contract`."""
    return TwoTower(facts)


def example(user: UserRows, facts: Facts) -> Tensors | None:
    """Up to 40 items to predict, and the sum of the features of the whole history."""
    count = len(user.items)
    if count == 1:
        return None
    items = torch.from_numpy(user.items)
    # The same shuffle for every user with so many items: the sample is as good as random, and nobody else's business.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(facts.seed))[:TARGETS]
    targets = torch.zeros(TARGETS, dtype=torch.int64)
    targets[: len(order)] = items[order]
    weight = torch.zeros(TARGETS)
    weight[: len(order)] = 1.0 / max(len(order), 1)
    return {
        "targets": targets,
        "weight": weight,
        "total": facts.features[items].sum(dim=0),
        "count": torch.tensor(float(max(count, 2))),
    }


def draws(facts: Facts, generator: torch.Generator) -> Tensors:
    """Public random items of a round, the same for all."""
    return {"negatives": torch.randint(facts.items, (NEGATIVES,), generator=generator)}


def loss(module: TwoTower, users: Tensors, draws: Tensors, facts: Facts) -> torch.Tensor:
    """Mean cross-entropy of each user's targets against the round's negatives."""
    shape = users["targets"].shape  # n, TARGETS
    features = module.features[users["targets"]]  # n, TARGETS, F
    rest = (users["total"][:, None] - features) / (users["count"][:, None, None] - 1)
    vectors = module.users(rest.reshape(-1, rest.shape[2]))  # n * TARGETS, d
    flat = users["targets"].reshape(-1)
    own = (vectors * (features.reshape(-1, rest.shape[2]) @ module.item.T)).sum(dim=1)
    own = own + features.reshape(-1, rest.shape[2]) @ module.taste + module.popularity_scale * module.popularity[flat]
    others = module.scores(vectors, draws["negatives"])
    # A negative that is the target itself would be pushed both ways.
    others = others.masked_fill(flat[:, None] == draws["negatives"][None, :], -1e4)
    logits = torch.cat([own[:, None], others], dim=1)
    losses = cross_entropy(logits, torch.zeros(len(flat), dtype=torch.int64), reduction="none")
    return (losses.reshape(shape) * users["weight"]).sum(dim=1)


def scores(module: TwoTower, users: Tensors, facts: Facts) -> torch.Tensor:
    """float32[n, items]: for evaluation; the history counts whole."""
    profiles = users["total"] / users["count"][:, None]
    return module.scores(module.users(profiles), torch.arange(facts.items))
