"""Private ALS: exact sums, true sensitivity, no dependence on who holds whom, and plaintext quality without noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from veil.errors import ConfigError, InputError, StateError
from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, Noise, Privacy, Release
from veil.privacy.mechanism import to_grid
from veil.privacy.noise import keyed_source, rounded_gaussian
from veil.recsys import postprocess
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.datasets import load_dataset
from veil.recsys.features import build_catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.metrics import evaluate
from veil.recsys.model import Model
from veil.recsys.splits import by_user
from veil.recsys.synthetic import generate
from veil.trainers.als import algorithm as module
from veil.trainers.als.algorithm import AlsAlgorithm
from veil.trainers.als.plan import plan_als
from veil.trainers.als.statistics import item_grams, round_statistics
from veil.trainers.registry import central_run
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState, central_state
from veil.trainers.subspace.algorithm import unit_rows

PARTIES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(users=900, items=260, seed=3, negatives=50)


@pytest.fixture(scope="module")
def catalogue(dataset: Dataset) -> Catalogue:
    return build_catalogue(dataset.table)


def make_spec(
    catalogue: Catalogue, *, epsilon: float = 20.0, source: Literal["dealer", "parties"] = "dealer", **overrides: float
) -> JobSpec:
    features = catalogue.features.shape[1]
    trainer, releases = plan_als(
        epsilon=epsilon,
        delta=1e-5,
        items=catalogue.items,
        features=features,
        overrides={"dimensions": 6, "content_dimensions": 10, "rounds": 2, **overrides},
    )
    return JobSpec(
        name="test",
        nonce="0" * 32,
        consortium="trial",
        parties=PARTIES,
        dealer="dealer",
        catalogue=jobs.Catalogue(digest=catalogue.digest, items=catalogue.items, features=features),
        privacy=Privacy(epsilon=epsilon, delta=1e-5, noise=Noise(source=source)),
        trainer=trainer,
        releases=releases,
        versions={},
    )


def noise_of(release: Release) -> np.ndarray[Any, np.dtype[np.int64]]:
    source = keyed_source(b"\x05" * 32, release.name.encode())
    return rounded_gaussian(release.size, release.sigma, source).reshape(release.shape)


def silence(release: Release) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.zeros(release.shape, np.int64)


def states(spec: JobSpec, catalogue: Catalogue, interactions: Interactions) -> dict[str, PublicState]:
    """The state before each step."""
    algorithm = AlsAlgorithm(spec, catalogue)
    state: PublicState = {}
    before = {}
    for step in algorithm.steps:
        before[step] = state
        total = algorithm.contribution(step, PartyRows(interactions), state) + noise_of(spec.release(step))
        state = algorithm.advance(step, total, state)
    return before


@pytest.mark.parametrize("item_gram", [0.0, 1.0])
def test_joint_equals_central_bit_for_bit(dataset: Dataset, catalogue: Catalogue, item_gram: float) -> None:
    spec = make_spec(catalogue, item_gram=item_gram)
    central = central_run(spec, catalogue, dataset.train, noise_of)
    parts = [dataset.train.rows(users) for users in by_user(dataset.train.users, (0.6, 0.3, 0.1), seed=1)]
    algorithms = [AlsAlgorithm(spec, catalogue) for _ in PARTIES]
    state: PublicState = {}
    for step in algorithms[0].steps:
        sums = [one.contribution(step, PartyRows(part), state) for one, part in zip(algorithms, parts, strict=True)]
        state = algorithms[0].advance(step, sums[0] + sums[1] + sums[2] + noise_of(spec.release(step)), state)
    joint = algorithms[2].model(state)
    for name in ("item_factors", "fold_in", "norm_terms"):
        np.testing.assert_array_equal(getattr(joint, name), getattr(central, name))
    assert (joint.score_scale, joint.taste_centre) == (central.score_scale, central.taste_centre)


def test_a_state_survives_its_way_as_bytes(dataset: Dataset, catalogue: Catalogue) -> None:
    for state in states(make_spec(catalogue, item_gram=1.0), catalogue, dataset.train).values():
        received = load_arrays(save_arrays(dict(state)))
        assert set(received) == set(state)
        for name, array in state.items():
            np.testing.assert_array_equal(received[name], array)


@pytest.mark.parametrize("step", ["item-gram-2", "round-2"])
def test_sum_does_not_depend_on_blocks(
    dataset: Dataset, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    spec = make_spec(catalogue, item_gram=1.0)
    state = states(spec, catalogue, dataset.train)[step]
    algorithm = AlsAlgorithm(spec, catalogue)
    whole = algorithm.contribution(step, PartyRows(dataset.train), state)
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", 7 * catalogue.items)
    np.testing.assert_array_equal(algorithm.contribution(step, PartyRows(dataset.train), state), whole)


def squared_norm(array: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    """Exactly, in Python's integers."""
    return sum(int(entry) ** 2 for entry in array.reshape(-1) if entry)


def test_a_user_adds_at_most_the_sensitivity(dataset: Dataset, catalogue: Catalogue) -> None:
    """In integers, for histories of every length, with honest states and with ones that a lead made up."""
    spec = make_spec(catalogue, item_gram=1.0)
    algorithm = AlsAlgorithm(spec, catalogue)
    before = states(spec, catalogue, dataset.train)
    items = catalogue.items
    generator = np.random.default_rng(2)
    one_direction = np.zeros_like(before["round-1"]["map"])
    one_direction[:, 0] = 1.0
    histories = [np.arange(items), np.array([0]), np.array([items - 1])]
    histories += [generator.choice(items, size, replace=False) for size in (2, 3, 17, 100, items - 1)]
    for step in algorithm.steps:
        bound = spec.release(step).sensitivity
        largest = 0
        made_up = [{}] if step == "counts" else [{}, {"map": one_direction}, {"map": one_direction[:, ::-1].copy()}]
        for change in made_up:
            state = {**before[step], **change}
            alone = algorithm.contribution(step, PartyRows(dataset.train), state)
            for history in histories:
                with_user = Interactions.concatenate([dataset.train, single(history, items)])
                added = algorithm.contribution(step, PartyRows(with_user), state) - alone
                largest = max(largest, squared_norm(added))
        assert largest <= bound**2
        # and the bound is not far above what happens, which a wrong grid would make it
        assert largest >= (0.97 * bound) ** 2


def test_round_is_the_outer_sum_of_unit_vectors(dataset: Dataset, catalogue: Catalogue) -> None:
    spec = make_spec(catalogue)
    algorithm = AlsAlgorithm(spec, catalogue)
    state = states(spec, catalogue, dataset.train)["round-2"]
    total = algorithm.contribution("round-2", PartyRows(dataset.train), state) / 2.0**32
    weight, direction = postprocess.item_weights(state["counts"].astype(np.float64), spec.trainer.popularity_power)
    rows = unit_rows(dataset.train, weight, direction)
    folded = rows @ state["map"].astype(np.float64)
    folded /= np.linalg.norm(folded, axis=1, keepdims=True)
    cross, gram = round_statistics(total, catalogue.items)
    np.testing.assert_allclose(cross, rows.T @ folded, atol=2e-3)
    np.testing.assert_allclose(gram, folded.T @ folded, atol=0.1)
    assert np.trace(gram) == pytest.approx(dataset.train.users, rel=1e-3)


def test_item_grams_are_weighted_second_moments(dataset: Dataset, catalogue: Catalogue) -> None:
    spec = make_spec(catalogue, item_gram=1.0)
    algorithm = AlsAlgorithm(spec, catalogue)
    state = states(spec, catalogue, dataset.train)["item-gram-1"]
    packed = algorithm.contribution("item-gram-1", PartyRows(dataset.train), state) / 2.0**32
    weight, direction = postprocess.item_weights(state["counts"].astype(np.float64), spec.trainer.popularity_power)
    folded = unit_rows(dataset.train, weight, direction) @ state["map"].astype(np.float64)
    folded /= np.linalg.norm(folded, axis=1, keepdims=True)
    rows = dataset.train.dense(slice(None)).astype(np.float64)
    rows /= np.sqrt(rows.sum(axis=1, keepdims=True))
    grams = item_grams(packed, 6)
    expected = np.einsum("ui,uj,uk->ijk", rows, folded, folded)
    # Truncation on the coarse grid of 2^-10 takes a little from every entry.
    np.testing.assert_allclose(grams, expected, atol=0.02 * float(expected.max()))
    assert np.abs(grams - expected).mean() < 0.01 * np.abs(expected).mean() + 1e-3


def test_a_round_is_exact_in_integers(dataset: Dataset, catalogue: Catalogue) -> None:
    """The documented integers, by integer arithmetic that no linear algebra library takes part in."""
    spec = make_spec(catalogue)
    state = states(spec, catalogue, dataset.train)["round-1"]
    weight, direction = postprocess.item_weights(state["counts"].astype(np.float64), spec.trainer.popularity_power)
    left = to_grid(unit_rows(dataset.train, weight, direction), 1.0, 16)
    grid_map = np.rint(state["map"].astype(np.float64) * 2**20).astype(np.int64)
    right = to_grid(np.einsum("ui,id->ud", left, grid_map).astype(np.float64), 1.0, 16)
    quarter = np.sign(right) * (np.abs(right) // 4)
    total = AlsAlgorithm(spec, catalogue).contribution("round-1", PartyRows(dataset.train), state)
    np.testing.assert_array_equal(total[: catalogue.items], np.einsum("ui,ud->id", left, right))
    np.testing.assert_array_equal(total[catalogue.items :], np.einsum("ui,ud->id", quarter, right))


def test_a_user_without_items_adds_nothing(dataset: Dataset, catalogue: Catalogue) -> None:
    spec = make_spec(catalogue, item_gram=1.0)
    algorithm = AlsAlgorithm(spec, catalogue)
    before = states(spec, catalogue, dataset.train)
    empty = Interactions(3, catalogue.items, np.zeros(4, np.int64), np.zeros(0, np.int32))
    nobody = Interactions(0, catalogue.items, np.zeros(1, np.int64), np.zeros(0, np.int32))
    for step in algorithm.steps:
        assert not algorithm.contribution(step, PartyRows(empty), before[step]).any()
        assert not algorithm.contribution(step, PartyRows(nobody), before[step]).any()


def ndcg(model: Model, dataset: Dataset) -> float:
    vectors = model.user_vectors(dataset.train)
    return evaluate(lambda users: model.scores(vectors[users]), dataset).ndcg_at_10


def plain_als(dataset: Dataset, weight: Any, direction: Any, dimensions: int, sweeps: int) -> Any:
    """V of plaintext ALS on the same rows, by the textbook: both sides solved in turn, no grid, no scaling of users."""
    rows = unit_rows(dataset.train, weight, direction)
    factors = np.random.default_rng(0).standard_normal((rows.shape[1], dimensions))
    for _ in range(sweeps):
        users = np.linalg.solve(factors.T @ factors, factors.T @ rows.T).T
        factors = np.linalg.solve(users.T @ users, users.T @ rows).T
    return factors


def test_without_noise_it_is_plaintext_als(dataset: Dataset, catalogue: Catalogue) -> None:
    """Next to no noise: rows are explained as well as by plaintext ALS, and the ranking is far above popularity's."""
    spec = make_spec(catalogue, epsilon=1000.0, rounds=12)
    algorithm = AlsAlgorithm(spec, catalogue)
    rows = PartyRows(dataset.train)
    state: PublicState = {}
    for step in algorithm.steps[:-1]:
        state = algorithm.advance(step, algorithm.contribution(step, rows, state), state)
    trained = algorithm.trained(algorithm.steps[-1], algorithm.contribution(algorithm.steps[-1], rows, state), state)
    weight, direction = postprocess.item_weights(trained.counts, spec.trainer.popularity_power)
    factors = plain_als(dataset, weight, direction, 6, 40)
    plain_basis = np.linalg.qr(factors)[0]
    users = unit_rows(dataset.train, weight, direction)
    assert trained.basis is not None
    explained = np.square(users @ trained.basis).sum() / np.square(users @ plain_basis).sum()
    assert 0.96 < explained <= 1.0 + 1e-9
    model = algorithm.model(central_state(algorithm, spec, rows, silence))
    counts = dataset.train.counts().astype(np.float32)
    popularity = evaluate(lambda some: np.broadcast_to(counts, (len(some), len(counts))), dataset).ndcg_at_10
    assert ndcg(model, dataset) > popularity + 0.05


def test_learns_more_than_popularity(dataset: Dataset, catalogue: Catalogue) -> None:
    model = central_run(make_spec(catalogue, epsilon=50.0), catalogue, dataset.train, noise_of)
    counts = dataset.train.counts().astype(np.float32)
    popularity = evaluate(lambda some: np.broadcast_to(counts, (len(some), len(counts))), dataset).ndcg_at_10
    assert ndcg(model, dataset) > popularity + 0.02


def test_users_are_counted_by_the_trace(dataset: Dataset, catalogue: Catalogue) -> None:
    spec = make_spec(catalogue, epsilon=5.0)
    algorithm = AlsAlgorithm(spec, catalogue)
    state = states(spec, catalogue, dataset.train)["round-2"]
    assert algorithm._users("round-1", state) == pytest.approx(dataset.train.users, rel=0.1)


def test_more_noise_moves_weight_to_public_content(catalogue: Catalogue) -> None:
    algorithm = AlsAlgorithm(make_spec(catalogue), catalogue)
    weights = [algorithm._mixing(noise) for noise in (1e-9, 0.48, 2.0, 12.0, 1e9)]
    assert weights[0] == weights[1]
    assert weights[3] == weights[4]
    shares = [one["collaborative"] / one["content"] for one in weights[1:4]]
    assert shares == sorted(shares, reverse=True)


def test_noise_of_all_parties_is_allowed_for(dataset: Dataset, catalogue: Catalogue) -> None:
    noise = {}
    for source in ("dealer", "parties"):
        spec = make_spec(catalogue, epsilon=3.0, source=source)  # type: ignore[arg-type]
        noise[source] = AlsAlgorithm(spec, catalogue)._pooled_sd("round-2")
    assert noise["parties"] == pytest.approx(3**0.5 * noise["dealer"])


def test_without_features(dataset: Dataset) -> None:
    bare = Catalogue(table=dataset.table, features=np.zeros((dataset.train.items, 0), np.float32))
    model = central_run(make_spec(bare, content_dimensions=0), bare, dataset.train, noise_of)
    assert model.dimensions == 6 + 3
    assert np.isfinite(model.item_factors).all()


def changed(spec: JobSpec, **fields: Any) -> JobSpec:
    return spec.model_copy(update=fields)


def trainer_with(spec: JobSpec, **fields: Any) -> JobSpec:
    return changed(spec, trainer=spec.trainer.model_copy(update=fields))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: changed(s, releases=s.releases[:-1]), "releases"),
        (lambda s: changed(s, releases=(s.releases[1], s.releases[0], s.releases[2])), "releases"),
        (lambda s: changed(s, releases=(lower(s.releases[0]), *s.releases[1:])), "sensitivity"),
        (lambda s: changed(s, releases=(s.releases[0], lower(s.releases[1]), s.releases[2])), "sensitivity"),
        (lambda s: trainer_with(s, gram="item"), "releases"),
        (lambda s: trainer_with(s, rounds=3), "releases"),
        (lambda s: trainer_with(s, dimensions=7), "shape"),
        (lambda s: trainer_with(s, dimensions=1000, content_dimensions=0), "at most 128"),
        (lambda s: trainer_with(s, content_dimensions=126), "at most 128"),
        (lambda s: trainer_with(s, options={"mix-nothing": 1.0}), "mix-nothing"),
        (lambda s: trainer_with(s, options={}), "options none"),
        (lambda s: changed(s, catalogue=s.catalogue.model_copy(update={"digest": "sha256:" + "0" * 64})), "catalogue"),
    ],
)
def test_a_job_that_does_not_fit_is_refused(
    catalogue: Catalogue, change: Callable[[JobSpec], JobSpec], says: str
) -> None:
    spec = make_spec(catalogue)
    AlsAlgorithm(spec, catalogue)
    with pytest.raises(ConfigError, match=says):
        AlsAlgorithm(change(spec), catalogue)


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.pop("counts"),
        lambda s: s.update(counts=s["counts"].astype(np.float64)),
        lambda s: s.update(counts=-s["counts"]),
        lambda s: s.update(counts=s["counts"][:-1]),
        lambda s: s.update(counts=np.full_like(s["counts"], np.nan)),
        lambda s: s.pop("map"),
        lambda s: s.update(map=s["map"][:, :-1]),
        lambda s: s.update(map=np.full_like(s["map"], np.inf)),
        lambda s: s.update(map=s["map"] * 100),
    ],
)
def test_a_malformed_state_is_refused(
    dataset: Dataset, catalogue: Catalogue, damage: Callable[[PublicState], object]
) -> None:
    spec = make_spec(catalogue)
    state = dict(states(spec, catalogue, dataset.train)["round-1"])
    damage(state)
    with pytest.raises(InputError):
        AlsAlgorithm(spec, catalogue).contribution("round-1", PartyRows(dataset.train), state)


def test_a_state_without_statistics_is_refused(dataset: Dataset, catalogue: Catalogue) -> None:
    spec = make_spec(catalogue)
    before = states(spec, catalogue, dataset.train)
    opened = np.zeros(spec.release("round-2").shape, np.int64)
    with pytest.raises(InputError, match="statistics"):
        AlsAlgorithm(spec, catalogue).advance("round-2", opened, before["round-1"])
    with pytest.raises(InputError, match="statistics"):
        wrong = {**before["round-2"], "statistics": before["round-2"]["statistics"][:-1]}
        AlsAlgorithm(spec, catalogue).advance("round-2", opened, wrong)


def test_misuse_is_refused(dataset: Dataset, catalogue: Catalogue) -> None:
    spec = make_spec(catalogue)
    algorithm = AlsAlgorithm(spec, catalogue)
    with pytest.raises(StateError, match="not finished"):
        algorithm.model({})
    with pytest.raises(ConfigError, match="release"):
        algorithm.contribution("round-9", PartyRows(dataset.train), {})
    with pytest.raises(ConfigError, match=r"\[data\]"):
        algorithm.contribution("counts", PartyRows(), {})
    with pytest.raises(InputError, match="items"):
        algorithm.contribution("counts", PartyRows(single(np.array([0]), catalogue.items + 1)), {})
    with pytest.raises(InputError, match="opening"):
        algorithm.advance("counts", np.zeros(3, np.int64), {})
    with pytest.raises(InputError, match="opening"):
        algorithm.trained("round-2", np.zeros((catalogue.items + 6, 6)), {})  # type: ignore[arg-type]


def single(history: Any, items: int) -> Interactions:
    met = np.sort(np.asarray(history)).astype(np.int32)
    return Interactions(1, items, np.array([0, len(met)], np.int64), met)


def lower(release: Release) -> Release:
    return release.model_copy(update={"sensitivity": release.sensitivity - 1})


@pytest.mark.data
def test_movielens(shared_data: Callable[[str], Path]) -> None:
    """From genres and years alone; popularity is at .407 HR@10 there."""
    dataset = load_dataset("ml-100k", shared_data("ml-100k"))
    catalogue = build_catalogue(dataset.table)
    features = catalogue.features.shape[1]
    trainer, releases = plan_als(epsilon=10.0, delta=1e-5, items=catalogue.items, features=features)
    spec = changed(make_spec(catalogue, epsilon=10.0), trainer=trainer, releases=releases)
    model = central_run(spec, catalogue, dataset.train, noise_of)
    vectors = model.user_vectors(dataset.train)
    assert evaluate(lambda users: model.scores(vectors[users]), dataset).hr_at_10 > 0.55
