"""The checks before a window is judged."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import RegistryUnavailable
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import apply_config
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.storage import FAILURES
from mlflow_deploy_plugin.serve.inference_log.windows import Window, parse_window
from mlflow_deploy_plugin.watch.monitors.evaluation import (
    SelectedMonitor,
    endpoint_log,
    has_rows,
    judge_and_log,
    judging_worker,
    request_from_store,
)
from mlflow_deploy_plugin.watch.result import WindowRequest
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, SeriesKey
from tests.support.ecs import read_line
from tests.support.inference_log import LogWriter
from tests.support.monitors import HOUR, NOON
from tests.support.raising import raise_it
from tests.support.refusals import mentions, refused
from tests.support.tracking import tracking_at
from tests.support.waiting import free_port


def test_unavailable_mlflow_is_reported_before_judging(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("mlflow_deploy_plugin.watch.monitors.evaluation.count_rows", pytest.fail)
    window = parse_window("2013-07-01/1d")
    question = WindowRequest("flights", "daily", MonitorSpec(), window, 1, Settings(home=tmp_path))

    with (
        tracking_at(f"http://127.0.0.1:{free_port()}"),
        pytest.raises(RegistryUnavailable, match="connection refused"),
    ):
        judge_and_log(question)


SECONDS = 60.0


@pytest.mark.long
def test_worker_has_low_priority_and_logs(monkeypatch, capfd):
    monkeypatch.setenv("ONNXSERVE_LOG_FORMAT", "ecs")
    new_worker = judging_worker()
    pid = new_worker.call(os.getpid, seconds=SECONDS)
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == 500
    assert os.getpriority(os.PRIO_PROCESS, pid) >= 10
    with refused(RegistryUnavailable, "MLflow"):
        new_worker.call(raise_it, RegistryUnavailable("MLflow does not answer"), seconds=SECONDS)
    new_worker.call(
        logging.getLogger("urllib3.connectionpool").warning, "Retrying", seconds=SECONDS
    )
    new_worker.call(logging.warning, "memory is short", seconds=SECONDS)
    new_worker.end()
    (line,) = map(read_line, capfd.readouterr().err.splitlines())
    assert line["service.node.role"] == "monitor"
    assert line["message"] == "memory is short"


BUDGET = {"alarms.false_per_year": 3, "alarms.min_effect": 0.02}
X_LEVEL = SeriesKey("x", "level")


def asked(world, window, monitor="hourly"):
    """Return the request for a window with the budget and the earlier windows from the
    store.
    """
    spec = world.store.require_endpoint("flights").spec
    selected = SelectedMonitor("flights", monitor, spec.monitors[monitor], spec.capture)
    return request_from_store(
        world.store, world.settings, selected, window, notes=["an agent is silent"]
    )


def judged(world, number, monitor="hourly", **fields):
    """Store a judged hour, counted from noon."""
    start = NOON + number * HOUR
    window = world.monitors.add("flights", monitor, start, start + HOUR)
    assert world.monitors.update(replace(window, state="judged", **fields))


def evidence(level):
    return Evidence("bins", {X_LEVEL: level}).to_json()


def test_request_has_budget_and_past(world):
    world.endpoint(hourly={}, other={})
    world.store.replace_spec(apply_config(world.store.require_endpoint("flights").spec, BUDGET))
    for number in (3, 2, 1):  # A backfill may judge windows in any order.
        judged(world, number, evidence=evidence(number))
    judged(world, 1, evidence=evidence(1.5))
    judged(world, 0)
    world.monitors.accept("flights", "hourly", {"x": NOON.isoformat()})

    request = asked(world, Window(NOON + 3 * HOUR, NOON + 4 * HOUR))

    assert (request.false_per_year, request.min_effect) == (1.5, 0.02)
    past = [(earlier.start, earlier.evidence.levels) for earlier in request.past]
    assert past == [(NOON, {}), (NOON + HOUR, {X_LEVEL: 1.5}), (NOON + 2 * HOUR, {X_LEVEL: 2.0})]
    assert request.baseline == {"x": NOON}
    assert request.follows_levels
    assert request.accuracy is None
    assert request.notes == ("an agent is silent",)


def test_request_has_measured_or_estimated_accuracy(world):
    world.endpoint(hourly={}, hits={"kind": "performance", "require": "f1>=0.5,accuracy>=0.5"})
    # The first is before the first window of `hourly`.
    for number, figures in enumerate(({"f1": 0.1}, {"f1": 0.9, "estimated/f1": 0.8}, {"rows": 9})):
        judged(world, number, monitor="hits", figures=figures)
    for number in (1, 2):
        judged(world, number, evidence=evidence(number))
    last = Window(NOON + 3 * HOUR, NOON + 4 * HOUR)

    accuracy = asked(world, last).accuracy
    judged(world, 3, monitor="hits", figures={"f1": None, "estimated/f1": 0.7})
    extended = asked(world, last).accuracy

    assert mentions(accuracy.title, "f1", "from labels")
    assert mentions(extended.title, "f1", "from labels", "estimated")
    assert list(extended.starts) == [NOON + number * HOUR for number in (1, 2, 3)]
    np.testing.assert_array_equal(extended.values, [0.9, np.nan, 0.7])
    assert asked(world, last, "hits").accuracy is None


def test_unscheduled_window_follows_no_levels(world):
    world.endpoint()
    for number in (0, 0.5, 1):
        judged(world, number, verdict="drift", evidence=evidence(1) | {"alarms": ["x"]})

    request = asked(world, Window(NOON + 3 * HOUR / 2, NOON + 5 * HOUR / 2))
    (before,) = request.past

    assert mentions(request.notes[1], "overlaps", "2026-11-20T13:00:00/2026-11-20T14:00:00")
    assert (before.start, before.state) == (NOON + HOUR / 2, "drift")
    assert before.evidence.alarms == ("x",)
    assert not request.follows_levels
    assert request.false_per_year == 1


def test_requirements_share_the_budget(world):
    world.endpoint(
        hits={"kind": "service_level", "require": "p99<=1"}, strict={"false_alarm_rate": 1e-5}
    )
    window = Window(NOON, NOON + HOUR)

    default = asked(world, window, "hits")
    without = asked(world, window, "strict")
    world.store.replace_spec(apply_config(world.store.require_endpoint("flights").spec, BUDGET))
    request = asked(world, window, "hits")

    assert default.requirement_rate == pytest.approx(1 / (365.25 * 24))
    assert default.has_default_budget
    assert without.requirement_rate == 1e-5
    assert without.false_per_year is None
    assert request.requirement_rate == pytest.approx(1.5 / (365.25 * 24))
    assert mentions(request.notes[1], "budget of 1.5 false alarms")
    assert asked(world, window, "strict").requirement_rate == 1e-5


@pytest.mark.parametrize(
    ("kind", "start", "expected"),
    [
        ("drift", NOON, True),
        ("drift", NOON + HOUR / 2, False),
        ("drift", NOON + HOUR, False),
        ("service_level", NOON + HOUR, True),
    ],
)
def test_failures_are_rows_of_service_levels(world, kind, start, expected):
    world.rows(NOON)
    failures = LogWriter(Path(world.settings.inference_log) / FAILURES)
    failures.write({"_event_time": [NOON + HOUR]})
    log = endpoint_log(world.settings, None)

    assert has_rows(log, "flights", Window(start, start + HOUR / 2), kind) is expected
