"""Counts and the floor rule: norms in integers, and what a floor run comes to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import InputError
from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, Noise, Privacy, Release
from veil.privacy.noise import keyed_source, rounded_gaussian
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.features import build_catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.synthetic import generate
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState, central_state
from veil.trainers.subspace.algorithm import SubspaceAlgorithm, round_sensitivity
from veil.trainers.subspace.counts import (
    Estimate,
    counts_and_users,
    counts_sensitivity,
    interactions_per_item,
    repeated_counts,
)
from veil.trainers.subspace.plan import plan_subspace


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(users=900, items=260, seed=3, negatives=50)


@pytest.fixture(scope="module")
def catalogue(dataset: Dataset) -> Catalogue:
    return build_catalogue(dataset.table)


def make_spec(catalogue: Catalogue, epsilon: float = 20.0, **overrides: float) -> JobSpec:
    features = catalogue.features.shape[1]
    trainer, releases = plan_subspace(
        epsilon=epsilon,
        delta=1e-5,
        noise_source="dealer",
        parties=3,
        items=catalogue.items,
        features=features,
        overrides={"dimensions": 6, "content_dimensions": 10, "rounds": 2, **overrides},
    )
    return JobSpec(
        name="test",
        nonce="0" * 32,
        consortium="trial",
        parties=("alpha", "beta", "gamma"),
        dealer="dealer",
        catalogue=jobs.Catalogue(digest=catalogue.digest, items=catalogue.items, features=features),
        privacy=Privacy(epsilon=epsilon, delta=1e-5, noise=Noise(source="dealer")),
        trainer=trainer,
        releases=releases,
        versions={},
    )


def noise_of(release: Release) -> np.ndarray[Any, np.dtype[np.int64]]:
    source = keyed_source(b"\x05" * 32, release.name.encode())
    return rounded_gaussian(release.size, release.sigma, source).reshape(release.shape)


def floor_states(spec: JobSpec, catalogue: Catalogue, interactions: Interactions) -> list[PublicState]:
    algorithm = SubspaceAlgorithm(spec, catalogue)
    states: list[PublicState] = [{}]
    for step in algorithm.steps:
        total = algorithm.contribution(step, PartyRows(interactions), states[-1]) + noise_of(spec.release(step))
        states.append(algorithm.advance(step, total, states[-1]))
    return states


def single(history: Any, items: int) -> Interactions:
    met = np.sort(np.asarray(history)).astype(np.int32)
    return Interactions(1, items, np.array([0, len(met)], np.int64), met)


@given(length=st.integers(1, 250), clip=st.sampled_from([0.05, 0.2, 1.0]))
@settings(max_examples=60, deadline=None)
def test_norms_are_exact_for_any_length(length: int, clip: float) -> None:
    one = single(np.arange(length), 250)
    bound = round_sensitivity(clip)
    for added, most in (
        (counts_and_users(one), counts_sensitivity()),
        (repeated_counts(one, (250, 3), bound), bound),
    ):
        squared = sum(int(entry) ** 2 for entry in added.ravel())
        assert 0.999 * most**2 < squared <= most**2


def test_nobody_and_empty_users_add_nothing() -> None:
    empty = Interactions(3, 9, np.zeros(4, np.int64), np.zeros(0, np.int32))
    assert not counts_and_users(empty).any()
    assert not repeated_counts(empty, (9, 2), 1000).any()


def test_repeated_counts_are_the_counts_in_column_0(dataset: Dataset) -> None:
    bound = round_sensitivity(0.2)
    again = repeated_counts(dataset.train, (260, 6), bound)
    assert not again[:, 1:].any()
    np.testing.assert_allclose(again[:, 0] / bound, counts_and_users(dataset.train)[:-1] / 2.0**20, atol=1e-3)


def test_pooling_weighs_by_inverse_variance() -> None:
    pooled = Estimate(np.array([1.0, 2.0]), 1.0).pooled(Estimate(np.array([3.0, 6.0]), 0.5))
    np.testing.assert_allclose(pooled.values, [2.6, 5.2])
    assert pooled.sd == pytest.approx(math.sqrt(0.2))
    exact = Estimate(np.array([1.0]), 0.0)
    assert exact.pooled(Estimate(np.array([9.0]), 1.0)) is exact


def test_interactions_per_item_is_the_mean_for_equal_histories() -> None:
    # 50 users of 16 items each over 40 items: counts sum to 50 * 4, and 20 interactions fall on an item.
    counts = np.full(40, 50 * 4 / 40.0)
    assert interactions_per_item(counts, 0.0, 50.0, 0.0) == pytest.approx(20.0)
    assert interactions_per_item(counts, 1.0, 50.0, 5.0) < 20.0
    assert interactions_per_item(-counts, 0.0, 50.0, 0.0) == 0.0


def test_the_rule_reads_noise_over_interactions(dataset: Dataset, catalogue: Catalogue) -> None:
    # 100 interactions per item: a multiplier of 0.26 is little noise (epsilon 20), one of 13 is not (epsilon 0.3).
    quiet, loud = make_spec(catalogue, 20.0), make_spec(catalogue, 0.3)
    for spec, floor in ((quiet, False), (loud, True)):
        algorithm = SubspaceAlgorithm(spec, catalogue)
        total = algorithm.contribution("counts", PartyRows(dataset.train), {}) + noise_of(spec.release("counts"))
        assert ("estimate" in algorithm.advance("counts", total, {})) == floor


def test_a_floor_run_spends_everything_on_the_counts(dataset: Dataset, catalogue: Catalogue) -> None:
    spec = make_spec(catalogue, 2.0, noise_ratio_limit=0.0)
    states = floor_states(spec, catalogue, dataset.train)
    model = SubspaceAlgorithm(spec, catalogue).model(states[-1])
    assert (model.collaborative, model.dimensions) == (0, 13)
    spread = [float(state["estimate"][-1]) for state in states[1:-1]]
    alone = make_spec(catalogue, 2.0, rounds=0)
    # After the first of two rounds, less noise than after the counts; after both it is that of the whole budget.
    assert spread[1] < spread[0]
    algorithm = SubspaceAlgorithm(spec, catalogue)
    last = algorithm.contribution("round-2", PartyRows(dataset.train), states[2]) + noise_of(spec.release("round-2"))
    whole = Estimate(states[2]["estimate"][:-1].astype(np.float64), spread[1]).pooled(
        Estimate(
            last[:, 0] / round_sensitivity(spec.trainer.clip),  # type: ignore[union-attr]
            spec.release("round-2").sigma / round_sensitivity(spec.trainer.clip),  # type: ignore[union-attr]
        )
    )
    assert whole.sd == pytest.approx(alone.release("counts").sigma / 2.0**20, rel=0.01)
    truth = counts_and_users(dataset.train)[:-1] / 2.0**20
    assert np.abs(whole.values - truth).max() < 5 * whole.sd


def test_floor_parties_add_up_to_the_whole(dataset: Dataset, catalogue: Catalogue) -> None:
    spec = make_spec(catalogue, noise_ratio_limit=0.0)
    algorithm = SubspaceAlgorithm(spec, catalogue)
    states = floor_states(spec, catalogue, dataset.train)
    cut = [slice(0, 500), slice(500, 770), slice(770, 900)]
    for step, state in zip(algorithm.steps, states, strict=False):
        parts = [algorithm.contribution(step, PartyRows(dataset.train.rows(part)), state) for part in cut]
        whole = algorithm.contribution(step, PartyRows(dataset.train), state)
        np.testing.assert_array_equal(np.sum(parts, axis=0), whole)
    joint = algorithm.model(states[-1])
    central = algorithm.model(central_state(algorithm, spec, PartyRows(dataset.train), noise_of))
    np.testing.assert_array_equal(joint.item_factors, central.item_factors)


@pytest.mark.parametrize("damage", ["short", "nan", "negative"])
def test_a_malformed_estimate_is_refused(dataset: Dataset, catalogue: Catalogue, damage: str) -> None:
    spec = make_spec(catalogue, noise_ratio_limit=0.0)
    state = dict(floor_states(spec, catalogue, dataset.train)[1])
    estimate = state["estimate"].copy()
    if damage == "short":
        estimate = estimate[:-1]
    elif damage == "nan":
        estimate[0] = np.nan
    else:
        estimate[-1] = -1.0
    state["estimate"] = estimate
    with pytest.raises(InputError, match="estimate"):
        SubspaceAlgorithm(spec, catalogue).advance("round-1", noise_of(spec.release("round-1")), state)
