"""Every draw of a joint computation comes from AES-256 streams: no other generator is touched, none is even made."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from tests.unit.mpc.engine.together import together
from tests.unit.trainers.columns.test_logistic import SERIES, data
from tests.unit.trainers.columns.test_perceptron import HIDDEN
from veil.mpc.engine.engine import Engine
from veil.privacy.noise import rounded_gaussian, system_source
from veil.trainers.columns.descent import Descent
from veil.trainers.columns.logistic import Logistic
from veil.trainers.columns.perceptron import Perceptron

_TORCH = ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like", "randn_like")
_IN_PLACE = ("random_", "normal_", "uniform_", "bernoulli_", "exponential_", "geometric_")
_NUMPY = ("default_rng", "RandomState", "Generator", "PCG64", "MT19937", "random", "rand", "randn", "randint", "normal")
_PYTHON = ("Random", "random", "randint", "getrandbits", "shuffle", "choice", "gauss", "sample")


class Touched(AssertionError):
    """A generator other than the cryptographic ones was asked for something."""


@contextmanager
def watched() -> Iterator[None]:
    """Raises `Touched` where a generator of torch, numpy or Python is made or drawn from, or has moved afterwards."""

    def refuse(name: str) -> Any:
        def act(*_: object, **__: object) -> None:
            raise Touched(name)

        return act

    places: list[tuple[Any, str]] = [(torch, name) for name in _TORCH]
    places += [(torch.Tensor, name) for name in _IN_PLACE] + [(torch, "Generator"), (torch, "manual_seed")]
    places += [(np.random, name) for name in _NUMPY] + [(random, name) for name in _PYTHON]
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    patches = [mock.patch.object(owner, name, refuse(f"{owner.__name__}.{name}")) for owner, name in places]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (repr(np.random.get_state()), random.getstate())


@pytest.mark.parametrize("parties", (2, 3))
def test_a_noised_descent_and_a_perceptron_touch_no_other_generator(parties: int) -> None:
    layout, own, _, _ = data(parties, 0)
    descent = Descent(3, 128, rate=1, rate_bits=8, momentum=9, velocity_bits=14, sigmoid=SERIES, precision_bits=10)

    def noised(step: int, gradient: Any) -> Any:
        draw = rounded_gaussian(gradient.share.numel(), 1000, system_source())
        share = torch.from_numpy(draw).reshape(gradient.shape)
        return type(gradient)(gradient.share if gradient.share.is_meta else gradient.share + share, gradient.bits, 60.0)

    programs: tuple[Logistic, Perceptron] = (
        Logistic(layout, descent, noise=noised),
        Perceptron(layout, descent, HIDDEN),
    )

    def part(engine: Engine) -> list[torch.Tensor]:
        mine = None if engine.device.type == "meta" else own[engine.rank]
        return [engine.combine(program.run(engine, mine)) for program in programs]

    together(parties, part)  # libraries that are imported at first use make generators of their own
    with watched():
        results = together(parties, part)
    assert all(torch.equal(one, other) for one, other in zip(results[0], results[1], strict=True))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(2),
        lambda: torch.zeros(2).normal_(),
        lambda: torch.Generator(),
        lambda: np.random.default_rng(1),
        lambda: np.random.normal(),
        lambda: random.random(),
        lambda: random.Random(1),
    ],
)
def test_the_watch_sees_other_generators(draw: Any) -> None:
    with pytest.raises(Touched), watched():
        draw()
