"""New items get the vectors that a training would give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baseline.evaluate import simulation_spec
from tests.unit.text.test_blocks import embed
from veil.errors import ConfigError, InputError
from veil.jobs.spec import Release
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.features import build_catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.items import ItemTable
from veil.recsys.model import Model
from veil.recsys.new_items import extended_model, features_of_new_items, vectors_for_new_items
from veil.recsys.postprocess import USER_TERMS
from veil.recsys.synthetic import generate
from veil.trainers.registry import central_run

NEW = 12
LABEL = "letters"


def without_noise(release: Release) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.zeros(release.shape, np.int64)


def part(table: ItemTable, chosen: slice) -> ItemTable:
    return ItemTable(
        table.ids[chosen], table.titles[chosen], table.categories[chosen], table.years[chosen], table.texts[chosen]
    )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(users=1500, items=300, seed=11, negatives=50)


@pytest.fixture(scope="module")
def whole(dataset: Dataset) -> Catalogue:
    return build_catalogue(dataset.table, embed=embed, encoder=LABEL, text_dimensions=16)


@pytest.fixture(scope="module")
def old(whole: Catalogue) -> Catalogue:
    """The catalogue before the last twelve items came, in the same feature space."""
    table = part(whole.table, slice(0, -NEW))
    return Catalogue(table, whole.features[:-NEW], whole.blocks, whole.encoder, whole.phrasing)


@pytest.fixture(scope="module")
def new_table(whole: Catalogue) -> ItemTable:
    return part(whole.table, slice(-NEW, None))


@pytest.fixture(scope="module")
def warm(dataset: Dataset) -> Interactions:
    """Everything but the meetings with the last twelve items."""
    return dataset.train.keep(dataset.train.indices < dataset.train.items - NEW)


def trained(interactions: Interactions, catalogue: Catalogue) -> Model:
    spec = simulation_spec(catalogue, epsilon=8.0, delta=1e-5)
    return central_run(spec, catalogue, interactions, without_noise)


@pytest.fixture(scope="module")
def model(warm: Interactions, old: Catalogue) -> Model:
    rows = Interactions(warm.users, old.items, warm.indptr, warm.indices)
    return trained(rows, old)


def test_features_are_those_of_a_catalogue_with_the_items(
    whole: Catalogue, old: Catalogue, new_table: ItemTable
) -> None:
    found = features_of_new_items(old, new_table, embed=embed, encoder=LABEL)
    np.testing.assert_allclose(found, whole.features[-NEW:], atol=2e-3)


def test_scores_are_those_of_a_training_that_had_the_items_and_saw_nobody_meet_them(
    warm: Interactions, whole: Catalogue, old: Catalogue, model: Model, new_table: ItemTable
) -> None:
    reference = trained(warm, whole)
    # what that training makes of a count of zero
    log_counts = reference.fold_in[-NEW:, -1]
    new = vectors_for_new_items(model, old, new_table, embed=embed, encoder=LABEL, log_counts=log_counts)
    extended = extended_model(model, new)
    # Directions differ by a rotation, scores may not; those of each part, less what is the same for every user.
    content = slice(model.collaborative, model.dimensions - USER_TERMS)
    wanted, got = (personal(one, warm, content) for one in (reference, extended))
    assert np.linalg.norm(got - wanted) < 0.1 * np.linalg.norm(wanted)
    # The training also learns from the absence of meetings, which says nothing of an item that was not there.
    collaborative = slice(0, model.collaborative)
    wanted, got = (personal(one, warm, collaborative) for one in (reference, extended))
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.7
    wanted, got = (personal(one, warm, slice(None)) for one in (reference, extended))
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.9


def personal(model: Model, interactions: Interactions, columns: slice) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """Scores of the last twelve items by some columns, less their mean over users."""
    scores = model.user_vectors(interactions)[:, columns] @ model.item_factors[-NEW:, columns].T
    return np.asarray(scores - scores.mean(axis=0))


def test_old_items_come_out_as_they_are(model: Model, old: Catalogue, whole: Catalogue, new_table: ItemTable) -> None:
    """The extension of an item that the model knows is nearly that item: content directions are extended exactly."""
    again = part(old.table, slice(40, 60))
    copies = ItemTable(
        tuple(f"again {name}" for name in again.ids), again.titles, again.categories, again.years, again.texts
    )
    log_counts = model.fold_in[40:60, -1]
    new = vectors_for_new_items(model, old, copies, embed=embed, encoder=LABEL, log_counts=log_counts)
    content = slice(model.collaborative, model.dimensions)
    published = model.item_factors[40:60]
    difference = np.linalg.norm(new.item_factors[:, content] - published[:, content])
    assert difference < 0.03 * np.linalg.norm(published[:, content])
    # collaborative directions keep what features explain of them, which is positive in all
    inner = (new.item_factors * published)[:, : model.collaborative].sum()
    assert inner > 0.3 * np.square(published[:, : model.collaborative]).sum()


def test_an_extended_model_leaves_the_old_one_alone(model: Model, old: Catalogue, new_table: ItemTable) -> None:
    new = vectors_for_new_items(model, old, new_table, embed=embed, encoder=LABEL)
    extended = extended_model(model, new)
    assert extended.items == model.items + NEW
    np.testing.assert_array_equal(extended.item_factors[: model.items], model.item_factors)
    history = [3, 17, 90]
    np.testing.assert_array_equal(extended.user_vector(history), model.user_vector(history))
    # a new item in a history moves no direction, and the bound on scores holds
    vector = extended.user_vector([*history, model.items + 2])
    np.testing.assert_array_equal(vector[:-USER_TERMS], model.user_vector(history)[:-USER_TERMS])
    assert np.abs(extended.scores(vector[None])).max() <= extended.score_scale


def test_expected_counts_stay_within_the_published_ones(model: Model, old: Catalogue, new_table: ItemTable) -> None:
    new = vectors_for_new_items(model, old, new_table, embed=embed, encoder=LABEL)
    assert new.log_counts.min() >= model.fold_in[:, -1].min()
    assert new.log_counts.max() <= model.fold_in[:, -1].max()
    assert np.ptp(new.log_counts) > 0.01


def test_without_text_categories_and_years_suffice(warm: Interactions, old: Catalogue, new_table: ItemTable) -> None:
    plain = build_catalogue(old.table)
    rows = Interactions(warm.users, plain.items, warm.indptr, warm.indices)
    new = vectors_for_new_items(trained(rows, plain), plain, new_table)
    assert np.isfinite(new.item_factors).all()
    assert np.linalg.norm(new.item_factors) > 0


def test_unknown_categories_and_years_are_no_error(model: Model, old: Catalogue) -> None:
    stranger = ItemTable(("stranger",), ("Zzz",), (("a category of its own",),), texts=("",), years=(2999,))
    new = vectors_for_new_items(model, old, stranger, embed=embed, encoder=LABEL)
    assert np.isfinite(new.item_factors).all()


def test_what_does_not_fit_is_refused(model: Model, old: Catalogue, whole: Catalogue, new_table: ItemTable) -> None:
    with pytest.raises(ConfigError, match="no text encoder"):
        vectors_for_new_items(model, old, new_table)
    with pytest.raises(ConfigError, match="text encoder other"):
        vectors_for_new_items(model, old, new_table, embed=embed, encoder="other")
    with pytest.raises(InputError, match="new ids"):
        vectors_for_new_items(model, old, part(old.table, slice(0, 2)), embed=embed, encoder=LABEL)
    with pytest.raises(InputError, match="expected the catalogue's"):
        vectors_for_new_items(model, whole, new_table, embed=embed, encoder=LABEL)
    with pytest.raises(InputError, match="log counts"):
        vectors_for_new_items(model, old, new_table, embed=embed, encoder=LABEL, log_counts=[1.0])
    shapeless = Catalogue(old.table, old.features)
    with pytest.raises(ConfigError, match="without recorded feature blocks"):
        vectors_for_new_items(model, shapeless, new_table, embed=embed, encoder=LABEL)
