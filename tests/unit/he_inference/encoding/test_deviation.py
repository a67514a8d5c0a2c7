"""The formulas of errors: measured ones agree, and the stated bounds rest on them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from he_inference.encoding import deviation
from he_inference.layouts.keyless import KeylessLayout
from he_inference.layouts.seam import MAX_DIMENSIONS, Layout
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import EXACT, FAST, KEYLESS, KEYLESS_SMALL, PQ
from tests.unit.he_inference.layouts.scorers import Encrypted


def test_stated_bounds_are_seven_deviations_at_the_most_baby_steps() -> None:
    for parameters in (FAST, PQ):
        bound = deviation.SIGMAS * deviation.session(parameters, 64)
        assert bound <= parameters.score_error <= 1.3 * bound
    for parameters in (KEYLESS, KEYLESS_SMALL):
        bound = deviation.SIGMAS * deviation.keyless(parameters, 1)
        bound += deviation.keyless_rounding(parameters, MAX_DIMENSIONS)
        assert bound <= parameters.score_error <= 1.3 * bound
    assert deviation.SIGMAS * math.sqrt(2 / 12) / 220 <= EXACT.score_error


def test_exact_scores_are_right_at_the_most_baby_steps_and_dimensions() -> None:
    layout = SessionLayout(EXACT, 1_000_000, MAX_DIMENSIONS)
    assert deviation.wrong(EXACT, layout.rotations, layout.padded) * deviation.SIGMAS < 0.5


@pytest.mark.parametrize(
    ("layout", "predicted"),
    [
        (SessionLayout(FAST, 4096, 128), deviation.session(FAST, 8)),
        (SessionLayout(FAST, 50_000, 32), deviation.session(FAST, 16)),
        (SessionLayout(PQ, 8192, 32), deviation.session(PQ, 4)),
        (KeylessLayout(KEYLESS, 4096, 8, 1), deviation.keyless(KEYLESS, 1)),
        (KeylessLayout(KEYLESS, 1000, 64, 16), deviation.keyless(KEYLESS, 16)),
        (KeylessLayout(KEYLESS_SMALL, 1000, 20, 2), deviation.keyless(KEYLESS_SMALL, 2)),
    ],
)
def test_measured_errors_have_the_predicted_size(layout: Layout, predicted: float) -> None:
    generator = np.random.default_rng(5)
    rows = generator.normal(size=(layout.items, layout.dimensions))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    subject = Encrypted(layout, rows)
    errors = []
    for _ in range(12):
        vector = generator.normal(size=layout.dimensions)
        vector /= np.linalg.norm(vector)
        errors.append(subject.scores(vector) - rows @ vector)
    measured = float(np.std(np.concatenate(errors)))
    # The formula takes the last baby step for all of them, and the worst variance of dither.
    assert 0.4 * predicted < measured < 1.1 * predicted


def test_the_exact_set_is_as_far_from_wrong_as_predicted() -> None:
    layout = SessionLayout(EXACT, 4096, 128)
    generator = np.random.default_rng(6)
    rows = generator.normal(size=(4096, 128))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    subject = Encrypted(layout, rows)
    distances = []
    for _ in range(8):
        vector = generator.normal(size=128)
        vector /= np.linalg.norm(vector)
        query = subject.compute.read_query(subject.key.encrypt(layout.query_polynomials(vector)))
        results = [data for part in subject.compute.score(subject.index, [query], [subject.keys]) for data in part[0]]
        numbers, bits = subject.key.decrypt(results, None)
        scaled = numbers * (EXACT.plain_modulus / 2.0**bits)
        distances.append(scaled - np.rint(scaled))
    predicted = deviation.wrong(EXACT, layout.rotations, layout.padded)
    assert 0.5 * predicted < float(np.std(distances)) < 1.1 * predicted
