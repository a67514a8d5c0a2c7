"""Released scores: the key-recovery attack works on raw scores and fails on released ones; bounds, counts, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from he_inference.client.keys import KeyRing, MemoryRing, Ring
from he_inference.client.query import Query, Ready
from he_inference.client.release import (
    EXACT_MARGIN,
    EXACT_RELEASES,
    RELEASES,
    flooding_sigma,
    release,
    statistical_sigma,
)
from he_inference.client.scores import Origin, Scores
from he_inference.encoding import deviation
from he_inference.engine.compute import Compute
from he_inference.exchange import Offer
from he_inference.layouts.seam import MAX_DIMENSIONS, MAX_ITEMS
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import EXACT, FAST, KEYLESS, PQ, Parameters
from tests.unit.he_inference.client.key_recovery import inverse, polynomial_of, product, read_vector, recover_key, solve
from veil.errors import CiphertextError, InputError, PolicyError, StateError

DIMENSIONS = 16


def unit_rows(rows: int, seed: int, dimensions: int = DIMENSIONS) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(seed).normal(size=(rows, dimensions))
    values /= np.linalg.norm(values, axis=1)[:, None]
    return values


class Party:
    """A client and a server that do what they should, with a full block of items."""

    def __init__(
        self, parameters: Parameters, ring: Ring, items: int | None = None, dimensions: int = DIMENSIONS
    ) -> None:
        self.layout = SessionLayout(parameters, items or parameters.degree, dimensions)
        self.offer = Offer(self.layout, 1.0, b"m" * 32)
        self.items = unit_rows(self.layout.items, 1, dimensions)
        self.compute = Compute(self.layout)
        block = self.layout.block_items
        self.index = np.stack(
            [
                self.compute.encode(self.layout.item_polynomials(self.items[start : start + block], number))
                for number, start in enumerate(range(0, self.layout.items, block))
            ]
        )
        self.ring = ring
        self.renew()

    def renew(self) -> None:
        self.keys = self.ring.open(self.layout.parameters, self.layout.galois_elements)
        self.evaluation = self.compute.read_keys(self.keys.evaluation)

    def ask(self, vector: np.ndarray) -> tuple[bytes, list[bytes], Scores]:
        """The query and the results as they travel, and the scores as `ScoringClient.score` returns them."""
        query = Query.of(vector, Ready(self.offer, self.keys, b""))
        read = self.compute.read_query(query.data)
        results = [data for part in self.compute.score(self.index, [read], [self.evaluation]) for data in part[0]]
        return query.data, results, query.decrypt(results)


@pytest.fixture(scope="module")
def fast() -> Party:
    return Party(FAST, MemoryRing())


@pytest.fixture(scope="module")
def exact() -> Party:
    return Party(EXACT, MemoryRing())


@pytest.fixture
def fresh(fast: Party) -> Party:
    """`fast` with a key of its own, from which nothing was released."""
    fast.ring.rotate(FAST)
    fast.renew()
    return fast


def invertible(party: Party) -> tuple[np.ndarray, bytes, bytes, Scores]:
    """A question whose response has an inverse; half of them have."""
    for seed in range(100, 140):
        vector = unit_rows(1, seed)[0]
        query, results, scores = party.ask(vector)
        if solve(party.layout, results[0], np.zeros(party.layout.parameters.degree, np.int64)) is not None:
            return vector, query, results[0], scores
    pytest.fail("forty responses without an inverse")


# --- the attack


def test_inverses_in_the_ring_modulo_a_power_of_two() -> None:
    f = np.random.default_rng(0).integers(0, 1 << 30, 4096)
    f[0] += 1 - int(f.sum()) % 2
    one = np.zeros(4096, np.int64)
    one[0] = 1
    found = inverse(f, 30)
    assert found is not None
    np.testing.assert_array_equal(product(f, found, 30), one)
    f[0] += 1
    assert inverse(f, 30) is None


def test_without_the_guard_the_server_recovers_the_key_and_reads_every_query(fresh: Party) -> None:
    """It is shown float32 scores as the client holds them, and reads the vector of another question by them."""
    secret_vector = unit_rows(1, 7)[0]
    earlier, _, _ = fresh.ask(secret_vector)
    _, _, result, scores = invertible(fresh)
    key, _ = recover_key(fresh.layout, [(result, np.asarray(scores))])
    assert key is not None and 0.6 < np.mean(key != 0) < 0.73
    assert np.abs(read_vector(fresh.layout, earlier, key) - secret_vector).max() < 1e-4


def test_with_the_guard_the_attack_finds_nothing(fresh: Party) -> None:
    """All scores of all releases that one key allows, of one and the same response, each alone and their mean."""
    vector, query, result, scores = invertible(fresh)
    shown = []
    for _ in range(RELEASES):
        released = release(scores, len(scores), fresh.ring)
        values = np.empty(len(scores))
        values[list(released.numbers)] = released.scores
        shown.append(values)
    attempts = [(result, values) for values in [*shown[:4], np.mean(shown, axis=0), np.median(shown, axis=0)]]
    key, tried = recover_key(fresh.layout, attempts)
    assert key is None and len(tried) == len(attempts)
    true_key, _ = recover_key(fresh.layout, [(result, np.asarray(scores))])
    assert true_key is not None
    bits = FAST.response_bits[1]
    for guess in tried:
        # nothing of the key is left: neither its values nor a correlation with them
        assert np.mean(guess == true_key) < 0.01
        assert abs(np.corrcoef(guess / 2.0**bits, true_key)[0, 1]) < 5 / math.sqrt(len(guess))
        assert np.abs(read_vector(fresh.layout, query, np.clip(guess, -1, 1)) - vector).max() > 0.5
    with pytest.raises(StateError, match="rotate"):
        release(scores, 1, fresh.ring)


def test_the_attack_beats_a_guard_that_is_too_weak_by_averaging(fresh: Party) -> None:
    """Why releases are counted: noise that defeats the attack once does not defeat it ten thousand times."""
    _, _, result, scores = invertible(fresh)
    generator = np.random.default_rng(3)
    weak = 1e-6
    once = np.asarray(scores, np.float64) + weak * generator.normal(size=len(scores))
    assert recover_key(fresh.layout, [(result, once)])[0] is None
    # the mean of 10,000 draws is one draw of a hundredth of the deviation
    often = np.asarray(scores, np.float64) + weak / 100 * generator.normal(size=len(scores))
    assert recover_key(fresh.layout, [(result, often)])[0] is not None


def test_rounding_that_is_not_coarse_is_no_guard(fresh: Party) -> None:
    _, _, result, scores = invertible(fresh)
    assert recover_key(fresh.layout, [(result, np.round(np.asarray(scores), 8))])[0] is not None


def test_exact_scores_hold_no_error_but_the_decrypted_polynomial_does(exact: Party) -> None:
    vector, _, result, scores = invertible(exact)
    bits = EXACT.response_bits[1]
    numbers, _ = exact.keys.secret.decrypt([result], None)
    leaked = solve(exact.layout, result, numbers[0])
    assert leaked is not None and np.isin(leaked, (-1, 0, 1)).all(), "the attack works at these parameters, too"
    # what the scores determine is the plaintext, hence the polynomial up to its noise
    message = np.rint(numbers[0] * (EXACT.plain_modulus / 2.0**bits))
    guess = solve(exact.layout, result, np.rint(message * (2.0**bits / EXACT.plain_modulus)).astype(np.int64))
    assert guess is not None and np.mean(guess == leaked) < 0.01
    released = release(scores, 10, exact.ring, proven=True)
    quantised = np.rint(exact.items * 220) @ np.rint(vector * 220)
    best = np.argsort(-quantised, kind="stable")[:10]
    assert released.numbers == tuple(int(n) for n in best) and released.method == "exact" and released.sigma == 0
    np.testing.assert_allclose(np.array(released.scores) * 220**2, quantised[best], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dimensions", [DIMENSIONS, MAX_DIMENSIONS])
def test_honest_answers_of_the_exact_set_stay_away_from_the_margin(dimensions: int) -> None:
    """The deviation that the argument in release.py rests on, measured, and nothing far beyond it; all are released."""
    party = Party(EXACT, MemoryRing(), dimensions=dimensions)
    noise = []
    for seed in range(10):
        vector = unit_rows(1, 200 + seed, dimensions)[0]
        _, results, scores = party.ask(vector)
        assert release(scores, 3, party.ring).method == "exact"
        quantised = np.rint(party.items * 220) @ np.rint(vector * 220)
        np.testing.assert_allclose(np.asarray(scores, np.float64) * 220**2, quantised, rtol=0, atol=0.01)
        numbers, bits = party.keys.secret.decrypt(results, None)
        scaled = numbers * (EXACT.plain_modulus / 2.0**bits)
        noise.append(scaled - np.rint(scaled))
    expected = deviation.wrong(EXACT, party.layout.rotations, party.layout.padded)
    assert 0.9 * expected < float(np.std(noise)) < 1.1 * expected
    # 40,960 coefficients: one beyond six deviations has a chance of 1e-4, and 6.5 stay away from the margin
    assert np.abs(noise).max() < 6.5 * expected < 0.6 * EXACT_MARGIN


def test_every_layout_has_room_for_the_usual_number_of_exact_releases() -> None:
    """The figures that release.py states, for every number of dimensions that makes a difference."""
    worst = -math.inf
    for items in (1, 4096, 4097, 100_000, 1_000_000, MAX_ITEMS):
        for power in range(11):
            layout = SessionLayout(EXACT, items, 1 << power)
            worst = max(worst, deviation.log2_reached(layout, EXACT_MARGIN))
            assert deviation.log2_reached(layout, 1 - EXACT_MARGIN) < -60
    assert worst <= -42
    assert worst + math.log2(EXACT_RELEASES) <= -30


def test_more_exact_releases_than_a_layout_has_room_for_are_refused(exact: Party) -> None:
    _, _, scores = exact.ask(unit_rows(1, 5)[0])
    origin = scores.origin
    assert origin is not None
    wide = Offer(SessionLayout(EXACT, MAX_ITEMS, 256), 1.0, b"m" * 32)
    claimed = Scores(Origin(wide, origin.key_id, 1.0, origin.unit_error, origin.margin, np.zeros(MAX_ITEMS)))
    with pytest.raises(PolicyError, match="65536 releases of 977 results"):
        release(claimed, 3, exact.ring, limit=1 << 16)
    exact.ring.rotate(EXACT)
    exact.renew()
    _, _, scores = exact.ask(unit_rows(1, 5)[0])
    assert release(scores, 3, exact.ring, limit=1 << 16).releases_left == (1 << 16) - 1
    exact.ring.rotate(EXACT)
    exact.renew()


def test_the_error_is_as_small_as_the_argument_says(fast: Party) -> None:
    """E[e^2] <= (B / 7)^2, which the bound of what releases tell rests on; items and query of norm 1 are the worst."""
    errors = []
    for seed in range(5):
        vector = unit_rows(1, 300 + seed)[0]
        _, _, scores = fast.ask(vector)
        assert scores.origin is not None
        errors.append(scores.origin.unit_scores - fast.items @ vector)
    assert np.sqrt(np.mean(np.square(errors))) < FAST.score_error / 7


# --- what comes out


def test_released_scores_keep_their_bound_and_lie_on_the_grid(fresh: Party) -> None:
    vector = 3.0 * unit_rows(1, 5)[0]
    _, _, scores = fresh.ask(vector)
    truth = fresh.items @ vector
    released = release(scores, 50, fresh.ring)
    assert released.method == "flooded" and len(released.numbers) == 50
    values = np.array(released.scores)
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values / released.step, np.rint(values / released.step), atol=1e-9)
    assert np.abs(values - truth[list(released.numbers)]).max() < released.bound < 0.06
    assert released.step >= 4 * released.sigma > 4 * fresh.layout.parameters.score_error * 3.0
    # an item that is left out or tied gives way in the order of the catalogue
    order = [number for _, number in sorted(zip(-values, released.numbers, strict=True))]
    assert order == list(released.numbers)
    worst = truth[list(released.numbers)].min()
    assert worst > np.sort(truth)[-50] - 2 * released.bound


def test_the_noise_is_what_is_stated(fresh: Party) -> None:
    _, _, scores = fresh.ask(unit_rows(1, 5)[0])
    sums = []
    for _ in range(20):
        released = release(scores, len(scores), fresh.ring)
        values = np.empty(len(scores))
        values[list(released.numbers)] = released.scores
        sums.append(values - np.asarray(scores))
    expected = released.sigma**2 + released.step**2 / 12
    # 80,000 draws: the variance is known to half a percent
    assert np.var(sums) == pytest.approx(expected, rel=0.05)
    assert abs(np.mean(sums)) < 0.02 * released.sigma


def test_items_that_are_left_out(fresh: Party) -> None:
    _, _, scores = fresh.ask(unit_rows(1, 5)[0])
    best = int(np.argmax(scores))
    assert best not in release(scores, 20, fresh.ring, exclude=[best]).numbers
    for wrong in ([-1], [len(scores)]):
        with pytest.raises(InputError):
            release(scores, 3, fresh.ring, exclude=wrong)


@pytest.mark.parametrize(
    "change", [lambda s: s.copy(), lambda s: s[:10], lambda s: 2 * s, lambda s: np.array(s), lambda s: list(s)]
)
def test_only_what_was_decrypted_can_be_released(fresh: Party, change: Callable[[Scores], Scores]) -> None:
    _, _, scores = fresh.ask(unit_rows(1, 5)[0])
    with pytest.raises(InputError, match="changed"):
        release(change(scores), 3, fresh.ring)
    with pytest.raises(ValueError, match="read-only"):
        scores[0] = 1.0
    with pytest.raises(InputError):
        release(scores, 0, fresh.ring)
    assert release(scores, 1, fresh.ring).releases_left == RELEASES - 1, "what was refused was not counted"


def test_exact_scores_close_to_a_failure_are_not_released(exact: Party) -> None:
    _, _, scores = exact.ask(unit_rows(1, 5)[0])
    good = scores.origin
    assert good is not None
    bad = Scores(Origin(good.offer, good.key_id, good.scale, good.unit_error, 0.47, good.unit_scores))
    with pytest.raises(CiphertextError):
        release(bad, 3, exact.ring)


def test_a_proof_is_not_promised_where_there_is_none(fresh: Party) -> None:
    _, _, scores = fresh.ask(unit_rows(1, 5)[0])
    with pytest.raises(PolicyError, match="exact"):
        release(scores, 3, fresh.ring, proven=True)
    # sqrt(12 T) 2^(s/2) B by hand: sqrt(12) * 32768 * 1.5e-4
    assert statistical_sigma(FAST, 1) == pytest.approx(17.027, rel=1e-3)
    assert all(statistical_sigma(parameters, 1) > 2 for parameters in (FAST, PQ, KEYLESS))
    assert flooding_sigma(FAST, 4, 16) == pytest.approx(8 * 1.5e-4)


def test_more_releases_and_larger_responses_need_more_noise_until_nothing_is_left(fresh: Party) -> None:
    made = []
    for limit in (8, 5000):
        fresh.ring.rotate(FAST)
        fresh.renew()
        _, _, scores = fresh.ask(unit_rows(1, 5)[0])
        made.append(release(scores, 1, fresh.ring, limit=limit))
    few, many = made
    assert many.sigma == pytest.approx(few.sigma * math.sqrt(5000 / 8)) and many.step > few.step
    with pytest.raises(PolicyError, match="rotate"):
        release(scores, 1, fresh.ring, limit=1 << 16)
    for wrong in (0, (1 << 16) + 1):
        with pytest.raises(InputError):
            release(scores, 1, fresh.ring, limit=wrong)


# --- counting


def test_releases_are_counted_on_disk_until_keys_rotate(tmp_path: Path) -> None:
    party = Party(FAST, KeyRing(tmp_path / "keys"), items=20)
    _, _, scores = party.ask(unit_rows(1, 5)[0])
    assert release(scores, 1, KeyRing(tmp_path / "keys"), limit=3).releases_left == 2
    assert release(scores, 1, KeyRing(tmp_path / "keys"), limit=3).releases_left == 1
    assert release(scores, 1, party.ring, limit=3).releases_left == 0
    for _ in range(2):
        with pytest.raises(StateError, match="3 releases under one key"):
            release(scores, 1, KeyRing(tmp_path / "keys"), limit=3)
    with pytest.raises(StateError, match="that of the first one"):
        release(scores, 1, party.ring, limit=4)
    party.ring.rotate(FAST)
    with pytest.raises(StateError, match="rotated"):
        release(scores, 1, party.ring, limit=3)
    party.renew()
    _, _, scores = party.ask(unit_rows(1, 5)[0])
    assert release(scores, 1, party.ring, limit=3).releases_left == 2


@pytest.mark.parametrize("damage", ["absent", "garbage", "other key", "negative"])
def test_a_count_that_cannot_be_read_is_not_taken_for_zero(tmp_path: Path, damage: str) -> None:
    ring = KeyRing(tmp_path / "keys")
    party = Party(FAST, ring, items=20)
    _, _, scores = party.ask(unit_rows(1, 5)[0])
    path = tmp_path / "keys" / "fast.releases"
    good = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"VEIL")
    elif damage == "other key":
        path.write_bytes(good.replace(party.keys.key_id.encode(), b"0" * 32))
    else:
        path.write_bytes(good.replace(b'"releases":0', b'"releases":"'))
    with pytest.raises((StateError, InputError)):
        release(scores, 1, ring)


def test_scores_show_their_number_only(fresh: Party) -> None:
    _, _, scores = fresh.ask(unit_rows(1, 5)[0])
    assert repr(scores) == "Scores(4096 items)" and "unit_scores" not in repr(scores.origin)
    plain = np.asarray(scores)
    for computed in (scores - 1, np.abs(scores), np.maximum(scores, 0), -scores, np.argsort(scores), scores > 0):
        assert type(computed) is np.ndarray
    assert scores.max() == plain.max() and type(scores.max()) is np.float32 and type(scores[3]) is np.float32
    assert list(np.argsort(-scores)[:3]) == list(np.argsort(-plain)[:3])
    np.testing.assert_array_equal(polynomial_of(fresh.layout, np.zeros(4096)), 0)
