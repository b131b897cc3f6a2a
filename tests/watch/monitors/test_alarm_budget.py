"""The check of a changed budget of alarms, and alarms that a user accepts."""

import json
from dataclasses import replace

import pytest
import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import apply_config
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.alerts.record import record_result
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS, RELATIONS
from mlflow_deploy_plugin.watch.monitors.alarm_budget import accept_alarms, check_change
from mlflow_deploy_plugin.watch.monitors.window_runner import consecutive_alarms
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, SeriesKey
from mlflow_deploy_plugin.watch.sequential.levels import FigureSeries
from tests.support.models import graph_tensor
from tests.support.monitored_endpoint import CALM, DAY, capture, make_endpoint
from tests.support.refusals import mentions, refused
from tests.support.results import result_of

SINCE = (CALM + 2 * DAY).isoformat()
SHIFTED = Evidence(
    "bins",
    {SeriesKey("x", "level"): 9.0, SeriesKey("y", "level"): 0.0},
    ("x", "y"),
    {SeriesKey("x", "level"): SINCE},
)


@pytest.fixture
def deployments(tmp_path):
    """An endpoint `flights` with a reference of 40 days and a monitor `daily`, 20 days
    later.
    """
    make_endpoint(tmp_path / "home")
    settings = Settings(home=tmp_path / "home")
    store = open_store(settings.store_url, lambda: CALM + 20 * DAY)
    configure(store, {"alarms.false_per_year": 1})
    yield Deployments(store, settings, print)
    store.close()


def configure(store, fields):
    store.replace_spec(apply_config(store.require_endpoint("flights").spec, fields))


def accept(deployments, why="", columns=()):
    return accept_alarms(deployments, "flights", "daily", why, columns=columns)


def checked(deployments, change):
    return check_change(deployments, "flights", change)


def judged(store, start, evidence, length=DAY, verdict="drift"):
    window = Monitors(store).add("flights", "daily", start, start + length)
    updated = replace(window, state="judged", verdict=verdict, evidence=evidence.to_json())
    assert Monitors(store).update(updated) is not None


def test_accepted_alarms_set_a_baseline(deployments):
    store = deployments.store
    monitors = Monitors(deployments.store)
    monitors.accept("flights", "daily", {"z": SINCE})
    judged(store, CALM + 9 * DAY, SHIFTED)
    # not a window of the schedule
    judged(store, CALM + 9.5 * DAY, Evidence("other", {SeriesKey("w", "level"): 1.0}, ("w",)))
    record_result(store, deployments.settings, result_of(9, x=9.0), MonitorSpec())

    accepted = accept(deployments, "a new carrier")

    baseline = accepted.baseline
    assert accepted.still_open == ()
    assert baseline == {"x": SINCE, "y": (CALM + 9 * DAY).isoformat()}
    assert monitors.state("flights", "daily").baseline == {"z": SINCE, **baseline}
    assert Alerts(store).firing() == []
    (ended,) = Alerts(store).recent()
    assert mentions(ended.detail["lines"][0], "3 July 2013", "10 July 2013", "a new carrier")
    event = [*store.events("flights")][-1]
    assert (event.action, event.why) == ("monitor.accept", "a new carrier")
    assert mentions(event.detail["baseline"], f"x since {SINCE}")


@pytest.mark.parametrize("state", ["drift", "changed"])
def test_alert_ends_with_the_last_acceptance(deployments, state):
    store = deployments.store
    alarms = ("x", "carrier=AA/x", "y", "a/x")
    series = [SeriesKey(column, "level") for column in alarms]
    judged(
        store, CALM + 9 * DAY, Evidence("bins", dict.fromkeys(series, 9.0), alarms), verdict=state
    )
    record_result(store, deployments.settings, result_of(9, state=state, x=9.0), MonitorSpec())
    start = (CALM + 9 * DAY).isoformat()
    rounds = [
        (["x"], {"x", "carrier=AA/x"}, ("y", "a/x"), state),
        (["a/x", "y"], {"a/x", "y"}, (), "accepted"),
    ]

    for columns, baseline, still_open, outcome in rounds:
        accepted = accept(deployments, columns=columns)
        assert accepted.baseline == dict.fromkeys(baseline, start)
        assert accepted.still_open == still_open
        assert len(Alerts(store).open()) == len(still_open) / 2
        (window,) = Monitors(store).windows("flights", "daily")
        assert window.outcome == outcome

    assert (window.verdict, {*window.accepted}) == (state, {*alarms})
    assert Monitors(store).state("flights", "daily").baseline.keys() == {*alarms}
    with refused(NotFound, "no open alarm"):
        accept(deployments)


@pytest.mark.parametrize("column", ["xy", RELATIONS])
def test_column_without_an_alarm_is_refused(deployments, column):
    judged(deployments.store, CALM + 9 * DAY, SHIFTED)

    with refused(NotFound, "'daily'", "no open alarm", f"{column!r}", "x, y"):
        accept(deployments, columns=["x", column])

    assert Monitors(deployments.store).state("flights", "daily").baseline == {}


def test_alert_continues_with_alarms_left_open(deployments):
    store = deployments.store
    still_open = ("missing(x)", RELATIONS)
    judged(store, CALM + 9 * DAY, replace(SHIFTED, alarms=("x", "y", *still_open)))
    record_result(store, deployments.settings, result_of(9, x=9.0), MonitorSpec())

    accepted = accept(deployments)

    assert {*accepted.baseline} == {"x", "y"}
    assert accepted.still_open == still_open
    assert len(Alerts(store).firing()) == 1


def test_accepted_window_ends_consecutive_alarms(deployments):
    store = deployments.store
    judged(store, CALM + 9 * DAY, SHIFTED)
    Monitors(store).update_state("flights", "daily", consecutive=3)
    accept(deployments)
    assert Monitors(store).state("flights", "daily").consecutive == 0
    judged(store, CALM + 10 * DAY, SHIFTED)

    assert consecutive_alarms(Monitors(store).windows("flights", "daily")) == 1


@pytest.mark.parametrize(("segment", "is_shift"), [("", True), ("carrier=AA/", False)])
def test_relations_are_accepted_only_by_name(deployments, segment, is_shift):
    series = FigureSeries(segment.rstrip("/"), PROJECTIONS[3], "spread").series_key
    shifts = {series: SINCE} if is_shift else {}
    alarms = (segment + RELATIONS,)
    judged(deployments.store, CALM + 9 * DAY, Evidence("bins", {series: 9.0}, alarms, shifts))

    with refused(NotFound, "no open alarm", f"flights daily --column '{RELATIONS}'"):
        accept(deployments)
    baseline = accept(deployments, columns=[RELATIONS]).baseline

    assert baseline == {segment + RELATIONS: SINCE if is_shift else (CALM + 9 * DAY).isoformat()}


@pytest.mark.parametrize(
    ("fields", "evidence", "error", "names"),
    [
        ({"false_alarm_rate": 0.05}, SHIFTED, InvalidConfig, ["'daily'", "alarms.false_per_year"]),
        ({}, replace(SHIFTED, alarms=(), shifts={}), NotFound, ["'daily'", "no open alarm"]),
        (
            {"kind": "service_level", "require": "p99<=1"},
            SHIFTED,
            InvalidConfig,
            ["service_level", "monitors.daily.require"],
        ),
    ],
)
def test_impossible_acceptance_is_refused(deployments, fields, evidence, error, names):
    if "false_alarm_rate" in fields:
        configure(deployments.store, {"alarms.false_per_year": ""})
    monitor = {f"monitors.daily.{name}": value for name, value in fields.items()}
    configure(deployments.store, monitor)
    judged(deployments.store, CALM + 9 * DAY, evidence)

    with refused(error, *names):
        accept(deployments)
    assert Monitors(deployments.store).state("flights", "daily").baseline == {}


def test_reference_with_future_windows_is_refused(deployments):
    reference = {"monitors.daily.reference": "window:2013-06-01/2013-07-22"}

    configure(deployments.store, {"alarms.false_per_year": ""})
    assert checked(deployments, reference) == []  # without a budget
    with refused(
        InvalidConfig,
        "monitors.daily.reference",
        "2013-06-01/2013-07-22",
        "END",
        "2013-07-21T00:00",
    ):
        checked(deployments, reference | {"alarms.false_per_year": 1})
    (line,) = checked(
        deployments,
        {
            "alarms.false_per_year": 1,
            "monitors.daily.reference": "window:2013-06-01/2013-07-21T00:00",
        },
    )
    assert mentions(line, "flights", "monitor daily", "no rows")


@pytest.fixture
def served(deployments, tmp_path):
    """Let the server serve the version that the model URI of the endpoint selects."""
    wanted = tmp_path / "home/deployments/flights/wanted.json"
    document = json.loads(wanted.read_text())
    document["endpoints"]["flights"]["variants"]["flights"] |= {
        "model": "model-of-flights",
        "version": "",
    }
    wanted.write_text(json.dumps(document))


@pytest.mark.usefixtures("served")
def test_min_effect_must_fit_the_model(deployments, tmp_path):
    file = tmp_path / "model-of-flights/MLmodel"
    document = yaml.safe_load(file.read_text())
    change = {"alarms.false_per_year": 1, "alarms.min_effect": 20}

    for role in ("values", "probabilities"):
        output = graph_tensor("y", "float32", -1, 2, role=role)
        document["flavors"]["onnxserve"] |= {"outputs": [output], "prediction": ["y"]}
        file.write_text(yaml.safe_dump(document))
        if role == "values":
            assert checked(deployments, change) == []
    with refused(InvalidConfig, "alarms.min_effect"):
        checked(deployments, change)


@pytest.mark.usefixtures("served")
def test_short_reference_is_refused_unless_rolling(deployments, tmp_path):
    for day in range(10):
        capture(tmp_path / "home", CALM + day * DAY, rows=50)
    budget = {"alarms.false_per_year": 1}

    with refused(InvalidConfig, "monitors.daily", "season 30d", "40", "20d"):
        checked(deployments, budget | {"monitors.daily.season": "30d"})
    with refused(InvalidConfig, "monitors.daily", "window:2013-07-01/2013-07-11", "20", "10"):
        checked(deployments, budget | {"monitors.daily.reference": "window:2013-07-01/2013-07-11"})
    (line,) = checked(deployments, budget | {"monitors.daily.reference": "rolling:2d"})
    assert mentions(line, "monitor daily", "first judgement", "rolling:2d")


def test_missing_reference_is_checked_later(deployments):
    (line,) = checked(deployments, {"alarms.false_per_year": 1, "monitors.other.every": "1h"})[1:]

    assert mentions(line, "flights", "monitor other", "first judgement", "model-of-flights")
