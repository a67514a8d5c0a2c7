"""Next item from the order of a history: one self-attention block. A module file for gradient rounds.

After SASRec (Kang and McAuley 2018, "Self-Attentive Sequential Recommendation", ICDM), made small: an item is W f_i,
f_i its public features, so that 4,500 numbers stand for all items; one head, one layer, the last 30 items. The state s
after position t scores the item at t + 1 by s . e_i + g . f_i + 8 b_i. A user's loss is the mean softmax cross-entropy
over the positions, against 256 public random items.

Needs times: without them a history has no order. Run it:
python examples/train_gradient.py sequence --data ml-100k:FOLDER --epsilon 10
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, layer_norm

from veil.trainers.gradient.contract import Facts, Tensors, UserRows

ROWS = "interactions"

DIMENSIONS = 24
LENGTH = 30
NEGATIVES = 256
# What a step in b_i is multiplied by: popularity is what a noised gradient can learn best.
POPULARITY = 8.0


class Sequence(torch.nn.Module):
    """`features`: float32[items, F], frozen. Attention starts as the mean of the items before, with recency learned."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        size = int(facts.option("dimensions", DIMENSIONS))
        self.register_buffer("features", facts.features, persistent=False)
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), persistent=False)
        offsets = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None, :]
        self.register_buffer("offsets", offsets.clamp(min=0), persistent=False)
        self.size, self.start = size, facts.option("start", 4.0)
        centred = facts.features - facts.features.mean(dim=0)
        _, _, directions = torch.linalg.svd(centred, full_matrices=False)
        directions = torch.nn.functional.pad(directions[:size], (0, 0, 0, max(0, size - len(directions))))
        self.item = torch.nn.Parameter(directions.clone())
        self.register_buffer("centre", directions @ facts.features.mean(dim=0), persistent=False)
        self.query = torch.nn.Parameter(torch.zeros(size, size))
        self.recency = torch.nn.Parameter(torch.zeros(LENGTH))
        self.value = torch.nn.Parameter(torch.eye(size) * self.start)
        self.last = torch.nn.Parameter(torch.zeros(size, size))
        self.taste = torch.nn.Parameter(torch.zeros(facts.features.shape[1]))
        self.popularity = torch.nn.Parameter(torch.zeros(facts.items))

    def embed(self, items: torch.Tensor) -> torch.Tensor:
        """float32[..., size] for item numbers."""
        return self.features[items] @ self.item.T - self.centre

    def forward(self, items: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """float32[n, LENGTH, size]: the state after each position. items, present: [n, LENGTH], padded in front."""
        embedded = self.embed(items) * present[..., None]
        keys = layer_norm(embedded, (self.size,))
        attention = (keys @ self.query) @ keys.transpose(1, 2) / self.size**0.5 + self.recency[self.offsets]
        seen = self.mask & present.bool()[:, None, :]
        weights = torch.softmax(attention.masked_fill(~seen, -1e4), dim=-1)
        return (weights @ embedded) @ self.value.T + embedded @ self.last.T

    def bias(self, items: torch.Tensor) -> torch.Tensor:
        """float32[...]: what an item scores whoever the user is."""
        return self.features[items] @ self.taste + POPULARITY * self.popularity[items]


def build(facts: Facts) -> torch.nn.Module:
    """See `veil.trainers.gradient.contract`."""
    return Sequence(facts)


def example(user: UserRows, facts: Facts) -> Tensors | None:
    """The last 31 items in order, padded in front."""
    count = min(len(user.items), LENGTH + 1)
    if count == 1:
        return None
    items = torch.zeros(LENGTH + 1, dtype=torch.int64)
    present = torch.zeros(LENGTH + 1)
    if count:
        items[-count:] = torch.from_numpy(user.items[-count:].copy())
        present[-count:] = 1.0
    return {"items": items, "present": present}


def draws(facts: Facts, generator: torch.Generator) -> Tensors:
    """Public random items of a round, the same for all."""
    return {"negatives": torch.randint(facts.items, (NEGATIVES,), generator=generator)}


def loss(module: Sequence, users: Tensors, draws: Tensors, facts: Facts) -> torch.Tensor:
    """Mean cross-entropy of each next item against the round's negatives."""
    before, after = users["items"][:, :-1], users["items"][:, 1:]
    real = users["present"][:, :-1]
    states = module(before, real)
    own = (states * module.embed(after)).sum(dim=-1) + module.bias(after)
    others = states @ module.embed(draws["negatives"]).T + module.bias(draws["negatives"])
    others = others.masked_fill(after[..., None] == draws["negatives"], -1e4)
    logits = torch.cat([own[..., None], others], dim=-1).flatten(0, 1)
    losses = cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="none").reshape(real.shape)
    return (losses * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)


def scores(module: Sequence, users: Tensors, facts: Facts) -> torch.Tensor:
    """float32[n, items]: for evaluation, after the last item of each history."""
    states = module(users["items"][:, 1:], users["present"][:, 1:])[:, -1]
    every = torch.arange(facts.items)
    return states @ module.embed(every).T + module.bias(every)
