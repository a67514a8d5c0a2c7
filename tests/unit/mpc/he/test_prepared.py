"""The engine on correlations that its parties made themselves: from a plan to a file, and from there to what opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.mpc.he.numbers import together, total
from veil.errors import ConfigError, ProtocolMismatch, StateError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.items import EngineItem, check_without_dealer
from veil.mpc.engine.plan import plan
from veil.mpc.engine.requests import Truncated, Waved
from veil.mpc.engine.values import Value
from veil.mpc.engine.waves import fit, sigmoid
from veil.mpc.he import store
from veil.mpc.he.prepared import StoredCorrelations, label, prepare
from veil.mpc.he.store import Store

SIGMOID = fit(sigmoid, reach=6.0, period=16, harmonics=4)
FRACTION_BITS = 16


def _features() -> Tensor:
    drawn = np.random.default_rng(1).uniform(-1, 1, (12, 5))
    return torch.from_numpy(np.rint(drawn * 2**FRACTION_BITS).astype(np.int64))


def _weights() -> Tensor:
    return torch.from_numpy(np.rint(np.linspace(-2, 2, 5)[:, None] * 2**FRACTION_BITS).astype(np.int64))


def _program(engine: Engine) -> tuple[Tensor, Tensor, Tensor]:
    """Two products with one fixed matrix, a truncation and a sigmoid, opened for the test."""
    data = _features() if engine.rank == 0 else None
    features = engine.fix(engine.own(data, (12, 5), 0, bits=FRACTION_BITS, limit_bits=FRACTION_BITS), owner=0)
    held = _weights() if engine.rank == 1 else None
    weights = engine.own(held, (5, 1), 1, bits=FRACTION_BITS, limit_bits=FRACTION_BITS + 2)
    product = engine.matmul(features, engine.masked(weights))
    cut, waves = engine.open(Truncated(product, FRACTION_BITS), Waved(product, (SIGMOID,)))
    assert isinstance(cut, Value)
    assert isinstance(waves, list)
    back = engine.matmul(features, engine.masked(cut), transposed=True)
    return engine.combine(cut), engine.combine(waves[0]), engine.combine(back)


@pytest.mark.parametrize("parties", [2, 3])
def test_the_engine_on_a_store(parties: int, tmp_path: Path) -> None:
    def take_part(communicator: TensorCommunicator) -> tuple[Tensor, Tensor, Tensor]:
        items = plan(_program, communicator.rank, parties).items
        path = tmp_path / str(communicator.rank)
        batch = prepare(communicator, path, items)
        with Store(path) as opened:
            assert opened.batch == batch
            source = StoredCorrelations(opened)
            source.align(communicator)
            return _program(Engine(communicator, source))

    for cut, activated, back in together(parties, take_part):
        exact = _features().numpy() @ _weights().numpy()
        assert set(np.unique(cut.numpy() - (exact >> FRACTION_BITS))) <= {0, 1}
        values = activated.numpy() / 2.0**36
        assert np.abs(values - SIGMOID(exact / 2.0 ** (2 * FRACTION_BITS))).max() < 1e-4
        assert np.array_equal(back.numpy(), _features().numpy().T @ cut.numpy())


def test_shares_of_three_parties_are_uniform_at_every_one(tmp_path: Path) -> None:
    # A product of what two parties know: the third one takes no part in it, and yet its share must not be known, since
    # what it adds to it later (noise) would be as soon as the sum opens.
    items = [
        EngineItem("mask", (40, 8), owner=0),
        EngineItem("mask", (40, 5), owner=1),
        EngineItem("product", (8, 5), left=0, right=1, rows=40, transposed=True),
        EngineItem("truncation", (30,), shift=4),
    ]

    def program(communicator: TensorCommunicator) -> list[store.Record]:
        path = tmp_path / str(communicator.rank)
        prepare(communicator, path, items)
        with Store(path) as opened:
            return opened.take_many(opened.labels)

    shares = together(3, program)
    for own in shares:
        for tensor in (own[2][1], own[3][0], *own[3][1]):
            assert len(np.unique(tensor.view(np.uint64) >> np.uint64(40))) == tensor.size
    left, right = (total([own[number][0] for own in shares]) for number in (0, 1))
    assert not shares[2][0][0].any()
    assert not shares[2][1][0].any()
    assert np.array_equal(total([own[2][1] for own in shares]), left.T @ right)
    mask, (cut, top) = total([own[3][0] for own in shares]), total([own[3][1] for own in shares])
    assert np.array_equal(cut.view(np.uint64), mask.view(np.uint64) >> np.uint64(4))
    assert np.array_equal(top.view(np.uint64), mask.view(np.uint64) >> np.uint64(63))


def test_parties_must_ask_for_the_same(tmp_path: Path) -> None:
    def differ(communicator: TensorCommunicator) -> None:
        prepare(communicator, tmp_path / str(communicator.rank), [EngineItem("mask", (1 + communicator.rank,))])

    with pytest.raises(ProtocolMismatch):
        together(2, differ)


def test_a_used_store_is_not_begun_again(tmp_path: Path) -> None:
    items = [EngineItem("mask", (3,)), EngineItem("mask", (2,))]

    def program(communicator: TensorCommunicator) -> str:
        path = tmp_path / str(communicator.rank)
        prepare(communicator, path, items)
        with Store(path) as opened:
            source = StoredCorrelations(opened)
            source.align(communicator)
            if communicator.rank == 1:
                source.take(items[0])
                with pytest.raises(StateError):
                    source.take(items[0])
        with Store(path) as opened:
            try:
                StoredCorrelations(opened).align(communicator)
            except StateError as error:
                assert opened.position == len(items)
                return str(error)
        return "went on"

    assert all("a part is used" in said for said in together(2, program))


def test_nothing_is_given_before_the_parties_agree(tmp_path: Path) -> None:
    items = [EngineItem("mask", (3,))]

    def program(communicator: TensorCommunicator) -> None:
        path = tmp_path / str(communicator.rank)
        prepare(communicator, path, items)
        with Store(path) as opened:
            source = StoredCorrelations(opened)
            with pytest.raises(StateError, match="align"):
                source.take(items[0])
            assert opened.position == 0
            source.align(communicator)
            source.take(items[0])

    together(2, program)


def test_stores_of_different_batches(tmp_path: Path) -> None:
    items = [EngineItem("mask", (3,))]

    def program(communicator: TensorCommunicator) -> None:
        for name in ("a", "b"):
            prepare(communicator, tmp_path / f"{name}{communicator.rank}", items)
        with Store(tmp_path / f"{'ab'[communicator.rank]}{communicator.rank}") as opened:
            StoredCorrelations(opened).align(communicator)

    with pytest.raises(ProtocolMismatch):
        together(2, program)


def test_labels_tell_items_apart() -> None:
    assert len(label(EngineItem("mask", (3,)))) == 40
    assert label(EngineItem("mask", (3,))) != label(EngineItem("mask", (3,), owner=0))


@pytest.mark.parametrize(("parties", "precision_bits", "fits"), [(2, 40, True), (3, 27, True), (3, 28, False)])
def test_functions_too_fine_for_many_parties_are_refused_before_anything_is_sent(
    parties: int, precision_bits: int, fits: bool, tmp_path: Path
) -> None:
    def program(engine: Engine) -> None:
        value = engine.own(torch.ones(3, dtype=torch.int64), (3,), 0, bits=8, limit_bits=20.0)
        engine.functions(value, SIGMOID, precision_bits=precision_bits)

    items = plan(program, 0, parties).items
    if fits:
        check_without_dealer(items, parties)
        return

    def take_part(communicator: TensorCommunicator) -> int:
        with pytest.raises(ConfigError, match="28 bits for 3 parties without a dealer, expected at most 27"):
            prepare(communicator, tmp_path / str(communicator.rank), items)
        return sum(row.rounds for row in communicator.report().operations)

    assert together(parties, take_part) == [0, 0, 0]


def test_what_is_taken_ahead_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.mpc.he.prepared._AHEAD_BYTES", 8 * 1000)
    sizes = [400, 400, 300, 2000, 2000, *[1] * 70]
    items = [EngineItem("mask", (size,)) for size in sizes]
    records = [(np.arange(size, dtype=np.int64),) for size in sizes]
    store.create(tmp_path / "items", bytes(32), [label(item) for item in items], records)
    spent = []
    with Store(tmp_path / "items") as opened:
        source = StoredCorrelations(opened)
        source._aligned = True
        for number, item in enumerate(items):
            got, share, _ = source.take(item)
            assert got == number and torch.equal(share, torch.arange(sizes[number]))
            spent.append(opened.position)
    # 400 and 400; 300; each large one alone; then 64 at a time
    assert sorted(set(spent)) == [2, 3, 4, 5, 69, 75]
