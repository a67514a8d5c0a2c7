"""Encrypted histories from end to end: client, server, client, against the plaintext model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from he_inference.encoding.deviation import stated_error
from he_inference.engine.history import HistoryCompute, HistoryEngine, encode_fold_in
from he_inference.index.build import build
from he_inference.index.encode import encoded
from he_inference.index.store import Index
from he_inference.layouts import tower
from he_inference.layouts.history import HistoryLayout
from he_inference.messages import key_bytes, query_bytes, result_bytes
from he_inference.parameters import HISTORY
from he_inference.ring.jit import threads, use_threads
from he_inference.ring.moduli import Words
from he_inference.scheme import SecretKey
from veil.errors import ArtifactError, CiphertextError, ConfigError
from veil.recsys.model import Model, score_bound

N = HISTORY.degree
Floats = NDArray[np.float64]


def part(rows: Floats, number: int) -> Floats:
    return rows[number * N : (number + 1) * N]


@dataclass
class Trial:
    """A server's part, and a client with keys."""

    made: tower.Tower
    compute: HistoryCompute
    index: Words
    secret: SecretKey
    keys: Words

    @classmethod
    def of(cls, made: tower.Tower) -> Trial:
        layout = made.layout
        fold = [
            encode_fold_in(layout, layout.fold_in_polynomials(part(made.fold_in, c), c))
            for c in range(layout.query_ciphertexts)
        ]
        compute = HistoryCompute(layout, np.stack(fold))
        index = [compute.encode(layout.item_polynomials(part(made.rows, b), b)) for b in range(layout.blocks)]
        secret = SecretKey(HISTORY)
        keys = compute.read_keys(secret.evaluation_keys(layout.galois_elements))
        return cls(made, compute, np.stack(index), secret, keys)

    def query(self, history: Sequence[int] | NDArray[np.integer]) -> tuple[bytes, int]:
        x, met = tower.weights(np.asarray(history), self.made.layout.items)
        return self.secret.encrypt(self.made.layout.query_polynomials(x)), met

    def answer(self, queries: Sequence[bytes]) -> list[list[bytes]]:
        read = [self.compute.read_query(query) for query in queries]
        out: list[list[bytes]] = [[] for _ in queries]
        for run in self.compute.score(self.index, read, [self.keys] * len(read)):
            for results, more in zip(out, run, strict=True):
                results += more
        return out

    def outputs(self, results: list[bytes]) -> Floats:
        return self.made.layout.scores(*self.secret.decrypt(results, None))

    def scores(self, history: Sequence[int] | NDArray[np.integer]) -> tower.Combined:
        query, met = self.query(history)
        return tower.combined(self.made.layout, self.outputs(self.answer([query])[0]), met, self.made.item_norm)


def small_model(items: int = 60, linear: int = 5) -> Model:
    rng = np.random.default_rng(7)
    counts = np.exp(rng.normal(3.0, 1.2, items))
    weight = counts**-0.25
    direction = counts * weight / np.linalg.norm(counts * weight)
    used = np.linalg.qr(rng.normal(size=(items, linear)))[0]
    fold_in = np.zeros((items, linear + 3))
    fold_in[:, :linear] = weight[:, None] * (used - np.outer(direction, direction @ used))
    fold_in[:, -1] = np.log(counts)
    terms = rng.normal(size=(items, 2)) @ rng.normal(size=(2, 3))
    factors = np.concatenate([rng.normal(size=(items, linear)), terms], axis=1).astype(np.float32)
    return Model(
        item_factors=factors,
        fold_in=fold_in.astype(np.float32),
        norm_terms=np.stack([weight**2, weight * direction], axis=1).astype(np.float32),
        collaborative=linear,
        taste_centre=float(np.log(counts).mean()),
        score_scale=score_bound(factors, linear),
    )


def split(model: Model) -> tower.Tower:
    return tower.split(model.fold_in, model.norm_terms, model.item_factors, model.taste_centre)


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


@pytest.fixture(scope="module")
def trial(model: Model) -> Trial:
    return Trial.of(split(model))


def check(trial: Trial, model: Model, history: NDArray[np.integer]) -> float:
    """The largest error; the top 10 are those of the plaintext but for scores closer than the bound."""
    got = trial.scores(history)
    want = model.item_factors.astype(np.float64) @ model.user_vector(history).astype(np.float64)
    error = float(np.abs(got.scores - want).max())
    assert error <= got.error
    tenth = np.sort(want)[-min(10, len(want))]
    assert want[np.argsort(-got.scores)[:10]].min() >= tenth - 2 * got.error
    return error


def test_scores_are_the_models(trial: Trial, model: Model) -> None:
    rng = np.random.default_rng(8)
    for history in (np.arange(0), np.array([3]), rng.choice(60, 20, replace=False), np.arange(60)):
        assert check(trial, model, history) < 1e-3 * model.score_scale


def test_errors_are_as_stated(trial: Trial) -> None:
    """Of all outputs of items: a stated bound is seven standard deviations, and not many more."""
    layout = trial.made.layout
    for history in ([], [4], list(range(0, 60, 2))):
        x, _ = tower.weights(history, 60)
        user = trial.made.fold_in.T @ x
        user[-3] += 1.0
        outputs = trial.outputs(trial.answer([trial.query(history)[0]])[0])
        error = layout.parted(outputs - trial.made.rows @ user)[0]
        stated = stated_error(layout, float(np.linalg.norm(user)))
        assert stated / 30.0 < error.std() < stated / 7.0


def test_sizes_are_those_of_the_layout(trial: Trial) -> None:
    layout = trial.made.layout
    query, _ = trial.query([1, 2])
    assert len(query) == query_bytes(HISTORY, layout.query_ciphertexts)
    keys = trial.secret.evaluation_keys(layout.galois_elements)
    assert len(keys) == key_bytes(HISTORY, 4) < 680_000
    (results,) = trial.answer([query])
    assert len(results) == layout.blocks
    assert {len(result) for result in results} == {result_bytes(HISTORY, layout.used_coefficients)}


def test_together_and_alone_and_on_any_number_of_threads(trial: Trial) -> None:
    queries = [trial.query(history)[0] for history in ([1], [2, 3], list(range(40)), [])]
    together = trial.answer(queries)
    before = threads()
    try:
        use_threads(1)
        assert [trial.answer([query])[0] for query in queries] == together
    finally:
        use_threads(before)


def test_clients_with_keys_of_their_own(trial: Trial) -> None:
    """Each query of a batch meets its own client's keys."""
    other = Trial(trial.made, trial.compute, trial.index, SecretKey(HISTORY), trial.keys)
    other.keys = trial.compute.read_keys(other.secret.evaluation_keys(trial.made.layout.galois_elements))
    read = [trial.compute.read_query(who.query([5, 6, 7])[0]) for who in (trial, other)]
    (run,) = trial.compute.score(trial.index, read, [trial.keys, other.keys])
    first, second = trial.outputs(run[0]), other.outputs(run[1])
    np.testing.assert_allclose(first, second, atol=64 * HISTORY.score_error)
    with pytest.raises(CiphertextError):
        # Under the wrong key everything is noise.
        tower.combined(trial.made.layout, trial.outputs(run[1]), 3, trial.made.item_norm)


def test_the_index_writer_encodes_the_same_blocks(trial: Trial) -> None:
    layout = trial.made.layout
    np.testing.assert_array_equal(encoded(layout.output, part(trial.made.rows, 0), 0), trial.index[0])
    first = encode_fold_in(layout, layout.fold_in_polynomials(part(trial.made.fold_in, 0), 0))
    np.testing.assert_array_equal(encoded(layout.fold_in, trial.made.fold_in, 0), first)


def test_index_files(trial: Trial, tmp_path: Path) -> None:
    """Both parts as files, read back, give the same answers; parts of different models are refused."""
    layout = trial.made.layout
    other = HistoryLayout(HISTORY, 2000, layout.dimensions, layout.packing)
    parts = (
        ("a", layout.fold_in, trial.made.fold_in, 0),
        ("b", layout.output, trial.made.rows, 0),
        ("c", layout.output, trial.made.rows, 1),
        ("d", other.output, np.zeros((other.outputs, layout.dimensions)), 0),
    )
    for path, one, rows, model in parts:
        build(
            tmp_path / path,
            one,
            rows,
            item_norm=trial.made.item_norm,
            model_digest=bytes(31) + bytes([model]),
            item_ids_digest=bytes(32),
            keep_rows=False,
        )
    with ExitStack() as stack:
        files = [stack.enter_context(Index.open(tmp_path / name)) for name in "abcd"]
        engine = HistoryEngine(files[0], files[1])
        assert engine.layout == layout and files[1].item_norm == trial.made.item_norm
        query, _ = trial.query([5, 9])
        keys = engine.read_keys(trial.secret.evaluation_keys(layout.galois_elements))
        trial_answer = [trial.compute.read_query(query)], [keys]
        (run,) = engine.score(*trial_answer)
        (want,) = trial.compute.score(trial.index, *trial_answer)
        assert run == want
        engine.close()
        with pytest.raises(ArtifactError, match="different models"):
            HistoryEngine(files[0], files[2])
        with pytest.raises(ConfigError, match="parts of one index"):
            HistoryEngine(files[0], files[3])
        with pytest.raises(ConfigError, match="expected those of a history"):
            HistoryEngine(files[1], files[0])


def test_hostile_messages(trial: Trial) -> None:
    """Anything of the right length below the primes is computed with; all else is refused."""
    rng = np.random.default_rng(9)
    query, _ = trial.query([1])
    keys = trial.secret.evaluation_keys(trial.made.layout.galois_elements)
    for bad in (b"", query[:-1], query + b"\0", b"\xff" * len(query), rng.bytes(len(query))):
        with pytest.raises(CiphertextError):
            trial.compute.read_query(bad)
    for bad in (b"", keys[:-1], keys + b"\0", b"\xff" * len(keys), rng.bytes(len(keys))):
        with pytest.raises(CiphertextError):
            trial.compute.read_keys(bad)
    zero = trial.compute.read_query(bytes(len(query)))
    largest = np.broadcast_to(np.array(HISTORY.data_primes, np.uint32)[:, None] - 1, zero.shape).copy()
    hostile_keys = trial.compute.read_keys(bytes(len(keys)))
    for one in (zero, largest, np.zeros_like(zero)):
        for own in (trial.keys, hostile_keys):
            for run in trial.compute.score(trial.index, [one], [own]):
                assert all(len(result) == result_bytes(HISTORY, N) for results in run for result in results)


def test_a_fold_in_part_of_another_layout_is_refused(trial: Trial) -> None:
    with pytest.raises(ValueError, match="fold-in part"):
        HistoryCompute(HistoryLayout(HISTORY, 60, 8, 1), np.zeros((1, *trial.compute.fold_in_shape[:3], 4), np.uint32))


def test_several_ciphertexts_and_blocks() -> None:
    """20,000 synthetic items of 24 dimensions, a linear tower: three ciphertexts, three results."""
    rng = np.random.default_rng(10)
    fold_in, factors = rng.normal(size=(20_000, 24)), rng.normal(size=(20_000, 24))
    trial = Trial.of(tower.linear_tower(fold_in, factors))
    assert (trial.made.layout.query_ciphertexts, trial.made.layout.blocks) == (3, 3)
    for size in (1, 300):
        history = rng.choice(20_000, size, replace=False)
        got = trial.scores(history)
        want = factors @ fold_in[history].sum(axis=0)
        assert np.abs(got.scores - want).max() <= got.error


@pytest.mark.data
def test_published_model_of_movielens(shared_data: Callable[[str], Path]) -> None:
    """A real published model: scores within the stated bound (measured: 6e-3 of scores up to 64)."""
    from baseline.train import plaintext_model
    from veil.recsys.datasets import load_dataset
    from veil.recsys.features import build_catalogue

    dataset = load_dataset("ml-100k", shared_data("ml-100k"))
    model = plaintext_model(dataset.train, build_catalogue(dataset.table))
    trial = Trial.of(split(model))
    users = [int(np.argmax(dataset.train.lengths())), int(np.argmin(dataset.train.lengths())), 1, 2, 3]
    errors = [check(trial, model, dataset.train.rows(slice(user, user + 1)).indices) for user in users]
    assert max(errors) < 5e-4 * model.score_scale
