"""The linear part: what rows need comes without weights, both halves only as signed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unit.he_inference.columns_site import ColumnsSite, linear_scores, tables_of
from tests.unit.trainers.columns.clicks import BANK, SHOP
from veil.errors import ArtifactError
from veil.identity.names import Identity, Role
from veil.trainers.columns.linear import load_linear, load_part


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> ColumnsSite:
    return ColumnsSite(tmp_path_factory.mktemp("linear"))


def test_rows_and_weights_multiply_to_the_linear_part(site: ColumnsSite, tmp_path: Path) -> None:
    made = site.publish(tmp_path / "model", kind="perceptron")
    part, weights = load_linear(tmp_path / "model", site.authority)
    tables = tables_of(made, tmp_path)
    rows = np.concatenate([part.rows(table) for table in tables], axis=1)
    np.testing.assert_allclose(part.intercept + rows @ weights, linear_scores(made, tables), rtol=1e-12)
    assert (part.model, part.units, part.schema) == ("perceptron", made.weights.shape[1] - 1, made.schema)
    assert np.linalg.norm(rows, axis=1).max() <= 1.0
    assert "offset" not in repr(part)


def test_the_holder_of_rows_needs_no_weights(site: ColumnsSite, tmp_path: Path) -> None:
    made = site.publish(tmp_path / "model")
    (tmp_path / "model" / "weights.safetensors").unlink()
    part = load_part(tmp_path / "model", site.authority, require_signers=[Identity("trial", Role.PARTY, BANK)])
    np.testing.assert_array_equal(part.scale, made.scale)
    with pytest.raises(ArtifactError, match=r"weights.safetensors"):
        load_linear(tmp_path / "model", site.authority)


def test_what_is_not_signed_as_it_is_does_not_load(site: ColumnsSite, tmp_path: Path) -> None:
    site.publish(tmp_path / "one", signers=(SHOP,))
    with pytest.raises(ArtifactError, match="signature"):
        load_part(tmp_path / "one", site.authority)
    for name in ("client.safetensors", "columns.json", "job.json"):
        site.publish(tmp_path / name)
        path = tmp_path / name / name
        path.write_bytes(path.read_bytes()[:-2] + b"12")
        with pytest.raises(ArtifactError, match="altered"):
            load_part(tmp_path / name, site.authority)
    site.publish(tmp_path / "kind")
    manifest = tmp_path / "kind" / "manifest.json"
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**text, "kind": "module"}, sort_keys=True, separators=(",", ":")))
    with pytest.raises(ArtifactError):
        load_part(tmp_path / "kind", site.authority)


def test_neither_server_nor_client_imports_torch_for_it() -> None:
    code = (
        "import sys, he_inference.service.server, he_inference.client, veil.trainers.columns.linear;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
