"""The one test body: what CrypTen computes on shares, against the same in plaintext. Runs on every backend."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SharedMaker = Callable[[Any], Any]


@dataclass(frozen=True)
class Operation:
    """`compute` gets the shared inputs by name; `expected` is the plaintext result."""

    name: str
    compute: Callable[[dict[str, Any]], Any]
    expected: Tensor
    tolerance: float


def inputs() -> dict[str, Tensor]:
    draw = np.random.default_rng(20)
    uniform = {
        "x": ((4, 5), -4.0, 4.0),
        "y": ((4, 5), -4.0, 4.0),
        "p": ((4, 5), 0.5, 4.0),
        "w": ((5, 3), -2.0, 2.0),
        "column": ((4, 1), -3.0, 3.0),
        "logits": ((2, 4), -2.0, 2.0),
        "image": ((2, 2, 6, 6), -2.0, 2.0),
        "kernel": ((3, 2, 3, 3), -1.0, 1.0),
        "signal": ((2, 2, 9), -2.0, 2.0),
        "taps": ((3, 2, 3), -1.0, 1.0),
    }
    floats = {
        name: torch.tensor(draw.uniform(a, b, shape), dtype=torch.float32) for name, (shape, a, b) in uniform.items()
    }
    bits = {name: torch.tensor(draw.integers(-(2**62), 2**62, (3, 4))) for name in ("i", "j")}
    return {**floats, **bits}


def operations() -> list[Operation]:
    v = inputs()
    x, y, p, w = v["x"], v["y"], v["p"], v["w"]
    conv1d = F.conv1d(v["signal"], v["taps"], padding=1, stride=2)
    conv2d = F.conv2d(v["image"], v["kernel"], padding=1)
    ten = torch.arange(20.0).reshape(4, 5)
    return [
        Operation("open", lambda s: s["x"], x, 2e-5),
        Operation("add", lambda s: s["x"] + s["y"], x + y, 4e-5),
        Operation("sub", lambda s: s["x"] - s["y"], x - y, 4e-5),
        Operation("neg", lambda s: -s["x"], -x, 2e-5),
        Operation("add-public", lambda s: s["x"] + ten, x + ten, 4e-5),
        Operation("mul", lambda s: s["x"] * s["y"], x * y, 4e-4),
        Operation("mul-broadcast", lambda s: s["x"] * s["column"], x * v["column"], 4e-4),
        Operation("mul-public", lambda s: s["x"] * 1.5, x * 1.5, 2e-4),
        Operation("matmul", lambda s: s["x"].matmul(s["w"]), x @ w, 2e-3),
        Operation("square", lambda s: s["x"].square(), x * x, 4e-4),
        Operation("gt", lambda s: s["x"] > s["y"], (x > y).float(), 0),
        Operation("ge", lambda s: s["x"] >= s["y"], (x >= y).float(), 0),
        Operation("eq", lambda s: s["x"] == s["x"], torch.ones(4, 5), 0),
        Operation("relu", lambda s: s["x"].relu(), x.relu(), 4e-5),
        Operation("sigmoid", lambda s: s["x"].sigmoid(), x.sigmoid(), 2e-2),
        Operation("div-public", lambda s: s["x"] / 7, x / 7, 1e-4),
        Operation("div", lambda s: s["x"] / s["p"], x / p, 4e-2),
        Operation("sum", lambda s: s["x"].sum(0), x.sum(0), 1e-4),
        Operation("conv1d", lambda s: s["signal"].conv1d(s["taps"], padding=1, stride=2), conv1d, 2e-3),
        Operation("conv2d", lambda s: s["image"].conv2d(s["kernel"], padding=1), conv2d, 4e-3),
        Operation("softmax", lambda s: s["logits"].softmax(1), v["logits"].softmax(1), 3e-2),
        Operation("binary-xor", lambda s: s["i"] ^ s["j"], v["i"] ^ v["j"], 0),
        Operation("binary-and", lambda s: s["i"] & s["j"], v["i"] & v["j"], 0),
        Operation("binary-or", lambda s: s["i"] | s["j"], v["i"] | v["j"], 0),
        Operation("to-binary-and-back", lambda s: _round_trip(s["x"]), x, 2e-5),
        Operation("gradient", lambda s: _gradient(s["x"], s["w"]), 2 * x.t() @ (x @ w), 4e-2),
    ]  # fmt: skip


def _round_trip(shared: Any) -> Any:
    from crypten.mpc import ptype

    return shared.to(ptype.binary).to(ptype.arithmetic)


def _gradient(x: Any, w: Any) -> Any:
    weights = w.clone()
    weights.requires_grad = True
    x.matmul(weights).square().sum().backward()
    return weights.grad


def openings() -> dict[str, tuple[int, ...]]:
    return {operation.name: tuple(operation.expected.shape) for operation in operations()}


def run(session: Any, world_size: int, rank: int) -> dict[str, tuple[float, float]]:
    """Name -> (largest error, tolerance), every input shared by another party."""
    from crypten.mpc.primitives import BinarySharedTensor

    shared: dict[str, Any] = {}
    for position, (name, value) in enumerate(inputs().items()):
        src = position % world_size
        if value.dtype == torch.int64:
            own = value if src == rank else torch.zeros_like(value)
            shared[name] = BinarySharedTensor(own, src=src)
        else:
            shared[name] = session.share(value if src == rank else None, src, value.shape)
    errors = {}
    for operation in operations():
        result = session.open(operation.name, operation.compute(shared))
        difference = (result - operation.expected).abs().max()
        errors[operation.name] = (float(difference), operation.tolerance)
    return errors


@contextmanager
def no_torch_randomness() -> Iterator[None]:
    """Whatever asks torch, numpy or Python for ordinary random numbers fails."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("an ordinary random generator was used in a session")

    with (
        mock.patch.object(torch, "randint", refuse),
        mock.patch.object(torch, "rand", refuse),
        mock.patch.object(torch, "randn", refuse),
        mock.patch.object(torch, "Generator", refuse),
        mock.patch.object(torch.Tensor, "random_", refuse),
        mock.patch.object(np.random, "randint", refuse),
        mock.patch.object(random, "getrandbits", refuse),
    ):
        yield
