"""One body for all layouts: scores in the clear, through no scheme and under encryption are the same."""

from __future__ import annotations

import numpy as np
import pytest

from he_inference.encoding.slots import slot_codec
from he_inference.layouts.keyless import KeylessLayout
from he_inference.layouts.seam import Floats, Layout
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import EXACT, FAST, KEYLESS, KEYLESS_SMALL, PQ
from tests.unit.he_inference.layouts.scorers import Encrypted, InTheClear, NoScheme, Scorer
from veil.errors import CiphertextError, ConfigError, InputError

_CASES: list[Layout] = [
    SessionLayout(FAST, 1, 1),
    SessionLayout(FAST, 4096, 128),
    SessionLayout(FAST, 4097, 3),
    SessionLayout(FAST, 9001, 50),
    SessionLayout(FAST, 3, 1024),
    SessionLayout(PQ, 8193, 20),
    SessionLayout(PQ, 100, 128),
    SessionLayout(EXACT, 1, 1),
    SessionLayout(EXACT, 5000, 33),
    SessionLayout(EXACT, 2, 1024),
    KeylessLayout(KEYLESS, 1, 1, 1),
    KeylessLayout(KEYLESS, 5000, 9, 1),
    KeylessLayout(KEYLESS, 1025, 7, 4),
    KeylessLayout(KEYLESS, 700, 1024, 64),
    KeylessLayout(KEYLESS, 300, 50, 16),
    KeylessLayout(KEYLESS, 9, 600, 1024),
    KeylessLayout(KEYLESS_SMALL, 1500, 30, 16),
    KeylessLayout(KEYLESS_SMALL, 3, 572, 1024),
    KeylessLayout(KEYLESS_SMALL, 5, 1024, 512),
]


def _name(layout: Layout) -> str:
    packing = f"-g{layout.packing}" if isinstance(layout, KeylessLayout) else ""
    return f"{layout.parameters.name}{packing}-{layout.items}x{layout.dimensions}"


def _units(generator: np.random.Generator, count: int, dimensions: int) -> Floats:
    rows = generator.normal(size=(count, dimensions))
    result: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


@pytest.mark.parametrize("scorer", [InTheClear, NoScheme, Encrypted], ids=lambda s: s.__name__)
@pytest.mark.parametrize("layout", _CASES, ids=_name)
def test_scores_are_inner_products(layout: Layout, scorer: type[Scorer]) -> None:
    generator = np.random.default_rng(layout.items + layout.dimensions)
    rows = _units(generator, layout.items, layout.dimensions)
    rows[len(rows) // 2 :][:1] = 0.0  # an item without a vector
    rows[-1] *= 0.25
    subject = scorer(layout, rows)
    first = np.zeros(layout.dimensions)
    first[0] = 1.0
    unit = _units(generator, 1, layout.dimensions)[0]
    codec = slot_codec(layout.parameters)
    for vector in (unit, -unit, 0.5 * unit, first, np.zeros(layout.dimensions)):
        scores = subject.scores(vector)
        assert scores.shape == (layout.items,)
        exact = (codec.quantised(rows) * codec.quantised(vector)).sum(axis=1)
        bound = layout.parameters.score_error if layout.parameters.scheme == "ckks" else 1e-12
        assert abs(scores - exact).max() <= bound


@pytest.mark.parametrize(
    "layout",
    [SessionLayout(FAST, 4096, 128), SessionLayout(PQ, 5000, 32), SessionLayout(EXACT, 4096, 64),
     KeylessLayout(KEYLESS, 250, 64, 16), KeylessLayout(KEYLESS_SMALL, 1000, 6, 2)],
    ids=_name,
)  # fmt: skip
def test_two_hundred_queries_stay_within_the_stated_error(layout: Layout) -> None:
    generator = np.random.default_rng(17)
    rows = _units(generator, layout.items, layout.dimensions)
    subject = Encrypted(layout, rows)
    for vector in _units(generator, 200, layout.dimensions):
        scores, exact = subject.scores(vector), rows @ vector
        assert abs(scores - exact).max() <= layout.parameters.score_error
        # The best ten are the same but among scores closer to each other than twice the bound.
        tenth = np.sort(exact)[-10:][0]
        assert exact[np.argsort(-scores)[:10]].min() >= tenth - 2 * layout.parameters.score_error


@pytest.mark.parametrize("layout", _CASES, ids=_name)
def test_numbers_of_a_layout_fit_together(layout: Layout) -> None:
    n = layout.parameters.degree
    assert layout.blocks * layout.block_items >= layout.items > (layout.blocks - 1) * layout.block_items
    query = layout.query_polynomials(np.zeros(layout.dimensions))
    assert query.shape == (layout.query_ciphertexts, n) and not query.any()
    block = layout.item_polynomials(np.zeros((1, layout.dimensions)), 0)
    assert block.shape == (layout.groups * layout.rotations, n) and not block.any()
    places = layout.coefficient_places()
    assert layout.used_coefficients == (n if places is None else len(places))


@pytest.mark.parametrize("layout", [SessionLayout(FAST, 10, 8), KeylessLayout(KEYLESS, 10, 8, 4)], ids=_name)
def test_wrong_vectors_rows_and_results_are_refused(layout: Layout) -> None:
    for vector in (np.zeros(7), np.zeros((1, 8)), np.full(8, np.nan), np.full(8, np.inf), np.full(8, 0.5)):
        with pytest.raises(InputError):
            layout.query_polynomials(vector)
    for rows in (np.zeros((0, 8)), np.zeros((1, 7)), np.zeros(8), np.zeros((layout.block_items + 1, 8))):
        with pytest.raises(ConfigError):
            layout.item_polynomials(rows, 0)
    with pytest.raises(CiphertextError):
        layout.scores(np.zeros((2, layout.used_coefficients), np.int64), 32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SessionLayout(FAST, 0, 8),
        lambda: SessionLayout(FAST, 4_000_001, 8),
        lambda: SessionLayout(FAST, 8, 0),
        lambda: SessionLayout(FAST, 8, 1025),
        lambda: SessionLayout(KEYLESS, 8, 8),
        lambda: KeylessLayout(KEYLESS, 0, 8),
        lambda: KeylessLayout(KEYLESS, 8, 1025),
        lambda: KeylessLayout(KEYLESS, 8, 8, 3),
        lambda: KeylessLayout(KEYLESS, 8, 8, 2048),
        lambda: KeylessLayout(KEYLESS, 8, 1024, 2),
        lambda: KeylessLayout(EXACT, 8, 8),
        # gigabytes of answers, which a server could make a client wait for
        lambda: KeylessLayout(KEYLESS_SMALL, 4_000_000, 1024, 128),
    ],
)
def test_layouts_outside_of_the_family_are_refused(make: type[Layout]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_baby_steps_follow_the_cost_of_rotations() -> None:
    """One block: about as many of each kind; many blocks: few rotations for each block, up to what the noise allows."""
    assert SessionLayout(FAST, 4096, 128).rotations == 8
    assert SessionLayout(FAST, 1_000_000, 128).rotations == 64
    assert SessionLayout(EXACT, 1_000_000, 128).rotations == 32
    assert SessionLayout(EXACT, 1, 1024).rotations == SessionLayout(EXACT, 1_000_000, 1024).rotations == 8
    for items in (1, 4096, 100_000, 1_000_000):
        for dimensions in (1, 5, 64, 1024):
            layout = SessionLayout(FAST, items, dimensions)
            assert layout.rotations * layout.groups == layout.padded >= dimensions
            assert layout.groups >= 2 and layout.rotations >= 2
            assert layout.galois_elements == (FAST.element(1), FAST.element(layout.rotations))
