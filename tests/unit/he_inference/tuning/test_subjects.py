"""Random items and questions, and what plaintext says to them."""

from __future__ import annotations

import numpy as np
import pytest

from he_inference.layouts.catalogue import layout_of
from he_inference.layouts.seam import Layout
from he_inference.tuning.subjects import Histories, Vectors, subject_of
from he_inference.tuning.trial import ask, in_memory
from veil.errors import ConfigError

HISTORY = layout_of("history", "history", 400, 16, 3)
LAYOUTS = [
    layout_of("session", "fast", 300, 8),
    layout_of("keyless", "keyless-small", 300, 8, 2),
    layout_of("history", "history", 400, 16, 1),
    layout_of("history", "history", 400, 16, 2),
    HISTORY,
    layout_of("history", "history", 400, 16, 4),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one.kind}-{getattr(one, 'packing', 0)}")
def test_what_decrypts_is_the_truth_within_its_bound(layout: Layout) -> None:
    subject = subject_of(layout, 1)
    assert isinstance(subject, Histories) == (layout.kind == "history")
    assert subject.layout == layout
    assert subject.rows.shape == (layout.items, layout.dimensions)
    scene = in_memory(subject)
    for question in subject.questions(np.random.default_rng(2), 4):
        answer = ask(scene, question)
        truth = subject.truth(question)
        np.testing.assert_allclose(truth, subject.rows @ subject.vector(question))
        assert np.abs(truth).max() > 10 * answer.decrypted.bound
        assert 0 < np.abs(answer.decrypted.scores - truth).max() < answer.decrypted.bound
        errors = subject.unit_errors(question, answer.decrypted)
        assert errors.std() < layout.parameters.score_error / 7
        assert min(answer.server_ms, answer.server_cpu_ms, answer.client_ms, answer.query_bytes) > 0
        assert "scores" not in repr(answer.decrypted) and "decrypted" not in repr(answer)


def test_items_and_questions_follow_from_seeds() -> None:
    for layout in (LAYOUTS[0], HISTORY):
        first, again, other = (subject_of(layout, seed) for seed in (1, 1, 2))
        for (_, one), (_, two), (_, three) in zip(first.parts, again.parts, other.parts, strict=True):
            np.testing.assert_array_equal(one, two)
            assert not np.array_equal(one, three)
        asked = [subject.questions(np.random.default_rng(5), 3) for subject in (first, again)]
        for one, two in zip(*asked, strict=True):
            np.testing.assert_array_equal(one, two)


def test_histories_are_short_and_long_and_of_distinct_items() -> None:
    histories = Histories.of(HISTORY, 0).questions(np.random.default_rng(0), 300)
    sizes = sorted(len(history) for history in histories)
    assert sizes[0] == 1 and sizes[-1] > 300 and 10 < sizes[150] < 40
    assert all(len(np.unique(history)) == len(history) for history in histories)


def test_items_are_no_longer_than_one() -> None:
    for layout in (LAYOUTS[0], LAYOUTS[2]):
        assert np.linalg.norm(subject_of(layout, 0).parts[-1][1], axis=1).max() <= 1.0
    linear = HISTORY.dimensions - 3
    np.testing.assert_allclose(np.linalg.norm(Histories.of(HISTORY, 0).rows[:, :linear], axis=1), 1.0, rtol=1e-6)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="got layout session"):
        Histories.of(LAYOUTS[0], 0)
    for items, dimensions in ((400, 3), (10, 20), (400, 200)):
        with pytest.raises(ConfigError, match=f"got {dimensions} dimensions and {items} items"):
            subject_of(layout_of("history", "history", items, dimensions, 3), 0)
    # Linear throughout, there is no such limit.
    assert Vectors.of(LAYOUTS[0], 0).item_norm == 1.0
    assert Histories.of(layout_of("history", "history", 50, 200, 1), 0).layout.packing == 1
