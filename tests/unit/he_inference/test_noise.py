"""Estimates of noise against trials with the real kernel and real keys."""

from __future__ import annotations

import numpy as np
import pytest

from he_inference.engine.compute import Compute
from he_inference.layouts.catalogue import layout_of, usual_kind
from he_inference.layouts.seam import Layout
from he_inference.noise import KINDS, noise_margin_bits, score_error_deviation
from he_inference.parameters import NAMES, named
from he_inference.scheme import SecretKey


def measured_deviation(layout: Layout, queries: int = 2) -> float:
    generator = np.random.default_rng(7)
    compute, secret = Compute(layout), SecretKey(layout.parameters)
    rows = generator.normal(size=(layout.items, layout.dimensions))
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    size = layout.block_items
    index = np.stack(
        [
            compute.encode(layout.item_polynomials(rows[block * size : (block + 1) * size], block))
            for block in range(layout.blocks)
        ]
    )
    elements = layout.galois_elements
    keys = compute.read_keys(secret.evaluation_keys(elements)) if elements else np.empty((0,), np.uint32)
    errors = []
    for _ in range(queries):
        vector = generator.normal(size=layout.dimensions)
        vector /= np.linalg.norm(vector)
        query = compute.read_query(secret.encrypt(layout.query_polynomials(vector)))
        results = [result for part in compute.score(index, [query], [keys]) for result in part[0]]
        numbers, bits = secret.decrypt(results, layout.coefficient_places())
        errors.append(layout.scores(numbers, bits) - rows @ vector)
    return float(np.std(np.concatenate(errors)))


@pytest.mark.parametrize(
    ("kind", "parameters", "items", "dimensions", "packing", "factor"),
    [
        ("keyless", "keyless", 4096, 32, 1, 1.1),
        ("keyless", "keyless", 2048, 64, 8, 1.15),
        ("keyless", "keyless-small", 3000, 50, 4, 1.1),
        ("session", "fast", 4096, 64, 0, 1.5),
        ("session", "pq", 8192, 16, 0, 1.5),
    ],
)
def test_the_estimate_is_what_trials_show(
    kind: str, parameters: str, items: int, dimensions: int, packing: int, factor: float
) -> None:
    layout = layout_of(kind, parameters, items, dimensions, packing)
    measured, estimated = measured_deviation(layout), score_error_deviation(layout)
    assert estimated / factor < measured < estimated * factor


def test_every_set_has_room_left() -> None:
    for name in NAMES:
        parameters = named(name)
        kind = usual_kind(parameters)
        if kind not in KINDS:
            continue
        layout = layout_of(kind, parameters, 4096, 128, 0 if kind == "session" else 8)
        margin = noise_margin_bits(layout)
        # three bits of bound are eight standard deviations
        assert margin.modulus > 0 and margin.bound > 3, name


def test_longer_vectors_leave_less_room_in_the_exact_set() -> None:
    margins = [noise_margin_bits(layout_of("session", "exact", 4096, d)).modulus for d in (16, 64, 256, 1024)]
    assert margins == sorted(margins, reverse=True) and margins[0] > margins[-1] + 1
