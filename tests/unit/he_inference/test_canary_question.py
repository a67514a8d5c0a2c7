"""What the canary asks, and how it judges answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_inference.canary_question import answered, compare, judged, question
from he_inference.exchange import Offer
from he_inference.layouts.catalogue import layout_of
from he_inference.layouts.history import HistoryLayout
from he_inference.tuning.subjects import Histories, subject_of
from he_inference.tuning.trial import in_memory
from veil.errors import CiphertextError

BOUND = 1e-3


def test_scores_within_the_bound_hold() -> None:
    generator = np.random.default_rng(1)
    expected = generator.uniform(-1, 1, 1000)
    found = compare(expected + generator.uniform(-BOUND, BOUND, 1000), expected, BOUND)
    assert found.held and 0 < found.error <= BOUND and found.recall >= 0.9


def test_one_score_out_of_bound_does_not() -> None:
    expected = np.linspace(-1, 1, 1000)
    scores = expected.copy()
    scores[3] += 1.01 * BOUND
    found = compare(scores, expected, BOUND)
    # the ten best are all there: the error alone tells
    assert not found.held and found.recall == 1.0 and found.error == pytest.approx(1.01 * BOUND)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_does_not(wrong: float) -> None:
    expected = np.linspace(-1, 1, 100)
    scores = expected.copy()
    scores[50] = wrong
    assert not compare(scores, expected, BOUND).held


def test_answers_to_another_query_do_not() -> None:
    generator = np.random.default_rng(2)
    found = compare(generator.uniform(-1, 1, 5000), generator.uniform(-1, 1, 5000), BOUND)
    assert not found.held and found.recall < 0.5


def test_places_that_scores_as_close_as_the_bound_change_are_no_failure() -> None:
    expected = np.concatenate([np.full(9, 1.0), [0.5, 0.5 - BOUND], np.zeros(100)])
    scores = expected.copy()
    scores[9] -= 0.9 * BOUND
    scores[10] += 0.9 * BOUND
    found = compare(scores, expected, BOUND)
    assert found.held and found.recall == 0.9


def test_a_best_item_that_is_gone_is_one_whatever_the_bound_says() -> None:
    expected = np.concatenate([[1.0], np.linspace(0, 0.5, 100)])
    scores = expected.copy()
    scores[0] = 0.0
    found = compare(scores, expected, bound=2.0)
    # with a bound this wide places may change; the recall shows it all the same
    assert found.recall == 0.9 and compare(scores, expected, bound=0.1).held is False


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_few_items_and_ties(items: int, seed: int) -> None:
    expected = np.random.default_rng(seed).integers(0, 3, items).astype(float)
    found = compare(expected.copy(), expected, BOUND)
    assert found.held and found.error == 0.0 and 0.0 <= found.recall <= 1.0


def offer_of(kind: str, parameters: str, items: int = 60, packing: int = 0) -> Offer:
    return Offer(layout_of(kind, parameters, items, 8, packing), 2.0, bytes(32))


def test_vectors_are_of_norm_one_and_never_the_same() -> None:
    offer = offer_of("session", "fast")
    one, other = question(offer), question(offer)
    assert one.history is None and one.entries.shape == (8,)
    assert np.linalg.norm(one.entries) == pytest.approx(1.0)
    assert not np.array_equal(one.entries, other.entries)
    scores, bound = answered(offer, one, np.arange(60.0))
    assert bound == offer.layout.parameters.score_error and scores[5] == 5.0
    assert "0." not in repr(one)


@pytest.mark.parametrize("items", [1, 5, 60, 5000])
def test_histories_have_items_of_the_catalogue_once_each(items: int) -> None:
    offer = offer_of("history", "history", items, 3)
    for asked in (question(offer) for _ in range(20)):
        assert asked.history is not None
        assert min(8, items) <= len(asked.history) <= min(64, items)
        assert len(np.unique(asked.history)) == len(asked.history)
        assert 0 <= asked.history.min() <= asked.history.max() < items
        assert asked.entries.shape == (items,) and np.linalg.norm(asked.entries) == pytest.approx(1.0)


def test_histories_have_none_but_the_allowed_items() -> None:
    offer, allowed = offer_of("history", "history", 500, 3), np.arange(7, 500, 50)
    for asked in (question(offer, allowed) for _ in range(20)):
        assert asked.history is not None and 8 <= len(asked.history) <= 10
        assert np.isin(asked.history, allowed).all()


def test_an_answer_to_a_history_is_judged_by_the_bound_of_its_own() -> None:
    """Encrypted, folded in and scored; then the same with an answer that is not the model's."""
    layout = layout_of("history", "history", 60, 8, 3)
    assert isinstance(layout, HistoryLayout)
    subject = subject_of(layout, 6)
    assert isinstance(subject, Histories)
    offer = Offer(layout, subject.item_norm, bytes(32))
    scene = in_memory(subject)
    asked = question(offer)
    assert asked.history is not None
    results = scene.compute.answer(scene.index, [scene.client.encrypt(asked.entries)], [scene.client.keys])[0]
    outputs = scene.client.decrypt(results)
    scores, bound = answered(offer, asked, outputs)
    truth = subject.truth(asked.history) / offer.item_norm
    found = compare(scores, truth, bound)
    assert found.held and found.recall >= 0.9 and found == judged(offer, asked, outputs, truth)
    assert 0 < found.error < found.bound < 0.1
    wrong = outputs.copy()
    wrong[7] += 0.2
    assert not judged(offer, asked, wrong, truth).held
    # A wrong answer that says of itself that it may be off by anything: within its bound, and still wrong.
    short = outputs.copy()
    place = layout.readout_place
    short[place + 2 : place + 4] = 1e-6
    vague = judged(offer, asked, short, truth)
    assert vague.error < vague.bound and vague.bound > 0.5 and not vague.held
    with pytest.raises(CiphertextError):
        answered(offer, asked, np.zeros_like(outputs))
