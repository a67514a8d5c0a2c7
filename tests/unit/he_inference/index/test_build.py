"""Building: what is in the file, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from he_inference import parameters
from he_inference.engine.compute import Compute
from he_inference.index.build import (
    RebuildRequired,
    ScaledRows,
    build,
    item_ids_digest,
    norm_of,
    scale_items,
    scaled_by,
)
from he_inference.index.rows import rows_path
from he_inference.index.store import Index
from he_inference.layouts.session import SessionLayout
from he_inference.scheme import SecretKey
from veil.errors import ArtifactError, ConfigError, InputError

from .conftest import DIGEST, IDS, Make, random_rows, small_layout


def test_rows_are_divided_by_the_longest() -> None:
    factors = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    scaled = scale_items(factors)
    assert scaled.norm == 5.0
    np.testing.assert_array_equal(scaled.rows, factors.astype(np.float64) / 5.0)
    roomy = scale_items(factors, headroom=2.0)
    assert roomy.norm == 10.0 and np.linalg.norm(roomy.rows, axis=1).max() == 0.5
    assert scale_items(np.zeros((2, 3))).norm == 1.0
    assert norm_of(np.ones((200_000, 1), np.float32)) == 1.0
    np.testing.assert_array_equal(ScaledRows(factors, 5.0)[0:2], scaled.rows)


@pytest.mark.parametrize("factors", [np.array([[np.nan]]), np.array([[np.inf]]), np.zeros(3), np.zeros((1, 2, 3))])
def test_numbers_that_are_not_finite_or_no_matrix_are_refused(factors: np.ndarray) -> None:
    with pytest.raises(ConfigError):
        scale_items(factors)


def test_vectors_longer_than_the_norm_say_to_rebuild() -> None:
    assert scaled_by([3.0, 4.0], 5.0).tolist() == [0.6, 0.8]
    with pytest.raises(RebuildRequired, match=r"norm 5, expected at most its item norm 4.9.*build the index again"):
        scaled_by([[0.0, 0.0], [3.0, 4.0]], 4.9)
    with pytest.raises(ConfigError, match="finite"):
        scaled_by([np.nan], 1.0)


def test_headroom_is_between_1_and_100() -> None:
    for headroom in (0.99, 101.0, float("nan")):
        with pytest.raises(ConfigError, match="headroom"):
            scale_items(np.ones((1, 1)), headroom)


def test_ids_have_one_digest_each_way_of_cutting_them() -> None:
    assert item_ids_digest(["a", "bc"]) != item_ids_digest(["ab", "c"])
    assert item_ids_digest(iter(["a"])) == item_ids_digest(("a",)) and len(item_ids_digest([])) == 32


def test_a_file_is_the_same_from_all_sources(make: Make, tmp_path: Path) -> None:
    rows = random_rows(100).astype(np.float32).astype(np.float64)
    one, other = make(rows, name="a"), tmp_path / "b"
    build(
        other, small_layout(100), ScaledRows(rows * 4.0, 4.0), item_norm=2.0, model_digest=DIGEST, item_ids_digest=IDS
    )
    assert one.read_bytes() == other.read_bytes()
    assert rows_path(one).read_bytes() == rows_path(other).read_bytes()


def test_progress_counts_blocks(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build(
        tmp_path / "a",
        small_layout(100),
        random_rows(100),
        item_norm=1.0,
        model_digest=DIGEST,
        item_ids_digest=IDS,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_rows_that_do_not_fit_leave_the_old_file(make: Make) -> None:
    path = make(random_rows(40))
    before, names = path.read_bytes(), sorted(entry.name for entry in path.parent.iterdir())
    long, bad = random_rows(40), random_rows(40)
    long[39] *= 1.2
    bad[20, 3] = np.nan
    for rows, layout, error in (
        (long, small_layout(40), RebuildRequired),
        (bad, small_layout(40), ConfigError),
        (random_rows(40), small_layout(41), ConfigError),
        (random_rows(40), small_layout(40, 8), ConfigError),
        (random_rows(40)[0], small_layout(40), ConfigError),
    ):
        with pytest.raises(error):
            build(path, layout, rows, item_norm=1.0, model_digest=DIGEST, item_ids_digest=IDS)
    with pytest.raises(ArtifactError, match="32 bytes"):
        build(path, small_layout(40), random_rows(40), item_norm=1.0, model_digest=b"", item_ids_digest=IDS)
    with pytest.raises(InputError, match="item number"):
        build(
            path,
            small_layout(40),
            random_rows(40),
            item_norm=1.0,
            model_digest=DIGEST,
            item_ids_digest=IDS,
            removed=[40],
        )
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == names


def test_generations_rise_and_a_damaged_file_is_replaced(make: Make) -> None:
    path = make(random_rows(40))
    make(random_rows(50))
    with Index.open(path) as index:
        assert index.generation == 2 and index.layout.items == 50
    path.write_bytes(b"garbage")
    make(random_rows(40))
    with Index.open(path) as index:
        assert index.generation == 1


def test_without_rows_there_is_one_file(make: Make) -> None:
    path = make(random_rows(40))
    assert rows_path(path).exists()
    make(random_rows(40), keep_rows=False)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".items.index.lock", "items.index"]


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from he_inference import parameters
from he_inference.index.build import build
from he_inference.layouts.keyless import KeylessLayout
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
layout = KeylessLayout(parameters.KEYLESS_SMALL, 400, 7, packing=64)
try:
    digests = {"model_digest": bytes(32), "item_ids_digest": bytes(32)}
    build(Path(sys.argv[1]), layout, np.zeros((400, 7)), item_norm=1.0, **digests)
except OSError as error:
    sys.exit(f"refused: {error.strerror}")
"""


@pytest.mark.parametrize("limit_bytes", [1000, 100_000, 220_000])
def test_a_file_that_does_not_fit_leaves_the_old_one(make: Make, limit_bytes: int) -> None:
    # A limit of file size is what a test can have; a full disk fails in the same calls.
    path = make(random_rows(40))
    names = sorted(entry.name for entry in path.parent.iterdir())
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, str(path), str(limit_bytes)], capture_output=True, timeout=120)
    assert done.returncode == 1 and b"refused: File too large" in done.stderr, done.stderr
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == names


def test_encrypted_scores_of_an_index_are_those_of_its_rows(tmp_path: Path) -> None:
    layout = SessionLayout(parameters.FAST, 5000, 8)
    factors = np.random.default_rng(5).standard_normal((5000, 8))
    scaled = scale_items(factors)
    build(
        tmp_path / "a",
        layout,
        scaled.rows,
        item_norm=scaled.norm,
        model_digest=DIGEST,
        item_ids_digest=IDS,
        removed=[17, 4999],
    )
    vector = np.random.default_rng(6).standard_normal(8)
    vector /= np.linalg.norm(vector)
    secret, compute = SecretKey(layout.parameters), Compute(layout)
    with Index.open(tmp_path / "a") as index:
        query = compute.read_query(secret.encrypt(layout.query_polynomials(vector)))
        keys = compute.read_keys(secret.evaluation_keys(layout.galois_elements))
        results = [block for part in compute.score(index.blocks, [query], [keys]) for block in part[0]]
    scores = layout.scores(*secret.decrypt(results, layout.coefficient_places())) * scaled.norm
    wanted = factors @ vector
    wanted[[17, 4999]] = 0.0
    assert np.abs(scores - wanted).max() < layout.parameters.score_error * scaled.norm
