"""A data set by name together with its public catalogue, ready to train on."""

from __future__ import annotations

from pathlib import Path

from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.datasets import load_dataset
from veil.recsys.features import build_catalogue
from veil.text.encoder import default_encoder


def load(data: str, *, text: bool = True, cache: Path | None = None) -> tuple[Dataset, Catalogue]:
    """Loads "synthetic" or "NAME:FOLDER" and makes features from its titles, categories and years.

    text: whether to embed texts, when the encoder is installed; without it, categories and years alone. cache: folder
    of computed embeddings, the user's cache by default. Raises `ConfigError`, `DataError`.
    """
    dataset = load_dataset(data)
    encoder = default_encoder(cache) if text else None
    if encoder is None:
        return dataset, build_catalogue(dataset.table)
    return dataset, build_catalogue(dataset.table, embed=encoder.encode, encoder=encoder.label)
