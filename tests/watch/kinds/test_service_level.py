"""Latencies and failures of a window, compared with an objective."""

from dataclasses import replace

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.inference_log.storage import FAILURES
from mlflow_deploy_plugin.watch.kinds.service_level import judge
from tests.support.refusals import mentions
from tests.watch.kinds.conftest import finding

P99 = {
    "kind": "service_level",
    "require": ["p99<=0.2", "error_rate<=1%"],
    "min_rows": 100,
}


def requests(rng, count=1_000, slow=0.002, **others):
    latencies = rng.integers(2_000, 50_000, count)
    latencies[: int(slow * count)] = 900_000
    return {
        "_latency_us": latencies,
        "_status": np.full(count, 200, np.int16),
        "x": np.arange(count),
        **others,
    }


@pytest.mark.parametrize(
    ("slow", "state"),
    [(0.002, "kept"), (0.007, "cannot tell"), (0.012, "cannot tell"), (0.03, "violated")],
)
def test_quantile_is_judged_by_slow_requests(endpoint, slow, state):
    endpoint.answer(requests(np.random.default_rng(0), slow=slow))

    judged = judge(endpoint.ask(**P99))

    quantile = finding(judged, "p99")
    assert judged.state == state
    assert quantile.state == state
    assert mentions(quantile.reason, f"{slow:.2%}", "1,000", "0.2 s")
    assert quantile.value == pytest.approx(0.9 if slow > 0.01 else 0.05, rel=0.05)
    assert quantile.threshold_text == "0.2 s"
    assert judged.figures["budget_left/p99"] == pytest.approx(1 - slow / 0.01)


def test_alarm_budget_raises_the_violation_limit(endpoint):
    endpoint.answer(requests(np.random.default_rng(0), slow=0.02))
    request = endpoint.ask(**P99)

    within = judge(replace(request, false_per_year=0.5))

    assert judge(request).state == "violated"
    assert judge(request).evidence.alarms == ("p99",)
    assert within.state == "cannot tell"
    assert within.evidence.alarms == ()


def test_error_rate_includes_failures(endpoint):
    endpoint.answer(requests(np.random.default_rng(0)))
    without = judge(endpoint.ask(**P99))
    statuses = np.array([500] * 60 + [400] * 40, np.int16)
    endpoint.answer({"_latency_us": np.full(100, 900_000), "_status": statuses}, folder=FAILURES)
    after = judge(endpoint.ask(**(P99 | {"segment_by": ["_variant", "x"]})))

    assert finding(without, "error_rate").state == "kept"
    assert finding(without, "error_rate").value == 0
    error_rate = finding(after, "error_rate")
    assert error_rate.state == "violated"
    assert error_rate.value == pytest.approx(60 / 1_100)
    assert finding(after, "p99").state == "kept"  # the quantile of answered requests
    assert after.figures["refused_rate"] == pytest.approx(40 / 1_100)
    assert after.figures["budget_left/error_rate"] == pytest.approx(1 - 60 / 11)
    assert finding(after, "error_rate", segment="_variant=champion").value == error_rate.value


@pytest.mark.parametrize(("flagged", "state"), [(10, "kept"), (200, "violated")])
def test_flagged_rows_are_judged(endpoint, flagged, state):
    spec = P99 | {"require": ["flagged<=5%"], "segment_by": ["_variant"]}
    columns = requests(np.random.default_rng(0), 100)
    endpoint.answer(columns)
    assert finding(judge(endpoint.ask(**spec)), "flagged").state == "not judged"

    guards = np.array(["hour"] * flagged + [""] * (1_000 - flagged), object)
    endpoint.answer(requests(np.random.default_rng(0), _guard=guards))

    judged = judge(endpoint.ask(**spec))
    for segment in ("", "_variant=champion"):
        assert finding(judged, "flagged", segment=segment).state == state


def test_quantiles_are_those_of_all_requests(endpoint):
    columns = requests(np.random.default_rng(3), count=5_000)
    endpoint.answer(columns)

    figures = judge(endpoint.ask(**P99)).figures

    for name, share in {"p50": 0.5, "p95": 0.95}.items():
        exact = np.quantile(columns["_latency_us"], share) / 1e6
        assert figures[name] == pytest.approx(exact, rel=0.01)


def test_segments_are_judged_separately(endpoint):
    columns = requests(np.random.default_rng(0), count=3_000, slow=0)
    columns["carrier"] = np.array(["UA", "AA", None] * 1_000, dtype=object)
    columns["_latency_us"][columns["carrier"] == "UA"] = 500_000
    endpoint.answer(columns)

    judged = judge(endpoint.ask(**(P99 | {"segment_by": ["carrier", "gate"]})))

    assert finding(judged, "p99", segment="carrier=UA").state == "violated"
    assert finding(judged, "p99", segment="carrier=AA").state == "kept"
    # Failures do not have the model's columns.
    assert finding(judged, "error_rate", segment="carrier=UA").state == "not judged"
    assert any(mentions(note, "segments", "'gate'") for note in judged.notes)


def test_few_requests_or_only_failures(endpoint):
    assert mentions(judge(endpoint.ask(**P99)).reason, "no rows")

    columns = {"_latency_us": np.full(50, 900), "_status": np.full(50, 500, np.int16)}
    endpoint.answer(columns, folder=FAILURES)
    assert mentions(judge(endpoint.ask(**P99)).reason, "50 requests", "min_rows is 100")

    judged = judge(endpoint.ask(**(P99 | {"min_rows": 10})))
    assert judged.state == "violated"
    assert finding(judged, "error_rate").state == "violated"
    assert mentions(finding(judged, "p99").reason, "no answered request")
