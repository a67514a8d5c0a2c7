"""Rows as a client encodes them and puts answers together, for any rows, pieces and standardisations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_inference.client.linear import LinearClient
from he_inference.client.rows import score_rows
from he_inference.index.linear_models import LinearModels, read_linear
from he_inference.parameters import EXACT, KEYLESS, Parameters
from tests.unit.he_inference.columns_site import ColumnsSite, linear_scores, tables_of
from veil.errors import ConfigError, InputError, QueryBudgetError, StateError
from veil.trainers.columns.linear import load_part
from veil.trainers.columns.publication import ColumnsModel

NAMES = ("one", "same", "other")
STANDARDS = (1, 1, 2)


class Desk:
    """Answers in plaintext what a `ScoringClient` would; keeps the vectors that it was asked with."""

    def __init__(
        self, models: LinearModels, linear: LinearClient, *, keys: bool = False, parameters: Parameters = KEYLESS
    ) -> None:
        self.linear, self.rotated, self.asked = linear, 0, []  # type: ignore[var-annotated]
        self.offer: Any = SimpleNamespace(
            layout=SimpleNamespace(
                galois_elements=(3,) if keys else (), parameters=parameters, dimensions=linear.collection.dimensions
            ),
            manifest_digest=linear.collection.digest,
            removed=(),
        )
        self.queries_left: int | None = None
        self.last_query = SimpleNamespace(query_bytes=100, response_bytes=10, server_s=0.5)
        self._vectors = models.vectors.astype(np.float64)

    def rotate_keys(self) -> None:
        self.rotated += 1

    def score(self, vector: np.ndarray) -> Any:
        self.asked.append(vector)
        unit = self._vectors @ vector / 2
        return SimpleNamespace(origin=SimpleNamespace(offer=self.offer, unit_scores=unit, scale=2.0, unit_error=1e-5))


class Published:
    def __init__(self, folder: Path) -> None:
        site = ColumnsSite(folder)
        self.models: dict[str, ColumnsModel] = {
            name: site.publish(folder / "models" / name, seed=number, standard=standard)
            for number, (name, standard) in enumerate(zip(NAMES, STANDARDS, strict=True))
        }
        self.folder, self.authority = folder / "models", site.authority

    def desk(self, **options: Any) -> Desk:
        models = read_linear(self.folder, self.authority)
        folders = [self.folder / member.name for member in models.collection.models]
        parts = tuple(load_part(folder, self.authority) for folder in folders)
        return Desk(models, LinearClient(models.collection, parts), **options)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("rows"))


Number = st.one_of(st.just(""), st.floats(-1e300, 1e300).map(repr), st.integers(-5, 120).map(str))
Cell = st.sampled_from(["", "north", "south", "tea", "über", "a b"])


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.tuples(Number.filter(bool), Cell, Cell, Number), min_size=1, max_size=4),
    most=st.sampled_from([1, 2, 4, 9, 1024]),
)
def test_answers_add_up_to_plaintexts_scores_whatever_the_rows_and_pieces(
    published: Published, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], most: int
) -> None:
    text = "user,income,region,item,visits\n" + "".join(f"u{n},{','.join(row)}\n" for n, row in enumerate(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("he_inference.collection.MAX_DIMENSIONS", most)
        desk = published.desk()
        tables = tables_of(published.models["one"], tmp_path_factory.mktemp("table"), text)
        found = score_rows(desk, tables)  # type: ignore[arg-type]
        pieces, dimensions = desk.linear.collection.pieces, desk.linear.collection.dimensions
    assert found.names == tuple(sorted(NAMES)) and found.whole and desk.rotated == len(rows)
    for column, name in enumerate(found.names):
        # the server has weights in single precision
        np.testing.assert_allclose(found.scores[:, column], linear_scores(published.models[name], tables), atol=2e-5)
    # the same number of queries of the same length for every row: its pieces, once for each standardisation
    assert found.queries == len(desk.asked) == len(rows) * pieces * 2
    assert {vector.shape for vector in desk.asked} == {(dimensions,)}
    for row in np.split(np.concatenate(desk.asked), 2 * len(rows)):
        assert np.linalg.norm(row) <= 1.0
    np.testing.assert_allclose(found.errors, 2e-5 * pieces)
    assert found.query_bytes == 100 * found.queries and found.server_s == 0.5 * found.queries


def test_models_of_one_standardisation_share_a_query(published: Published, tmp_path: Path) -> None:
    desk = published.desk()
    assert desk.linear.names == ("one", "other", "same")
    assert desk.linear.groups([0, 1, 2]) == [[0, 2], [1]]
    tables = tables_of(published.models["one"], tmp_path)
    assert score_rows(desk, tables, names=["same", "one"]).queries == 3  # type: ignore[arg-type]
    np.testing.assert_array_equal(desk.linear.encoded(0, tables), desk.linear.encoded(2, tables))


def test_a_server_with_keys_gets_no_new_one_for_each_row(published: Published, tmp_path: Path) -> None:
    desk = published.desk(keys=True)
    found = score_rows(desk, tables_of(published.models["one"], tmp_path))  # type: ignore[arg-type]
    assert (desk.rotated, found.fresh_keys) == (0, False)


def test_an_exact_sets_bound_holds_for_entries_that_are_alike(published: Published, tmp_path: Path) -> None:
    """One-hot features are rounded to one side, where the set's own bound is for random entries."""
    desk = published.desk(keys=True, parameters=EXACT)
    found = score_rows(desk, tables_of(published.models["one"], tmp_path))  # type: ignore[arg-type]
    width = desk.linear.collection.dimensions
    np.testing.assert_allclose(found.errors, 2.0 * (np.sqrt(width) / 220 + width / 440**2))


def test_few_rows_are_encoded_at_a_time_when_they_are_wide(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, rows = published.desk(), []
    encoded = LinearClient.encoded

    def watched(linear: LinearClient, number: int, tables: Any) -> Any:
        rows.append(tables[0].rows)
        return encoded(linear, number, tables)

    monkeypatch.setattr(LinearClient, "encoded", watched)
    tables = tables_of(published.models["one"], tmp_path)
    whole = score_rows(desk, tables)  # type: ignore[arg-type]
    assert rows == [3, 3]  # once for each standardisation
    rows.clear()
    # room for two rows, with both standardisations
    monkeypatch.setattr("he_inference.client.rows._NUMBERS_AT_A_TIME", 4 * desk.linear.collection.dimensions + 1)
    np.testing.assert_array_equal(score_rows(desk, tables).scores, whole.scores)  # type: ignore[arg-type]
    assert rows == [2, 2, 1, 1]
    monkeypatch.setattr("he_inference.client.rows._NUMBERS_AT_A_TIME", 1)
    np.testing.assert_array_equal(score_rows(desk, tables).scores, whole.scores)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused(published: Published, tmp_path: Path) -> None:
    desk = published.desk()
    tables = tables_of(published.models["one"], tmp_path)
    with pytest.raises(ConfigError, match="no model"):
        score_rows(desk, tables, names=[])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected one of one, other, same"):
        score_rows(desk, tables, names=["one", "absent"])  # type: ignore[arg-type]
    other = tables[0].party.model_copy(update={"columns": tables[0].party.columns[:1]})
    wrong = type(tables[0])(other, tables[0].identifiers, tables[0].columns[:1], None)
    with pytest.raises(InputError, match="other columns of bank"):
        score_rows(desk, [wrong, tables[1]])  # type: ignore[arg-type]
    desk.queries_left = 5
    with pytest.raises(QueryBudgetError, match="got 6 queries to make, expected at most the 5"):
        score_rows(desk, tables)  # type: ignore[arg-type]
    assert not desk.asked
    desk.queries_left = 6
    assert score_rows(desk, tables).queries == 6  # type: ignore[arg-type]
    desk.offer.removed = (1,)
    with pytest.raises(StateError, match="models removed"):
        score_rows(desk, tables)  # type: ignore[arg-type]
    desk.offer.removed, desk.offer.manifest_digest = (), bytes(32)
    with pytest.raises(StateError, match="other models"):
        score_rows(desk, tables)  # type: ignore[arg-type]
    assert "scores" not in repr(score_rows(published.desk(), tables))  # type: ignore[arg-type]
