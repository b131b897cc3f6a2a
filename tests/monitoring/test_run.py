"""A monitor of every kind from the log to its run in MLflow."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import pytest

from mlflow_deploy_plugin.inference_log.windows import parse_window
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.spec import MonitorSpec

CALM = datetime(2013, 4, 1, tzinfo=UTC)


def run(world, **spec: Any):
    # Evidently, which it brings, takes seconds to import, and every worker of a run imports every test
    from mlflow_deploy_plugin.monitoring.run import run_monitor

    window = parse_window("2013-04-01/1d")
    question = Question("flights", "watch", MonitorSpec(**spec), window, 1, world.settings)
    return run_monitor(question)


def test_every_kind_ends_in_a_run_that_says_what_was_found(world) -> None:
    world.capture_day(CALM)
    asked: dict[str, tuple[dict[str, Any], str]] = {
        "prediction_drift": ({}, "no drift"),
        "data_quality": ({"require": ["missing<=0.2"]}, "kept"),
        "performance": ({"require": ["accuracy>=0.8"]}, "not judged"),
        "shadow": ({"require": ["disagreement<=0.1"]}, "not judged"),
        "service_level": ({"require": ["p99<=0.2"]}, "not judged"),
    }

    for kind, (spec, state) in asked.items():
        result = run(world, kind=kind, min_rows=100, **spec)

        assert (kind, result.judgement.state) == (kind, state)
        logged = mlflow.get_run(result.run.run_id)
        assert logged.data.tags["onnxserve.verdict"] == state
        assert logged.data.metrics["rows"] == result.judgement.rows
        page = mlflow.artifacts.download_artifacts(run_id=result.run.run_id, artifact_path="report.html")
        assert "flight-delay" in Path(page).read_text()


def test_an_empty_window_is_a_run_as_well(world) -> None:
    result = run(world)

    assert (result.judgement.state, result.judgement.reason) == ("not judged", "the window has no rows")
    assert mlflow.get_run(result.run.run_id).data.tags["onnxserve.reason"] == "the window has no rows"


@pytest.mark.parametrize("kind", ["drift", "data_quality"])
def test_a_reference_that_is_named_and_not_there_is_an_outcome(world, kind) -> None:
    world.capture_day(CALM)

    result = run(world, kind=kind, min_rows=100, reference="dataset:/nowhere.parquet")

    assert result.judgement.state == "not judged"
    assert "/nowhere.parquet does not exist" in result.judgement.reason
