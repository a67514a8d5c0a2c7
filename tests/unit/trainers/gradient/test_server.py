"""The server's optimiser against torch's, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from veil.errors import ConfigError, InputError, StateError
from veil.trainers.gradient import server
from veil.trainers.gradient.server import ADAM, MOMENTUM, Optimizer


def _walk(optimizer: Optimizer, updates: np.ndarray, noise_sd: float = 0.0) -> list[np.ndarray]:
    state = server.start(np.ones(updates.shape[1], np.float32), 100)
    seen = []
    for update in updates:
        state = server.step(state, update, noise_sd, len(updates), optimizer)
        seen.append(state["weights"])
    return [*seen, state["average"]]


def test_without_noise_adam_is_torchs() -> None:
    updates = np.random.default_rng(1).standard_normal((9, 4))
    ours = _walk(Optimizer(ADAM, rate=0.05, rate_end=1.0, momentum=0.8, second_momentum=0.9), updates)[-2]
    weights = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    theirs = torch.optim.Adam([weights], lr=0.05, betas=(0.8, 0.9), eps=1e-12)
    for update in updates:
        weights.grad = torch.from_numpy(update)
        theirs.step()
    np.testing.assert_allclose(ours, weights.detach().numpy(), atol=1e-5)


def test_momentum_is_an_average_of_updates_without_the_bias_of_its_start() -> None:
    seen = _walk(Optimizer(MOMENTUM, rate=0.5, rate_end=1.0, momentum=0.9), np.ones((5, 3)))
    # equal updates: the average is the update itself from the first round on
    np.testing.assert_allclose(seen[4], 1 - 5 * 0.5, rtol=1e-6)


def test_the_rate_falls_and_the_last_weights_are_averaged() -> None:
    seen = _walk(Optimizer(MOMENTUM, rate=1.0, rate_end=0.0, momentum=0.0, average=0.5), np.ones((5, 1)))
    np.testing.assert_allclose(np.diff([1.0, *[one[0] for one in seen[:5]]]), [-1, -0.75, -0.5, -0.25, 0], atol=1e-6)
    np.testing.assert_allclose(seen[-1], np.mean(seen[3:5]), rtol=1e-6)
    last = _walk(Optimizer(MOMENTUM, rate=1.0, average=0.0), np.ones((3, 1)))
    np.testing.assert_allclose(last[-1], last[-2])


def test_the_noise_is_taken_off_before_adam_divides() -> None:
    # signal 3, noise 4: the root of the mean square is 5, of which Adam should see 3
    updates = np.array([[3.0 + 4.0], [3.0 - 4.0]] * 50)
    plain = Optimizer(ADAM, rate=0.01, rate_end=1.0, momentum=0.999, second_momentum=0.999, floor=1e-6)
    moved = 1 - _walk(plain, updates, noise_sd=4.0)[-2][0]
    assert moved == pytest.approx(100 * 0.01, rel=0.1)
    assert 1 - _walk(plain, updates)[-2][0] == pytest.approx(100 * 0.01 * 3 / 5, rel=0.1)


def test_weights_that_run_away_stop_the_job() -> None:
    with pytest.raises(StateError, match="lower `rate`"):
        _walk(Optimizer(MOMENTUM, rate=1000.0), np.full((3, 2), 1e9))


@pytest.mark.parametrize(
    "wrong",
    [
        {"server": 2.0},
        {"rate": 0.0},
        {"rate_end": 1.5},
        {"momentum": 1.0},
        {"second_momentum": -0.1},
        {"average": 2.0},
        {"floor": 0.0},
    ],
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Optimizer(**wrong)


def test_states_from_the_lead_are_checked() -> None:
    good = server.start(np.ones(4, np.float32), -3)
    assert server.checked(good, 4) is good
    assert int(good["users"][0]) == 1  # a noised count may be anything
    for wrong in (
        {"weights": np.ones(3, np.float32)},
        {"average": np.ones(4)},
        {"momentum": np.array([0, np.nan, 0, 0], np.float32)},
        {"users": np.array([0], np.int64)},
        {"round": np.array([0.0], np.float32)},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            server.checked({**good, **wrong}, 4)
    with pytest.raises(InputError, match="weights"):
        server.checked({}, 4)
