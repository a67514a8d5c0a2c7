"""Per-user updates: Opacus, torch.func and plain autograd agree; whatever a module returns stays within the bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opacus import GradSampleModule

from tests.unit.trainers.gradient.conftest import MakeAlgorithm
from tests.unit.trainers.gradient.module_files import BILINEAR, CENTRED, NORMALISED, NORMALISED_ALONE, OPACUS, SINGLE
from veil.errors import ConfigError
from veil.privacy.mechanism import within
from veil.trainers.gradient.algorithm import GradientAlgorithm
from veil.trainers.gradient.contract import Tensors
from veil.trainers.gradient.local_update import gridded
from veil.trainers.gradient.releases import round_bits, round_sensitivity


def _users(count: int, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, 4, generator=generator)
    return {"x": x, "y": (x[..., 0] > 0).float(), "w": (x[..., 1] > -1).float()}


_DRAWS = {"shift": torch.tensor(0.3)}


def _rows(algorithm: GradientAlgorithm, users: Tensors) -> np.ndarray:
    updates = algorithm.updates
    return updates.rows(updates.weights(updates.flat()), users, _DRAWS, seed=1)


def _with_frozen(algorithm: GradientAlgorithm) -> GradientAlgorithm:
    """Jobs on different files have different seeds: the same weights, frozen ones too, for comparing engines."""
    for place, parameter in enumerate(algorithm.updates.module.parameters()):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place))
        parameter.data.copy_(values)
    return algorithm


def test_ours_are_the_per_sample_gradients_of_opacus(make_algorithm: MakeAlgorithm) -> None:
    users = _users(7)
    algorithm = make_algorithm(BILINEAR)
    ours = _rows(algorithm, users)
    # Opacus by itself, as its documentation shows it, on the module that the file builds
    module = algorithm.code.build(algorithm.facts)
    module.train()
    module.drop.eval()
    wrapped = GradSampleModule(module, loss_reduction="sum")
    with pytest.warns(UserWarning, match="no inputs require gradients"):
        algorithm.code.loss(wrapped, users, _DRAWS, algorithm.facts).sum().backward()
    theirs = torch.cat([p.grad_sample.reshape(7, -1) for p in module.parameters() if p.requires_grad], dim=1).numpy()
    assert ours.shape == theirs.shape == (7, algorithm.trainer.parameters)
    np.testing.assert_allclose(ours, theirs, atol=2e-7)
    assert np.abs(theirs).max() > 0.01


def test_the_three_engines_agree(make_algorithm: MakeAlgorithm) -> None:
    users = _users(9)
    single = _rows(_with_frozen(make_algorithm(SINGLE)), users)
    for source in (BILINEAR, OPACUS):
        np.testing.assert_allclose(_rows(_with_frozen(make_algorithm(source)), users), single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("source", [BILINEAR, SINGLE])
def test_local_steps_are_gradient_descent_of_each_user(make_algorithm: MakeAlgorithm, source: str) -> None:
    users = _users(3)
    algorithm = make_algorithm(source, local_steps=4, local_rate=0.3)
    rows = _rows(algorithm, users)
    for user in range(3):
        module = algorithm.code.build(algorithm.facts)
        trained = [p for p in module.parameters() if p.requires_grad]
        module.eval()
        before = torch.cat([p.detach().reshape(-1).clone() for p in trained])
        optimizer = torch.optim.SGD(trained, lr=0.3)
        for _ in range(4):
            optimizer.zero_grad()
            own = {name: tensor[user : user + 1] for name, tensor in users.items()}
            algorithm.code.loss(module, own, _DRAWS, algorithm.facts).sum().backward()
            optimizer.step()
        after = torch.cat([p.detach().reshape(-1) for p in trained])
        np.testing.assert_allclose(rows[user], ((before - after) / 0.3).numpy(), atol=2e-6)


def test_opacus_has_no_weights_of_each_users_own(make_algorithm: MakeAlgorithm) -> None:
    with pytest.raises(ConfigError, match="local steps"):
        make_algorithm(OPACUS, local_steps=2)


@pytest.mark.parametrize("source", [NORMALISED, NORMALISED_ALONE])
def test_batch_normalisation_is_refused(make_algorithm: MakeAlgorithm, source: str) -> None:
    with pytest.raises(ConfigError, match="BatchNorm cannot support"):
        make_algorithm(source)


def test_mixing_that_no_layer_shows_is_found_on_invented_users(make_algorithm: MakeAlgorithm) -> None:
    with pytest.raises(ConfigError, match="depend on the other users"):
        make_algorithm(CENTRED)
    # one user at a time, there is nobody to mix with
    make_algorithm(CENTRED.replace('"opacus"', '"functional"'))


@pytest.mark.parametrize("source", [BILINEAR, OPACUS, SINGLE])
def test_a_row_is_of_its_own_user_whoever_is_beside(make_algorithm: MakeAlgorithm, source: str) -> None:
    algorithm = make_algorithm(source)
    users = _users(6)
    before = _rows(algorithm, users)
    changed = {name: tensor.clone() for name, tensor in users.items()}
    changed["x"][2:] = 100.0
    np.testing.assert_array_equal(_rows(algorithm, changed)[:2], before[:2])
    assert (_rows(algorithm, changed)[2:] != before[2:]).any()


_BREAKING = ("    each = ", "    if bool((users['x'] > 50).any()):\n        raise RuntimeError('large')\n    each = ")


@pytest.mark.parametrize("source", [OPACUS, SINGLE])
def test_a_pass_that_breaks_off_leaves_nothing_behind(make_algorithm: MakeAlgorithm, source: str) -> None:
    algorithm = make_algorithm(source.replace(*_BREAKING))
    users = _users(5)
    before = _rows(algorithm, users)
    broken = {name: tensor.clone() for name, tensor in users.items()}
    broken["x"][3] = 100.0
    rows = _rows(algorithm, broken)
    others = [0, 1, 2, 4]
    np.testing.assert_allclose(rows[others], before[others], atol=2e-7)
    assert not rows[3].any()
    np.testing.assert_array_equal(_rows(algorithm, users), before)


def test_a_loss_that_asks_what_a_number_is_does_not_go_with_the_functional_engine(
    make_algorithm: MakeAlgorithm,
) -> None:
    with pytest.raises(ConfigError, match="fails on invented rows with engine functional"):
        make_algorithm(BILINEAR.replace(*_BREAKING))


def test_dropout_is_off(make_algorithm: MakeAlgorithm) -> None:
    users = _users(4)
    for source in (BILINEAR, OPACUS, SINGLE):
        algorithm = make_algorithm(source)
        np.testing.assert_array_equal(_rows(algorithm, users), _rows(algorithm, users))
        assert not algorithm.updates.module.drop.training


def test_whatever_a_module_returns_is_bounded() -> None:
    wild = np.zeros((7, 50))
    wild[0] = 1e300
    wild[1, 3] = np.inf
    wild[2, 3] = np.nan
    wild[3, :2] = (np.inf, -np.inf)
    wild[4] = -1e-3
    wild[5, 0] = 0.25
    grid = gridded(wild, 0.25)
    assert within(grid, round_sensitivity(0.25)).all()
    assert not grid[[1, 2, 3, 6]].any()
    assert (grid[4] == -int(1e-3 * 2 ** round_bits(0.25))).all()
    assert grid[5, 0] == round_sensitivity(0.25)
    assert np.linalg.norm(grid[0].astype(float)) > 0.999 * round_sensitivity(0.25)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("self.first = ", "self.first = torch.nn.Linear(4, 6).double(); self.last = "), "not float32"),
        (("return Net(facts)", "return 3"), "expected a torch.nn.Module"),
        (("return Net(facts)", "return Net(facts).requires_grad_(False)"), "without a trainable parameter"),
    ],
)
def test_modules_that_cannot_be_trained(make_algorithm: MakeAlgorithm, change: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_algorithm(BILINEAR.replace(*change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("if len(user.items) == 1", "if len(user.items) == 12"), "refuses an invented user"),
        (
            ("    x, y, w = ", "    x = {}[len(user.items)] if len(user.items) else 0\n    x, y, w = "),
            "example.. fails",
        ),
        (("torch.zeros(5), torch.zeros(5)\n", "torch.zeros(5), torch.zeros(5 + len(user.items))\n"), "other names"),
        (("return (each", "return each.sum() + (each"), "depend on the other|float|shape|differ"),
        (("    each = ", "    raise RuntimeError('no')\n    each = "), "loss.. fails on invented rows"),
        (("return (each", "return torch.nan * (each"), "not finite"),
        (("clamp(min=1.0)", "clamp(min=1.0).sum()"), "."),
    ],
)
def test_what_is_wrong_for_everybody_shows_on_invented_users(
    make_algorithm: MakeAlgorithm, change: tuple[str, str], says: str
) -> None:
    assert change[0] in OPACUS
    with pytest.raises(ConfigError, match=says):
        make_algorithm(OPACUS.replace(*change))


@pytest.mark.parametrize(
    "change",
    [
        # A generator that lives on: how many numbers earlier users took decides what this one gets.
        ('    return {"x"', '    x = x + torch.rand(())\n    return {"x"'),
        ('    return {"x"', '    import numpy\n    x = x + float(numpy.random.random())\n    return {"x"'),
        # A counter in a global variable.
        (
            *("def example(user, facts):\n", "calls = []\n\ndef example(user, facts):\n    calls.append(0)\n"),
            *('    return {"x"', '    w = w * len(calls)\n    return {"x"'),
        ),
    ],
)
def test_what_example_was_called_for_before_must_not_matter(
    make_algorithm: MakeAlgorithm, change: tuple[str, ...]
) -> None:
    source = OPACUS
    for old, new in zip(change[::2], change[1::2], strict=True):
        assert old in source
        source = source.replace(old, new)
    with pytest.raises(ConfigError, match="the second time"):
        make_algorithm(source)


def test_mixing_behind_layers_that_start_at_zero_is_found(make_algorithm: MakeAlgorithm) -> None:
    source = (
        OPACUS.replace(
            "        self.last = torch.nn.Linear(6, 1)\n",
            "        self.gate, self.last = torch.nn.Linear(6, 6), torch.nn.Linear(6, 1)\n"
            "        for layer in (self.gate, self.last):\n"
            "            torch.nn.init.zeros_(layer.weight)\n"
            "            torch.nn.init.zeros_(layer.bias)\n\n"
            "    def mixed(self, x):\n        return x + self.gate(x - x.mean(dim=0))\n",
        )
        .replace("self.last(self.norm(", "self.last(self.mixed(")
        .replace("self.norm = torch.nn.LayerNorm(6)", "pass")
    )
    with pytest.raises(ConfigError, match="depend on the other users"):
        make_algorithm(source)


@pytest.mark.parametrize("engine", ["functional", "opacus"])
def test_a_user_on_whom_a_pass_fails_changes_no_bit_of_anybody_elses_row(
    make_algorithm: MakeAlgorithm, engine: str
) -> None:
    # An item number outside of the table fails the whole pass. Wide layers, so that another shape would show.
    algorithm = make_algorithm(f"""
import torch
ENGINE = "{engine}"

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.middle, self.last = (
            torch.nn.Embedding(50, 32), torch.nn.Linear(32, 48), torch.nn.Linear(48, 1)
        )

    def forward(self, item):
        return self.last(torch.tanh(self.middle(self.table(item)))).mean(dim=1).squeeze(-1)

def build(facts):
    return Net()

def example(user, facts):
    item = torch.zeros(6, dtype=torch.int64)
    item[: min(len(user.items), 6)] = torch.from_numpy(user.items[:6] % 50)
    return {{"item": item}}

def loss(module, users, draws, facts):
    return module(users["item"]) ** 2
""")
    updates = algorithm.updates
    weights = updates.weights(algorithm._initial)
    item = torch.randint(50, (updates.block_users, 6), generator=torch.Generator().manual_seed(1))
    whole = updates.compute(weights, {"item": item}, {}, 1)
    bad = item.clone()
    bad[[3, 17], 2] = 50
    rows = updates.rows(weights, {"item": bad}, {}, 1)
    assert not rows[[3, 17]].any()
    others = np.delete(np.arange(len(item)), [3, 17])
    assert np.array_equal(rows[others], whole[others])
    assert not updates.rows(weights, {"item": torch.full_like(item, 50)}, {}, 1).any()
