"""Tests of the output and the errors of `onnxserve size`. See tests/ship/sizing for the
measurement and the plan.
"""

import json
import shlex

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.ship.sizing import measure
from tests.support.commands import said
from tests.support.refusals import mentions
from tests.support.servers import single_model


def size(*arguments):
    return CliRunner().invoke(main, ["size", *arguments])


def test_a_latency_has_a_unit_and_is_above_0(tmp_path):
    refusal = said(size(str(single_model(tmp_path / "model")), "--rate", "500", "--p99", "0"))
    assert mentions(refusal, "--p99", "20ms", "1.5s")


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "many"])
def test_a_rate_is_a_number_above_0(rate):
    done = size("model", "--rate", rate, "--p99", "20ms")
    assert done.exit_code == 2
    assert mentions(done.stderr, "--rate")


def test_a_device_that_is_missing_is_refused_before_the_measurement(tmp_path):
    folder = str(single_model(tmp_path / "model"))
    assert mentions(
        said(size(folder, "--rate", "5", "--p99", "1s", "-C", "server.device=cuda")), "cuda"
    )


def test_an_unknown_field_is_refused_before_the_measurement(tmp_path):
    folder = str(single_model(tmp_path / "model"))
    refusal = said(size(folder, "--rate", "5", "--p99", "1s", "-C", "server.werkers=2"))
    assert mentions(refusal, "server.werkers", "server.workers")


@pytest.mark.long
def test_the_options_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.5)
    monkeypatch.setattr(measure, "STEADY_SECONDS", 1.0)
    folder = str(single_model(tmp_path / "my model"))
    options = ["--rate", "50", "--p99", "50ms"]
    done = size(folder, *options, "-C", "capture.fraction=0.5", "-C", "server.max_batch_size=1")
    assert done.exit_code == 0, done.stderr
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert list(lines)[:2] == ["pods", "rate per pod"]
    assert mentions(lines["pods"], "1", "50")
    words = [word for word in shlex.split(lines["options"]) if word != "-C"]
    spec = apply_config(new_endpoint("e", folder), dict(word.split("=", 1) for word in words))
    assert spec.capture.fraction == 0.5
    assert spec.server.max_batch_size == 1
    assert spec.kubernetes.replicas == 1
    command, *arguments = shlex.split(lines["autoscaler"])
    rendered = CliRunner().invoke(main, arguments)
    assert (command, rendered.exit_code) == ("onnxserve", 0), rendered.stderr
    assert mentions(rendered.stdout, "HorizontalPodAutoscaler")


@pytest.mark.long
def test_the_plan_as_json(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.5)
    monkeypatch.setattr(measure, "STEADY_SECONDS", 1.0)
    one_size = [
        "-C",
        "server.max_batch_size=1",
        "--cpu-hour-price",
        "1",
        "--gb-hour-price",
        "0",
        "-o",
        "json",
    ]
    done = size(
        str(single_model(tmp_path / "model")),
        "--rate",
        "50",
        "--p99",
        "50ms",
        "--rows",
        "4",
        *one_size,
    )
    made = json.loads(done.stdout)
    assert made["pod"]["planned"]["rate"] == 50
    assert made["plan"]["cost_per_million"] == pytest.approx(1 / (50 * 4 * 3600) * 1e6)
