"""Public item features: what is known of an item before anyone met it.

Guarantee: features depend on the public item table alone, so that using them costs no privacy budget. The columns come
in blocks, recorded with their scaling in the catalogue:

    text        up to 160 principal components of the embeddings of up to three phrasings (weights 1, .7, .7); centred,
                scaled so that the mean squared row norm is 1
    categories  multi-hot, each row divided by the square root of its number of categories (row norm 1, or 0)
    years       up to 14 Gaussian bumps at quantiles of the known years, row norm 1 (0 where the year is unknown)
    constant    1

Without an encoder the text block is absent. Which blocks and how many dimensions: measured on MovieLens-1M; row norms
are alike so that no block drowns another in the singular vectors that training starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, DataError
from veil.recsys.catalogue import Block, Catalogue, ItemTable
from veil.text import phrasing as phrases

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Embed = Callable[[Sequence[str]], Float32]

TEXT_DIMENSIONS = 160
YEAR_BUMPS = 14
MAX_CATEGORIES = 4096


def build_catalogue(
    table: ItemTable,
    *,
    embed: Embed | None = None,
    encoder: str = "none",
    phrasing: str = "generic",
    text_dimensions: int = TEXT_DIMENSIONS,
) -> Catalogue:
    """Features and catalogue of an item table.

    embed: texts in, float32[texts, D] out (`TextEncoder.encode`); None leaves the text block out. encoder: the label to
    record (`TextEncoder.label`). phrasing: a set of `veil.text.phrasing.PHRASINGS`.
    """
    parts: list[tuple[Block, Float64]] = []
    text = None if embed is None else text_block(table, embed, phrasing, text_dimensions)
    if text is not None:
        scaling = "principal components of embeddings, centred, mean squared row norm 1"
        parts.append((Block(name="text", size=text.shape[1], scaling=scaling), text))
    names, categories = category_block(table)
    if names:
        scaling = "multi-hot in alphabetical order, row norm 1 (0 without categories)"
        parts.append((Block(name="categories", size=len(names), scaling=scaling), categories))
    bumps = year_block(phrases.years(table))
    if bumps.shape[1]:
        scaling = "Gaussian bumps at quantiles of the years, row norm 1 (0 where unknown)"
        parts.append((Block(name="years", size=bumps.shape[1], scaling=scaling), bumps))
    parts.append((Block(name="constant", size=1, scaling="1"), np.ones((len(table), 1))))
    return Catalogue(
        table=table,
        features=np.concatenate([block for _, block in parts], axis=1).astype(np.float32),
        blocks=tuple(block for block, _ in parts),
        encoder=encoder if text is not None else "none",
        phrasing=phrasing if text is not None else "none",
    )


def text_block(table: ItemTable, embed: Embed, phrasing: str, dimensions: int = TEXT_DIMENSIONS) -> Float64 | None:
    """float64[items, at most `dimensions`], or None when the texts do not tell any two items apart."""
    if dimensions < 1:
        raise ConfigError(f"got {dimensions} text dimensions, expected at least 1")
    blocks = []
    for weight, texts in phrases.sentences(table, phrasing):
        vectors = np.asarray(embed(texts), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(table) or not np.isfinite(vectors).all():
            raise DataError(f"got embeddings of shape {vectors.shape}, expected {len(table)} finite rows")
        blocks.append(weight * vectors)
    joined = np.concatenate(blocks, axis=1)
    joined -= joined.mean(axis=0)
    # Principal components by the smaller of the two Gram matrices; an SVD of the whole costs ten times as much.
    if len(joined) >= joined.shape[1]:
        values, vectors = np.linalg.eigh(joined.T @ joined)
        scores = joined @ vectors[:, ::-1][:, :dimensions]
    else:
        values, vectors = np.linalg.eigh(joined @ joined.T)
        scores = vectors[:, ::-1][:, :dimensions] * np.sqrt(np.maximum(values[::-1][:dimensions], 0.0))
    strength = values[::-1][:dimensions]
    scores = scores[:, strength > 1e-9 * max(float(strength[0]), 1e-12)]
    if not scores.shape[1]:
        return None
    # An eigenvector's sign is arbitrary: the entry of largest size is made positive.
    largest = np.take_along_axis(scores, np.abs(scores).argmax(axis=0)[None], axis=0)
    scores = scores * np.where(largest < 0, -1.0, 1.0)
    return np.asarray(scores / np.sqrt((scores**2).sum(axis=1).mean()), dtype=np.float64)


def category_block(table: ItemTable) -> tuple[list[str], Float64]:
    """The category names in alphabetical order, and float64[items, names]; raises `DataError` on too many names."""
    names = sorted({name for item in table.categories for name in item})
    if len(names) > MAX_CATEGORIES:
        raise DataError(
            f"got {len(names)} distinct categories, expected at most {MAX_CATEGORIES}",
            hint="give a coarser column, or put fine labels into the text column",
        )
    column = {name: number for number, name in enumerate(names)}
    block = np.zeros((len(table), len(names)))
    for row, item in enumerate(table.categories):
        for name in item:
            block[row, column[name]] = 1.0 / np.sqrt(len(item))
    return names, block


def year_block(years: Sequence[int]) -> Float64:
    """float64[items, at most 14]: how near each item's year is to each of the centres.

    Centres are quantiles of the known years, so that they are dense where items are; a bump is as wide as the distance
    to its neighbours (1 year at least). No columns when fewer than two distinct years are known.
    """
    year = np.asarray(years, dtype=np.float64)
    known = year[year > 0]
    places = (np.arange(YEAR_BUMPS) + 0.5) / YEAR_BUMPS
    centres = np.unique(np.quantile(known, places, method="inverted_cdf")) if len(known) else known
    if len(centres) < 2:
        return np.zeros((len(year), 0))
    gaps = np.diff(centres)
    width = np.maximum((np.r_[gaps[0], gaps] + np.r_[gaps, gaps[-1]]) / 2.0, 1.0)
    # Years far outside every bump would divide zero by zero: distances are taken from the nearest end.
    near = np.clip(year, centres[0] - 2 * width[0], centres[-1] + 2 * width[-1])
    bumps = np.exp(-0.5 * ((near[:, None] - centres) / width) ** 2)
    return np.asarray(bumps / np.linalg.norm(bumps, axis=1, keepdims=True) * (year > 0)[:, None], dtype=np.float64)
