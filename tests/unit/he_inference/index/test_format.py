"""Index files: what is written is read, and nothing else is."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_inference.index import format as files
from he_inference.index import geometry
from he_inference.index.build import remove
from he_inference.index.store import Index
from veil.errors import ArtifactError

from .conftest import DIGEST, IDS, Make, random_rows, small_layout

JSON_AT = 40
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sealed(front: bytes) -> bytes:
    """A front with the checksum that fits it: what only a hostile writer can make."""
    blank = front[:24] + bytes(16) + front[40:]
    return front[:24] + files._front_check(blank) + front[40:]


def with_header(data: bytes, **fields: Any) -> bytes:
    """A whole file whose header has other fields; None takes one out."""
    size, length = struct.unpack_from("<II", data, 12)
    document = {**json.loads(data[JSON_AT : JSON_AT + length]), **fields}
    document = {key: value for key, value in document.items() if value is not None}
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return with_text(data, text, size)


def with_text(data: bytes, text: bytes, size: int) -> bytes:
    page = (data[:16] + struct.pack("<I", len(text)) + bytes(20) + text).ljust(4096, b"\0")[:4096]
    return sealed(page + data[4096:size]) + data[size:]


def refused(tmp_path: Path, data: bytes, match: str = "expected") -> None:
    path = tmp_path / "hostile.index"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=match):
        Index.open(path)


def test_round_trip(make: Make) -> None:
    rows = random_rows(100)
    path = make(rows)
    with Index.open(path) as index:
        assert index.layout == small_layout(100)
        assert (index.model_digest, index.item_ids_digest, index.item_norm) == (DIGEST, IDS, 2.0)
        assert index.generation == 1 and index.removed.size == 0
        assert index.largest_norm == pytest.approx(0.9)
        assert index.blocks.shape == (4, 2, 32, 1, 64) and index.blocks.dtype == np.uint32
        assert not index.blocks.flags.writeable
        assert index.size_bytes == path.stat().st_size == geometry.file_bytes(index.layout)
    assert geometry.data_offset(small_layout(100)) % 4096 == 0


def test_every_byte_is_covered(make: Make, tmp_path: Path) -> None:
    path = make(random_rows(40, 5))
    data = path.read_bytes()
    front = geometry.data_offset(small_layout(40, 5))
    rng = np.random.default_rng(0)
    # Each byte of preamble, header and tables; gaps and blocks by sample.
    tables = 4096 + 2 * 2 * 16 + 5
    places = [*range(700), *range(4096, tables), *rng.integers(700, 4096, 50), *rng.integers(tables, front, 50)]
    places += [front, len(data) - 1, *rng.integers(front, len(data), 100)]
    hostile = tmp_path / "changed.index"
    hostile.write_bytes(data)
    with hostile.open("r+b", buffering=0) as file:
        for place in places:
            file.seek(place)
            file.write(bytes([data[place] ^ (1 << rng.integers(8))]))
            with pytest.raises(ArtifactError):
                Index.open(hostile)
            file.seek(place)
            file.write(data[place : place + 1])
    Index.open(hostile).close()


def test_without_verification_the_front_is_still_checked(make: Make, tmp_path: Path) -> None:
    data = bytearray(make(random_rows(40)).read_bytes())
    data[-1] ^= 1
    (tmp_path / "a").write_bytes(data)
    with Index.open(tmp_path / "a", verify=False) as index, pytest.raises(ArtifactError, match="1 damaged blocks"):
        index.verify()
    data[5000] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged header"):
        Index.open(tmp_path / "a", verify=False)


@pytest.mark.parametrize("size", [0, 7, 39, 40, 4095, 4096, 8191, 8192, 30000])
def test_a_file_that_ends_early_is_refused(make: Make, tmp_path: Path, size: int) -> None:
    refused(tmp_path, make(random_rows(40)).read_bytes()[:size])


@pytest.mark.parametrize("more", [1, 4096, 16384])
def test_a_file_that_is_too_long_is_refused(make: Make, tmp_path: Path, more: int) -> None:
    refused(tmp_path, make(random_rows(40)).read_bytes() + bytes(more), "expected")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"items": 65}, "another shape"),
        ({"items": 0}, "items"),
        ({"items": -3}, "items"),
        ({"items": 10**30}, "items"),
        ({"items": 40.0}, "malformed header"),
        ({"items": True}, "malformed header"),
        ({"items": "40"}, "malformed header"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 10**9}, "dimensions"),
        ({"dimensions": 65}, "1 rotations, expected 2"),
        ({"blocks": 3}, "another shape"),
        ({"block_shape": [2, 8, 1, 255]}, "another shape"),
        ({"block_shape": [[[]]]}, "another shape"),
        ({"packing": 3}, "packing"),
        ({"packing": 0}, "packing"),
        ({"packing": -64}, "packing"),
        ({"packing": 32}, "expected"),
        ({"layout": "session"}, "expected"),
        ({"layout": "no such"}, "layout"),
        ({"parameters": "keyless"}, "expected"),
        ({"parameters": "weak"}, "parameter set"),
        ({"parameters_digest": "00" * 32}, "another version of parameter set"),
        ({"rotations": 2}, "2 rotations, expected 1"),
        ({"group_step": 1}, "rotations"),
        ({"transform_digest": "00" * 16}, "another order of coefficients"),
        ({"model_digest": "00" * 31}, "32 bytes"),
        ({"model_digest": "xx" * 32}, "malformed digest"),
        ({"item_ids_digest": ""}, "32 bytes"),
        ({"item_norm": 0.0}, "item norm"),
        ({"item_norm": -1.0}, "item norm"),
        ({"item_norm": 1e300}, "item norm"),
        ({"item_norm": 1}, "malformed header"),
        ({"item_norm": float("nan")}, "malformed header"),
        ({"item_norm": float("inf")}, "malformed header"),
        ({"largest_norm": 1.5}, "at most 1"),
        ({"largest_norm": -0.5}, "at most 1"),
        ({"generation": 0}, "generation"),
        ({"generation": 2**60}, "generation"),
        ({"generation": None}, "malformed header"),
        ({"more": 1}, "malformed header"),
    ],
)
def test_a_hostile_header_is_refused(make: Make, tmp_path: Path, fields: dict[str, Any], match: str) -> None:
    refused(tmp_path, with_header(make(random_rows(40)).read_bytes(), **fields), match)


def test_the_forger_of_these_tests_can_forge(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "forged.index"
    path.write_bytes(with_header(make(random_rows(40)).read_bytes(), generation=9))
    with Index.open(path) as index:
        assert index.generation == 9


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"{", b"[" * 3000, b"\xff\xfe", b'{"items":1,"items":2}', b"9" * 4000]
)
def test_a_header_that_is_no_object_is_refused(make: Make, tmp_path: Path, text: bytes) -> None:
    data = make(random_rows(40)).read_bytes()
    refused(tmp_path, with_text(data, text, struct.unpack_from("<I", data, 12)[0]), "header")


def test_a_header_that_is_not_canonical_is_refused(make: Make, tmp_path: Path) -> None:
    data = make(random_rows(40)).read_bytes()
    size, length = struct.unpack_from("<II", data, 12)
    text = data[JSON_AT : JSON_AT + length]
    for other in (text + b" ", text.replace(b":", b": ", 1), text.replace(b'"items"', b'"\\u0069tems"')):
        refused(tmp_path, with_text(data, other, size), "malformed header")


def test_bytes_in_gaps_are_refused(make: Make, tmp_path: Path) -> None:
    data = make(random_rows(40)).read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    for place in (4095, size - 1, 4096 + 64 + 5):
        changed = bytearray(data[:size])
        changed[place] = 1
        refused(tmp_path, sealed(bytes(changed)) + data[size:], "gaps")


def test_a_bit_beyond_the_last_item_is_refused(make: Make, tmp_path: Path) -> None:
    data = make(random_rows(39)).read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    changed = bytearray(data[:size])
    changed[4096 + 64 + 4] = 0x80
    refused(tmp_path, sealed(bytes(changed)) + data[size:], "gaps")


def test_residues_are_below_their_primes(make: Make, tmp_path: Path) -> None:
    # With fitting checksums: the kernel's sums would leave 63 bits.
    layout = small_layout(40)
    data = bytearray(make(random_rows(40)).read_bytes())
    start, size = geometry.data_offset(layout), geometry.block_bytes(layout)
    struct.pack_into("<I", data, start + size, layout.parameters.data_primes[0])
    check = files.block_check(np.frombuffer(bytes(data[start + size : start + 2 * size]), np.uint32))
    data[4096 + 16 : 4096 + 32] = check
    refused(tmp_path, sealed(bytes(data[:start])) + data[start:], "first is 1 of 2")


def test_blocks_in_another_order_are_refused(make: Make, tmp_path: Path) -> None:
    layout = small_layout(40)
    data = make(random_rows(40)).read_bytes()
    start, size = geometry.data_offset(layout), geometry.block_bytes(layout)
    refused(tmp_path, data[:start] + data[start + size :] + data[start : start + size], "2 damaged blocks")


@pytest.mark.parametrize("version", [0, files.VERSION - 1, files.VERSION + 1, 2**32 - 1])
def test_another_format_is_refused_by_name(make: Make, tmp_path: Path, version: int) -> None:
    data = make(random_rows(40)).read_bytes()
    refused(
        tmp_path,
        data[:8] + struct.pack("<I", version) + data[12:],
        f"format {version}, expected format {files.VERSION}",
    )


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no readable index"):
        Index.open(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="no file"):
        Index.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="no file"):
        Index.open(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="no readable index"):
        Index.open(10_000)


@given(data=st.data())
@SETTINGS
def test_no_bytes_do_more_than_be_refused(make: Make, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "items.index"
    if not path.exists():
        make(random_rows(40))
    good = path.read_bytes()
    size, length = struct.unpack_from("<II", good, 12)
    how = data.draw(st.sampled_from(["text", "fields", "preamble", "splice"]))
    if how == "text":
        made = with_text(good, data.draw(st.binary(max_size=4056)), size)
    elif how == "fields":
        names = st.sampled_from(sorted(json.loads(good[JSON_AT : JSON_AT + length])))
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        )
        made = with_header(good, **data.draw(st.dictionaries(names, values, min_size=1, max_size=3)))
    elif how == "preamble":
        numbers = [data.draw(st.integers(0, 2**32 - 1)) for _ in range(2)]
        made = sealed(good[:12] + struct.pack("<II", *numbers) + good[20:size]) + good[size:]
    else:
        place = data.draw(st.integers(0, len(good)))
        piece = data.draw(st.binary(min_size=1, max_size=64))
        made = good[:place] + piece + good[place + data.draw(st.integers(0, 64)) :]
    hostile = tmp_path / "hostile.index"
    hostile.write_bytes(made)
    try:
        with Index.open(hostile) as index:
            # Rarely, what was drawn is sound: the very file, or one that differs in a number that may be any.
            assert index.layout == small_layout(40)
    except ArtifactError:
        pass


def test_removed_items_are_listed(make: Make) -> None:
    path = make(random_rows(70))
    remove(path, [3, 69, 33])
    with Index.open(path) as index:
        assert index.removed.tolist() == [3, 33, 69]
