"""The evaluator: batches change nothing, shapes depend on the layout only, hostile numbers are only numbers."""

from __future__ import annotations

import numpy as np
import pytest

from he_inference import messages
from he_inference.engine.compute import Compute
from he_inference.layouts.keyless import KeylessLayout
from he_inference.layouts.seam import Layout
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import EXACT, FAST, KEYLESS, PQ
from he_inference.ring.jit import threads, use_threads
from he_inference.ring.moduli import Words
from he_inference.scheme import SecretKey
from tests.unit.he_inference.layouts.scorers import Encrypted
from veil.errors import CiphertextError

_LAYOUTS: list[Layout] = [
    SessionLayout(FAST, 9000, 20),
    SessionLayout(PQ, 100, 8),
    SessionLayout(EXACT, 5000, 8),
    KeylessLayout(KEYLESS, 9000, 5, 1),
    KeylessLayout(KEYLESS, 900, 20, 16),
]


def _score(compute: Compute, index: Words, queries: list[Words], keys: list[Words]) -> list[list[bytes]]:
    results: list[list[bytes]] = [[] for _ in queries]
    for part in compute.score(index, queries, keys):
        for query, blocks in enumerate(part):
            results[query] += blocks
    return results


def _subject(layout: Layout) -> Encrypted:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(layout.items, layout.dimensions))
    return Encrypted(layout, rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("layout", _LAYOUTS, ids=lambda layout: f"{layout.parameters.name}-{layout.items}")
def test_queries_get_the_same_bytes_alone_and_together(layout: Layout) -> None:
    subject = _subject(layout)
    generator = np.random.default_rng(1)
    queries, keys = [], []
    for _ in range(5):  # of five clients
        key = SecretKey(layout.parameters)
        vector = generator.normal(size=layout.dimensions)
        polynomials = layout.query_polynomials(vector / np.linalg.norm(vector))
        queries.append(subject.compute.read_query(key.encrypt(polynomials)))
        made = key.evaluation_keys(layout.galois_elements)
        keys.append(subject.compute.read_keys(made) if layout.galois_elements else subject.keys)
    together = _score(subject.compute, subject.index, queries, keys)
    before = threads()
    use_threads(1)
    try:
        alone = [_score(subject.compute, subject.index, [q], [k])[0] for q, k in zip(queries, keys, strict=True)]
    finally:
        use_threads(before)
    assert together == alone
    size = messages.result_bytes(layout.parameters, layout.used_coefficients)
    assert [[len(block) for block in result] for result in together] == [[size] * layout.blocks] * 5
    parts = [_score(subject.compute, subject.index[b : b + 1], queries[:1], keys[:1])[0] for b in range(layout.blocks)]
    assert [block for part in parts for block in part] == alone[0]


@pytest.mark.parametrize("layout", _LAYOUTS[:4:3], ids=lambda layout: layout.kind)
def test_hostile_numbers_get_an_answer_and_spoil_no_other(layout: Layout) -> None:
    subject, parameters = _subject(layout), layout.parameters
    generator = np.random.default_rng(2)
    honest = subject.compute.read_query(subject.key.encrypt(layout.query_polynomials(np.zeros(layout.dimensions))))
    expected = _score(subject.compute, subject.index, [honest], [subject.keys])[0]
    top = np.array(parameters.primes, np.uint32)[:, None] - np.uint32(1)
    n, data = parameters.degree, len(parameters.data_primes)
    for halves in (np.zeros((1, len(top), n), np.uint32), np.broadcast_to(top, (1, len(top), n))):
        words = np.repeat(halves, layout.query_ciphertexts, axis=0)[:, :data].copy()
        query = subject.compute.read_query(messages.write_query(parameters, generator.bytes(32), words))
        keys = subject.keys
        if layout.galois_elements:
            made = np.repeat(halves, 2, axis=0)
            keys = subject.compute.read_keys(messages.write_keys(parameters, generator.bytes(32), made))
        answers = _score(subject.compute, subject.index, [query, honest, query], [keys, subject.keys, keys])
        assert answers[1] == expected and answers[0] == answers[2]
        assert [len(block) for block in answers[0]] == [len(block) for block in expected]


def test_messages_of_other_lengths_or_numbers_are_refused() -> None:
    layout = SessionLayout(FAST, 10, 8)
    compute, key = Compute(layout), SecretKey(FAST)
    query, keys = key.encrypt(layout.query_polynomials(np.zeros(8))), key.evaluation_keys(layout.galois_elements)
    for wrong in (b"", query[:-1], query + b"\x00", query[:32] + b"\xff" * (len(query) - 32), keys):
        with pytest.raises(CiphertextError):
            compute.read_query(wrong)
    for wrong in (b"", keys[:-1], keys + b"\x00", keys[:32] + b"\xff" * (len(keys) - 32), query):
        with pytest.raises(CiphertextError):
            compute.read_keys(wrong)


def test_blocks_have_the_shape_that_is_named() -> None:
    for layout in _LAYOUTS:
        compute = Compute(layout)
        assert compute.encode(layout.item_polynomials(np.zeros((1, layout.dimensions)), 0)).shape == compute.block_shape
