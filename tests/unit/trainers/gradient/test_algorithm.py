"""Gradient rounds: exact sums, true sensitivity, secret coins, and a module that learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.trainers.gradient.conftest import MakeAlgorithm, MakeSpec, write
from tests.unit.trainers.gradient.module_files import BILINEAR, OPACUS, SINGLE, TREACHEROUS
from veil.errors import ConfigError, InputError
from veil.jobs.spec import Release
from veil.privacy.noise import keyed_source
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.interactions import Interactions
from veil.trainers.gradient.algorithm import GradientAlgorithm
from veil.trainers.gradient.releases import USER_BITS
from veil.trainers.gradient.source import load_code
from veil.trainers.registry import algorithm_of
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState, central_state


def _no_noise(release: Release) -> np.ndarray:
    return np.zeros(release.shape, np.int64)


def _started(algorithm: GradientAlgorithm, users: int) -> PublicState:
    return algorithm.advance("users", np.array([users << USER_BITS]), {})


@pytest.mark.parametrize("source", [SINGLE, BILINEAR, OPACUS])
def test_the_sum_does_not_depend_on_who_holds_whom(
    make_algorithm: MakeAlgorithm, dataset: Dataset, source: str
) -> None:
    algorithm = make_algorithm(source, sampling=1.0)
    state = _started(algorithm, 60)
    whole = algorithm.contribution("round-0001", PartyRows(dataset.train), state)
    parts = [dataset.train.rows(slice(start, stop)) for start, stop in ((0, 7), (7, 40), (40, 60))]
    sums = [algorithm.contribution("round-0001", PartyRows(part), state) for part in parts]
    # one at a time, bit for bit; in blocks, a step for each user's float32 dust at most
    assert np.abs(whole - np.sum(sums, axis=0)).max() <= (0 if source == SINGLE else 60)
    assert np.abs(whole).max() > 2**16
    counts = [algorithm.contribution("users", PartyRows(part), {})[0] for part in parts]
    assert sum(counts) == algorithm.contribution("users", PartyRows(dataset.train), {})[0] == 60 << USER_BITS


@pytest.mark.parametrize("source", [SINGLE, TREACHEROUS])
def test_one_user_moves_a_sum_by_no_more_than_its_sensitivity(
    make_algorithm: MakeAlgorithm, dataset: Dataset, source: str
) -> None:
    algorithm = make_algorithm(source, sampling=1.0)
    state = _started(algorithm, 60)
    bound = algorithm.spec.release("round-0001").sensitivity
    few = dataset.train.rows(slice(0, 12))
    base = algorithm.contribution("round-0001", PartyRows(few), state)
    # users whom the module fails on, gives no number for, or a huge one
    newcomers = [[0, 5], [1, 5], [2, 5], list(range(250)), []]
    for items in newcomers:
        one = Interactions.from_pairs([0] * len(items), items, users=1, items=250, time=np.zeros(len(items)))
        rows = PartyRows(Interactions.concatenate([few, one]))
        moved = algorithm.contribution("round-0001", rows, state) - base
        assert int((moved.astype(object) ** 2).sum()) <= bound**2
        if source == TREACHEROUS and items[:1] in ([0], [1]):
            assert not moved.any()
        if source == TREACHEROUS and items[:1] == [2]:
            assert np.linalg.norm(moved.astype(float)) > 0.99 * bound
        counted = algorithm.contribution("users", rows, {}) - algorithm.contribution("users", PartyRows(few), {})
        assert counted[0] in (0, algorithm.spec.release("users").sensitivity)


def test_coins_decide_who_takes_part(make_algorithm: MakeAlgorithm, dataset: Dataset) -> None:
    rows = PartyRows(dataset.train.rows(slice(0, 20)))
    seen = []
    for key in (1, 1, 2):
        algorithm = make_algorithm(SINGLE, coins=keyed_source(bytes([key]) * 16, b"coins"))
        state = _started(algorithm, 20)
        seen.append(algorithm.contribution("round-0001", rows, state))
        # fresh coins every time
        assert (algorithm.contribution("round-0001", rows, state) != seen[-1]).any()
    assert (seen[0] == seen[1]).all()
    assert (seen[0] != seen[2]).any()
    # a sum over sampled users is the sum of exactly their rows
    coins = np.frombuffer(keyed_source(bytes([1]) * 16, b"coins")(8 * 20), "<u8") < 2**63
    everybody = make_algorithm(SINGLE, coins=lambda size: bytes(size))
    chosen = PartyRows(dataset.train.rows(np.flatnonzero(coins)))
    assert 5 < coins.sum() < 15
    assert (everybody.contribution("round-0001", chosen, state) == seen[0]).all()
    # by default from the operating system
    own = make_algorithm(SINGLE)
    assert (own.contribution("round-0001", rows, state) != own.contribution("round-0001", rows, state)).any()


def test_it_learns(make_algorithm: MakeAlgorithm, dataset: Dataset) -> None:
    def loss_of(module: torch.nn.Module) -> float:
        users = algorithm._examples(PartyRows(dataset.train)).tensors
        draws = {"shift": torch.tensor(0.5)}
        with torch.no_grad():
            return float(algorithm.code.loss(module, users, draws, algorithm.facts).mean())

    options = {"rounds": 20.0, "rate": 0.1, "clip": 1.0}
    algorithm = make_algorithm(BILINEAR, **options)
    state = central_state(algorithm, algorithm.spec, PartyRows(dataset.train), _no_noise)
    before = algorithm.module(_started(algorithm, 60))
    assert loss_of(algorithm.module(state)) < 0.8 * loss_of(before)
    assert int(state["users"][0]) == 60
    assert int(state["round"][0]) == 20


def test_every_party_starts_from_the_leads_weights(make_algorithm: MakeAlgorithm) -> None:
    algorithm = make_algorithm(BILINEAR)
    state = _started(algorithm, 10)
    np.testing.assert_array_equal(state["weights"], algorithm.updates.flat())
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32), np.dtype(np.int64)}
    # frozen weights are no part of it
    assert algorithm.trainer.parameters == len(state["weights"]) == 4 * 6 + 6 + 2 * 6 + 6 + 1
    assert set(algorithm.publish(state).weights) == {
        *(f"{layer}.{kind}" for layer in ("first", "norm", "last") for kind in ("weight", "bias")),
    }


def test_the_mean_divides_by_the_noised_count_and_the_sampling(make_algorithm: MakeAlgorithm) -> None:
    algorithm = make_algorithm(SINGLE, server=0.0, rate=1.0, rate_end=1.0, momentum=0.0)
    state = _started(algorithm, 100)
    opened = np.full(algorithm.trainer.parameters, 1 << 22, np.int64)  # 22 bits at clip 0.25: 1.0 each
    moved = state["weights"] - algorithm.advance("round-0001", opened, state)["weights"]
    np.testing.assert_allclose(moved, 1.0 / (0.5 * 100), rtol=1e-4)


def test_states_and_steps_that_do_not_fit(make_algorithm: MakeAlgorithm, dataset: Dataset) -> None:
    algorithm = make_algorithm(SINGLE)
    rows = PartyRows(dataset.train)
    with pytest.raises(InputError, match="weights"):
        algorithm.contribution("round-0001", rows, {})
    with pytest.raises(InputError, match="weights"):
        algorithm.advance("round-0001", np.zeros(algorithm.trainer.parameters, np.int64), {})
    with pytest.raises(ConfigError, match="release"):
        algorithm.contribution("round-0009", rows, {})
    with pytest.raises(ConfigError, match="interactions"):
        algorithm.contribution("users", PartyRows(), {})


def test_jobs_that_do_not_fit_the_file_or_the_catalogue(
    make_spec: MakeSpec, catalogue: Catalogue, tmp_path: object
) -> None:
    spec = make_spec(SINGLE)
    path = write(tmp_path, SINGLE)  # type: ignore[arg-type]
    assert isinstance(algorithm_of(spec, catalogue, modules={"net": path}), GradientAlgorithm)
    code = load_code(spec.trainer, {"net": path})  # type: ignore[arg-type]
    wrong = spec.trainer.model_copy(update={"parameters": 48})
    releases = tuple(r.model_copy(update={"shape": (48,)}) if r.name != "users" else r for r in spec.releases)
    with pytest.raises(ConfigError, match="49 trainable parameters, expected 48"):
        GradientAlgorithm(spec.model_copy(update={"trainer": wrong, "releases": releases}), catalogue, code)
    with pytest.raises(ConfigError, match="unknown options surprise"):
        options = spec.trainer.model_copy(update={"options": {"surprise": 1.0}})
        GradientAlgorithm(spec.model_copy(update={"trainer": options}), catalogue, code)
    with pytest.raises(ConfigError, match="local_steps"):
        options = spec.trainer.model_copy(update={"options": {"local_steps": 1.5}})
        GradientAlgorithm(spec.model_copy(update={"trainer": options}), catalogue, code)
    other = spec.catalogue.model_copy(update={"digest": "sha256:" + "0" * 64})
    with pytest.raises(ConfigError, match="load the catalogue"):
        GradientAlgorithm(spec.model_copy(update={"catalogue": other}), catalogue, code)


def test_nothing_of_users_or_coins_is_logged(
    make_algorithm: MakeAlgorithm, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    algorithm = make_algorithm(TREACHEROUS, sampling=0.5)
    caplog.clear()
    central_state(algorithm, algorithm.spec, PartyRows(dataset.train), _no_noise)
    assert not [record for record in caplog.records if record.name.startswith("veil")]
