"""Scores of rows by models that the server has, rows that it never sees: encoded, encrypted, asked, put together.

    with ScoringClient("scores.example.org:7440", credentials, expect, None, one_shot=True) as client:
        found = score_rows(client, tables)
        found.probabilities                     # float64[rows, models]

Guarantee: features, encoded rows, scores and keys stay in this process; the server receives ciphertexts, as many of the
same length for every row, whatever is in it. Each score is within `errors` of the published model's own
(`veil.trainers.columns.publication.ColumnsModel.score`, for its linear part), where the server multiplies as the signed
weights say. Exact sets round entries to 1/440 of a row's and a model's norm, all to one side where they are alike, and
`errors` says what that can add up to; approximate sets are closer by orders of magnitude.

One query for each row, standardisation (models of one job share theirs; each job has its own) and piece of features
(`he_inference.collection`). Where the server keeps no keys (a keyless offer) every row has a secret key of its own.
Scores that become known tell linear equations in the secret key (`he_inference.client.release`): here those of one row,
one for each model, at most 256 in 2,048 or 4,096 unknowns, of a key that nothing else is encrypted with. That is an
argument and not a proof; decryptions of many rows under one key would be as many equations as it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from he_inference.client.linear import LinearClient, check_tables
from he_inference.client.sync import ScoringClient
from he_inference.encoding.deviation import exact_rounding
from veil.errors import InputError, QueryBudgetError, StateError
from veil.tabular.reading import PartyTable
from veil.tabular.rows import take_rows

_ROWS_AT_A_TIME = 1024
# Of encoded rows, for all standardisations together, 8 bytes each; one row may have more: features times models.
_NUMBERS_AT_A_TIME = 1 << 22

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class RowScores:
    """scores, errors: float64[rows, models], log odds and the bound of each one's error.

    parties: whose columns were there; without all of them a score is these parties' part of it, without the intercept.
    fresh_keys: whether each row had a key of its own. queries, bytes and seconds: of all rows together.
    """

    identifiers: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...]
    scores: Floats = field(repr=False)
    errors: Floats = field(repr=False)
    parties: tuple[str, ...]
    whole: bool
    fresh_keys: bool
    queries: int
    query_bytes: int
    response_bytes: int
    server_s: float
    total_s: float

    @property
    def probabilities(self) -> Floats:
        """Of the positive outcome, float64[rows, models]. Raises `InputError` when columns were absent."""
        if not self.whole:
            raise InputError(
                f"got columns of {', '.join(self.parties)} alone, expected every party's for a probability"
            )
        return np.asarray(0.5 * (1.0 + np.tanh(self.scores / 2)))

    @property
    def probability_error(self) -> float:
        """Bound of the error of every probability: the sigmoid's slope is at most 1/4."""
        return float(self.errors.max(initial=0.0)) / 4


def score_rows(
    client: ScoringClient,
    tables: Sequence[PartyTable],
    *,
    names: Sequence[str] | None = None,
    linear_part: bool = False,
    progress: Progress | None = None,
) -> RowScores:
    """Scores of all rows by the models of those names, all by default.

    tables: columns of some or all parties, rows aligned by identifier. linear_part: take models that are more than
    linear, too. progress: told rows done and rows in all. Raises `InputError`, `ConfigError`, `QueryBudgetError`
    before anything is asked where the server's last word on the budget is less than it takes, and as
    `ScoringClient.score`.
    """
    started = time.perf_counter()
    linear = client.linear
    numbers = linear.chosen(names, linear_part=linear_part)
    check_tables(linear.schema, tables)
    fresh = not client.offer.layout.galois_elements
    asker = _Asker(client, linear, fresh)
    rows, given = tables[0].rows, {table.party.party for table in tables}
    whole = given == {one.party for one in linear.schema.parties}
    scores, errors = np.zeros((rows, len(numbers))), np.zeros((rows, len(numbers)))
    queries = len(linear.groups(numbers)) * linear.collection.pieces
    _check_budget(client, rows * queries)
    at_a_time = max(1, min(_ROWS_AT_A_TIME, _NUMBERS_AT_A_TIME // (queries * linear.collection.dimensions)))
    column = {number: place for place, number in enumerate(numbers)}
    for start in range(0, rows, at_a_time):
        taken = np.arange(start, min(start + at_a_time, rows), dtype=np.int64)
        block = [take_rows(table, taken) for table in tables]
        groups = [(group, linear.encoded(group[0], block)) for group in linear.groups(numbers)]
        for place, row in enumerate(taken):
            asker.new_row()
            for group, encoded in groups:
                found, error = asker.ask(encoded[place])
                for number in group:
                    intercept = linear.parts[number].intercept if whole else 0.0
                    scores[row, column[number]] = intercept + found[number]
                    errors[row, column[number]] = error
            if progress is not None:
                progress(int(row) + 1, rows)
    return RowScores(
        tables[0].identifiers,
        tuple(linear.names[number] for number in numbers),
        scores,
        errors,
        tuple(table.party.party for table in tables),
        whole,
        fresh,
        asker.queries,
        asker.query_bytes,
        asker.response_bytes,
        asker.server_s,
        time.perf_counter() - started,
    )


def _check_budget(client: ScoringClient, queries: int) -> None:
    """Before the first query: half of the rows scored and the budget gone would be of no use."""
    left = client.queries_left
    if left is not None and queries > left:
        raise QueryBudgetError(
            f"got {queries} queries to make, expected at most the {left} that the server had left for this client",
            hint="score fewer rows, or ask the server's operator: [budget] in its file, accounts",
        )


class _Asker:
    """Asks for one encoded row after the other, and adds up what it took."""

    def __init__(self, client: ScoringClient, linear: LinearClient, fresh: bool) -> None:
        self._client, self._linear, self._fresh = client, linear, fresh
        self.queries = self.query_bytes = self.response_bytes = 0
        self.server_s = 0.0

    def new_row(self) -> None:
        """Before the queries of a row."""
        if self._fresh:
            self._client.rotate_keys()

    def ask(self, pieces: Floats) -> tuple[Floats, float]:
        """float64[models] without intercepts, and the bound of their errors, for float64[pieces, dimensions]."""
        collection = self._linear.collection
        total, error = np.zeros(len(collection.models)), 0.0
        for piece, vector in enumerate(pieces):
            scores = self._client.score(vector)
            origin = scores.origin
            if origin is None or origin.offer.manifest_digest != collection.digest:
                raise StateError(
                    "got scores of other models than the rows were encoded for", hint="refresh() and ask again"
                )
            if origin.offer.removed:
                raise StateError("got an index with models removed, expected all", hint="tell the server's operator")
            # Item m K + k is piece k of model m.
            total += (origin.unit_scores * origin.scale).reshape(-1, collection.pieces)[:, piece]
            error += max(origin.unit_error, exact_rounding(origin.offer.layout)) * origin.scale
            report = self._client.last_query
            self.queries += 1
            if report is not None:
                self.query_bytes += report.query_bytes
                self.response_bytes += report.response_bytes
                self.server_s += report.server_s
        return total, error
