"""The engine's and the session's numbers beside those of CrypTen 0.4.1 as it ships, run on the same public inputs.

Each comparison allows the sum of what both sides state, worst cases throughout. CrypTen cuts every share towards zero,
so a truncation is off by less than a unit of 2^-16 for each party; the bounds of its functions follow from that, step
by step of `crypten/common/functions/approximations.py`. The engine: exact products, truncations off by less than one
unit, a sigmoid off by what its series says and by its tables. For every comparison there is a program that is nearly
right, and fails it.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tests.protocol.stock_crypten import BITS, CUT_BITS, LIMIT_S, RATE_BITS, STEPS
from tests.unit.mpc.engine.together import together
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.requests import Masked, Truncated, Waved
from veil.mpc.engine.values import Opened, Value
from veil.mpc.engine.waves import fit, sigmoid
from veil.trainers.columns.descent import Descent
from veil.trainers.columns.layout import Layout, OwnColumns
from veil.trainers.columns.logistic import Logistic

Numbers = npt.NDArray[np.float64]
Values = dict[str, Numbers]
# One bound for all numbers of a result, or one for each.
Error = float | Numbers

ROWS, COLUMNS, FEATURE_BITS = 64, 6, 12
UNIT = 2.0**-BITS
SERIES = fit(sigmoid, reach=6, period=16, harmonics=8)
# Of the series, and of its waves and phases in fixed point (tests/unit/mpc/engine/test_engine.py).
ENGINE_SIGMOID = SERIES.error + 8 * 2.0**-17 + 2.0**-13
SAME = ("sum", "product", "matrix product", "truncation", "sigmoid", "chebyshev", "steps")
SIZES = (2, 3)
# Results that one mistake spoils.
TOGETHER = ({"sum", "product", "matrix product"}, {"sigmoid", "chebyshev"})


def made() -> Values:
    """Inputs on CrypTen's grid, so that sharing them loses nothing."""
    draw = np.random.default_rng(7)

    def uniform(*shape: int) -> Numbers:
        found: Numbers = np.trunc(draw.uniform(-8, 8, shape) / UNIT) * UNIT
        return found

    data = draw.normal(size=(ROWS, COLUMNS))
    data = np.trunc(data / np.linalg.norm(data, axis=1, keepdims=True) * 2**FEATURE_BITS) / 2**FEATURE_BITS
    labels = data @ np.array([3.0, -2, 1, 0, 2, -1]) + draw.normal(size=ROWS) > 0
    return {
        "x": uniform(40, 30),
        "y": uniform(40, 30),
        "w": uniform(30, 5),
        "u": np.linspace(-6, 6, 769),
        "near": np.linspace(-2, 2, 257),  # where CrypTen's other sigmoid holds
        "data": data,
        "labels": labels.astype(np.float64).reshape(-1, 1),
        "start": np.zeros((COLUMNS, 1)),
        "hard": np.arange(-40, -1) + UNIT,  # what CrypTen's decoder gets wrong
    }


INPUTS = made()


@pytest.fixture(scope="module")
def crypten(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Values]:
    """What CrypTen found: ("stock" or "session", parties) -> results."""
    folder: Path = tmp_path_factory.mktemp("stock")
    np.savez(folder / "inputs.npz", allow_pickle=False, **INPUTS)
    command = [sys.executable, "-W", "ignore", "-m", "tests.protocol.stock_crypten", str(folder)]
    here = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT_S, check=False, cwd=here)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for kind in ("stock", "session"):
        for parties in SIZES:
            with np.load(folder / f"{kind}-{parties}.npz") as file:
                found[kind, parties] = {name: file[name] for name in file.files}
    return found


# What the engine finds ------------------------------------------------------------------------------------------------


def on_grid(numbers: Numbers, bits: int = BITS) -> Tensor:
    return torch.from_numpy(np.rint(numbers * 2.0**bits).astype(np.int64))


def engine_values(parties: int, wrong: str = "") -> Values:
    """The engine's values of everything; `wrong` names one that is computed not quite as it should be."""
    x, y = INPUTS["x"].copy(), INPUTS["y"]
    if wrong in ("sum", "product", "matrix product"):
        x[3, 4] += 2 * UNIT
    series = fit(sigmoid, reach=6, period=16, harmonics=3) if wrong in ("sigmoid", "chebyshev") else SERIES
    cut_bits = CUT_BITS - (wrong == "truncation")

    def own(engine: Engine, numbers: Numbers, owner: int) -> Value:
        mine = on_grid(numbers) if engine.rank == owner else None
        return engine.own(mine, numbers.shape, owner, bits=BITS, limit_bits=BITS + 3.0)

    def program(engine: Engine) -> list[Tensor]:
        left, right, tall = own(engine, x, 0), own(engine, y, 1), own(engine, INPUTS["w"], parties - 1)
        scores, near = own(engine, INPUTS["u"], 0), own(engine, INPUTS["near"], 1)
        one, other, third, cut, wave, nearer = engine.open(
            Masked(left),
            Masked(right),
            Masked(tall),
            Truncated(own(engine, INPUTS["x"], 0), cut_bits),
            Waved(scores, (series,)),
            Waved(near, (series,)),
        )
        assert isinstance(one, Opened) and isinstance(other, Opened) and isinstance(third, Opened)
        assert isinstance(cut, Value) and isinstance(wave, list) and isinstance(nearer, list)
        values = [left + right, engine.mul(one, other), engine.matmul(one, third), cut, wave[0], nearer[0]]
        return [engine.combine(Value(value.share, value.bits, 0.0)) for value in values]

    bits = (BITS, 2 * BITS, 2 * BITS, BITS, 36, 36)
    values = [found.numpy() / 2.0**of for found, of in zip(together(parties, program)[0], bits, strict=True)]
    return {**dict(zip(SAME, values, strict=False)), "steps": engine_steps(parties, wrong)}


def engine_steps(parties: int, wrong: str = "") -> Numbers:
    """The weights after some steps of logistic regression: the program that jobs run, columns split over parties."""
    cuts = [COLUMNS * rank // parties for rank in range(parties + 1)]
    widths = tuple(stop - start for start, stop in itertools.pairwise(cuts))
    # Every part of a row has a norm of at most 1, whoever holds it; so whole rows are far inside 2.
    shares = (2**FEATURE_BITS,) * parties
    layout = Layout(ROWS, widths, 1, feature_bits=FEATURE_BITS, norm=2.0, shares=shares)
    rate = 2 ** (8 - RATE_BITS) + (4 if wrong == "steps" else 0)
    descent = Descent(STEPS, ROWS, rate, rate_bits=8, momentum=0, velocity_bits=14, sigmoid=SERIES)
    task = Logistic(layout, descent)
    data, labels = on_grid(INPUTS["data"], FEATURE_BITS), on_grid(INPUTS["labels"], 0)

    def program(engine: Engine) -> Tensor:
        rank = engine.rank
        own = OwnColumns(data[:, cuts[rank] : cuts[rank + 1]].contiguous(), labels if rank == 1 else None)
        return engine.combine(task.run(engine, None if engine.device.type == "meta" else own))

    found: Numbers = together(parties, program)[0].numpy() / 2.0**task.weight_bits
    return found


@pytest.fixture(scope="module")
def engine() -> dict[int, Values]:
    """By number of parties."""
    return {parties: engine_values(parties) for parties in SIZES}


# What is exact, and how far off either may be -------------------------------------------------------------------------


def exact() -> Values:
    weights = INPUTS["start"]
    for _ in range(STEPS):
        residual = sigmoid(INPUTS["data"] @ weights) - INPUTS["labels"]
        weights = weights - INPUTS["data"].T @ residual / 2**RATE_BITS
    x = INPUTS["x"]
    return {
        "sum": x + INPUTS["y"],
        "product": x * INPUTS["y"],  # within 40 bits, so exact in floating point, as are the sums of 30 below
        "matrix product": x @ INPUTS["w"],
        "truncation": x / 2**CUT_BITS,
        "sigmoid": sigmoid(INPUTS["u"]),
        "chebyshev": sigmoid(INPUTS["near"]),
        "steps": weights,
    }


def crypten_errors(parties: int) -> dict[str, Error]:
    unit = parties * UNIT
    reciprocal = reciprocal_error(INPUTS["u"], unit)
    return {
        "sum": 0.0,
        "product": unit,
        "matrix product": unit,
        "truncation": unit,
        "sigmoid": reciprocal,
        "chebyshev": chebyshev_error(INPUTS["near"], unit),
        "steps": steps_error(float(reciprocal.max()), float(unit)),
    }


def engine_errors() -> dict[str, Error]:
    return {
        "sum": 0.0,
        "product": 0.0,
        "matrix product": 0.0,
        "truncation": UNIT,
        "sigmoid": ENGINE_SIGMOID,
        "chebyshev": ENGINE_SIGMOID,
        "steps": steps_error(ENGINE_SIGMOID, 2.0**-14),
    }


def reciprocal_error(u: Numbers, unit: float) -> Numbers:
    """Of CrypTen's sigmoid "reciprocal": exp(-|u|) as (1 - |u| / 256)^256 by eight squarings, then 1 / (1 + that) by
    three steps of Newton from 0.75, then a choice between two results by the sign of u."""
    power, error = 1 - np.abs(u) / 256, np.full(u.shape, 2 * unit)
    for _ in range(8):
        power, error = power**2, 2 * np.abs(power) * error + error**2 + unit
    error = error + np.abs(power - np.exp(-np.abs(u)))
    whole = 1 + np.exp(-np.abs(u))
    result, off = np.full(u.shape, 0.75), np.zeros(u.shape)
    for _ in range(3):
        off = 2 * np.abs(1 - result * whole) * off + whole * off**2 + whole * unit + unit
        result = 2 * result - whole * result**2
    # How the result of Newton's steps moves with what is inverted, at most as the reciprocal does where |u| is 0.
    found: Numbers = off + np.abs(result - 1 / whole) + error + 2 * unit
    return found


def chebyshev_error(u: Numbers, unit: float) -> Numbers:
    """Of CrypTen's sigmoid "chebyshev" for |u| <= 2: tanh(u / 2) as 16 odd polynomials by their recurrence."""
    places = (np.arange(32) + 0.5) * np.pi / 32
    series = 2 / 32 * (np.tanh(np.cos(places)) @ np.cos(np.outer(np.arange(32), places)).T)[1::2]
    cut = np.trunc(series / UNIT) * UNIT
    half, off = u / 2, unit
    double, double_off = 4 * half**2 - 2, 4 * (2 * np.abs(half) * off + off**2 + unit)
    terms = [half, (double - 1) * half]
    errors = [off + 0 * u, np.abs(double - 1) * off + np.abs(half) * double_off + off * double_off + unit]
    for _ in range(14):
        errors.append(np.abs(double) * errors[-1] + (np.abs(terms[-1]) + errors[-1]) * double_off + unit + errors[-2])
        terms.append(double * terms[-1] - terms[-2])
    total = sum(abs(c) * error for c, error in zip(cut, errors, strict=True)) + unit
    total = total + np.abs(sum(c * term for c, term in zip(cut, terms, strict=True)) - np.tanh(half))
    found: Numbers = (total + 2 * unit) / 2 + unit
    return found


def steps_error(of_sigmoid: float, unit: float) -> float:
    """Of weights after all steps, as a Euclidean length: each step moves an error on, and adds its own."""
    size, rate = float(np.linalg.norm(INPUTS["data"], 2)), 2.0**-RATE_BITS
    error = 0.0
    for _ in range(STEPS):
        residual = size * error / 4 + ROWS**0.5 * (of_sigmoid + unit)
        error += rate * (size * residual + COLUMNS**0.5 * unit) + COLUMNS**0.5 * unit
    return error


def apart(one: Numbers, other: Numbers, name: str) -> Error:
    """How far two results are apart: each number of them, or weights as a whole."""
    difference: Numbers = np.abs(one - other)
    return float(np.linalg.norm(difference)) if name == "steps" else difference


# The comparisons ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("parties", SIZES)
def test_the_engine_and_stock_crypten_agree(
    crypten: dict[tuple[str, int], Values], engine: dict[int, Values], parties: int, name: str
) -> None:
    stock, own, true = crypten["stock", parties][name], engine[parties][name], exact()[name]
    stocks, owns = crypten_errors(parties)[name], engine_errors()[name]
    assert own.shape == stock.shape and np.all(apart(own, stock, name) <= stocks + owns)
    assert np.all(apart(stock, true, name) <= stocks) and np.all(apart(own, true, name) <= owns)


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("parties", SIZES)
def test_the_session_and_stock_crypten_agree(crypten: dict[tuple[str, int], Values], parties: int, name: str) -> None:
    stock, own = crypten["stock", parties][name], crypten["session", parties][name]
    error = crypten_errors(parties)[name]
    assert own.shape == stock.shape and np.all(apart(own, stock, name) <= 2 * error)
    assert np.all(apart(own, exact()[name], name) <= error)


@pytest.mark.parametrize("name", SAME)
def test_what_is_nearly_right_does_not_agree(crypten: dict[tuple[str, int], Values], name: str) -> None:
    """An entry of x off by two units, a bit too few cut off, 3 waves, a rate that is a quarter too large."""
    own, stock = engine_values(2, wrong=name), crypten["stock", 2]
    bounds = {each: crypten_errors(2)[each] + engine_errors()[each] for each in SAME}
    agrees: Callable[[str], bool] = lambda each: bool(np.all(apart(own[each], stock[each], each) <= bounds[each]))  # noqa: E731
    spoilt: set[str] = next((group for group in TOGETHER if name in group), {name})
    assert not agrees(name) and all(agrees(each) for each in set(SAME) - spoilt)


@pytest.mark.parametrize("parties", SIZES)
def test_stock_crypten_decodes_some_numbers_wrongly_and_a_session_none(
    crypten: dict[tuple[str, int], Values], parties: int
) -> None:
    """Its decoder divides negative numbers by 2^16 - 1; shares are right, and so is what a session opens."""
    hard = INPUTS["hard"]
    assert np.array_equal(crypten["stock", parties]["stock decoder"], hard.astype(np.float32) - 1)
    assert np.array_equal(crypten["stock", parties]["decoded"], hard)
    assert np.array_equal(crypten["session", parties]["decoded"], hard)
