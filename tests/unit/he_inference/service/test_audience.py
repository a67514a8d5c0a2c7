"""Audiences: what a client of one can find out about hidden items, with the real kernel, is nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from he_inference.engine.compute import Compute
from he_inference.index.build import scale_items
from he_inference.layouts.catalogue import layout_of
from he_inference.layouts.seam import Layout
from he_inference.scheme import SecretKey
from he_inference.service.access import Client
from he_inference.service.audience import (
    Audience,
    audience_of,
    check_audiences,
    checked_hidden,
    read_hidden,
    refuse_files,
    visible_rows,
)
from veil import settings
from veil.errors import ConfigError, PolicyError

HIDDEN = [0, 5, 6, 7, 2000, 2999]


def audience(name: str = "partners", **changed: object) -> Audience:
    usual: dict[str, object] = {
        "name": name,
        "index": f"{name}.index",
        "hidden": f"{name}.txt",
        "clients": [f"token/{name}"],
    }
    return Audience.model_validate(usual | changed)


def rows_of(items: int, dimensions: int) -> np.ndarray:
    return np.random.default_rng(11).normal(size=(items, dimensions))


def answers(layout: Layout, rows: np.ndarray, asked: list[np.ndarray]) -> tuple[list[list[bytes]], np.ndarray]:
    """Results as they travel and decrypted scores, query by query."""
    compute, secret = Compute(layout), SecretKey(layout.parameters)
    size = layout.block_items
    index = np.stack(
        [
            compute.encode(layout.item_polynomials(rows[block * size : (block + 1) * size], block))
            for block in range(layout.blocks)
        ]
    )
    elements = layout.galois_elements
    keys = compute.read_keys(secret.evaluation_keys(elements)) if elements else np.empty((0,), np.uint32)
    travelled, scores = [], []
    for vector in asked:
        query = compute.read_query(secret.encrypt(layout.query_polynomials(vector)))
        results = [result for part in compute.score(index, [query], [keys]) for result in part[0]]
        numbers, bits = secret.decrypt(results, layout.coefficient_places())
        travelled.append(results)
        scores.append(layout.scores(numbers, bits))
    return travelled, np.array(scores)


@pytest.mark.parametrize(("kind", "parameters", "packing"), [("keyless", "keyless-small", 4), ("session", "fast", 0)])
def test_d_queries_recover_the_visible_items_and_nothing_of_hidden_ones(
    kind: str, parameters: str, packing: int
) -> None:
    """The extraction attack in full, with no budget: every unit vector is asked."""
    items, dimensions = 3000, 8
    layout = layout_of(kind, parameters, items, dimensions, packing)
    original = rows_of(items, dimensions)
    scaled = scale_items(visible_rows(original, HIDDEN))
    travelled, scores = answers(layout, scaled.rows, list(np.eye(dimensions)))
    recovered = scores.T * scaled.norm
    visible = np.setdiff1d(np.arange(items), HIDDEN)
    bound = layout.parameters.score_error * scaled.norm
    assert np.max(np.abs(recovered[visible] - original[visible])) < bound
    assert np.max(np.abs(recovered[HIDDEN])) < bound
    # what is left of them points nowhere in particular
    hidden, left = original[HIDDEN], recovered[HIDDEN]
    cosines = np.sum(hidden * left, 1) / (np.linalg.norm(hidden, axis=1) * np.linalg.norm(left, axis=1))
    assert np.abs(np.mean(cosines)) < 0.75
    # shape: the same for every query, and the same as everybody's
    everybody, _ = answers(layout, scale_items(original).rows, [np.eye(dimensions)[0]])
    assert {tuple(map(len, results)) for results in travelled} == {tuple(map(len, everybody[0]))}


def test_the_scale_does_not_tell_of_hidden_rows() -> None:
    rows = rows_of(100, 4)
    rows[17] *= 50
    shown = scale_items(visible_rows(rows, [17]))
    assert shown.norm == scale_items(np.delete(rows, 17, axis=0)).norm
    assert not shown.rows[17].any() and rows[17].any()


def test_every_client_has_one_audience_at_most() -> None:
    partners, guests = audience("partners", clients=["token/a", "certificate/b"]), audience("guests")
    both = (partners, guests)
    check_audiences(both)
    assert audience_of(both, Client("token/a")) is partners
    assert audience_of(both, Client("certificate/b")) is partners
    assert audience_of(both, Client("token/guests")) is guests
    # a token is not the certificate of the same name
    assert audience_of(both, Client("certificate/a")) is None
    for other in (
        audience("guests", clients=["certificate/b"]),
        audience("guests", index="partners.index"),
        audience("partners", index="x", clients=["token/x"]),
    ):
        with pytest.raises(ConfigError, match="more than one place"):
            check_audiences((partners, other))


def test_files_of_the_model_are_for_those_who_see_all() -> None:
    refuse_files(None)
    with pytest.raises(PolicyError, match="some of the items only"):
        refuse_files(audience())


def test_lists_of_hidden_items_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "hidden.txt"
    path.write_text("7\n3\n 7\n\n0\n")
    assert read_hidden(path, 8).tolist() == [0, 3, 7]
    path.write_text("")
    assert read_hidden(path, 8).tolist() == []
    for wrong in ("8", "-1", "1.5", "x", "1,2", "9" * 30, "\u0661"):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"hidden|expected"):
            read_hidden(path, 8)
    with pytest.raises(ConfigError, match="no readable list"):
        read_hidden(tmp_path / "absent.txt", 8)
    with pytest.raises(ConfigError, match="all 4 items"):
        checked_hidden([0, 1, 2, 3], 4)


@pytest.mark.parametrize(
    "wrong",
    [{"name": "A"}, {"clients": []}, {"clients": ["partners"]}, {"clients": ["operator/x"]}, {"visible": [1]}],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    usual: dict[str, object] = {"name": "a", "index": "i", "hidden": "h", "clients": ["token/a"]}
    with pytest.raises(ConfigError):
        settings.check(usual | wrong, Audience, source="test", explained_in="x")
