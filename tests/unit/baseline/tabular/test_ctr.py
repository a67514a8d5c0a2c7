from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from baseline.tabular.ctr import CtrOptions, DatasetName, ctr_schema, load_frames
from baseline.tabular.material import encode, read_tables, statistics_of
from baseline.tabular.table import Bench
from veil.errors import ConfigError, InputError
from veil.privacy.mechanism import within
from veil.tabular.schema import TabularSchema

Shared = Callable[[str], Path]
ROWS = {"criteo": (7200, 409, 391), "avazu": (8087, 480, 432)}


@pytest.mark.parametrize("name", ["criteo", "avazu"])
@pytest.mark.parametrize("parties", [2, 3])
def test_columns_are_split_without_overlap(name: DatasetName, parties: int) -> None:
    schema = ctr_schema(name, parties)
    held = [column.name for party in schema.parties for column in party.columns]
    assert len(held) == len(set(held)) == {"criteo": 39, "avazu": 20}[name]
    assert not {"click", "label", "id", "hour", "device_ip"} & set(held)
    assert sorted(held) == sorted(c.name for party in ctr_schema(name, 5 - parties).parties for c in party.columns)
    assert len(schema.parties) == parties
    assert TabularSchema.model_validate_json(schema.model_dump_json()) == schema
    assert len(schema.model_dump_json()) < 8192  # of the 256 KiB of a job text
    with pytest.raises(ConfigError):
        ctr_schema(name, 4)


@pytest.mark.data
@pytest.mark.parametrize("name", ["criteo", "avazu"])
def test_samples_are_the_sources_own_splits(name: DatasetName, shared_data: Shared) -> None:
    frames = load_frames(name, shared_data("ctr-samples"))
    assert tuple(len(frame) for frame in frames.values()) == ROWS[name]
    users = [user for frame in frames.values() for user in frame["user"].to_list()]
    assert len(users) == len(set(users))
    clicks = [float((frame["click"] == "1").mean() or 0.0) for frame in frames.values()]
    assert all(0.15 < rate < 0.25 for rate in clicks)


@pytest.mark.data
def test_encoded_rows_are_within_the_norm(shared_data: Shared) -> None:
    schema = ctr_schema("avazu", 3, CtrOptions(buckets=4))
    tables = read_tables("avazu", shared_data("ctr-samples"), schema)
    encoded = encode(tables, statistics_of(tables, None, None, fill=1.0, least_users=0.0))
    for rows in encoded.rows.values():
        assert within(rows, schema.row_bound).all()
    features = encoded.features("train")
    assert features.shape == (8087, schema.width)
    assert np.abs(features.mean(axis=0)).max() < 0.05
    assert 0.7 < np.linalg.norm(features, axis=1).mean() <= 1.0
    assert encoded.rate == pytest.approx(1397 / 8087, abs=1e-3)
    assert encoded.users == pytest.approx(8087, abs=1)


@pytest.mark.data
def test_noise_costs_little_and_its_absence_nothing(shared_data: Shared) -> None:
    bench = Bench("criteo", shared_data("ctr-samples"), 2, CtrOptions(buckets=8))
    exact = bench.linear(None)
    noised = bench.linear(8.0, seeds=2)
    assert exact.dev_auc > 0.67 and exact.test_auc_sd == 0.0
    assert 0 < noised.dev_auc_sd < 0.05
    assert abs(noised.dev_auc - exact.dev_auc) < 0.03
    assert noised.test_log_loss < 0.55  # that of the base rate alone is 0.527, of a coin 0.693
    # the same seeds give the same noise
    assert bench.linear(8.0, seeds=2) == noised


def test_refuses_an_absent_sample(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="criteo_train"):
        load_frames("criteo", tmp_path)
