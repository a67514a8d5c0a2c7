"""The history layout, against plaintext under a scheme that encrypts nothing: slots as complex numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from he_inference.encoding.slots import Ckks
from he_inference.layouts.catalogue import layout_of, packing_of
from he_inference.layouts.history import HistoryLayout, whole_layout
from he_inference.layouts.history_parts import FoldInLayout, OutputLayout
from he_inference.parameters import HISTORY, HISTORY_SCORES, PQ
from veil.errors import CiphertextError, ConfigError, InputError

Complex = NDArray[np.complex128]
N, S = HISTORY.degree, HISTORY.slots


def slots_of(polynomials: NDArray[np.int64], scale: float) -> Complex:
    """complex128[..., S]: values of polynomials, divided by their scale."""
    twist = np.exp(1j * np.pi * np.arange(N) / N)
    spectrum = np.fft.ifft(polynomials * twist, axis=-1) * N / scale
    powers = [1]
    for _ in range(S - 1):
        powers.append(powers[-1] * 3 % (2 * N))
    values: Complex = spectrum[..., (np.array(powers) - 1) // 2]
    return values


def turned(values: Complex, element: int) -> Complex:
    """The automorphism X -> X^element on slots: a rotation, conjugated for elements -3^k."""
    for sign in (1, -1):
        power = 1
        for step in range(S):
            if power * sign % (2 * N) == element:
                rotated: Complex = np.roll(values, -step, axis=-1)
                return rotated.conj() if sign < 0 else rotated
            power = power * 3 % (2 * N)
    raise AssertionError(f"no automorphism {element}")


def user_vector(layout: HistoryLayout, fold_in: NDArray[np.float64], x: NDArray[np.float64]) -> Complex:
    """complex128[S]: what the server computes, in the clear."""
    fold = layout.fold_in
    one, baby, first, second = layout.galois_elements
    query = slots_of(layout.query_polynomials(x), 2.0**HISTORY.query_scale_bits)
    sums = np.zeros((fold.groups, S), np.complex128)
    for number in range(layout.query_ciphertexts):
        rows = fold_in[number * N : (number + 1) * N]
        diagonals = slots_of(layout.fold_in_polynomials(rows, number), fold.fold_in_scale)
        now = query[number]
        for k in range(fold.rotations):
            sums += diagonals[k :: fold.rotations] * now
            now = turned(now, one)
    total: Complex = sums[-1]
    for group in range(fold.groups - 2, -1, -1):
        total = turned(total, baby) + sums[group]
    for element, count in zip((first, second), fold.trace_steps, strict=True):
        base = total
        for _ in range(count - 1):
            total = turned(total, element) + base
    return total


def rows_of(rng: np.random.Generator, count: int, dimensions: int) -> NDArray[np.float64]:
    rows = rng.normal(size=(count, dimensions))
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize(("items", "dimensions"), [(1, 1), (37, 3), (4097, 5), (8193, 12)])
def test_user_vectors_are_tiled_sums(items: int, dimensions: int) -> None:
    rng = np.random.default_rng(items)
    layout = HistoryLayout(HISTORY, items, dimensions, 1)
    fold_in = rows_of(rng, items, dimensions) / np.sqrt(items)
    x = rng.normal(size=items)
    x /= np.linalg.norm(x)
    tile = np.zeros(layout.fold_in.padded)
    tile[:dimensions] = fold_in.T @ x
    got = user_vector(layout, fold_in, x)
    np.testing.assert_allclose(got.real, np.tile(tile, S // len(tile)), atol=2e-5)
    np.testing.assert_allclose(got.imag, 0.0, atol=2e-5)


def test_scale_after_the_division_is_that_of_queries() -> None:
    fold = HistoryLayout(HISTORY, 10, 4, 1).fold_in
    left = 2.0**HISTORY.query_scale_bits * fold.fold_in_scale / HISTORY.data_primes[0]
    assert left == pytest.approx(2.0**HISTORY_SCORES.query_scale_bits)
    assert HISTORY.data_primes[1:] == HISTORY_SCORES.data_primes
    assert HISTORY.special_primes == HISTORY_SCORES.special_primes


def test_the_set_is_within_the_table_for_quantum_attackers() -> None:
    assert HISTORY.modulus_bits == 165 and HISTORY.post_quantum


@pytest.mark.parametrize("dimensions", [1, 4, 5, 64, 100, 128, 1000, 1024])
def test_trace_takes_every_image_once(dimensions: int) -> None:
    layout = HistoryLayout(HISTORY, 100, dimensions, 1)
    fold = layout.fold_in
    *_, first, second = layout.galois_elements
    a, b = fold.trace_steps
    images = {pow(first, i, 2 * N) * pow(second, j, 2 * N) % (2 * N) for i in range(a) for j in range(b)}
    kept = {sign * pow(3, fold.padded * k, 2 * N) % (2 * N) for sign in (1, -1) for k in range(S // fold.padded)}
    assert images == kept and a * b == len(kept)
    assert len(set(layout.galois_elements)) == 4


@pytest.mark.parametrize("packing", [1, 2, 3, 4])
@pytest.mark.parametrize("answers", [1, S - 20, S - 5, S, S + 1, N - 30, N - 20, N - 1, N, N + 1, 2 * N + 3])
def test_outputs_and_readouts_keep_apart(answers: int, packing: int) -> None:
    """Around every edge of the places of readouts."""
    _check_places(HistoryLayout(HISTORY, max(1, answers // packing), 4, packing))


def _check_places(layout: HistoryLayout) -> None:
    assert layout.blocks == layout.output.blocks
    answers = np.arange(1, 4 * layout.answers + 1, dtype=np.float64).reshape(-1, 4)
    readouts = -np.arange(1, 4 * layout.readouts + 1, dtype=np.float64).reshape(-1, 4)
    rows = layout.arranged(answers, readouts)
    assert rows.shape == (layout.outputs, 4)
    got, read = layout.parted(rows[:, 0])
    np.testing.assert_array_equal(got.ravel(), answers[:, 0])
    np.testing.assert_array_equal(read, readouts[:, 0])
    padded = np.zeros(layout.blocks * N)
    padded[: layout.outputs] = rows[:, 0]
    real, imaginary = padded.reshape(layout.blocks, 2, S).swapaxes(0, 1)
    assert not (imaginary[real < 0]).any() and not (imaginary < 0).any()


def test_what_does_not_fit_is_refused() -> None:
    refused = ((0, 4, 1), (32 * N + 1, 4, 1), (5, 0, 1), (5, 1025, 1), (5, 4, 0), (5, 4, 5), (5, 2, 2))
    for items, dimensions, packing in refused:
        with pytest.raises(ConfigError):
            HistoryLayout(HISTORY, items, dimensions, packing)
    with pytest.raises(ConfigError, match="parameter set pq"):
        HistoryLayout(PQ, 5, 4, 1)
    with pytest.raises(ConfigError, match="answers"):
        FoldInLayout(HISTORY, 5, 4, 0)
    with pytest.raises(ConfigError, match="baby steps"):
        OutputLayout(HISTORY_SCORES, 5, 4, 0)
    layout = HistoryLayout(HISTORY, 5, 4, 1)
    for bad in (np.ones(4), np.ones((5, 1)), np.full(5, np.nan), np.ones(5)):
        with pytest.raises(InputError):
            layout.query_polynomials(bad)
    for rows in (np.ones((0, 4)), np.ones((5, 3)), np.ones((N + 1, 4))):
        with pytest.raises(ConfigError):
            layout.fold_in_polynomials(rows, 0)
        with pytest.raises(ConfigError):
            layout.item_polynomials(rows, 0)
    with pytest.raises(CiphertextError):
        layout.scores(np.zeros((2, N), np.int64), 32)
    with pytest.raises(CiphertextError):
        layout.fold_in.scores(np.zeros((1, N), np.int64), 32)


@pytest.mark.parametrize("packing", [1, 2, 3, 4])
def test_parts_know_their_whole(packing: int) -> None:
    layout = HistoryLayout(HISTORY, 3706, 69, packing)
    assert whole_layout(layout.fold_in, layout.output) == layout
    for one in (layout, layout.fold_in, layout.output):
        name = one.parameters.name
        assert layout_of(one.kind, name, one.items, one.dimensions, packing_of(one)) == one
    with pytest.raises(ConfigError, match="parts of one index"):
        whole_layout(layout.fold_in, HistoryLayout(HISTORY, 3 * 3706, 69, packing).output)


def test_encoding_of_queries_is_the_codecs() -> None:
    layout = HistoryLayout(HISTORY, N + 1, 4, 1)
    x = np.zeros(N + 1)
    x[[0, S, N]] = 0.5
    got = layout.query_polynomials(x)
    slots = np.zeros((2, 2, S))
    slots[0, :, 0] = slots[1, 0, 0] = 0.5
    np.testing.assert_array_equal(got, Ckks(HISTORY).encode_query(slots))
