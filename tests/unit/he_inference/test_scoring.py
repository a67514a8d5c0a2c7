"""The session layout and the scoring routine, on CKKS and on the plaintext twin with one test body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from he_inference.packing import SessionLayout
from he_inference.parameters import SESSION_4096, SESSION_8192, Parameters
from he_inference.plain import PlainEvaluator, PlainSession
from he_inference.scheme import CkksEvaluator, CkksSession, TensealMatmul
from he_inference.scoring import encode_items, scale_items, score
from veil.errors import ConfigError, InputError

SHAPES = [(items, dimensions) for items in (1, 10, 4096, 4097, 9000) for dimensions in (1, 3, 64, 100, 128)]
CKKS_SHAPES = [(1, 1), (10, 3), (4096, 64), (4097, 100), (9000, 128), (40, 1024)]


def unit_rows(items: int, dimensions: int, seed: int) -> NDArray[np.float64]:
    rows = np.random.default_rng(seed).normal(size=(items, dimensions))
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def run(
    scheme: str, parameters: Parameters, rows: NDArray[np.float64], vectors: NDArray[np.float64]
) -> NDArray[np.float64]:
    evaluator: Any = CkksEvaluator(parameters) if scheme == "ckks" else PlainEvaluator(parameters)
    session: Any = CkksSession(parameters) if scheme == "ckks" else PlainSession(parameters)
    layout = SessionLayout(parameters, *rows.shape)
    items = encode_items(evaluator, layout, rows)
    keys = evaluator.load_keys(session.evaluation_keys(layout.galois_elements), layout.galois_elements)
    answers = []
    for vector in vectors:
        query = evaluator.load_query(session.encrypt(layout.pack_query(vector)))
        response = [evaluator.save(ciphertext) for ciphertext in score(evaluator, items, query, keys)]
        assert len(response) == layout.blocks
        answers.append(layout.unpack([session.decrypt(data) for data in response]))
    return np.stack(answers)


@pytest.mark.parametrize(("items", "dimensions"), SHAPES)
def test_the_layout_gives_the_inner_products(items: int, dimensions: int) -> None:
    rows, vectors = unit_rows(items, dimensions, 1), unit_rows(2, dimensions, 2)
    np.testing.assert_allclose(run("plain", SESSION_4096, rows, vectors), vectors @ rows.T, atol=1e-12)


@pytest.mark.parametrize("parameters", [SESSION_4096, SESSION_8192], ids=lambda p: p.name)
@pytest.mark.parametrize(("items", "dimensions"), CKKS_SHAPES)
def test_encrypted_scores_are_within_the_stated_error(parameters: Parameters, items: int, dimensions: int) -> None:
    rows, vectors = unit_rows(items, dimensions, 3), unit_rows(2, dimensions, 4)
    truth = vectors @ rows.T
    found = run("ckks", parameters, rows, vectors)
    assert np.abs(found - truth).max() < parameters.score_error
    for mine, true in zip(found, truth, strict=True):
        tenth = np.sort(true)[-min(10, items)]
        top = np.argsort(-mine)[:10]
        # the same ten, but among scores that lie closer together than the error
        assert np.all(true[top] > tenth - 2 * parameters.score_error)


@pytest.mark.parametrize("scheme", ["plain", "ckks"])
def test_zero_rows_columns_blocks_and_queries_never_raise(scheme: str) -> None:
    rows = unit_rows(4100, 5, 5)
    rows[7] = 0  # a cold item
    rows[:, 2] = 0  # an unused dimension
    rows[4096:] = 0  # a block of nothing but zeros
    vectors = np.concatenate([unit_rows(1, 5, 6), np.zeros((1, 5))])
    found = run(scheme, SESSION_4096, rows, vectors)
    assert np.abs(found - vectors @ rows.T).max() < SESSION_4096.score_error


@pytest.mark.parametrize("scheme", ["plain", "ckks"])
def test_items_that_are_all_zero_answer_zero(scheme: str) -> None:
    found = run(scheme, SESSION_4096, np.zeros((3, 4)), unit_rows(1, 4, 7))
    assert found.shape == (1, 3)
    assert np.abs(found).max() < SESSION_4096.score_error


def test_identical_items_and_one_hot_vectors_are_exact_enough() -> None:
    """Extreme coefficients: every slot at its largest value at once."""
    rows = np.zeros((8192, 16))
    rows[:, 3] = 1.0
    vectors = np.zeros((2, 16))
    vectors[0, 3], vectors[1, 3] = 1.0, -1.0
    found = run("ckks", SESSION_8192, rows, vectors)
    np.testing.assert_allclose(found[0], 1.0, atol=SESSION_8192.score_error)
    np.testing.assert_allclose(found[1], -1.0, atol=SESSION_8192.score_error)


def test_unused_slots_hold_zero() -> None:
    """What pads a block reveals nothing and cannot be mistaken for an item."""
    evaluator, session = CkksEvaluator(SESSION_4096), CkksSession(SESSION_4096)
    rows, vector = unit_rows(10, 8, 8), unit_rows(1, 8, 9)[0]
    layout = SessionLayout(SESSION_4096, 10, 8)
    keys = evaluator.load_keys(session.evaluation_keys(layout.galois_elements), layout.galois_elements)
    query = evaluator.load_query(session.encrypt(layout.pack_query(vector)))
    (answer,) = score(evaluator, encode_items(evaluator, layout, rows), query, keys)
    slots = session.decrypt(evaluator.save(answer))
    assert np.abs(slots[10:]).max() < SESSION_4096.score_error
    assert np.abs(slots.imag).max() < SESSION_4096.score_error


def test_items_are_scaled_by_the_longest_row() -> None:
    scaled = scale_items(np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]], dtype=np.float32))
    assert scaled.norm == pytest.approx(5.0)
    np.testing.assert_allclose(scaled.rows, [[0.6, 0.8], [0.0, 0.2], [0.0, 0.0]])
    assert scale_items(np.zeros((2, 2))).norm == 1.0


def test_items_that_are_not_finite_or_too_long_are_refused() -> None:
    with pytest.raises(ConfigError, match="NaN or infinity"):
        scale_items(np.array([[np.nan]]))
    with pytest.raises(ConfigError, match="longer than 1"):
        encode_items(PlainEvaluator(SESSION_4096), SessionLayout(SESSION_4096, 1, 2), np.array([[1.0, 1.0]]))
    with pytest.raises(ConfigError, match="expected session-4096"):
        encode_items(PlainEvaluator(SESSION_4096), SessionLayout(SESSION_8192, 1, 2), np.array([[1.0, 0.0]]))


@pytest.mark.parametrize("vector", [[1.0], [1.0, 1.0, 1.0], [np.nan, 0.0, 0.0], [np.inf, 0.0, 0.0]])
def test_a_vector_that_does_not_fit_is_refused(vector: list[float]) -> None:
    with pytest.raises(InputError):
        SessionLayout(SESSION_4096, 10, 3).pack_query(np.array(vector))


@pytest.mark.parametrize(("items", "dimensions"), [(0, 8), (10, 0), (10, 1025), (10**8, 8)])
def test_a_layout_that_does_not_fit_is_refused(items: int, dimensions: int) -> None:
    with pytest.raises(ConfigError):
        SessionLayout(SESSION_4096, items, dimensions)


def test_the_layout_takes_the_fewest_rotations() -> None:
    one_block = SessionLayout(SESSION_4096, 4096, 128)
    assert (one_block.baby_steps, one_block.giant_steps, one_block.blocks) == (8, 16, 1)
    many = SessionLayout(SESSION_4096, 65536, 128)
    assert many.baby_steps > one_block.baby_steps
    for layout in (one_block, many):
        assert layout.baby_steps * layout.giant_steps == layout.padded
        assert layout.galois_elements == (3, pow(3, layout.baby_steps, 8192))


def test_it_agrees_with_tenseal_matmul() -> None:
    rows, vectors = unit_rows(200, 16, 10), unit_rows(1, 16, 11)
    reference = TensealMatmul(rows)
    theirs = reference.decrypt(reference.score(reference.encrypt(vectors[0])))
    np.testing.assert_allclose(run("ckks", SESSION_8192, rows, vectors)[0], theirs, atol=SESSION_8192.score_error)
