"""Cold start, measured: items that nobody met in training, ranked by what public text says of them.

Guarantee: no interaction of a held-out item is trained on or folded into a user vector; all rows of a result share one
split and one set of negatives, drawn with a fixed seed. As in `baseline.evaluate` the private rows run the real integer
mechanism with all users in one place: an evaluation for whoever holds the data already, not a release.

A random tenth of the items is held out entirely. Each user who met one of them (in the training data or as test item)
is tested on one such item, drawn at random, which is ranked

    sampled   among itself and 99 held-out items that the user never met: random order gives HR@10 = .1
    full      among all held-out items less the others that the user met

Two ways to a vector of a held-out item, each with and without text (categories and years only):

    catalogue  the item is in the catalogue that training uses and has no interaction
    added      training knows nothing of it, and `veil.recsys.new_items` adds it to the published model

and one reference, `popularity`: the order of the log counts that `veil.recsys.new_items` expects from the text, the
same for every user.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from baseline.evaluate import LinearTrainer, simulated_noise, simulation_spec
from baseline.train import plaintext_model
from veil.errors import DataError
from veil.jobs.spec import Release
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import NEGATIVES, Dataset
from veil.recsys.features import build_catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.items import ItemTable
from veil.recsys.metrics import Metrics, evaluate
from veil.recsys.model import Model
from veil.recsys.new_items import extended_model, vectors_for_new_items
from veil.recsys.splits import leave_one_out, sample_negatives
from veil.text.blocks import Embed
from veil.trainers.registry import central_run

Int64 = npt.NDArray[np.int64]

SHARE = 0.1
SEED = 20262
WAYS = ("added", "added-no-text", "catalogue", "catalogue-no-text", "popularity")


@dataclass(frozen=True, eq=False, repr=False)
class ColdSplit:
    """A data set less its cold items, and what is asked about those.

    Attributes:
        warm: the training interactions of all users, over all items; none with a cold item.
        cold: int64[n], the held-out item numbers, increasing.
        train: what else the users tested met of the cold items, over the n cold items: left out of full rankings.
        users: int64[tested], the users tested; rows of `train`, `test_items` and `negatives` are theirs.
        test_items: int64[tested], places in `cold`.
        negatives: int64[tested, 99], places in `cold`.
    """

    warm: Interactions
    cold: Int64
    train: Interactions
    users: Int64
    test_items: Int64
    negatives: Int64


def cold_split(dataset: Dataset, *, share: float = SHARE, seed: int = SEED) -> ColdSplit:
    """Holds out a random share of the items. Users left with fewer than 99 unmet cold items are not tested.

    Raises `DataError` when too few items are held out to rank among, or no user can be tested.
    """
    items = dataset.train.items
    cold = np.sort(np.random.default_rng(seed).permutation(items)[: round(share * items)]).astype(np.int64)
    if len(cold) <= NEGATIVES:
        raise DataError(f"got {len(cold)} cold items, expected more than {NEGATIVES}", hint="hold out a larger share")
    place = np.full(items, -1, np.int64)
    place[cold] = np.arange(len(cold))
    row, met = dataset.train.row_of(), dataset.train.indices
    is_cold = place[met] >= 0
    tested = np.flatnonzero(dataset.test_items >= 0)
    tested = tested[place[dataset.test_items[tested]] >= 0]
    # The usual test item counts as a meeting here: it is in nobody's training data either way.
    cold_met = Interactions.from_pairs(
        np.concatenate([row[is_cold], tested]),
        np.concatenate([place[met[is_cold]], place[dataset.test_items[tested]]]),
        users=dataset.train.users,
        items=len(cold),
    )
    lengths = cold_met.lengths()
    users = np.flatnonzero((lengths > 0) & (lengths + NEGATIVES <= len(cold)))
    if not len(users):
        raise DataError("got no user who met a cold item, expected some", hint="hold out a larger share")
    held = leave_one_out(cold_met.rows(users), order="random", seed=seed, at_least=1)
    negatives = sample_negatives(held.train, held.test_items, count=NEGATIVES, seed=seed)
    warm = dataset.train.keep(~is_cold)
    return ColdSplit(warm, cold, held.train, users.astype(np.int64), held.test_items, negatives)


def cold_metrics(model: Model, split: ColdSplit) -> Metrics:
    """Metrics of a model over all items (cold ones included, at their own numbers), on the users tested.

    Everything `full_` ranks among the cold items only.
    """
    vectors = model.user_vectors(split.warm)[split.users]
    factors = model.item_factors[split.cold]
    return evaluate(lambda block: vectors[block] @ factors.T, split)


@dataclass(frozen=True, eq=False, repr=False)
class Material:
    """One data set, split, with the catalogues that the three ways need; make it with `prepare`."""

    dataset: Dataset
    split: ColdSplit
    whole: Catalogue
    whole_plain: Catalogue
    warm: Catalogue
    warm_plain: Catalogue
    order: Int64
    embed: Embed | None
    encoder: str


def prepare(dataset: Dataset, *, embed: Embed | None, encoder: str = "none", share: float = SHARE) -> Material:
    """Splits the items and builds the catalogues. embed, encoder: see `veil.recsys.features.build_catalogue`."""
    split = cold_split(dataset, share=share)
    warm_items = np.setdiff1d(np.arange(dataset.train.items), split.cold)
    warm_table = _part(dataset.table, warm_items)
    return Material(
        dataset=dataset,
        split=split,
        whole=build_catalogue(dataset.table, embed=embed, encoder=encoder),
        whole_plain=build_catalogue(dataset.table),
        warm=build_catalogue(warm_table, embed=embed, encoder=encoder),
        warm_plain=build_catalogue(warm_table),
        order=np.argsort(np.concatenate([warm_items, split.cold])),
        embed=embed,
        encoder=encoder,
    )


def run(
    material: Material,
    way: str,
    *,
    epsilon: float | None,
    delta: float,
    seed: int,
    trainer: LinearTrainer = "subspace",
) -> Metrics:
    """One training and its cold-start metrics. way: one of `WAYS`; epsilon: None for plaintext, without any noise."""
    return measured(material, way, trained(material, way, epsilon=epsilon, delta=delta, seed=seed, trainer=trainer))


def trained(
    material: Material,
    way: str,
    *,
    epsilon: float | None,
    delta: float,
    seed: int,
    trainer: LinearTrainer = "subspace",
) -> Model:
    """The training of `run`; "added" and "popularity" share theirs."""
    warm, with_text = material.split.warm, not way.endswith("-no-text")
    if way.startswith("catalogue"):
        catalogue = material.whole if with_text else material.whole_plain
        return _trained(warm, catalogue, epsilon, delta, seed, trainer)
    catalogue = material.warm if with_text else material.warm_plain
    # Places among the warm items, which keep their order.
    indices = (warm.indices - np.searchsorted(material.split.cold, warm.indices)).astype(np.int32)
    renumbered = Interactions(warm.users, catalogue.items, warm.indptr, indices, warm.time)
    return _trained(renumbered, catalogue, epsilon, delta, seed, trainer)


def measured(material: Material, way: str, model: Model) -> Metrics:
    """The metrics of `run`, for a model of `trained`."""
    split, with_text = material.split, not way.endswith("-no-text")
    if way.startswith("catalogue"):
        return cold_metrics(model, split)
    catalogue = material.warm if with_text else material.warm_plain
    table = _part(material.dataset.table, split.cold)
    embed, encoder = (material.embed, material.encoder) if with_text else (None, "none")
    new = vectors_for_new_items(model, catalogue, table, embed=embed, encoder=encoder)
    if way == "popularity":
        return evaluate(lambda block: np.broadcast_to(new.log_counts, (len(block), len(new.log_counts))), split)
    return cold_metrics(_reordered(extended_model(model, new), material.order), split)


def cold_start(
    dataset: Dataset,
    *,
    embed: Embed | None,
    encoder: str = "none",
    epsilons: Sequence[float] = (1.0, 3.0, 10.0),
    delta: float = 1e-5,
    seeds: Sequence[int] = (1, 2, 3),
    trainer: LinearTrainer = "subspace",
) -> dict[str, object]:
    """All rows as plain numbers, for JSON.

    {"data", "trainer", "delta", "cold_items", "users_tested", "random": {"hr_at_10", "ndcg_at_10"}, "rows": [{"way",
    "epsilon" (None for plaintext), "hr_at_10", "hr_at_10_sd", "ndcg_at_10", "full_hr_at_10", "full_ndcg_at_10"}]}; the
    deviation is over noise seeds.
    """
    material = prepare(dataset, embed=embed, encoder=encoder)
    return {
        "data": dataset.name,
        "trainer": trainer,
        "delta": delta,
        "cold_items": len(material.split.cold),
        "users_tested": len(material.split.users),
        "random": random_order(),
        "rows": list(rows(material, epsilons=epsilons, delta=delta, seeds=seeds, trainer=trainer)),
    }


def rows(
    material: Material,
    *,
    epsilons: Sequence[float],
    delta: float,
    seeds: Sequence[int],
    trainer: LinearTrainer = "subspace",
) -> Iterator[dict[str, object]]:
    """One row for each way and budget, as they are done; plaintext last."""
    for epsilon in (*epsilons, None):
        chosen = seeds if epsilon is not None else seeds[:1]
        added: dict[int, Model] = {}
        for way in WAYS:
            runs = []
            for seed in chosen:
                model = added.get(seed) if way == "popularity" else None
                if model is None:
                    model = trained(material, way, epsilon=epsilon, delta=delta, seed=seed, trainer=trainer)
                if way == "added":
                    added[seed] = model
                runs.append(measured(material, way, model))
            hits = [one.hr_at_10 for one in runs]
            yield {
                "way": way,
                "epsilon": epsilon,
                "hr_at_10": statistics.fmean(hits),
                "hr_at_10_sd": statistics.stdev(hits) if len(hits) > 1 else 0.0,
                "ndcg_at_10": statistics.fmean(one.ndcg_at_10 for one in runs),
                "full_hr_at_10": statistics.fmean(one.full_hr_at_10 for one in runs),
                "full_ndcg_at_10": statistics.fmean(one.full_ndcg_at_10 for one in runs),
            }


def random_order() -> dict[str, float]:
    """What a random order of the 100 candidates gets, exactly."""
    size = NEGATIVES + 1
    return {"hr_at_10": 10 / size, "ndcg_at_10": float((1.0 / np.log2(np.arange(10) + 2.0)).sum()) / size}


def _trained(
    interactions: Interactions,
    catalogue: Catalogue,
    epsilon: float | None,
    delta: float,
    seed: int,
    trainer: LinearTrainer,
) -> Model:
    if epsilon is None:
        return plaintext_model(interactions, catalogue)
    spec = simulation_spec(catalogue, epsilon=epsilon, delta=delta, trainer=trainer)

    def noise(release: Release) -> Int64:
        return simulated_noise(spec, release, seed)

    return central_run(spec, catalogue, interactions, noise)


def _reordered(model: Model, order: Int64) -> Model:
    return Model(
        fold_in=model.fold_in[order],
        norm_terms=model.norm_terms[order],
        collaborative=model.collaborative,
        taste_centre=model.taste_centre,
        item_factors=model.item_factors[order],
        score_scale=model.score_scale,
    )


def _part(table: ItemTable, chosen: Int64) -> ItemTable:
    return ItemTable(
        ids=tuple(table.ids[number] for number in chosen),
        titles=tuple(table.titles[number] for number in chosen),
        categories=tuple(table.categories[number] for number in chosen),
        years=tuple(table.years[number] for number in chosen) if table.years else (),
        texts=tuple(table.texts[number] for number in chosen) if table.texts else (),
    )
