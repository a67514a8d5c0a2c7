"""The canary and a real server that folds histories in."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from he_inference import canary
from he_inference.canary_question import question
from he_inference.exchange import Offer
from he_inference.index.build import build
from he_inference.index.store import Index
from he_inference.layouts.catalogue import layout_of
from he_inference.service.journal import Journal
from he_inference.service.metrics import CanaryMetrics
from he_inference.service.published import open_model
from he_inference.service.server import ScoringServer, start
from tests.integration.scoring_site import ANNA, DIMENSIONS, ITEMS, SERVER, Site
from veil.errors import ArtifactError
from veil.identity.names import Identity, Role

pytestmark = pytest.mark.integration
SIGNERS = [Identity("trial", Role.PARTY, "alpha"), Identity("trial", Role.PARTY, "beta")]
HISTORY = {"parameters": "history", "layout": "history"}
FAST = {"parameters": "fast", "layout": "session"}


def one_round(site: Site, server: ScoringServer) -> tuple[bool, CanaryMetrics]:
    own = site.credentials(ANNA)
    metrics = CanaryMetrics()
    with ExitStack() as resources:
        asker = canary.Asker(server.address, own, SERVER)
        resources.callback(asker.close)
        plaintext = canary.Plaintext(site.published, own.authority_pem, SIGNERS)
        held = canary.one_round(asker, plaintext, metrics, Journal())
    return held, metrics


def test_a_history_offer_is_asked_compared_and_measured(site: Site, tmp_path: Path) -> None:
    with start(site.config(tmp_path, offers=("fast", "history"))) as server:
        held, metrics = one_round(site, server)
        margins = server.policy.metrics.registry.get_sample_value
        for limit in ("modulus", "bound"):
            margin = margins("veil_scoring_noise_margin_bits", {**HISTORY, "limit": limit})
            assert margin is not None and margin > 0
    value = metrics.registry.get_sample_value
    assert held and value("veil_canary_queries_total", {"code": "OK"}) == 2
    for offer in (FAST, HISTORY):
        assert value("veil_canary_last_top10_recall", offer) == 1.0
        worst, bound = (value(f"veil_canary_score_error_{name}", offer) for name in ("worst", "bound"))
        assert worst is not None and bound is not None and 0 < worst < bound


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_wrong_fold_in_part_is_noticed(site: Site, tmp_path: Path, scale: float) -> None:
    """Under the model's own digest, with items as they should be: only scores of histories show it. Small rows make
    short user vectors, whose answers say of themselves that they may be off by anything."""
    config = site.config(tmp_path, offers=("fast", "history"))
    start(config).stop(0.0)
    (fold_in,) = (tmp_path / "state" / "index").glob("*.fold-in.index")
    with Index.open(fold_in) as index:
        layout, norm, digests = index.layout, index.item_norm, (index.model_digest, index.item_ids_digest)
    rows = np.random.default_rng(3).normal(size=(layout.items, DIMENSIONS))
    rows *= scale / np.linalg.norm(rows, axis=1).max()
    build(fold_in, layout, rows, item_norm=norm, model_digest=digests[0], item_ids_digest=digests[1])
    with start(config) as server:
        held, metrics = one_round(site, server)
    assert not held
    value = metrics.registry.get_sample_value
    assert value("veil_canary_last_success_timestamp_seconds", HISTORY) in (None, 0)
    assert (value("veil_canary_last_success_timestamp_seconds", FAST) or 0) > 0


def test_plaintext_says_what_the_model_says_and_nothing_for_removed_items(site: Site) -> None:
    own = site.credentials(ANNA)
    plaintext = canary.Plaintext(site.published, own.authority_pem, SIGNERS)
    published = open_model(site.published, own.authority_pem, SIGNERS)
    published.close()
    offers = [
        Offer(layout_of(kind, name, ITEMS, DIMENSIONS, packing), 2.0, published.manifest_digest, removed)
        for kind, name, packing, removed in (("session", "fast", 0, (3, 4999)), ("history", "history", 3, ()))
    ]
    rows = site.model.item_factors.astype(np.float64)
    asked = question(offers[0])
    truth = rows @ asked.entries / 2.0
    truth[[3, 4999]] = 0.0
    np.testing.assert_allclose(plaintext.scores(offers[0], asked), truth, atol=1e-9)
    asked = question(offers[1])
    assert asked.history is not None
    truth = rows @ site.model.user_vector(asked.history) / 2.0
    np.testing.assert_allclose(plaintext.scores(offers[1], asked), truth, atol=1e-9)
    # Every item of this model has been learned from.
    np.testing.assert_array_equal(plaintext.learned(offers[1]), np.arange(ITEMS))
    with pytest.raises(ArtifactError, match="another model"):
        plaintext.scores(Offer(offers[0].layout, 2.0, bytes(32)), asked)
