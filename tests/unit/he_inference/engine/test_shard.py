"""Shards without Ray: joined they answer as one process does; nothing of another index or request is joined."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from he_inference import parameters
from he_inference.engine.local import LocalEngine
from he_inference.engine.shard import (
    KEY_SLOTS,
    Part,
    Shard,
    ShardKeys,
    index_digest,
    read_answer,
    write_request,
)
from he_inference.index.build import build, update
from he_inference.index.store import Index
from he_inference.layouts.keyless import KeylessLayout
from he_inference.layouts.seam import Layout
from he_inference.layouts.session import SessionLayout
from tests.unit.he_inference.engine.random_messages import a_query, some_keys
from veil.errors import ArtifactError, CiphertextError, ProtocolMismatch, StateError, WireError

SESSION = SessionLayout(parameters.FAST, 9000, 4)  # three blocks
KEYLESS = KeylessLayout(parameters.KEYLESS_SMALL, 150, 7, packing=64)  # five blocks


def written(path: Path, layout: Layout, seed: int = 0) -> Path:
    rows = np.random.default_rng(seed).standard_normal((layout.items, layout.dimensions))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    build(path, layout, rows, item_norm=1.0, model_digest=bytes(32), item_ids_digest=bytes(32))
    return path


def shards(path: Path, count: int) -> list[tuple[Part, Shard]]:
    with Index.open(path) as index:
        digest, generation, layout = index_digest(index.front), index.generation, index.layout
    bounds = [number * layout.blocks // count for number in range(count + 1)]
    return [
        (Part(layout, generation, digest, first, last), Shard(str(path), digest, generation, first, last))
        for first, last in pairwise(bounds)
    ]


def local(path: Path, queries: list[bytes], keys: list[bytes]) -> list[list[bytes]]:
    results: list[list[bytes]] = [[] for _ in queries]
    with Index.open(path) as index:
        engine = LocalEngine(index)
        read = [engine.read_keys(one) for one in keys] if keys else [None] * len(queries)
        for run in engine.score([engine.read_query(query) for query in queries], read):
            for gathered, one in zip(results, run, strict=True):
                gathered.extend(one)
    return results


@pytest.fixture(scope="module")
def session_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("index") / "session.index", SESSION)


@pytest.fixture
def keyless_path(tmp_path: Path) -> Path:
    return written(tmp_path / "keyless.index", KEYLESS)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_joined_answer_byte_for_byte_as_one_process(session_path: Path, count: int) -> None:
    queries = [a_query(SESSION, seed) for seed in range(3)]
    anna, eve = some_keys(SESSION, 7), some_keys(SESSION, 8)
    held = [ShardKeys.of(anna), ShardKeys.of(eve), ShardKeys.of(anna)]
    joined: list[list[bytes]] = [[], [], []]
    for part, shard in shards(session_path, count):
        request = write_request(queries, held, {one.digest: one for one in held})
        answer = read_answer(shard.score(request), request, part, 3)
        assert not answer.lacking and answer.compute_us > 0
        for gathered, one in zip(joined, answer.results, strict=True):
            gathered.extend(one)
    assert joined == local(session_path, queries, [anna, eve, anna])


def test_a_layout_without_keys_needs_none(keyless_path: Path) -> None:
    queries = [a_query(KEYLESS, seed) for seed in range(2)]
    joined: list[list[bytes]] = [[], []]
    for part, shard in shards(keyless_path, 2):
        request = write_request(queries, [None, None])
        for gathered, one in zip(joined, read_answer(shard.score(request), request, part, 2).results, strict=True):
            gathered.extend(one)
    assert joined == local(keyless_path, queries, [])


def test_keys_are_asked_for_once_and_held(session_path: Path) -> None:
    ((part, shard),) = shards(session_path, 1)
    query, keys = a_query(SESSION, 1), ShardKeys.of(some_keys(SESSION, 2))
    bare = write_request([query], [keys])
    assert read_answer(shard.score(bare), bare, part, 1).lacking == {keys.digest}
    whole = write_request([query], [keys], {keys.digest: keys})
    first = read_answer(shard.score(whole), whole, part, 1)
    again = read_answer(shard.score(bare), bare, part, 1)
    assert again.results == first.results == local(session_path, [query], [keys.data])
    assert len(bare) < 30_000 < len(keys.data) < len(whole)


def test_no_more_keys_are_held_than_there_are_places(session_path: Path) -> None:
    ((_, shard),) = shards(session_path, 1)
    for number in range(KEY_SLOTS + 3):
        shard._hold(number.to_bytes(32, "big"), np.empty(0, np.uint32))
    assert len(shard._keys) == KEY_SLOTS
    assert (0).to_bytes(32, "big") not in shard._keys


# Of an answer: status, first, last, queries, microseconds, generation, index digest, request digest.
FIELDS = {"first block": 4, "last block": 8, "query count": 12, "generation": 27, "index": 28, "request": 60}


@pytest.mark.parametrize("name", FIELDS)
def test_an_answer_to_something_else_is_not_joined(keyless_path: Path, name: str) -> None:
    (part, shard), _ = shards(keyless_path, 2)
    request = write_request([a_query(KEYLESS, 1)], [None])
    answer = bytearray(shard.score(request))
    answer[FIELDS[name]] ^= 1
    with pytest.raises(ProtocolMismatch, match=name):
        read_answer(bytes(answer), request, part, 1)


def test_the_answer_of_the_other_shard_or_to_another_query_is_not_joined(keyless_path: Path) -> None:
    (first, _), (_, second_shard) = shards(keyless_path, 2)
    request, other = (write_request([a_query(KEYLESS, seed)], [None]) for seed in (1, 2))
    with pytest.raises(ProtocolMismatch, match="first block"):
        read_answer(second_shard.score(request), request, first, 1)
    second, shard = shards(keyless_path, 2)[1]
    with pytest.raises(ProtocolMismatch, match="request"):
        read_answer(shard.score(other), request, second, 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: b"",
        lambda answer: answer[:91],
        lambda answer: answer[:-1],
        lambda answer: answer + b"\0",
        lambda answer: struct.pack(">I", 2) + answer[4:92],
        lambda answer: struct.pack(">I", 2) + answer[4:-1],
        lambda answer: struct.pack(">I", 3) + answer[4:],
        lambda answer: struct.pack(">I", 9) + answer[4:],
    ],
)
def test_an_answer_of_another_form_is_not_joined(keyless_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    ((part, shard),) = shards(keyless_path, 1)
    request = write_request([a_query(KEYLESS, 1)], [None])
    with pytest.raises(ProtocolMismatch):
        read_answer(spoil(shard.score(request)), request, part, 1)


def test_a_replaced_file_is_not_scored(keyless_path: Path) -> None:
    ((part, shard),) = shards(keyless_path, 1)
    update(keyless_path, {3: np.zeros(KEYLESS.dimensions)})
    request = write_request([a_query(KEYLESS, 1)], [None])
    for answer, asked, count in ((shard.ready(), b"", 0), (shard.score(request), request, 1)):
        with pytest.raises(StateError, match="replaced"):
            read_answer(answer, asked, part, count)


def test_a_shard_that_is_open_keeps_its_file(keyless_path: Path) -> None:
    ((part, shard),) = shards(keyless_path, 1)
    query = a_query(KEYLESS, 1)
    before = local(keyless_path, [query], [])
    shard.ready()
    update(keyless_path, {3: np.zeros(KEYLESS.dimensions)})
    request = write_request([query], [None])
    assert read_answer(shard.score(request), request, part, 1).results == before
    assert local(keyless_path, [query], []) != before


def test_a_shard_checks_its_own_blocks_and_tries_again(keyless_path: Path) -> None:
    sound = keyless_path.read_bytes()
    (first, first_shard), (second, second_shard) = shards(keyless_path, 2)
    damaged = bytearray(sound)
    damaged[-5] ^= 1
    keyless_path.write_bytes(damaged)
    request = write_request([a_query(KEYLESS, 1)], [None])
    assert read_answer(first_shard.score(request), request, first, 1).results
    with pytest.raises(ArtifactError, match="the first is 4"):
        read_answer(second_shard.score(request), request, second, 1)
    keyless_path.unlink()
    with pytest.raises(ArtifactError, match="no readable index"):
        read_answer(second_shard.score(request), request, second, 1)
    keyless_path.write_bytes(sound)
    assert read_answer(second_shard.score(request), request, second, 1).results


def test_requests_of_any_bytes_are_refused(keyless_path: Path, session_path: Path) -> None:
    ((part, shard),) = shards(keyless_path, 1)
    good = write_request([a_query(KEYLESS, 1)], [None])
    named = write_request([a_query(KEYLESS, 1)], [ShardKeys.of(b"x")])
    bad = [b"", good[:7], good[:-1], good + b"\0", struct.pack(">II", 0, 0), struct.pack(">II", 1 << 31, 0), named]
    bad += [struct.pack(">II", 1, 2) + good[8:], np.random.default_rng(0).bytes(5000)]
    for request in bad:
        # Of no query: none was understood.
        with pytest.raises(WireError):
            read_answer(shard.score(request), request, part, 0)
    ((part, shard),) = shards(session_path, 1)
    keyless = write_request([a_query(SESSION, 1)], [None])
    with pytest.raises(WireError, match="without keys"):
        read_answer(shard.score(keyless), keyless, part, 0)
    beyond = write_request([b"\xff" * len(a_query(SESSION, 1))], [ShardKeys.of(some_keys(SESSION, 1))])
    assert read_answer(shard.score(beyond), beyond, part, 1).lacking
    keys = ShardKeys.of(some_keys(SESSION, 1))
    beyond = write_request([b"\xff" * len(a_query(SESSION, 1))], [keys], {keys.digest: keys})
    with pytest.raises(CiphertextError, match="beyond its modulus"):
        read_answer(shard.score(beyond), beyond, part, 1)
