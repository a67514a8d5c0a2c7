"""Shapes follow tensors through everything that the engine does to them; anything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from veil.errors import InputError
from veil.mpc.engine.outline import Outline

OPERATIONS: list[Callable[[Any], Any]] = [
    lambda x: x + 3,
    lambda x: 3 * x - x,
    lambda x: -x * torch.ones(5, dtype=torch.int64),
    lambda x: torch.ones(4, 1, dtype=torch.int64) * x,
    lambda x: x.t(),
    lambda x: x.reshape(-1),
    lambda x: x.reshape((2, -1)),
    lambda x: x[1:3],
    lambda x: x[:, 1:2],
    lambda x: x[0],
    lambda x: x.sum(1, keepdim=True),
    lambda x: x.sum(0),
    lambda x: torch.cat([x, x]),
    lambda x: torch.cat([x, x], dim=1),
    lambda x: next(iter(x)),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_shapes_are_those_of_tensors(operation: Callable[[Any], Any]) -> None:
    tensor = torch.zeros(4, 5, dtype=torch.int64)
    got, expected = operation(Outline((4, 5))), operation(tensor)
    assert got.shape == tuple(expected.shape) and got.numel() == expected.numel() and got.dim() == expected.dim()


def test_what_depends_on_numbers_is_refused() -> None:
    outline: Any = Outline((4, 5))
    with pytest.raises(InputError, match="dry run"):
        torch.argmax(outline)
    with pytest.raises(InputError, match="dry run"):
        outline[torch.zeros(2)]
    with pytest.raises(InputError, match="fits"):
        outline.reshape(3, 3)
