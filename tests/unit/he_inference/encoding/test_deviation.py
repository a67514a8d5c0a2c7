"""The formulas of errors: measured ones agree, and the stated bounds rest on them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from he_inference.encoding import deviation
from he_inference.encoding.slots import Bfv, slot_codec
from he_inference.layouts.catalogue import layout_of, packing_of
from he_inference.layouts.history_parts import MOST_BABY_STEPS
from he_inference.layouts.keyless import KeylessLayout
from he_inference.layouts.seam import MAX_DIMENSIONS, Floats, Layout
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import EXACT, FAST, HISTORY, KEYLESS, KEYLESS_SMALL, PQ
from he_inference.tuning.subjects import subject_of
from he_inference.tuning.trial import ask, in_memory
from tests.unit.he_inference.layouts.scorers import Encrypted
from veil.errors import ConfigError


def test_stated_bounds_are_seven_deviations_at_the_most_baby_steps() -> None:
    for parameters in (FAST, PQ):
        bound = deviation.SIGMAS * deviation.session(parameters, 64)
        assert bound <= parameters.score_error <= 1.3 * bound
    for parameters in (KEYLESS, KEYLESS_SMALL):
        bound = deviation.SIGMAS * deviation.keyless(parameters, 1)
        bound += deviation.keyless_rounding(parameters, MAX_DIMENSIONS)
        assert bound <= parameters.score_error <= 1.3 * bound
    bound = deviation.SIGMAS * deviation.history(MOST_BABY_STEPS)
    assert bound <= HISTORY.score_error <= 1.1 * bound
    assert deviation.SIGMAS * math.sqrt(2 / 12) / 220 <= EXACT.score_error


def test_a_history_whose_length_is_known_has_a_bound_of_its_own() -> None:
    layout = layout_of("history", "history", 100, 16, 3)
    assert deviation.stated_error(layout) == deviation.stated_error(layout, deviation.USER_NORM) == HISTORY.score_error
    for norm in (0.0, 0.1, 1.0, 1.5, 3.0):
        stated = deviation.stated_error(layout, norm)
        assert deviation.SIGMAS * deviation.history(MOST_BABY_STEPS, norm) <= stated
    session = SessionLayout(FAST, 100, 16)
    assert deviation.stated_error(session, 0.1) == deviation.stated_error(session) == FAST.score_error


@pytest.mark.parametrize("dimensions", [1, 64, 512, MAX_DIMENSIONS])
def test_rounding_of_the_exact_set_is_bounded_for_vectors_made_against_it(dimensions: int) -> None:
    layout = SessionLayout(EXACT, 1, dimensions)
    bound, worst = deviation.exact_rounding(layout), 0.0
    for steps in range(1, 220 if dimensions == 1 else 30):
        # entries that are alike, just beyond half a step of 1/220
        length = int(min(dimensions, (220 / (steps - 0.499)) ** 2))
        vector = np.zeros(dimensions)
        vector[:length] = (steps - 0.499) / 220
        rounded = Bfv(EXACT).quantised(vector)
        worst = max(worst, abs(float(rounded @ rounded - vector @ vector)))
    assert worst <= bound <= max(2.5 * worst, 0.01)
    assert dimensions < 64 or worst > EXACT.score_error
    assert deviation.exact_rounding(SessionLayout(FAST, 1, dimensions)) == 0.0


def test_the_chance_of_a_wrong_exact_score_follows_from_the_layout() -> None:
    layout = SessionLayout(EXACT, 4_000_000, MAX_DIMENSIONS)
    assert deviation.log2_reached(layout, 0.5) < -50
    # Twice the distance, four times the exponent.
    counted = 1 + math.log2(layout.blocks * 4096)
    half, whole = (deviation.log2_reached(layout, distance) - counted for distance in (0.4, 0.8))
    assert whole == pytest.approx(4 * half)
    one = SessionLayout(EXACT, 4096, MAX_DIMENSIONS)
    assert deviation.log2_reached(one, 0.4) < deviation.log2_reached(layout, 0.4) - 9
    assert deviation.log2_reached(layout, 0.0) == 0.0
    with pytest.raises(ConfigError, match="exact"):
        deviation.log2_reached(SessionLayout(FAST, 10, 8), 0.5)


LAYOUTS = [
    SessionLayout(FAST, 2000, 16),
    SessionLayout(FAST, 4096, 128),
    SessionLayout(FAST, 40_000, 16),
    SessionLayout(PQ, 2000, 64),
    SessionLayout(PQ, 8000, 64),
    SessionLayout(EXACT, 2000, 16),
    KeylessLayout(KEYLESS, 4000, 16, 1),
    KeylessLayout(KEYLESS, 1000, 64, 16),
    KeylessLayout(KEYLESS_SMALL, 1000, 40, 16),
    KeylessLayout(KEYLESS_SMALL, 300, 700, 1024),
    layout_of("history", "history", 3000, 32, 1),
    layout_of("history", "history", 6000, 24, 3),
    layout_of("history", "history", 9000, 128, 1),
]


def worst(layout: Layout, norm: float) -> float:
    """The upper bound for such a layout."""
    parameters = layout.parameters
    if layout.kind == "session":
        return deviation.session(parameters, layout.rotations)
    if layout.kind == "history":
        return deviation.history(layout.rotations, norm)
    assert isinstance(layout, KeylessLayout)
    # Rounding has 1/12 of a step squared, however its bound is added.
    rounding = deviation.keyless_rounding(parameters, layout.dimensions)
    return math.hypot(deviation.keyless(parameters, layout.packing), rounding)


@pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda one: f"{one.parameters.name}-{one.items}x{one.dimensions}-{one.kind}"
)
def test_measured_errors_have_the_expected_size(layout: Layout) -> None:
    """Over thousands of scores of a few queries; scores of one query share some of its error."""
    generator = np.random.default_rng(3)
    subject = subject_of(layout, 4)
    scene = in_memory(subject)
    squares, largest, norms = [], 0.0, []
    for question in subject.questions(generator, 8):
        answer = ask(scene, question)
        errors = subject.unit_errors(question, answer.decrypted)
        squares.append(float(np.mean(errors**2)))
        largest = max(largest, float(np.abs(errors).max()))
        norms.append(subject.user_norm(question))
    norm = math.sqrt(float(np.mean(np.square(norms))))
    measured, expected = math.sqrt(float(np.mean(squares))), deviation.expected(layout, norm)
    # Rows of user terms are shorter than 1.
    shorter = layout.kind == "history" and packing_of(layout) > 1
    assert (0.8 if shorter else 0.9) * expected < measured < 1.1 * expected
    assert largest < deviation.stated_error(layout, max(norms))
    if layout.parameters.scheme == "ckks":
        assert expected < worst(layout, norm) < 3.0 * expected


def distances(layout: SessionLayout, rows: Floats, questions: int) -> Floats:
    """float64[questions, N]: what decryption rounded away, from answers that were checked to be right."""
    generator = np.random.default_rng(6)
    subject, codec = Encrypted(layout, rows), slot_codec(EXACT)
    found = []
    for _ in range(questions):
        vector = generator.normal(size=layout.dimensions)
        vector /= np.linalg.norm(vector)
        query = subject.compute.read_query(subject.key.encrypt(layout.query_polynomials(vector)))
        results = [data for part in subject.compute.score(subject.index, [query], [subject.keys]) for data in part[0]]
        numbers, bits = subject.key.decrypt(results, None)
        right = codec.quantised(rows) @ codec.quantised(vector)
        assert np.abs(layout.scores(numbers, bits) - right).max() < 1e-9
        scaled = numbers * (EXACT.plain_modulus / 2.0**bits)
        found.append((scaled - np.rint(scaled))[0])
    return np.array(found)


@pytest.mark.parametrize("dimensions", [128, MAX_DIMENSIONS])
def test_the_exact_set_is_as_far_from_wrong_as_predicted(dimensions: int) -> None:
    layout = SessionLayout(EXACT, 4096, dimensions)
    rows = np.random.default_rng(5).normal(size=(4096, dimensions))
    found = distances(layout, rows / np.linalg.norm(rows, axis=1, keepdims=True), 8)
    predicted = deviation.wrong(EXACT, layout.rotations, layout.padded)
    assert 0.9 * predicted < float(np.std(found)) < 1.1 * predicted


@pytest.mark.parametrize("catalogue", ["one row", "one entry", "two in turn", "half of it", "one line"])
def test_items_that_are_alike_have_no_more_noise_than_others(catalogue: str) -> None:
    """Without random lifts their noise adds up in a few coefficients, and most of these answers are wrong."""
    layout = SessionLayout(EXACT, 4096, MAX_DIMENSIONS)
    generator = np.random.default_rng(5)
    two = generator.normal(size=(2, MAX_DIMENSIONS))
    two /= np.linalg.norm(two, axis=1, keepdims=True)
    rows = {
        "one row": np.tile(two[:1], (4096, 1)),
        "one entry": np.tile(np.eye(MAX_DIMENSIONS)[:1], (4096, 1)),
        "two in turn": np.tile(two, (2048, 1)),
        "half of it": np.vstack([np.tile(two[:1], (2048, 1)), np.zeros((2048, MAX_DIMENSIONS))]),
        "one line": generator.choice([-1.0, 1.0], (4096, 1)) * two[:1],
    }[catalogue]
    found = distances(layout, rows, 20)
    predicted = deviation.wrong(EXACT, layout.rotations, layout.padded)
    assert float(np.std(found)) < 1.1 * predicted
    # of each coefficient over twenty answers: no more than chance, where it was eight times as much
    assert float(np.sqrt(np.mean(found**2, axis=0)).max()) < 2.0 * predicted
