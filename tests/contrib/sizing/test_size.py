"""Tests of `onnxserve size`."""

import json
import shlex

import pytest

from mlflow_deploy_plugin.contrib.sizing import measure
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from tests.support.commands import done, onnxserve
from tests.support.refusals import mentions
from tests.support.servers import single_model


@pytest.fixture
def size(tmp_path, monkeypatch):
    """A function that measures a small model for half a second."""
    monkeypatch.setattr(measure, "SECONDS", 0.5)
    monkeypatch.setattr(measure, "STEADY_SECONDS", 1.0)
    folder = single_model(tmp_path / "my model")

    def measured(options):
        command = f"size --rate 50 --p99 500ms -C server.max_batch_size=1 {options}"
        return done(command, folder)

    return measured


@pytest.mark.long
def test_size_prints_usable_options(size):
    lines = dict(line.split("  ", 1) for line in size("-C capture.fraction=0.5").splitlines())
    assert list(lines)[:2] == ["pods", "rate per pod"]
    assert mentions(lines["pods"], "1", "50")
    words = [word for word in shlex.split(lines["options"]) if word != "-C"]
    spec = apply_config(new_endpoint("e", "m"), dict(word.split("=", 1) for word in words))
    assert spec.capture.fraction == 0.5
    assert spec.server.max_batch_size == 1
    assert spec.kubernetes.replicas == 1
    command, autoscaler = lines["autoscaler"].strip().split(" ", 1)
    assert command == "onnxserve"
    assert mentions(onnxserve(autoscaler).stdout, "HorizontalPodAutoscaler")


@pytest.mark.long
def test_size_prints_the_plan_as_json(size):
    plan = json.loads(size("--rows 4 --cpu-hour-price 1 --gb-hour-price 0 -o json"))
    assert plan["pod"]["planned"]["rate"] == 50
    assert plan["plan"]["cost_per_million"] == pytest.approx(1 / (50 * 4 * 3600) * 1e6)
