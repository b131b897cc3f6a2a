"""The page and the statistics sum up the workers that share a folder."""

import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.core.statedir.metric_files import (
    Metric,
    prometheus_text,
    read_families,
    read_series,
)
from mlflow_deploy_plugin.serve.observability import metrics as server_metrics
from mlflow_deploy_plugin.serve.observability.metrics import MAX_PREDICTIONS, Metrics, Statistics
from mlflow_deploy_plugin.serve.runtime.agreement import Agreement

REQUEST = ("e", "v", "m", "7", "v2", "200")
GUIDE = Path(__file__).parents[3] / "docs" / "observe.md"


def test_every_metric_stands_in_the_guide():
    declared = {
        metric.name for metric in vars(server_metrics).values() if isinstance(metric, Metric)
    }
    documented = set(re.findall(r"`((?:onnxserve|ml)_\w+?)(?:_total)?`", GUIDE.read_text()))
    families = tuple(re.findall(r"`(onnxserve_\w+_)…`", GUIDE.read_text()))
    assert {name for name in declared - documented if not name.startswith(families)} == set()


@pytest.fixture
def workers(tmp_path):
    """Return two workers' metrics in one folder."""
    return Metrics(tmp_path), Metrics(tmp_path)


def samples(metrics, name):
    """Return the page's samples with this name, by the text of their labels."""
    matches = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", metrics.page().decode(), re.MULTILINE)
    return {labels: float(value) for labels, value in matches}


def test_requests_of_all_workers_are_summed_by_their_labels(workers):
    for metrics in workers:
        metrics.count_request(REQUEST, 0.003)
        metrics.count_request((*REQUEST[:5], "400"), 0.2)
    labels = 'endpoint="e",model="m",protocol="v2",status="{}",variant="v",version="7"'
    counted = samples(workers[0], "onnxserve_requests_total")
    assert counted == {labels.format(200): 2, labels.format(400): 2}
    buckets = samples(workers[1], "onnxserve_request_duration_seconds_bucket")
    labels = 'endpoint="e",model="m",protocol="v2",variant="v",version="7",le="{}"'
    assert [
        buckets[labels.format(bound)] for bound in ("0.0025", "0.005", "0.1", "0.25", "+Inf")
    ] == [0, 2, 2, 4, 4]
    assert samples(workers[0], "ml_prediction_latency_seconds_count") == {'model_version="7"': 2}
    assert samples(workers[0], "ml_prediction_latency_seconds_sum")[
        'model_version="7"'
    ] == pytest.approx(0.006)


def test_a_bound_belongs_to_its_bucket(workers):
    workers[0].count_batch(("e", "v", "m", "7"), 8, 0.0, 0.001)
    buckets = samples(workers[0], "onnxserve_batch_rows_bucket")
    assert buckets['endpoint="e",model="m",version="7",le="4.0"'] == 0
    assert buckets['endpoint="e",model="m",version="7",le="8.0"'] == 1


def test_the_statistics_sum_up_all_workers_and_protocols(workers):
    for metrics, protocol in zip(workers, ("v2", "invocations"), strict=True):
        metrics.count_request(("e", "v", "m", "7", protocol, "200"), 0.5)
        metrics.count_request(("e", "v", "m", "7", protocol, "404"), 0.25)
        metrics.count_batch(("e", "v", "m", "7"), 3, 0.125, 0.25)
    workers[0].count_request(("", "", "", "", "v2", "404"), 1.0)
    statistics = workers[1].statistics()
    assert all(0 <= time.time() - counted.last_request < 60 for counted in statistics.values())
    assert {
        labels: replace(counted, last_request=0.0) for labels, counted in statistics.items()
    } == {
        ("e", "m", "7"): Statistics(4, 2, 1.5, 6, 2, 0.25, 0.5),
        ("", "", ""): Statistics(1, 1, 1.0),
    }


def test_predictions_are_counted_by_row_and_bounded(workers):
    for number in range(MAX_PREDICTIONS + 5):
        workers[0].count_prediction("7", f"label {number}", 2)
    workers[0].count_prediction("7", "label 0")
    workers[0].count_prediction("8", True)
    workers[0].count_prediction("8", 1, 3)
    counted = samples(workers[0], "ml_predictions_total")
    assert len(counted) == MAX_PREDICTIONS + 1 + 3
    assert counted['model_version="7",prediction="label 0"'] == 3
    assert counted['model_version="7",prediction="other"'] == 10
    assert counted['model_version="8",prediction="True"'] == 1
    assert counted['model_version="8",prediction="1"'] == 3


def test_refused_and_captured_requests_are_counted(workers):
    workers[0].count_refused("rate")
    workers[1].count_refused("rate")
    workers[1].count_capture("e", (5, 3, False))
    workers[0].count_capture("e", (4, 4, True))
    workers[0].count_capture("e", (2, 0, None))
    workers[0].count_shadow_capture(True)
    assert samples(workers[0], "onnxserve_refused_requests_total") == {
        'endpoint="",reason="rate"': 2
    }
    assert samples(workers[0], "onnxserve_capture_requests_total") == {
        'outcome="captured"': 2,
        'outcome="dropped"': 1,
    }
    assert samples(workers[0], "onnxserve_capture_rows_total") == {
        'endpoint="e",outcome="answered"': 11,
        'endpoint="e",outcome="captured"': 4,
        'endpoint="e",outcome="dropped"': 3,
    }


def test_a_dead_workers_counts_remain(workers, tmp_path):
    workers[0].count_request(REQUEST, 0.1)
    (gauges,) = tmp_path.glob("gauges_*.db")  # Both workers are in this process.
    gauges.unlink()
    assert sum(samples(workers[1], "onnxserve_requests_total").values()) == 1


def test_a_worker_goes_on_with_the_files_of_one_that_has_died(workers, tmp_path):
    for metrics in workers:
        metrics.count_refused("rate")
    files = {path.name for path in tmp_path.glob("*.db")}
    script = f"from pathlib import Path; from {Metrics.__module__} import Metrics; "
    script += f"Metrics(Path({str(tmp_path)!r})).count_refused('rate')"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert samples(workers[0], "onnxserve_refused_requests_total") == {
        'endpoint="",reason="rate"': 4
    }
    added = {path.name for path in tmp_path.glob("*.db")} - files
    assert [name for name in added if not name.startswith("gauges")] == ["counts_2.db"]


def test_the_page_can_be_read_and_names_no_process(workers):
    for metrics in workers:
        metrics.count_request(REQUEST, 0.1)
        metrics.count_batch(("e", "v", "m", "7"), 3, 0.125, 0.25)
    families = {
        family.name: family for family in text_string_to_metric_families(workers[0].page().decode())
    }
    assert "unknown" not in {family.type for family in families.values()}
    all_samples = chain.from_iterable(family.samples for family in families.values())
    assert not any("pid" in sample.labels for sample in all_samples)
    assert families["onnxserve_last_request_timestamp_seconds"].type == "gauge"
    assert [sample.value for sample in families["onnxserve_unrecorded"].samples] == [0]


def test_threads_lose_no_count(workers):
    def count():
        for number in range(2000):
            workers[0].count_request((*REQUEST[:5], str(200 + number % 5)), 0.001)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(samples(workers[0], "onnxserve_requests_total").values()) == 8000


SHADOW = ("e", "new", "m", "2")


def test_shadows_are_counted_while_the_file_of_the_counters_grows(tmp_path):
    metrics = Metrics(tmp_path)
    for number in range(200):
        metrics.count_shadow(("e", str(number), "m", "2"), "failed")
    failed = [
        sample
        for sample in read_series(tmp_path)["onnxserve_shadow_requests"]
        if sample.labels["outcome"] == "failed"
    ]
    assert [sample.value for sample in failed] == [1.0] * 200


def test_the_shadows_of_workers_are_added_up(tmp_path, workers):
    agreement = Agreement(
        differences=np.array([0.0, 0.02, np.inf]),
        excess=np.array([0.0, 2.0, 0.0]),
        are_numbers=True,
    )
    for metrics in workers:
        metrics.count_shadow_comparison(SHADOW, agreement, 0.003)
        metrics.count_shadow(SHADOW, "dropped")
        metrics.count_shadow(SHADOW, "failed")

    outcomes = {
        sample.labels["outcome"]: sample.value
        for sample in read_series(tmp_path)["onnxserve_shadow_requests"]
    }
    assert outcomes == {"compared": 2.0, "dropped": 2.0, "failed": 2.0}
    rows = {
        sample.labels["agreement"]: sample.value
        for sample in read_series(tmp_path)["onnxserve_shadow_rows"]
    }
    assert rows == {"same": 4.0, "different": 2.0}
    page = prometheus_text(read_families(tmp_path)).decode()
    labels = 'endpoint="e",model="m",variant="new",version="2"{bound}'
    # NaN is not a difference.
    assert f"onnxserve_shadow_difference_count{{{labels.format(bound='')}}} 4.0\n" in page
    zero = labels.format(bound=',le="0"')
    assert f"onnxserve_shadow_difference_bucket{{{zero}}} 2.0\n" in page
    assert f"onnxserve_shadow_duration_seconds_count{{{labels.format(bound='')}}} 2.0\n" in page
    second = labels.format(bound=',le="1"')  # Not "1.0", because dashboards contain "1".
    assert f"onnxserve_shadow_duration_seconds_bucket{{{second}}} 2.0\n" in page
