"""Every operation against exact integers, for 2, 3 and 5 parties."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.mpc.engine.together import together
from veil.errors import ConfigError, InputError, StateError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.plan import plan
from veil.mpc.engine.requests import Masked, Truncated, Waved
from veil.mpc.engine.values import Opened, Value
from veil.mpc.engine.waves import fit, sigmoid

SIZES = (2, 3, 5)
RING = st.integers(-(2**63), 2**63 - 1)
EDGES = [0, 1, -1, 2**61, -(2**61), 2**62 - 1, -(2**62) + 1, 2**31, -(2**31), 65535, -65536]


def ints(values: list[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.int64))


def given_by(engine: Engine, tensor: Tensor, owner: int, *, bits: int = 0, limit_bits: float = 63.0) -> Value:
    mine = tensor if engine.rank == owner else None
    return engine.own(mine, tuple(tensor.shape), owner, bits=bits, limit_bits=limit_bits)


def same_everywhere(results: list[Tensor]) -> Tensor:
    assert all(torch.equal(result, results[0]) for result in results)
    return results[0]


def combined(engine: Engine, value: Value) -> Tensor:
    return engine.combine(Value(value.share, value.bits, 0.0))


@pytest.mark.parametrize("parties", SIZES)
@settings(max_examples=12, deadline=None)
@given(left=st.lists(RING, min_size=12, max_size=12), right=st.lists(RING, min_size=8, max_size=8))
def test_products_are_exact_in_the_ring(parties: int, left: list[int], right: list[int]) -> None:
    x, w = ints(left).reshape(6, 2), ints(right).reshape(2, 4)

    def program(engine: Engine) -> tuple[Tensor, Tensor, Tensor]:
        data = engine.fix(given_by(engine, x, parties - 1), owner=parties - 1)
        shared = engine.fix(given_by(engine, x, 0))
        weights, tall = engine.open(
            Masked(given_by(engine, w, 0)), Masked(given_by(engine, ints(left[:4]).reshape(4, 1), 1))
        )
        assert isinstance(weights, Opened) and isinstance(tall, Opened)
        whole = engine.matmul(data, weights)
        part = engine.matmul(shared, tall, rows=(1, 5), transposed=True)
        square = engine.mul(weights, weights)
        return combined(engine, whole), combined(engine, part), combined(engine, square)

    results = together(parties, program)
    whole, part, square = (same_everywhere([result[place] for result in results]) for place in range(3))
    assert torch.equal(whole, x @ w)
    assert torch.equal(part, x[1:5].t() @ ints(left[:4]).reshape(4, 1))
    assert torch.equal(square, w * w)


@pytest.mark.parametrize("parties", SIZES)
@settings(max_examples=15, deadline=None)
@given(
    numbers=st.lists(st.integers(-(2**62) + 1, 2**62 - 1), min_size=1, max_size=20),
    shift=st.sampled_from([2, 3, 16, 31, 52, 61]),
)
def test_truncations_give_a_neighbour_and_never_wrap(parties: int, numbers: list[int], shift: int) -> None:
    values = numbers + EDGES

    def program(engine: Engine) -> Tensor:
        value = given_by(engine, ints(values), 0, bits=shift, limit_bits=61.9999)
        return combined(engine, engine.truncated(value, shift))

    if max(map(abs, values)) > 2**61.9999:
        values = [number for number in values if abs(number) <= 2**61.9999]
    result = same_everywhere(together(parties, program)).tolist()
    for got, number in zip(result, values, strict=True):
        assert got - (number >> shift) in (0, 1)
        if number % (1 << shift) == 0:
            assert got == number >> shift


def test_the_mean_of_a_truncation_is_exact() -> None:
    shift, fraction = 16, 0.3
    number = (5 << shift) + int(fraction * 2**shift)

    def program(engine: Engine) -> Tensor:
        value = given_by(engine, torch.full((200_000,), number), 0, bits=shift, limit_bits=30)
        return combined(engine, engine.truncated(value, shift))

    result = together(2, program)[0]
    # 200,000 coins of probability 0.3: five standard deviations are 0.0052.
    assert abs(float((result - 5).double().mean()) - fraction) < 0.0052


@pytest.mark.parametrize("parties", SIZES)
def test_ten_million_truncations_of_all_sizes(parties: int) -> None:
    """2, 3 and 5 parties share 10^7 values of every magnitude between them; none may be off by more than one."""
    count, shift = 10_000_000 // len(SIZES), 20
    generator = np.random.default_rng(parties)
    magnitudes = generator.integers(0, 62, count)
    numbers = ints((generator.random(count) * 2.0**magnitudes).astype(np.int64) * generator.choice([-1, 1], count))

    def program(engine: Engine) -> Tensor:
        value = given_by(engine, numbers, 1, bits=shift, limit_bits=61.99)
        return combined(engine, engine.truncated(value, shift))

    excess = together(parties, program)[0] - (numbers >> shift)
    assert int(excess.min()) >= 0 and int(excess.max()) <= 1


@pytest.mark.parametrize("parties", SIZES)
@pytest.mark.parametrize("bits", [12, 32, 40])
def test_functions_cost_one_round_and_keep_their_error(parties: int, bits: int) -> None:
    series = fit(sigmoid, reach=6, period=16, harmonics=8)
    slope = fit(lambda u: sigmoid(u) * (1 - sigmoid(u)), reach=6, period=16, harmonics=8)
    points = np.linspace(-6, 6, 501)
    numbers = ints(np.rint(points * 2.0**bits).astype(np.int64))

    def program(engine: Engine) -> tuple[Tensor, Tensor, int]:
        value = given_by(engine, numbers, 0, bits=bits)
        first, second = engine.functions(value, series, slope)
        assert first.limit_bits < 37 and first.bits == 36
        return combined(engine, first), combined(engine, second), first.bits

    first, second, result_bits = together(parties, program)[0]
    tables = 8 * 2.0**-17 + 2.0**-13  # waves and phases in fixed point
    assert np.abs(first.numpy() / 2.0**result_bits - sigmoid(points)).max() < series.error + tables
    expected = sigmoid(points) * (1 - sigmoid(points))
    assert np.abs(second.numpy() / 2.0**result_bits - expected).max() < slope.error + tables
    assert series.error < 3e-4


@pytest.mark.parametrize("parties", (2, 3))
def test_one_round_serves_requests_of_all_kinds(parties: int) -> None:
    series = fit(sigmoid, reach=6, period=16, harmonics=6)
    numbers = ints([1 << 20, -(3 << 20), 5 << 19])

    def program(engine: Engine) -> tuple[Tensor, Tensor, Tensor, float]:
        value = given_by(engine, numbers, 0, bits=20, limit_bits=40)
        before = communicator_rounds(engine)
        opened, cut, waves = engine.open(Masked(value), Truncated(value, 4), Waved(value, (series,)))
        rounds = communicator_rounds(engine) - before
        assert isinstance(opened, Opened) and isinstance(cut, Value) and isinstance(waves, list)
        square = combined(engine, engine.mul(opened, opened))
        return square, combined(engine, cut), combined(engine, waves[0]), rounds

    square, cut, wave, rounds = together(parties, program)[0]
    assert torch.equal(square, numbers * numbers) and torch.equal(cut, numbers >> 4) and rounds <= 1
    assert np.abs(wave.numpy() / 2.0**36 - sigmoid(numbers.numpy() / 2.0**20)).max() < series.error + 2e-4


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (1, 1, 1, 1)])
def test_values_of_every_shape(shape: tuple[int, ...]) -> None:
    numbers = ints([(4 * place) << 12 for place in range(math.prod(shape))]).reshape(shape)
    series = fit(sigmoid, reach=6, period=16, harmonics=8)

    def program(engine: Engine) -> tuple[Tensor, Tensor]:
        value = given_by(engine, numbers, 0, bits=14, limit_bits=40)
        _, cut, waves = engine.open(Masked(value), Truncated(value, 4), Waved(value, (series,)))
        assert isinstance(cut, Value) and isinstance(waves, list)
        return combined(engine, cut), combined(engine, waves[0])

    cut, wave = together(2, program)[1]
    assert torch.equal(cut, numbers >> 4) and wave.shape == shape
    assert np.abs(wave.numpy() / 2.0**36 - sigmoid(numbers.numpy() / 2.0**14)).max() < series.error + 2e-4


def communicator_rounds(engine: Engine) -> float:
    count: Callable[[], dict[str, float]] | None = getattr(engine._communicator, "get_communication_stats", None)
    return count()["rounds"] if count else 0.0


def test_what_could_go_wrong_is_refused_before_it_does() -> None:
    def too_large(engine: Engine) -> Value:
        value = given_by(engine, ints([1]), 0, bits=30, limit_bits=40)
        opened = engine.masked(value)
        return engine.truncated(engine.mul(opened, opened), 30)

    with pytest.raises(ConfigError, match=r"up to 2\^80"):
        together(2, too_large)

    def at_the_edge(engine: Engine) -> Value:
        return engine.truncated(given_by(engine, ints([1]), 0, bits=4, limit_bits=62 - 1e-9), 4)

    with pytest.raises(ConfigError, match="a truncation"):  # a logarithm of many summands is no more exact than that
        together(2, at_the_edge)

    def same_mask_twice(engine: Engine) -> Opened:
        value = given_by(engine, ints([1]), 0)
        mask = engine.mask((1,))
        engine.masked(value, mask)
        return engine.masked(value, mask)

    with pytest.raises(StateError, match="second time"):
        together(2, same_mask_twice)

    def above_its_bound(engine: Engine) -> Value:
        return given_by(engine, ints([2**20]), 0, limit_bits=19)

    with pytest.raises(InputError, match="above the declared bound"):
        together(2, above_its_bound)

    def mask_that_one_party_knows(engine: Engine) -> Opened:
        return engine.masked(given_by(engine, ints([1]), 0), engine.mask((1,), owner=1))

    with pytest.raises(StateError, match="rank 1 knows"):
        together(2, mask_that_one_party_knows)


@pytest.mark.parametrize("parties", (2, 3))
@pytest.mark.parametrize(
    "made",
    [
        lambda engine: given_by(engine, ints([3]), 1),
        lambda engine: given_by(engine, ints([3]), 0, limit_bits=9) + given_by(engine, ints([4]), 1, limit_bits=9),
        lambda engine: engine.plus(given_by(engine, ints([3]), 1), 5),
        lambda engine: engine.truncated(given_by(engine, ints([64]), 0, bits=4, limit_bits=9), 4),
        lambda engine: engine.public(ints([7]), bits=0, limit_bits=3),
    ],
    ids=["another's", "sum", "public summand", "truncated", "public"],
)
def test_only_its_owner_may_open_a_value_alone(parties: int, made: Callable[[Engine], Value]) -> None:
    """Only the owner sends: whatever other parties' shares hold would be missing, and nobody would notice."""
    with pytest.raises(StateError, match="not of rank 0 alone"):
        plan(lambda engine: engine.fix(made(engine), owner=0), 0, parties)

    def shared(engine: Engine) -> tuple[Tensor, Tensor]:
        with pytest.raises(StateError, match="not of rank 0 alone"):
            engine.fix(made(engine), owner=0)
        value = made(engine)
        return combined(engine, value), combined(engine, engine.mul(engine.fix(value), engine.fix(value)))

    for number, square in together(parties, shared):
        assert int(square) == int(number) ** 2


@pytest.mark.parametrize("number", [5, 80, 3000, 5 * 2**40 + 1])
def test_numbers_may_be_as_large_as_their_bound(number: int) -> None:
    """2.0 ** log2(5) is less than 5."""

    def program(engine: Engine) -> Tensor:
        return combined(engine, given_by(engine, ints([number, -number]), 0, limit_bits=math.log2(number)))

    assert together(2, program)[1].tolist() == [number, -number]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64 + 7, 2**70 - 3, -5])
def test_public_summands_count_modulo_the_ring(number: int) -> None:
    """An offset of many fractional bits reaches beyond 63 bits and is right modulo the period all the same."""

    def program(engine: Engine) -> Tensor:
        return combined(engine, engine.plus(given_by(engine, ints([1]), 0), number))

    assert (int(together(2, program)[0]) - 1 - number) % 2**64 == 0


def test_openings_look_uniform_whatever_the_data() -> None:
    """The masked differences of constant data pass a test of uniform bytes that the data itself fails."""
    size = 50_000

    def program(engine: Engine) -> Tensor:
        opened = engine.masked(given_by(engine, torch.full((size,), 12345), 0))
        return opened.difference

    counts = np.bincount(together(3, program)[0].numpy().view(np.uint8), minlength=256)
    statistic = float(((counts - 8 * size / 256) ** 2 / (8 * size / 256)).sum())
    # 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert statistic < 255 + 6 * math.sqrt(2 * 255)
    plain = np.bincount(np.full(size, 12345).view(np.uint8), minlength=256)
    assert float(((plain - 8 * size / 256) ** 2 / (8 * size / 256)).sum()) > 10_000
