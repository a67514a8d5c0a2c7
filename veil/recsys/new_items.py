"""Items that came after training: their vectors from public text, without training again.

Guarantee: reads a published model, public item facts and constants only, so that it is post-processing and costs no
privacy. The old items' factors and the client's part stay as they are, byte for byte: a model that is extended scores
more items and is otherwise the one that the parties signed. New items are scored; in a history they count as met
without moving the user's directions, until the next training.

It is an approximation of what a training would give that had the item in its catalogue and saw nobody meet it, less
what the absence of meetings would say against the item. Everything is read off the published arrays, so that it holds
for every trainer whose models have the form of `veil.recsys.trained`:

    (1) features     categories and years by the catalogue's own columns, text by the linear map that its features came
                     from (`veil.text.blocks`)
    (2) log count    l = ridge regression of the published log counts on the features, as the prior of
                     `veil.recsys.postprocess.posterior_counts`: what one would expect before anyone meets it
    (3) direction    u_new = s_new M with M = least squares of the items' directions on s, where s are the features
                     times sqrt(c) D less their popularity part. For content directions this is the out-of-sample
                     extension of Bengio et al., "Out-of-Sample Extensions for LLE, Isomap, MDS, Eigenmaps, and Spectral
                     Clustering" (NIPS 2003, section 3), exact for old items; for collaborative ones it keeps the part
                     that features explain.
    (4) factors      column j of the item factors is u_j h_j(l); h_j, piecewise linear, by least squares

Letters: c counts, D = c^-a item weights, mu the unit popularity direction (`veil.recsys.postprocess`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, InputError
from veil.recsys.catalogue import Catalogue
from veil.recsys.items import ItemTable
from veil.recsys.kernel import kernel_design
from veil.recsys.model import Model, score_bound
from veil.recsys.postprocess import ROW_NORM, USER_TERMS
from veil.text import phrasing as phrases
from veil.text.blocks import MAX_FIT_ITEMS, Embed, TextMap, joined_embeddings

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_RIDGE = 3.0
_KNOTS = 8


@dataclass(frozen=True, eq=False)
class NewItems:
    """What a model says of items that it was not trained on.

    Attributes:
        table: their public facts.
        item_factors: float32[new, D], comparable with the model's own.
        log_counts: float32[new], the expected logarithm of the count.
    """

    table: ItemTable
    item_factors: Float32
    log_counts: Float32


def features_of_new_items(
    catalogue: Catalogue, table: ItemTable, *, embed: Embed | None = None, encoder: str = "none"
) -> Float32:
    """float32[new, F]: the features of new items in the catalogue's columns.

    embed and encoder: as for `veil.recsys.features.build_catalogue`, and the same that the catalogue was built with;
    needed when it has text features. A category that no old item has is left out; a year between known ones is
    interpolated. Raises `ConfigError` when the encoder is another one or the catalogue has blocks of unknown meaning.
    """
    known = set(catalogue.ids)
    if any(identifier in known for identifier in table.ids):
        raise InputError("got a new item whose id the catalogue has already, expected new ids")
    parts: list[Float64] = []
    for block in catalogue.blocks:
        old = catalogue.block(block.name)
        if block.name == "text":
            parts.append(_text_rows(catalogue, table, old, embed, encoder))
        elif block.name == "categories":
            parts.append(_category_rows(catalogue, table, block.size))
        elif block.name == "years":
            parts.append(_year_rows(catalogue, table, old.astype(np.float64)))
        elif block.name == "constant":
            parts.append(np.ones((len(table), 1)))
        else:
            raise ConfigError(f"got feature block {block.name!r}, expected text, categories, years or constant")
    if not parts:
        raise ConfigError("got a catalogue without recorded feature blocks, expected one that Veil built")
    return np.concatenate(parts, axis=1).astype(np.float32)


def vectors_for_new_items(
    model: Model,
    catalogue: Catalogue,
    table: ItemTable,
    *,
    embed: Embed | None = None,
    encoder: str = "none",
    log_counts: npt.ArrayLike | None = None,
) -> NewItems:
    """Item factors of new items: steps (1) to (4) above.

    model: a published model of `catalogue`. log_counts: real[new], where one knows better than step (2) how often the
    items will be met; held within the range of the published ones either way. Raises `ConfigError`, `InputError`.
    """
    if model.items != catalogue.items:
        raise InputError(f"got a model of {model.items} items, expected the catalogue's {catalogue.items}")
    rows = features_of_new_items(catalogue, table, embed=embed, encoder=encoder)
    old_design, new_design = _designs(catalogue, rows)
    known = model.fold_in[:, -1].astype(np.float64)
    if log_counts is None:
        expected = _expected_log_counts(old_design, known, new_design)
    else:
        expected = np.asarray(log_counts, dtype=np.float64)
        if expected.shape != (len(table),) or not bool(np.isfinite(expected).all()):
            raise InputError(f"got log counts of shape {expected.shape}, expected {len(table)} finite numbers")
    expected = np.clip(expected, known.min(), known.max())
    old_directions, new_directions = _directions(model, old_design[:, :-1], known, new_design[:, :-1], expected)
    factors = np.zeros((len(table), model.dimensions))
    profile, new_profile = _profiles(known, expected)
    published = model.item_factors.astype(np.float64)
    linear = model.dimensions - USER_TERMS
    for column in range(model.dimensions):
        own = old_directions[:, column] if column < linear else np.ones(model.items)
        new = new_directions[:, column] if column < linear else np.ones(len(table))
        # Columns of unused directions are 0 throughout, and so are their coefficients.
        heights = np.linalg.lstsq(profile * own[:, None], published[:, column], rcond=1e-9)[0]
        factors[:, column] = new * (new_profile @ heights)
    return NewItems(table, factors.astype(np.float32), expected.astype(np.float32))


def extended_model(model: Model, new: NewItems) -> Model:
    """The model with the new items after its own: it scores them, and old rows are the same arrays.

    A new item in a history counts towards its length and its popularity, not towards its directions: all that bounds a
    user vector, and with it a score, stays true.
    """
    count = len(new.table)
    fold_in = np.zeros((count, model.dimensions), np.float32)
    fold_in[:, -1] = new.log_counts
    factors = np.concatenate([model.item_factors, new.item_factors])
    scale = np.nextafter(np.float32(score_bound(factors, model.collaborative)), np.float32(np.inf))
    return Model(
        fold_in=np.concatenate([model.fold_in, fold_in]),
        norm_terms=np.concatenate([model.norm_terms, np.zeros((count, 2), np.float32)]),
        collaborative=model.collaborative,
        taste_centre=model.taste_centre,
        item_factors=factors,
        score_scale=max(float(scale), model.score_scale),
    )


def _text_rows(catalogue: Catalogue, table: ItemTable, old: Float32, embed: Embed | None, encoder: str) -> Float64:
    if embed is None:
        raise ConfigError(f"got no text encoder, expected {catalogue.encoder}", hint="the catalogue has text features")
    if encoder != catalogue.encoder:
        raise ConfigError(f"got text encoder {encoder}, expected {catalogue.encoder}, as the catalogue was built with")
    if catalogue.items > MAX_FIT_ITEMS:
        chosen = np.linspace(0, catalogue.items - 1, MAX_FIT_ITEMS).astype(np.int64)
        fitted = joined_embeddings(_rows_of(catalogue.table, chosen), embed, catalogue.phrasing)
        text_map = TextMap.fit(fitted, old[chosen])
    else:
        text_map = TextMap.fit(joined_embeddings(catalogue.table, embed, catalogue.phrasing), old)
    return text_map.apply(joined_embeddings(table, embed, catalogue.phrasing))


def _category_rows(catalogue: Catalogue, table: ItemTable, size: int) -> Float64:
    names = sorted({name for item in catalogue.categories for name in item})
    if len(names) != size:
        raise ConfigError(f"got {len(names)} category names for {size} columns, expected as many")
    column = {name: number for number, name in enumerate(names)}
    rows = np.zeros((len(table), size))
    for row, item in enumerate(table.categories):
        for name in item:
            if name in column:
                rows[row, column[name]] = 1.0 / np.sqrt(len(item))
    return rows


def _year_rows(catalogue: Catalogue, table: ItemTable, old: Float64) -> Float64:
    year = np.asarray(phrases.years(catalogue.table))
    distinct, first = np.unique(year, return_index=True)
    distinct, first = distinct[distinct > 0], first[distinct > 0]
    new = np.asarray(phrases.years(table), dtype=np.float64)
    rows = np.stack([np.interp(new, distinct, old[first, column]) for column in range(old.shape[1])], axis=1)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.asarray(rows * (new > 0)[:, None], dtype=np.float64)


def _rows_of(table: ItemTable, chosen: npt.NDArray[np.int64]) -> ItemTable:
    def pick(values: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(values[number] for number in chosen) if values else ()

    return ItemTable(*map(pick, (table.ids, table.titles, table.categories, table.years, table.texts)))  # type: ignore[arg-type]


def _designs(catalogue: Catalogue, new: Float32) -> tuple[Float64, Float64]:
    """Old and new items in the columns of `veil.recsys.kernel`, in which training sees the old ones."""
    made = kernel_design(catalogue.features, catalogue.blocks)
    return _linear_designs(catalogue.features, new) if made is None else (made.rows, made.of(new))


def _linear_designs(old: Float32, new: Float32) -> tuple[Float64, Float64]:
    """The same by `veil.recsys.postprocess.feature_design`, for catalogues that tell no items apart."""
    mean = old.mean(axis=0, dtype=np.float64)
    centred, others = old.astype(np.float64) - mean, new.astype(np.float64) - mean
    spread = np.square(centred).sum(axis=0)
    kept = spread > 1e-12 * max(1.0, float(spread.sum()))
    centred, others = centred[:, kept], others[:, kept]
    if centred.shape[1]:
        scale = ROW_NORM / np.sqrt(float(np.square(centred).sum(axis=1).mean()))
        centred, others = centred * scale, others * scale
    return (
        np.concatenate([centred, np.ones((len(centred), 1))], axis=1),
        np.concatenate([others, np.ones((len(others), 1))], axis=1),
    )


def _expected_log_counts(design: Float64, known: Float64, new_design: Float64) -> Float64:
    normal = design.T @ design + _RIDGE * np.eye(design.shape[1])
    return np.asarray(new_design @ np.linalg.solve(normal, design.T @ known), dtype=np.float64)


def _directions(
    model: Model, design: Float64, known: Float64, new_design: Float64, expected: Float64
) -> tuple[Float64, Float64]:
    """Step (3): float64[items, L] and float64[new, L] with L = D - 3, collaborative and content directions."""
    linear = model.dimensions - USER_TERMS
    weight = np.sqrt(model.norm_terms[:, 0].astype(np.float64))
    mu = model.norm_terms[:, 1].astype(np.float64) / weight
    # log D = -a log c, exactly; one number, from all items.
    spread = float(np.square(known - known.mean()).sum())
    power = -float((known - known.mean()) @ np.log(weight)) / spread if spread > 1e-12 else 0.0
    new_weight = np.exp(-power * (expected - known.mean()) + float(np.log(weight).mean()))
    counts = np.exp(known)
    new_mu = np.exp(expected) * new_weight / float(np.linalg.norm(counts * weight))
    scaled = design * (np.sqrt(counts) * weight)[:, None]
    along = mu @ scaled
    # Published: D (u less its mu part); the directions have none, so that dividing by D gives them back.
    directions = model.fold_in[:, :linear].astype(np.float64) / weight[:, None]
    matrix = np.linalg.lstsq(scaled - np.outer(mu, along), directions, rcond=1e-6)[0]
    new_scaled = new_design * (np.exp(expected / 2.0) * new_weight)[:, None] - np.outer(new_mu, along)
    return directions, new_scaled @ matrix


def _profiles(known: Float64, expected: Float64) -> tuple[Float64, Float64]:
    """Piecewise linear functions of the log count, 1 at their own knot: float64[items, knots], float64[new, knots]."""
    places = np.linspace(0.0, 1.0, _KNOTS)
    # Half by quantile and half evenly: counts have long tails, where a function of them bends most.
    even = known.min() + places * (known.max() - known.min())
    knots = np.unique(np.round((np.quantile(known, places) + even) / 2.0, 9))

    def hats(values: Float64) -> Float64:
        return np.stack([np.interp(values, knots, one) for one in np.eye(len(knots))], axis=1)

    return hats(known), hats(expected)
