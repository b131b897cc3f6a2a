"""Candidates on captured rows. The models are small linear ones, so the expected
figures follow from their weights.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, Refused
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.promote.replay.backtest import backtest
from mlflow_deploy_plugin.promote.replay.traffic import Traffic
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import TimeRange
from mlflow_deploy_plugin.wrap.evaluation.metrics import MetricComparison
from mlflow_deploy_plugin.wrap.evaluation.model import load_version
from tests.support.classifiers import COLUMNS, labelled, write_classifier, write_regressor
from tests.support.inference_log import ENDPOINT, LogWriter, write_answers
from tests.support.models import (
    FAILING,
    columns,
    graph_tensor,
    mixed_model,
    numbers_section,
    write_model,
)
from tests.support.refusals import mentions, refused

DAY = datetime(2013, 7, 1, tzinfo=UTC)
ROWS = labelled(600)
INPUTS = {name: ROWS[name] for name in COLUMNS}
HOUR = timedelta(hours=1)


@pytest.fixture
def writer(tmp_path):
    return LogWriter(tmp_path / "log")


@pytest.fixture
def traffic(writer):
    return Traffic(open_log(str(writer.root)), ENDPOINT)


def replayed(traffic, folder, times=None, **options):
    return backtest(
        traffic, times or TimeRange(), load_version(folder), "models:/m/8", resamples=100, **options
    )


def section():
    return numbers_section(graph_tensor("x", "float32", -1, 1, columns=["x"]))


def serve_adder(writer, folder, numbers):
    """Let version 1, which adds one to a number, answer these numbers."""
    graph = "adder (float[N,1] x) => (float[N,1] y) <float[1] one = {1}> { y = Add(x, one) }"
    served = write_model(folder / "served", graph, columns(x="float"), section())
    write_answers(writer, served, {"x": numbers}, DAY)


def replay_graph(traffic, folder, graph, meaning=None):
    """Replay the numbers on a candidate with this graph."""
    return replayed(traffic, write_model(folder, graph, columns(x="float"), meaning or section()))


def comparison(report):
    assert isinstance(report.comparison, MetricComparison)
    return report.comparison


def labels_of(rows):
    return [Label(f"1-{row}", None, None, int(ROWS["label"][row]), row) for row in range(rows)]


@pytest.fixture
def served(tmp_path, writer):
    """Version 1, a classifier that has answered 600 rows, of which 400 have a label."""
    folder = write_classifier(tmp_path / "served")
    write_answers(writer, folder, INPUTS, DAY)
    writer.label(*labels_of(400))
    return folder


def test_served_version_agrees_with_itself(traffic, served):
    report = replayed(traffic, served)

    assert report.captured_rows == 600
    assert report.rows == 600
    assert report.refused_rows == 0
    assert report.versions == {"flight-delay version 1": 600}
    assert report.disagreement == 0
    assert report.max_difference == 0
    assert report.disagreeing == []
    assert comparison(report).metric == "accuracy"
    assert report.labelled_rows == 400
    assert comparison(report).candidate == comparison(report).current > 0.9
    assert report.served_request_us == 900
    assert report.candidate_row_us > 0


def test_worse_candidate_loses_accuracy(traffic, served, tmp_path):
    report = replayed(traffic, write_classifier(tmp_path / "worse", (1.0, 2.0)))

    answers = load_version(served).predict(ROWS).prediction
    candidate_answers = (ROWS["a"] + 2 * ROWS["b"] > 0).astype(int)
    assert report.disagreement == pytest.approx((answers != candidate_answers).mean())
    assert comparison(report).candidate == pytest.approx(
        (candidate_answers == ROWS["label"])[:400].mean()
    )
    assert comparison(report).current == pytest.approx((answers == ROWS["label"])[:400].mean())
    assert comparison(report).high < -0.1
    for row in report.disagreeing:
        number = int(row.prediction_id.removeprefix("1-"))
        assert mentions(row.text, f"{candidate_answers[number]} instead of {answers[number]}")
    assert len(report.disagreeing) == 5


def test_probability_metric_may_be_chosen(traffic, served, tmp_path):
    report = replayed(traffic, write_classifier(tmp_path / "equal", (4.0, -2.0)), metric="roc_auc")
    assert comparison(report).candidate == pytest.approx(comparison(report).current)


def test_renamed_outputs_compare_by_position(traffic, writer, tmp_path):
    serve_adder(writer, tmp_path, np.arange(9, dtype=np.float32))
    other = "other (float[N,1] x) => (float[N,1] z) { z = Identity(x) }"
    renamed = {
        **section(),
        "outputs": [{**section()["outputs"][0], "name": "z"}],
        "prediction": ["z"],
    }
    report = replay_graph(traffic, tmp_path / "other", other, renamed)
    assert report.mean_difference == 1
    assert report.max_difference == 1


def test_numbers_have_mean_and_largest_difference(traffic, writer, tmp_path):
    write_answers(writer, write_regressor(tmp_path / "served"), INPUTS, DAY)

    report = replayed(traffic, write_regressor(tmp_path / "other", (2.0, -1.5)))

    assert report.mean_difference == pytest.approx(np.abs(0.5 * ROWS["b"]).mean())
    assert report.max_difference == pytest.approx(np.abs(0.5 * ROWS["b"]).max())
    largest = int(np.abs(ROWS["b"]).argmax())
    assert report.disagreeing[0].prediction_id == f"1-{largest}"
    assert isinstance(report.comparison, Refused)
    assert report.labelled_rows == 0


def test_refused_rows_are_separated(traffic, writer, tmp_path):
    numbers = np.arange(200) % 50 / 10  # 4 of 5 rows are below 4, which the candidate refuses.
    serve_adder(writer, tmp_path, numbers.astype(np.float32))

    report = replay_graph(traffic, tmp_path / "failing", FAILING)

    assert report.refused_rows == 40
    assert report.rows == 200
    assert sum(row.rows for row in report.refused) == 40
    assert int(report.refused[0].prediction_id.removeprefix("1-")) % 50 >= 40
    assert report.disagreement == 0
    assert report.versions == {"flight-delay version 1": 160}


def test_candidate_refusing_every_row_is_an_error(traffic, writer, tmp_path):
    serve_adder(writer, tmp_path, np.full(30, 4, np.float32))
    with refused(InvalidConfig, "models:/m/8", "flights", "4"):
        replay_graph(traffic, tmp_path / "failing", FAILING)


def test_candidate_with_other_row_count_is_refused(traffic, writer, tmp_path):
    serve_adder(writer, tmp_path, np.arange(30, dtype=np.float32))
    twice = (
        "twice (float[N,1] x) => (float[M,1] y) { pair = Concat <axis = 0> (x, x) y = "
        "Identity(pair) }"
    )
    with refused(InvalidConfig, "models:/m/8", "2 rows for 1 rows"):
        replay_graph(traffic, tmp_path / "twice", twice)


def test_nan_answers_disagree(traffic, writer, tmp_path):
    serve_adder(writer, tmp_path, np.arange(-50, 50, dtype=np.float32))
    root = "root (float[N,1] x) => (float[N,1] y) { y = Sqrt(x) }"

    report = replay_graph(traffic, tmp_path / "root", root)

    assert report.disagreement > 0.9


def test_sample_of_rows_is_deterministic(traffic, served):
    first, second = (replayed(traffic, served, max_rows=100) for _ in range(2))
    assert first.captured_rows == 600
    assert first.rows == 100
    assert first.labelled_rows == second.labelled_rows < 100


def test_each_served_version_compares_with_its_answers(traffic, writer, served, tmp_path):
    worse = write_classifier(tmp_path / "worse", (1.0, 2.0))
    write_answers(
        writer, worse, {name: values[:200] for name, values in INPUTS.items()}, DAY + HOUR, "2"
    )

    report = replayed(traffic, worse)

    assert report.versions == {"flight-delay version 1": 600, "flight-delay version 2": 200}
    assert report.disagreement * 800 == pytest.approx(
        replayed(traffic, worse, TimeRange(end=DAY + HOUR)).disagreement * 600
    )


def test_texts_are_replayed(traffic, writer, tmp_path):
    rng = np.random.default_rng(0)
    carriers = rng.choice(["AA", "UA"], 50).astype(object)
    mixed = {
        "carrier": carriers,
        "distance": rng.normal(size=50),
        "hour": rng.integers(0, 24, 50),
        "late": carriers == "AA",
    }
    folder = mixed_model(tmp_path / "mixed")
    write_answers(writer, folder, mixed, DAY)
    writer.label(Label("1-0", None, None, "yes", 1), Label("1-1", None, None, "no", 1))
    report = replayed(traffic, folder)
    assert report.disagreement == 0
    assert report.labelled_rows == 2
    assert comparison(report).metric == "accuracy"


def test_labels_without_a_number_are_ignored(traffic, served, writer):
    writer.label(Label("1-500", None, None, "unknown", 1), name="more")
    report = replayed(traffic, served)
    assert report.labelled_rows == 400


def test_unsuitable_metric_is_named(traffic, writer, tmp_path):
    regressor = write_regressor(tmp_path / "regressor")
    write_answers(writer, regressor, INPUTS, DAY)
    writer.label(*labels_of(9))
    report = replayed(traffic, regressor, metric="accuracy")
    assert isinstance(report.comparison, Refused)
    assert mentions(report.comparison.reason, "accuracy")


@pytest.mark.long
def test_vectors_of_a_pyfunc_are_compared(traffic, writer, tmp_path):
    def predict(model_input: pd.DataFrame) -> Any:
        return np.stack([model_input["x"] + 1, 2 * model_input["x"]], axis=1)

    graph = """pair (float[N,1] x) => (float[N,2] y) <float[1] one = {1}> {
      s = Add(x, one)
      t = Add(x, x)
      y = Concat <axis = 1> (s, t)
    }"""
    vectors = {**section(), "outputs": [{**section()["outputs"][0], "shape": [-1, 2]}]}
    rows = {"x": np.arange(9, dtype=np.float32)}
    write_answers(
        writer, write_model(tmp_path / "served", graph, columns(x="float"), vectors), rows, DAY
    )
    frame = pd.DataFrame(rows)
    mlflow.pyfunc.save_model(
        tmp_path / "pyfunc",
        python_model=predict,
        signature=infer_signature(frame, predict(frame)),
        pip_requirements=[],
    )
    report = replayed(traffic, tmp_path / "pyfunc")
    assert report.disagreement == 0
    assert report.max_difference == 0


@pytest.mark.parametrize(
    ("fields", "times", "error", "names"),
    [
        (
            {},
            TimeRange(DAY + 3 * HOUR, DAY + 4 * HOUR),
            NotFound,
            ["2013-07-01T03:00:00/2013-07-01T04:00:00", "onnxserve log stats flights"],
        ),
        ({}, TimeRange(received_from=DAY + 90 * HOUR), NotFound, ["onnxserve log stats flights"]),
        ({"endpoint": "fligths"}, None, NotFound, ["fligths", "flights"]),
        ({"capture": CaptureSpec(mask=("b",))}, None, InvalidConfig, ["b", "capture.mask"]),
        (
            {"capture": CaptureSpec(mask=("prediction", "output.probabilities"))},
            None,
            InvalidConfig,
            ["flights", "capture.mask"],
        ),
    ],
)
def test_unusable_traffic_is_refused(traffic, served, fields, times, error, names):
    with refused(error, *names):
        replayed(replace(traffic, **fields), served, times)


def test_rows_of_a_deleted_endpoint_are_not_replayed(traffic, served):
    later = replace(traffic, log=replace(traffic.log, since=DAY + HOUR))
    with refused(NotFound, "flights"):
        replayed(later, served)


def test_candidate_with_other_columns_or_outputs_is_refused(traffic, served, tmp_path):
    more = write_classifier(tmp_path / "more", (1.0, 2.0, 3.0), columns=("a", "b", "gate"))
    with refused(InvalidConfig, "models:/m/8", "gate", "flights", "capture.drop"):
        replayed(traffic, more)
    with refused(InvalidConfig, "models:/m/8", "numbers", "integers"):
        replayed(traffic, write_regressor(tmp_path / "regressor"))


def test_candidate_without_common_output_is_refused(traffic, writer, tmp_path):
    serve_adder(writer, tmp_path, np.arange(9, dtype=np.float32))
    other = "other (float[N,1] x) => (float[N,1] z) { z = Identity(x) }"
    scores = {
        **section(),
        "outputs": [{**section()["outputs"][0], "name": "z", "role": "scores"}],
        "prediction": ["z"],
    }
    with refused(InvalidConfig, "models:/m/8", "z", "y"):
        replay_graph(traffic, tmp_path / "other", other, scores)
