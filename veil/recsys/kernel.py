"""The feature design of the subspace trainer: item features and their similarities, as columns of one matrix.

Guarantee: a pure function of the public catalogue, so that using it costs no privacy budget.

Two items are alike when text, categories **and** years agree, which no linear function of the columns says. So the
design spans, beside the columns themselves, the leading directions of the product kernel

    k(i, j) = product over blocks b of (1 + h e^(-|x_b,i - x_b,j|^2 / (2 l^2 m_b)))          h = 1/2, l^2 = 0.49

with m_b the median squared distance of distinct rows: an analysis-of-variance kernel (Wahba, "Spline Models for
Observational Data", 1990, chapter 10; Durrande et al. 2012), whose expansion holds each block alone, each pair and all
of them. It is taken through at most 1,500 landmark items (Williams and Seeger, "Using the Nystroem Method to Speed Up
Kernel Machines", NIPS 2000); columns and kernel are centred, brought to shares 1 : 5 of the squared row norm, and cut
to 250 principal components. h, l and the shares were chosen on held-out training items of MovieLens-100K.

A catalogue that does not record its blocks keeps its columns alone (`veil.recsys.postprocess.feature_design`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from veil.errors import InputError
from veil.recsys.postprocess import ROW_NORM, feature_design

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

COMPONENTS: Final = 250
_LANDMARKS: Final = 1_500
_KERNEL_RANK: Final = 400
_HEIGHT: Final = 0.5
_SQUARED_WIDTH: Final = 0.49
_LINEAR_SHARE, _KERNEL_SHARE = 1.0 / 6.0, 5.0 / 6.0
_BLOCK_ROWS: Final = 4_096
_SAME: Final = 1e-9
_RANK_TOLERANCE: Final = 1e-9


class Block(Protocol):
    """A run of feature columns (`veil.recsys.catalogue.Block`)."""

    @property
    def name(self) -> str:
        """What it holds."""

    @property
    def size(self) -> int:
        """Number of columns."""


@dataclass(frozen=True, eq=False)
class KernelDesign:
    """The map from features to design columns, made for one catalogue.

    Attributes:
        rows: float64[items, K + 1], K at most 250: centred, mean squared row norm 2.25, and a column of ones.
    """

    rows: Float64
    _spans: tuple[tuple[int, int], ...]
    _scales: tuple[float, ...]
    _landmarks: Float64
    _whitener: Float64
    _mean: Float64
    _components: Float64

    def of(self, features: Float32) -> Float64:
        """float64[n, K + 1]: the same columns for other items, float32[n, F], of the same meaning."""
        if features.ndim != 2 or features.shape[1] != self._landmarks.shape[1]:
            raise InputError(f"got features of shape {features.shape}, expected {self._landmarks.shape[1]} columns")
        out = np.ones((len(features), self._components.shape[1] + 1))
        for part, raw in self._raw(features):
            out[part, :-1] = (raw - self._mean) @ self._components
        return out

    def _raw(self, features: Float32) -> Iterator[tuple[slice, Float64]]:
        for start in range(0, len(features), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            values = features[part].astype(np.float64)
            similar = _kernel(values, self._landmarks, self._spans, self._scales)
            yield part, np.concatenate([values, similar @ self._whitener], axis=1)


def kernel_design(features: Float32, blocks: Sequence[Block]) -> KernelDesign | None:
    """The design of a catalogue, or None when it records no blocks or none of them tells items apart."""
    spans, at = [], 0
    for block in blocks:
        if np.ptp(features[:, at : at + block.size], axis=0).max(initial=0.0) > _SAME:
            spans.append((at, at + block.size))
        at += block.size
    if not spans:
        return None
    items = len(features)
    chosen = np.unique(np.linspace(0, items - 1, min(items, _LANDMARKS)).astype(np.int64))
    landmarks = features[chosen].astype(np.float64)
    scales = []
    for first, end in spans:
        distances = _squared_distances(landmarks[:, first:end], landmarks[:, first:end])
        apart = distances[distances > _SAME]
        scales.append(float(np.median(apart)) * _SQUARED_WIDTH if apart.size else 1.0)
    values, vectors = np.linalg.eigh(_kernel(landmarks, landmarks, spans, scales))
    kept = np.flatnonzero(values > _RANK_TOLERANCE * values[-1])[-_KERNEL_RANK:]
    whitener = vectors[:, kept] / np.sqrt(values[kept])
    width = features.shape[1]
    empty = np.zeros((0, 0))
    raw = KernelDesign(empty, tuple(spans), tuple(scales), landmarks, whitener, empty, empty)
    total, squares = np.zeros(width + len(kept)), np.zeros((width + len(kept),) * 2)
    for _, part in raw._raw(features):
        total += part.sum(axis=0)
        squares += part.T @ part
    mean = total / items
    covariance = squares / items - np.outer(mean, mean)
    share = np.zeros(len(mean))
    for columns, wanted in ((slice(0, width), _LINEAR_SHARE), (slice(width, None), _KERNEL_SHARE)):
        power = float(np.trace(covariance[columns, columns]))
        share[columns] = np.sqrt(wanted / power) if power > _SAME else 0.0
    strengths, directions = np.linalg.eigh(covariance * np.outer(share, share))
    order = np.argsort(strengths)[::-1][:COMPONENTS]
    order = order[strengths[order] > _RANK_TOLERANCE * strengths[order[0]]]
    components = share[:, None] * directions[:, order] * (ROW_NORM / np.sqrt(strengths[order].sum()))
    made = KernelDesign(empty, raw._spans, raw._scales, landmarks, whitener, mean, components)
    return KernelDesign(made.of(features), raw._spans, raw._scales, landmarks, whitener, mean, components)


def design_rows(features: Float32, blocks: Sequence[Block]) -> Float64:
    """float64[items, K + 1]: `kernel_design` where there is one, else `veil.recsys.postprocess.feature_design`."""
    made = kernel_design(features, blocks)
    return feature_design(features) if made is None else made.rows


def _kernel(rows: Float64, landmarks: Float64, spans: Sequence[tuple[int, int]], scales: Sequence[float]) -> Float64:
    out = np.ones((len(rows), len(landmarks)))
    for (first, end), scale in zip(spans, scales, strict=True):
        distances = _squared_distances(rows[:, first:end], landmarks[:, first:end])
        out *= 1.0 + _HEIGHT * np.exp(distances * (-0.5 / scale))
    return out


def _squared_distances(left: Float64, right: Float64) -> Float64:
    squares: Float64 = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1) - 2.0 * left @ right.T
    return np.asarray(np.maximum(squares, 0.0), dtype=np.float64)
