"""The page and the statistics sum up the workers that share a folder."""

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.core.statedir.metric_files import (
    Metric,
    prometheus_text,
    read_families,
    read_series,
)
from mlflow_deploy_plugin.serve.observability import metrics as server_metrics
from mlflow_deploy_plugin.serve.observability.metrics import (
    MAX_PREDICTIONS,
    Metrics,
    Statistics,
    predicted_labels,
)
from mlflow_deploy_plugin.serve.runtime.agreement import Agreement
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from tests.support import servers

REQUEST = ("e", "v", "m", "7", "v2", "200")
GUIDE = Path(__file__).parents[3] / "docs" / "observe.md"


def test_every_metric_is_documented():
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


def test_requests_are_summed_by_label(workers):
    for metrics in workers:
        metrics.count_request(REQUEST, 0.003)
        metrics.count_request((*REQUEST[:5], "400"), 0.2)
    labels = 'endpoint="e",model="m",protocol="v2",status="{}",variant="v",version="7"'
    counted = samples(workers[0], "onnxserve_requests_total")
    assert counted == {labels.format(200): 2, labels.format(400): 2}
    buckets = samples(workers[1], "onnxserve_request_duration_seconds_bucket")
    labels = 'endpoint="e",model="m",protocol="v2",variant="v",version="7",le="{}"'
    bounds = ("0.0025", "0.005", "0.1", "0.25", "+Inf")
    assert [buckets[labels.format(bound)] for bound in bounds] == [0, 2, 2, 4, 4]
    latency = "ml_prediction_latency_seconds"
    assert samples(workers[0], f"{latency}_count") == {'model_version="7"': 2}
    assert samples(workers[0], f"{latency}_sum") == {'model_version="7"': pytest.approx(0.006)}


def test_bound_belongs_to_its_bucket(workers):
    workers[0].count_batch(("e", "v", "m", "7"), 8, 0.0, 0.001)
    buckets = samples(workers[0], "onnxserve_batch_rows_bucket")
    assert buckets['endpoint="e",model="m",version="7",le="4.0"'] == 0
    assert buckets['endpoint="e",model="m",version="7",le="8.0"'] == 1


def test_statistics_sum_workers_and_protocols(workers):
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


def test_predictions_are_counted_and_bounded(workers):
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


def test_files_of_a_dead_worker_are_reused(workers, tmp_path):
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


def test_threads_lose_no_count(workers):
    def count(number):
        workers[0].count_request((*REQUEST[:5], str(200 + number % 5)), 0.001)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(8000)))
    assert sum(samples(workers[0], "onnxserve_requests_total").values()) == 8000


SHADOW = ("e", "new", "m", "2")


def test_shadows_of_all_workers_are_summed(tmp_path, workers):
    agreement = Agreement(
        differences=np.array([0.0, 0.02, np.inf]),
        excess=np.array([0.0, 2.0, 0.0]),
        are_numbers=True,
    )
    for metrics in workers:
        metrics.count_shadow_comparison(SHADOW, agreement, 0.003)
        metrics.count_shadow(SHADOW, "dropped")
        metrics.count_shadow(SHADOW, "failed")

    def by(label, name):
        return {sample.labels[label]: sample.value for sample in read_series(tmp_path)[name]}

    outcomes = by("outcome", "onnxserve_shadow_requests")
    assert outcomes == {"compared": 2.0, "dropped": 2.0, "failed": 2.0}
    assert by("agreement", "onnxserve_shadow_rows") == {"same": 4.0, "different": 2.0}
    page = prometheus_text(read_families(tmp_path)).decode()
    labels = 'endpoint="e",model="m",variant="new",version="2"'
    # NaN is not a difference. The bound is "1", not "1.0", as in dashboards.
    for line in (
        f"onnxserve_shadow_difference_count{{{labels}}} 4.0\n",
        f'onnxserve_shadow_difference_bucket{{{labels},le="0"}} 2.0\n',
        f"onnxserve_shadow_duration_seconds_count{{{labels}}} 2.0\n",
        f'onnxserve_shadow_duration_seconds_bucket{{{labels},le="1"}} 2.0\n',
    ):
        assert line in page


LABEL = Output("label", "int64", (-1,), "label")
PROBABILITIES = Output("p", "float32", (-1, 2), "probabilities")
VALUES = Output("y", "float32", (-1, 1), "values")
PROBABLE = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], dtype=np.float32)


def artifact(*outputs, classes=()):
    return Artifact(Path(), Path(), "onnxserve", "3", "", "", outputs=outputs, classes=classes)


@pytest.mark.parametrize(
    ("model", "outputs", "labels"),
    [
        (artifact(LABEL), {"label": np.array([7, 2, 7, 7])}, {7: 3, 2: 1}),
        (artifact(LABEL), {"label": np.array([[7], [2]])}, {7: 1, 2: 1}),
        (artifact(LABEL), {"label": np.array(["a", "b", "a"], dtype=object)}, {"a": 2, "b": 1}),
        (artifact(LABEL), {"label": np.array([True, True])}, {True: 2}),
        (
            artifact(PROBABILITIES, LABEL, classes=("no", "yes")),
            {"p": PROBABLE, "label": np.array([0] * 3)},
            {0: 3},
        ),
        (artifact(PROBABILITIES, LABEL, classes=("no", "yes")), {"p": PROBABLE}, {}),
        (artifact(PROBABILITIES, classes=("no", "yes")), {"p": PROBABLE}, {"yes": 2, "no": 1}),
        (artifact(PROBABILITIES), {"p": PROBABLE}, {}),
        (artifact(VALUES), {"y": np.array([[1.5]])}, {}),
    ],
)
def test_labels_are_counted_by_row(model, outputs, labels):
    assert dict(predicted_labels(model, outputs)) == labels


def test_responses_are_counted_by_version(serve_here, model_folders, tmp_path):
    server = serve_here(servers.one_endpoint(model_folders["mixed"]))
    variant = server.repository.select_variant("e")
    metrics = Metrics(tmp_path / "counted")
    outputs = {"label": np.array(["yes", "no", "yes"], dtype=object)}
    metrics.count_response(variant, "v2", "200", 0.5, outputs)
    metrics.count_response(variant, "v2", "400", 0.25, {})
    metrics.count_response(None, "v2", "404", 0.25, {})
    counted = metrics.statistics()["e", "m", "1"]
    assert replace(counted, last_request=0.0) == Statistics(2, 1, 0.75)
    assert samples(metrics, "ml_predictions_total") == {
        'model_version="1",prediction="yes"': 2.0,
        'model_version="1",prediction="no"': 1.0,
        'model_version="1",prediction="other"': 0.0,
    }
    unknown = 'endpoint="",model="",protocol="v2",status="404",variant="",version=""'
    assert samples(metrics, "onnxserve_requests_total")[unknown] == 1
