"""`veil index` on models on columns: one item each, signatures always checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.index import app
from he_inference.index.linear_models import read_linear
from he_inference.index.published_items import read_items
from he_inference.index.store import Index
from tests.unit.he_inference.columns_site import ColumnsSite
from veil.errors import ArtifactError, ConfigError


def run(*arguments: object) -> str:
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def test_models_become_items_of_one_index_and_another_one_is_added(tmp_path: Path) -> None:
    site = ColumnsSite(tmp_path)
    models, file = tmp_path / "models", tmp_path / "items.index"
    for number, name in enumerate(("books", "shoes")):
        site.publish(models / name, seed=number)
    options = ("--params", "keyless-small", "--out", file)
    with pytest.raises(ConfigError, match="without the authority"):
        run("build", "--model", models, *options)
    certificate = ("--authority", site.authority_file)
    assert "2 items of 9 dimensions" in run("build", "--model", models, *options, *certificate)
    with Index.open(file) as index:
        assert index.model_digest == read_linear(models, site.authority).collection.digest
        norms = np.linalg.norm(read_items(models, site.authority).factors, axis=1)
        assert index.item_norm == pytest.approx(norms.max(), rel=1e-6)
    site.publish(models / "hats", seed=0)
    assert "3 items of 9 dimensions" in run("update", file, "--model", models, *certificate)

    site.publish(models / "trips", kind="perceptron")
    with pytest.raises(ConfigError, match="more than linear"):
        run("update", file, "--model", models, *certificate)
    shown = run("build", "--model", models, *options, *certificate, "--linear-part")
    assert "4 items of 9 dimensions" in shown
    site.publish(models / "unsigned", signers=())
    with pytest.raises(ArtifactError, match="signature"):
        run("build", "--model", models, *options, *certificate, "--linear-part")
