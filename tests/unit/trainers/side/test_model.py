"""Users with a history, with columns, with both and with neither; and the same scores under encryption."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from he_inference.index.scaling import scale_items
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import FAST
from tests.unit.he_inference.layouts.scorers import NoScheme
from tests.unit.trainers.side.shops import BANK, SHOP, World, catalogue, dataset, table, total_noise
from veil.errors import ArtifactError, InputError
from veil.jobs.side import MixingTerms
from veil.tabular.rows import take_rows
from veil.trainers.side.algorithm import SideAlgorithm
from veil.trainers.side.central import Side, central_side
from veil.trainers.side.estimate import mixing_weight, moment_matrix, noise_ratio
from veil.trainers.side.model import SideModel


@lru_cache(maxsize=1)
def model() -> SideModel:
    world = World(epsilon=100.0)
    spec, order = world.spec(rounds=1), world.aligned()
    own = take_rows(table(BANK), order[BANK])
    return central_side(
        SideAlgorithm(spec, catalogue()),
        dataset().train,
        order[SHOP],
        {BANK: Side(own, np.arange(own.rows))},
        lambda release: total_noise(spec, release),
    )


def test_a_score_is_the_history_part_and_the_side_part() -> None:
    found = model()
    row = found.side_rows(table(BANK))[3]
    history = dataset().train.history(20)
    base = found.recommender.user_vector(history)
    warm = found.user_vector(history, {BANK: row})
    weight = 50 / (50 + len(history))
    np.testing.assert_allclose(
        found.scores(warm), found.recommender.scores(base) + weight * (found.factors @ row), atol=1e-4
    )
    # without columns: the recommender; without a history: popularity and columns at full weight
    np.testing.assert_allclose(found.scores(found.user_vector(history)), found.recommender.scores(base), atol=1e-5)
    cold = found.user_vector([], {BANK: row})
    nobody = found.recommender.scores(found.recommender.user_vector([]))
    np.testing.assert_allclose(found.scores(cold), nobody + found.factors @ row, atol=1e-4)
    np.testing.assert_allclose(found.scores(cold, [2, 5]), found.scores(cold)[[2, 5]], atol=1e-6)
    assert found.item_vectors().shape == (found.items, found.dimensions)

    many = found.user_vectors(dataset().train.rows(slice(20, 24)), {BANK: found.side_rows(table(BANK))[:4]})
    assert np.abs(many).max() <= 1
    assert np.abs(found.scores(many)).max() <= found.score_scale


def test_columns_move_scores_about_as_far_as_their_weight_says() -> None:
    found = model()
    rows = found.side_rows(table(BANK))
    spread = float((rows @ found.factors.T).std(axis=0).mean())
    assert 0.03 < spread < 0.4


def test_the_layout_of_encrypted_scoring_gives_the_plaintext_scores() -> None:
    # `tests/unit/he_inference/layouts` shows that a scheme that hides nothing and encryption give the same.
    found = model()
    items = scale_items(found.item_vectors())
    layout = SessionLayout(FAST, found.items, found.dimensions)
    scorer = NoScheme(layout, items.rows)
    rows = found.side_rows(table(BANK))
    for vector in (
        found.user_vector(dataset().train.history(5), {BANK: rows[5]}),
        found.user_vector([], {BANK: rows[7]}),
        found.user_vector(dataset().train.history(9)),
    ):
        length = float(np.linalg.norm(vector))
        scores = scorer.scores(vector.astype(np.float64) / length) * length * items.norm
        error = np.abs(scores - found.scores(vector)).max()
        assert error <= layout.parameters.score_error * length * items.norm + 1e-5


def test_what_is_not_of_the_model_is_refused() -> None:
    found = model()
    width = found.schema.width
    with pytest.raises(InputError, match="columns of 'city'"):
        found.user_vector([], {"city": np.zeros(width)})
    with pytest.raises(InputError, match="shape"):
        found.user_vector([], {BANK: np.zeros(width + 1)})
    with pytest.raises(InputError, match="longer"):
        found.user_vector([], {BANK: np.ones(width)})
    with pytest.raises(InputError, match="longer"):
        found.user_vector([], {BANK: np.full(width, np.nan)})
    parts = {name: getattr(found, name) for name in ("recommender", "schema", "factors", "offset", "scale")}
    for change, says in (
        ({"factors": found.factors[:, 1:]}, "side factors"),
        ({"factors": np.full_like(found.factors, np.nan)}, "not finite"),
        ({"offset": np.full(width, 2.0)}, "another offset"),
        ({"scale": np.full(width, np.nan)}, "another scale"),
        ({"half_length": 0.0}, "half length"),
    ):
        with pytest.raises(ArtifactError, match=says):
            SideModel(**{"half_length": 50.0, **parts, **change})


def test_weights_follow_from_the_opened_noise_ratio_alone() -> None:
    terms = MixingTerms(weak=0.1, strong=0.3, ratio_weak=1.0, ratio_strong=0.25, half_length=50.0)
    assert mixing_weight(terms, 1.0) == pytest.approx(0.1)
    assert mixing_weight(terms, 0.5) == pytest.approx(0.2)
    assert mixing_weight(terms, 0.01) == pytest.approx(0.3)
    generator = np.random.default_rng(1)
    noise = generator.normal(0, 2.0, (300, 5))
    assert noise_ratio(noise, 2.0) == pytest.approx(1.0, abs=0.1)
    assert noise_ratio(noise + 20.0, 2.0) < 0.02
    assert noise_ratio(np.zeros((3, 3)), 1.0) == 1.0
    square = generator.normal(size=(4, 4))
    assert np.linalg.eigvalsh(moment_matrix(square)).min() >= -1e-12
