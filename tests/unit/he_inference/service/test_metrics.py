"""Metrics: what Prometheus reads, and that it can tell no clients apart."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.keyless import KeylessLayout
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import EXACT, FAST, HISTORY, KEYLESS, PQ
from he_inference.service.metrics import OUTCOMES, STAGES, CanaryMetrics, Metrics, outcome_of
from veil.errors import BudgetError, ConfigError, LimitError, PeerLost, QueryBudgetError


def read(address: str) -> dict[str, float]:
    """Every sample that the endpoint gives, by name and labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_everything_that_happens_is_read_back_over_http() -> None:
    metrics = Metrics()
    with metrics.serve("127.0.0.1:0") as endpoint:
        metrics.stage_took("queue", 0.002)
        with metrics.stage("compute"):
            pass
        with pytest.raises(ZeroDivisionError), metrics.stage("compute"):
            raise ZeroDivisionError
        metrics.queue_is(7)
        for queries in (1, 3, 32):
            metrics.batch_was(queries)
        for hit in (True, True, False):
            metrics.keys_found(hit)
        metrics.answered(items=4096, response_bytes=32768, query_bytes=30000)
        metrics.outcome("OK")
        metrics.outcome(outcome_of(QueryBudgetError("spent")))
        metrics.looked_up("OK")
        metrics.looked_up(outcome_of(LimitError("too fast")))
        metrics.worker_restarted()
        metrics.offers(
            [SessionLayout(FAST, 4096, 128), KeylessLayout(KEYLESS, 4096, 64, 8), HistoryLayout(HISTORY, 3706, 128)]
        )
        found = read(endpoint.address)
    assert found["veil_scoring_stage_seconds_count{stage=queue}"] == 1
    assert found["veil_scoring_stage_seconds_sum{stage=queue}"] == pytest.approx(0.002)
    assert found["veil_scoring_stage_seconds_bucket{le=0.001,stage=queue}"] == 0
    assert found["veil_scoring_stage_seconds_bucket{le=0.002,stage=queue}"] == 1
    assert found["veil_scoring_stage_seconds_count{stage=compute}"] == 2
    assert found["veil_scoring_queue_length{}"] == 7
    assert found["veil_scoring_batch_queries_sum{}"] == 36
    assert found["veil_scoring_key_cache_lookups_total{found=hit}"] == 2
    assert found["veil_scoring_key_cache_lookups_total{found=miss}"] == 1
    assert found["veil_scoring_bytes_per_score_sum{}"] == 8
    assert found["veil_scoring_query_bytes_total{}"] == 30000
    assert found["veil_scoring_response_bytes_total{}"] == 32768
    assert found["veil_scoring_queries_total{code=OK}"] == 1
    assert found["veil_scoring_queries_total{code=QUERY_BUDGET}"] == 1
    assert found["veil_scoring_lookups_total{code=OK}"] == found["veil_scoring_lookups_total{code=LIMIT}"] == 1
    assert found["veil_scoring_lookups_total{code=INTERNAL}"] == 0
    assert found["veil_scoring_worker_restarts_total{}"] == 1
    assert found["veil_scoring_noise_margin_bits{layout=session,limit=modulus,parameters=fast}"] > 0
    assert found["veil_scoring_noise_margin_bits{layout=keyless,limit=bound,parameters=keyless}"] > 0
    for limit in ("modulus", "bound"):
        assert found[f"veil_scoring_noise_margin_bits{{layout=history,limit={limit},parameters=history}}"] > 0


def test_the_number_of_series_does_not_grow_with_what_callers_do() -> None:
    metrics = Metrics()
    with metrics.serve("127.0.0.1:0") as endpoint:
        before = set(read(endpoint.address))
        for number in range(300):
            metrics.outcome(f"client-{number}")
            metrics.looked_up(f"client-{number}")
            metrics.outcome(OUTCOMES[number % len(OUTCOMES)])
            metrics.stage_took(STAGES[number % 4], number)
            metrics.answered(number, number, number)
            metrics.keys_found(bool(number % 2))
        after = read(endpoint.address)
    assert set(after) == before
    assert after["veil_scoring_queries_total{code=OTHER}"] >= 300
    assert not any("client" in name for name in after)


def test_margins_of_a_former_model_go_when_another_is_served() -> None:
    metrics = Metrics()
    with metrics.serve("127.0.0.1:0") as endpoint:
        metrics.offers([SessionLayout(FAST, 4096, 128)])
        metrics.offers([SessionLayout(PQ, 4096, 128), SessionLayout(EXACT, 4096, 128)])
        named = {name for name in read(endpoint.address) if name.startswith("veil_scoring_noise")}
    assert len(named) == 4 and not any("parameters=fast" in name for name in named)


def test_an_unknown_stage_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ConfigError, match="expected one of queue"):
        Metrics().stage_took("think", 1.0)


def test_two_servers_in_one_process_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    first.outcome("OK")
    with first.serve("127.0.0.1:0") as one, second.serve("127.0.0.1:0") as two:
        assert read(one.address)["veil_scoring_queries_total{code=OK}"] == 1
        assert read(two.address)["veil_scoring_queries_total{code=OK}"] == 0
        with pytest.raises(ConfigError, match="no listening socket for metrics"):
            Metrics().serve(one.address)
    with pytest.raises(urllib.error.URLError):
        read(one.address)


def test_an_outcome_is_the_code_of_the_error() -> None:
    class Near(PeerLost):
        code = "NEAR"

    assert outcome_of(None) == "OK"
    assert outcome_of(LimitError("x")) == "LIMIT" and outcome_of(BudgetError("x")) == "BUDGET"
    assert outcome_of(Near("x")) == "OTHER"
    assert outcome_of(ValueError("x")) == "INTERNAL"
    assert outcome_of(GeneratorExit()) == "CANCELLED"


def test_canary_metrics() -> None:
    metrics = CanaryMetrics()
    fast, keyless = SessionLayout(FAST, 4096, 64), KeylessLayout(KEYLESS, 4096, 64, 8)
    with metrics.serve("127.0.0.1:0") as endpoint:
        metrics.measured(fast, error=1e-5, bound=8e-5, recall=1.0, seconds=0.02, held=True)
        good = read(endpoint.address)
        metrics.measured(fast, error=5e-4, bound=8e-5, recall=0.9, seconds=0.02, held=False)
        metrics.measured(keyless, error=1e-6, bound=2e-6, recall=1.0, seconds=0.02, held=True)
        metrics.outcome("PEER_LOST")
        bad = read(endpoint.address)
        metrics.measured(fast, error=float("nan"), bound=8e-5, recall=0.0, seconds=0.02, held=False)
        worst = read(endpoint.address)
    one, other = "layout=session,parameters=fast", "layout=keyless,parameters=keyless"
    success = "veil_canary_last_success_timestamp_seconds"
    assert good[f"veil_canary_noise_margin_bits{{{one}}}"] == pytest.approx(3.0)
    # one offer that fails is not hidden by another that does not
    assert good[f"{success}{{{one}}}"] == bad[f"{success}{{{one}}}"] > 1.6e9
    assert bad[f"{success}{{{other}}}"] >= good[f"{success}{{{one}}}"]
    assert bad[f"veil_canary_score_error_worst{{{one}}}"] == 5e-4
    assert bad[f"veil_canary_noise_margin_bits{{{one}}}"] < 0 < bad[f"veil_canary_noise_margin_bits{{{other}}}"]
    assert bad[f"veil_canary_last_top10_recall{{{one}}}"] == 0.9
    assert bad[f"veil_canary_top10_recall_count{{{one}}}"] == 2
    assert bad["veil_canary_queries_total{code=PEER_LOST}"] == 1
    # no number is not a good number
    assert worst[f"veil_canary_noise_margin_bits{{{one}}}"] == float("-inf")
