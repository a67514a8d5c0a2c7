"""`veil bench side`: what another organisation's columns add to a recommender at a budget, for new and known users.

Guarantee: the real integer mechanism with all users in one place (`veil.trainers.side.central`), whose openings are
those of a joint job with the same noise; every release is within the budget, the columns' own too. Nothing is chosen on
test items. An evaluation of data that one holds anyway: its figures are not private.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from veil.errors import ConfigError, DataError
from veil.files import read_bounded, write_atomic

if TYPE_CHECKING:
    from veil.jobs.spec import JobSpec
    from veil.recsys.catalogue import Catalogue
    from veil.recsys.dataset import Dataset
    from veil.recsys.metrics import Float32, Metrics
    from veil.tabular.reading import PartyTable
    from veil.tabular.schema import ColumnsSchema

SHOP, PROFILES = "shop", "profiles"
DELTA: Final = 1e-5
_HARDLY_ANY_NOISE: Final = 1000.0
_MOST_FILE_BYTES: Final = 16 * 2**20
# What the data set's documentation lists, so public: nothing of it is read off the users.
_GENDERS, _AGES = ("F", "M"), ("1", "18", "25", "35", "45", "50", "56")
_OCCUPATIONS = tuple(map(str, range(21)))
_FIELDS = ("gender", "age", "occupation")


def side(
    data: Annotated[str, typer.Option(help="ml-1m:FOLDER; users.tsv there holds the other organisation's columns.")],
    epsilon: Annotated[str, typer.Option("--epsilon", help="Budgets, separated by commas; inf: 1000.")] = "1,5,inf",
    draws: Annotated[int, typer.Option(min=1, max=100, help="Draws of noise at each budget.")] = 3,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Item texts, or categories and years alone.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures here, after every line.")
    ] = None,
) -> None:
    """HR@10 and NDCG@10 of users without a history and with one, with and without what a second organisation knows.

    One organisation has interactions, the other gender, age and occupation of the same users. delta 1e-5, add or remove
    one user; all releases together cost the budget. inf: a budget of 1000, with hardly any noise.

    Example: veil bench side --data ml-1m:../shared/data/ml-1m --epsilon 1,5,inf --draws 3
    """
    from baseline.material import load
    from cli.machine import machine

    name, _, folder = data.partition(":")
    if name != "ml-1m" or not folder:
        raise ConfigError(f"got data {data[:80]!r}, expected ml-1m:FOLDER")
    dataset, catalogue = load(data, text=text)
    table = profiles(Path(folder) / "users.tsv", dataset.train.users)
    figures: dict[str, Any] = {
        "data": dataset.name,
        "users": dataset.train.users,
        "items": dataset.train.items,
        "text": text,
        "columns": table.party.width,
        "delta": DELTA,
        "lines": [],
        "machine": machine(),
    }
    for budget in budgets(epsilon):
        figures["lines"].append(measure(dataset, catalogue, table, budget, draws))
        if json_file is not None:
            write_atomic(json_file, (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())
    _show(figures)


def budgets(text: str) -> tuple[float, ...]:
    """Numbers of a list such as "1,5,inf". Raises `ConfigError`."""
    try:
        found = tuple(_HARDLY_ANY_NOISE if part.strip() == "inf" else float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not 1 <= len(found) <= 16 or not all(0.01 <= value <= _HARDLY_ANY_NOISE for value in found):
        raise ConfigError(
            f"got epsilon {text[:80]!r}, expected up to 16 numbers of 0.01 to 1000, or inf, as in 1,5,inf"
        )
    return tuple(dict.fromkeys(found))


def schema_of(slots: int) -> ColumnsSchema:
    """The other organisation's columns."""
    from veil.tabular.schema import CategoricalColumn, ColumnsSchema, PartyColumns

    columns = tuple(
        CategoricalColumn(name=name, vocabulary=vocabulary, unknown="refuse")
        for name, vocabulary in zip(_FIELDS, (_GENDERS, _AGES, _OCCUPATIONS), strict=True)
    )
    party = PartyColumns(party=PROFILES, identifier="user", norm_share=1.0, columns=columns)
    return ColumnsSchema(slots=slots, parties=(party,))


def profiles(path: Path, users: int) -> PartyTable:
    """users.tsv of MovieLens-1M, one row for each user in order. Raises `DataError`."""
    import polars as pl

    from veil.tabular.reading import PartyTable

    names = ["user", *_FIELDS, "zip"]
    types = dict.fromkeys(names, pl.String)
    frame = pl.read_csv(read_bounded(path, _MOST_FILE_BYTES), separator="\t", schema_overrides=types)
    if frame.columns != names or frame["user"].to_list() != list(map(str, range(users))):
        raise DataError(f"got {path.name} of other users or columns, expected {', '.join(names)}, users in order")
    own = schema_of(users).of(PROFILES)
    return PartyTable(own, tuple(frame["user"]), tuple(frame[name] for name in _FIELDS), None)


def job(catalogue: Catalogue, users: int, epsilon: float) -> JobSpec:
    """The job over both organisations at a budget, all users in common."""
    from veil.jobs import spec as jobs
    from veil.jobs.columns import AlignmentTerms
    from veil.jobs.spec import JobSpec, Noise, Privacy
    from veil.trainers.side.plan import plan_side

    features, noise = int(catalogue.features.shape[1]), Noise(source="dealer")
    trainer, releases = plan_side(
        schema_of(users),
        AlignmentTerms(mode="reveal", sizes=(users, users), result=users),
        items_party=SHOP,
        parties=(SHOP, PROFILES),
        items=catalogue.items,
        features=features,
        epsilon=epsilon,
        delta=DELTA,
        noise=noise,
    )
    return JobSpec(
        name="side",
        nonce="0" * 32,
        consortium="simulation",
        parties=(SHOP, PROFILES),
        dealer="dealer",
        catalogue=jobs.Catalogue(digest=catalogue.digest, items=catalogue.items, features=features),
        privacy=Privacy(epsilon=epsilon, delta=DELTA, noise=noise),
        trainer=trainer,
        releases=releases,
        versions={},
    )


@dataclass(frozen=True)
class Ways:
    """Metrics of one draw: users without a history, and with theirs; alone: the recommender with the whole budget.

    All are users of the training data: without a history means that theirs is not shown to the model.
    """

    cold: Metrics
    cold_side: Metrics
    cold_alone: Metrics
    warm: Metrics
    warm_side: Metrics
    warm_alone: Metrics


def measure(dataset: Dataset, catalogue: Catalogue, table: PartyTable, epsilon: float, draws: int) -> dict[str, Any]:
    """The figures of a budget: means and standard deviations over draws."""
    from veil.privacy.accountant import epsilon as cost_of

    spec = job(catalogue, dataset.train.users, epsilon)
    started = time.perf_counter()
    found = [one_draw(spec, dataset, catalogue, table, draw) for draw in range(1, draws + 1)]
    return {
        "epsilon": epsilon,
        "spent": cost_of(spec.releases, DELTA),
        "draws": draws,
        **{name: _figures([getattr(one, name) for one in found]) for name in Ways.__dataclass_fields__},
        "seconds": (time.perf_counter() - started) / draws,
    }


def one_draw(spec: JobSpec, dataset: Dataset, catalogue: Catalogue, table: PartyTable, draw: int) -> Ways:
    """The mechanism once, and what its model scores."""
    import numpy as np

    from baseline.evaluate import simulated_noise, simulation_spec
    from veil.recsys.interactions import Interactions
    from veil.recsys.metrics import evaluate
    from veil.trainers.registry import central_run
    from veil.trainers.side.algorithm import SideAlgorithm
    from veil.trainers.side.central import Side, central_side

    users = np.arange(dataset.train.users)
    model = central_side(
        SideAlgorithm(spec, catalogue),
        dataset.train,
        users,
        {PROFILES: Side(table, users)},
        lambda release: simulated_noise(spec, release, draw),
    )
    rows, nobody = model.side_rows(table), Interactions.from_pairs([], [], users=len(users), items=catalogue.items)

    def ranked(history: Interactions, side: dict[str, Float32] | None) -> Metrics:
        vectors = model.user_vectors(history, side)
        return evaluate(lambda block: model.scores(vectors[block]), dataset)

    # What the interactions' holder would do without the other organisation: the same budget, all of it on its own rows.
    own = simulation_spec(catalogue, epsilon=spec.privacy.epsilon, delta=DELTA)
    alone = central_run(own, catalogue, dataset.train, lambda release: simulated_noise(own, release, draw))

    def ranked_alone(history: Interactions) -> Metrics:
        vectors = alone.user_vectors(history)
        return evaluate(lambda block: alone.scores(vectors[block]), dataset)

    return Ways(
        cold=ranked(nobody, None),
        cold_side=ranked(nobody, {PROFILES: rows}),
        cold_alone=ranked_alone(nobody),
        warm=ranked(dataset.train, None),
        warm_side=ranked(dataset.train, {PROFILES: rows}),
        warm_alone=ranked_alone(dataset.train),
    )


def _figures(runs: Sequence[Metrics]) -> dict[str, float]:
    out = {}
    for name in ("hr_at_10", "ndcg_at_10"):
        values = [getattr(run, name) for run in runs]
        out[name] = statistics.fmean(values)
        out[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return out


def _show(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("users", "way", title=f"{figures['data']}: HR@10 / NDCG@10", title_justify="left")
    for line in figures["lines"]:
        table.add_column(f"eps {line['epsilon']:g}", justify="right")
    ways = {
        "cold": ("no history", "popularity"),
        "cold_side": ("", "+ columns"),
        "cold_alone": ("", "popularity, whole budget"),
        "warm": ("history", "recommender"),
        "warm_side": ("", "+ columns"),
        "warm_alone": ("", "recommender, whole budget"),
    }
    for name, texts in ways.items():
        cells = [
            f"{one[name]['hr_at_10']:.3f}±{one[name]['hr_at_10_sd']:.3f} / {one[name]['ndcg_at_10']:.3f}"
            for one in figures["lines"]
        ]
        table.add_row(*texts, *cells)
    Console().print(table)
