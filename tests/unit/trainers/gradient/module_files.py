"""Small module files for the tests of gradient rounds: what a user of the framework would write."""

from __future__ import annotations

BILINEAR = """
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

class Net(torch.nn.Module):
    def __init__(self, facts):
        super().__init__()
        torch.manual_seed(facts.seed)
        self.frozen = torch.nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.first = torch.nn.Linear(4, 6)
        self.drop = torch.nn.Dropout(0.5)
        self.norm = torch.nn.LayerNorm(6)
        self.last = torch.nn.Linear(6, 1)

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.drop(self.first(self.frozen(x)))))).squeeze(-1)

def build(facts):
    return Net(facts)

def example(user, facts):
    if len(user.items) == 1:
        return None
    x, y, w = torch.zeros(5, 4), torch.zeros(5), torch.zeros(5)
    for place, item in enumerate(user.items[:5].tolist()):
        x[place, item % 4] = 1.0 + item / facts.items
        y[place] = float(item % 2)
        w[place] = 1.0
    return {"x": x, "y": y, "w": w}

def draws(facts, generator):
    return {"shift": torch.rand((), generator=generator)}

def loss(module, users, draws, facts):
    each = binary_cross_entropy_with_logits(module(users["x"]) + 0.1 * draws["shift"], users["y"], reduction="none")
    return (each * users["w"]).sum(dim=1) / users["w"].sum(dim=1).clamp(min=1.0)
"""

OPACUS = BILINEAR + '\nENGINE = "opacus"\n'
SINGLE = BILINEAR + '\nENGINE = "single"\n'

NORMALISED = OPACUS.replace("self.norm = torch.nn.LayerNorm(6)", "self.norm = torch.nn.BatchNorm1d(5)")
NORMALISED_ALONE = SINGLE.replace("self.norm = torch.nn.LayerNorm(6)", "self.norm = torch.nn.BatchNorm1d(5)")

# Mixes users where no layer shows it.
CENTRED = OPACUS.replace("torch.tanh(self.drop(self.first", "torch.tanh(self.drop(self.middle").replace(
    "    def forward(self, x):",
    "    def middle(self, x):\n        y = self.first(x)\n        return y - y.mean(dim=0)\n\n"
    "    def forward(self, x):",
)

# Fails on users who have met item 0, gives a gradient that is no number for those with item 1, a huge one with item 2.
TREACHEROUS = SINGLE.replace(
    "    each = ",
    "    if bool((users['x'][..., 0] == 1.0).any()):\n        raise RuntimeError('item 0 was met')\n    each = ",
).replace(
    "    return (each * users",
    "    one = 1.0 + 1 / facts.items\n"
    "    two = 1.0 + 2 / facts.items\n"
    "    wild = torch.where((users['x'][..., 1] == one).any(dim=1), torch.nan, 1.0)\n"
    "    wild = wild * torch.where((users['x'][..., 2] == two).any(dim=1), 1e30, 1.0)\n"
    "    return wild * (each * users",
)

TEXTS = """
import torch
ROWS = "texts"

def build(facts):
    return torch.nn.Linear(3, len(facts.labels))

def example(user, facts):
    x, y = torch.zeros(3), torch.zeros(len(facts.labels))
    if user.texts:
        x[:] = torch.tensor([len(user.texts), len(user.texts[0]), 1.0])
        y[:] = torch.from_numpy(user.labels[0])
    return {"x": x, "y": y}

def loss(module, users, draws, facts):
    return ((module(users["x"]) - users["y"]) ** 2).mean(dim=1)
"""
