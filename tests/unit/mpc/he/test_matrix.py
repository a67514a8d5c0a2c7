"""Products of matrices modulo 2^64 against Python's integers, in every layout."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mpc.he.numbers import product, uniform
from veil.errors import InputError, ProtocolMismatch
from veil.mpc.he import matrix, ntt, residues
from veil.mpc.he.keys import SecretKey
from veil.mpc.he.matrix import MatrixPlan, PeerMatrix
from veil.mpc.he.products import PairProducts
from veil.mpc.he.spaces import whole

Pair = tuple[PairProducts, PairProducts]


@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 30), st.integers(1, 9), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_shares_add_up_exactly(pair: Pair, rows: int, inner: int, expected: int, columns: int, seed: int) -> None:
    asker, answerer = pair
    plan = MatrixPlan(rows, inner, expected)
    left, right = uniform(seed, rows, inner), uniform(seed + 1, inner, columns)
    request = asker.request(plan, left)
    assert len(request) == plan.request_bytes
    answer, theirs = answerer.answer(plan, request, right)
    assert len(answer) == plan.answer_bytes(columns)
    ours = asker.finish(plan, answer, columns)
    assert np.array_equal(ours + theirs, product(left, right))


@pytest.mark.parametrize(
    ("rows", "inner", "expected", "columns"),
    [(1024, 64, 1, 1), (1024, 64, 400, 9), (64, 1024, 400, 9), (8192, 2, 2, 3), (8200, 2, 2, 2), (1, 20000, 1, 1)],
)
def test_layouts(pair: Pair, rows: int, inner: int, expected: int, columns: int) -> None:
    asker, answerer = pair
    plan = MatrixPlan(rows, inner, expected)
    left, right = uniform(1, rows, inner), uniform(2, inner, columns)
    left[:, 0], right[0] = -(2**63), -(2**63)
    answer, theirs = answerer.answer(plan, asker.request(plan, left), right)
    assert np.array_equal(asker.finish(plan, answer, columns) + theirs, left @ right)


@pytest.mark.parametrize("number", [0, -1, -(2**63), 2**63 - 1])
def test_constant_matrices(pair: Pair, number: int) -> None:
    asker, answerer = pair
    plan = MatrixPlan(33, 65, 4)
    left, right = np.full((33, 65), number), np.full((65, 4), number)
    answer, theirs = answerer.answer(plan, asker.request(plan, left), right)
    ours = asker.finish(plan, answer)
    assert np.array_equal(ours + theirs, product(left, right))
    # Shares of what may be a constant look like nothing.
    for share in (ours, theirs):
        assert len(np.unique(share)) == share.size


def test_one_request_serves_many_answers(pair: Pair) -> None:
    asker, answerer = pair
    plan = MatrixPlan(100, 30, 50)
    left = uniform(3, 100, 30)
    held = answerer.hold(plan, asker.request(plan, left))
    assert repr(held) == "PeerMatrix(100, 30)"
    answers = []
    for seed, columns in ((4, 1), (4, 1), (6, 7)):
        right = uniform(seed, 30, columns)
        answer, theirs = answerer.answer(plan, held, right)
        assert np.array_equal(asker.finish(plan, answer, columns) + theirs, product(left, right))
        answers.append((answer, theirs))
    # The same factor again: another mask, another answer.
    assert answers[0][0] != answers[1][0]
    assert not np.array_equal(answers[0][1], answers[1][1])


def test_masks_are_uniform(pair: Pair) -> None:
    asker, answerer = pair
    plan = MatrixPlan(4096, 1, 2)
    answer, theirs = answerer.answer(
        plan, asker.request(plan, np.zeros((4096, 1), np.int64)), np.zeros((1, 2), np.int64)
    )
    ours = asker.finish(plan, answer)
    for share in (ours, theirs):
        for shift in (0, 31, 60):
            counts = np.bincount(((share.view(np.uint64) >> np.uint64(shift)) & np.uint64(15)).ravel().astype(np.int64))
            assert len(counts) == 16
            assert (np.abs(counts - 512) < 7 * math.sqrt(512)).all()


def test_hostile_messages(pair: Pair) -> None:
    asker, answerer = pair
    plan = MatrixPlan(5, 4, 3)
    request = asker.request(plan, uniform(1, 5, 4))
    for wrong in (request[:-1], request + b"\x00", b"", request[:32] + b"\xff" * (len(request) - 32)):
        with pytest.raises(ProtocolMismatch) as caught:
            answerer.answer(plan, wrong, uniform(2, 4, 3))
        assert caught.value.culprits == ("alpha",)
    answer, _ = answerer.answer(plan, request, uniform(2, 4, 3))
    for wrong in (answer[:-1], answer + b"\x00", b"", b"\xff" * len(answer)):
        with pytest.raises(ProtocolMismatch) as caught:
            asker.finish(plan, wrong)
        assert caught.value.culprits == ("beta",)


def test_shapes_are_checked(pair: Pair) -> None:
    asker, answerer = pair
    plan = MatrixPlan(5, 4, 3)
    for left in (uniform(1, 4, 5), uniform(1, 5, 4).astype(np.int32), uniform(1, 20)):
        with pytest.raises(InputError):
            asker.request(plan, left)
    request = asker.request(plan, uniform(1, 5, 4))
    for right in (uniform(1, 3, 4), uniform(1, 4), np.empty((4, 0), np.int64)):
        with pytest.raises(InputError):
            answerer.answer(plan, request, right)
    for shape in ((0, 1, 1), (1, 2**16 + 1, 1), (8192 * 3000, 1, 1), (1, 1, 0)):
        with pytest.raises(InputError):
            MatrixPlan(*shape)


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1, 1])
def test_rounding_of_equal_numbers_does_not_add_up_in_the_noise(number: int) -> None:
    # With one rounding for every number, noise would be k / 2 of the factors here; `keys` counts on sqrt(k).
    key, made, plan = SecretKey(), whole(), MatrixPlan(64, 8192, 1)
    held = PeerMatrix(plan, matrix.ask(plan, np.full((64, 8192), number), key), peer="p")
    (block,), (pairs,) = plan.blocks, held._held
    factors = matrix._factors(block, np.full((8192, 1), -(2**63)))
    product = residues.sum_of_products(pairs, factors, made)
    total = product[0].copy()
    residues.plus_product(total, product[1].copy(), key._s, made)
    ntt.inverse(total, made)
    units = [made.modulus // q * pow(made.modulus // q, -1, q) for q in made.primes]
    noise = []
    for column in total[:, block.places(1)].T:
        rest = sum(int(r) * u for r, u in zip(column, units, strict=True)) * 2**64 % made.modulus
        noise.append(min(rest, made.modulus - rest) / 2**64)
    assert np.mean(noise) < 1.5 * 2.7 * 2**63 * 8192**0.5
