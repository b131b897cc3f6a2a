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
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.alerts.record import record_result
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS, RELATIONS
from mlflow_deploy_plugin.watch.monitors.alarm_budget import accept_alarms, check_change
from mlflow_deploy_plugin.watch.monitors.evaluation import judge_and_log
from mlflow_deploy_plugin.watch.monitors.manual_runs import find_monitor, run_due, run_window
from mlflow_deploy_plugin.watch.monitors.schedule import overviews
from mlflow_deploy_plugin.watch.monitors.window_runner import consecutive_alarms
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, SeriesKey
from mlflow_deploy_plugin.watch.sequential.levels import FigureSeries
from tests.support.models import graph_tensor
from tests.support.monitored_endpoint import CALM, DAY, capture, make_endpoint
from tests.support.refusals import mentions, refused
from tests.support.results import result_of
from tests.support.tracking import tracking_at

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
    yield Deployments(store, settings, print)
    store.close()


def configure(store, fields):
    store.replace_spec(apply_config(store.require_endpoint("flights").spec, fields))


def judged(store, start, evidence, length=DAY):
    window = Monitors(store).add("flights", "daily", start, start + length)
    updated = replace(window, state="judged", verdict="drift", evidence=evidence.to_json())
    assert Monitors(store).update(updated) is not None


def test_each_column_with_an_alarm_is_normal_since_its_shift_and_the_alert_ends(deployments):
    store = deployments.store
    monitors = Monitors(deployments.store)
    configure(store, {"alarms.false_per_year": 1})
    monitors.accept("flights", "daily", {"z": SINCE})
    judged(store, CALM + 9 * DAY, SHIFTED)
    # not a window of the schedule
    judged(store, CALM + 9.5 * DAY, Evidence("other", {SeriesKey("w", "level"): 1.0}, ("w",)))
    record_result(store, deployments.settings, result_of(9, x=9.0), MonitorSpec())

    accepted = accept_alarms(deployments, "flights", "daily", "a new carrier")

    baseline = accepted.baseline
    assert accepted.still_open == ()
    assert baseline == {"x": SINCE, "y": (CALM + 9 * DAY).isoformat()}
    assert monitors.state("flights", "daily").baseline == {"z": SINCE, **baseline}
    assert Alerts(store).firing() == []
    (ended,) = Alerts(store).recent()
    texts = (
        "the baseline of x begins with the window of 3 July 2013",
        "the baseline of y begins with the window of 10 July 2013",
    )
    assert mentions(ended.detail["lines"][0], *texts, "a new carrier")
    event = [*store.events("flights")][-1]
    assert event.action == "monitor.accept"
    assert event.why == "a new carrier"
    assert event.detail["monitor"] == "daily"
    assert mentions(
        event.detail["baseline"], f"x since {SINCE}", "y since 2013-07-10T00:00:00+00:00"
    )


def test_only_the_chosen_columns_are_accepted_and_the_alert_ends_with_the_last_of_them(deployments):
    store = deployments.store
    monitors = Monitors(deployments.store)
    configure(store, {"alarms.false_per_year": 1})
    alarms = ("x", "carrier=AA/x", "y", "a/x")
    series = [SeriesKey(column, "level") for column in alarms]
    judged(store, CALM + 9 * DAY, Evidence("bins", dict.fromkeys(series, 9.0), alarms))
    record_result(store, deployments.settings, result_of(9, x=9.0), MonitorSpec())
    start = (CALM + 9 * DAY).isoformat()

    first = accept_alarms(deployments, "flights", "daily", columns=["x"])
    after_first = overviews(store, "flights")[0].last
    firing = len(Alerts(store).firing())
    second = accept_alarms(deployments, "flights", "daily", columns=["a/x", "y"])
    after_second = overviews(store, "flights")[0].last

    assert first.baseline == {"x": start, "carrier=AA/x": start}
    assert first.still_open == ("y", "a/x")
    assert second.baseline == {"a/x": start, "y": start}
    assert second.still_open == ()
    assert after_first is not None
    assert after_second is not None
    assert after_first.outcome == "drift"
    assert firing == 1
    assert after_second.outcome == "accepted"
    assert Alerts(store).firing() == []
    assert after_second.verdict == "drift"
    assert {*after_second.accepted} == {*alarms}
    assert monitors.state("flights", "daily").baseline.keys() == {*alarms}
    with refused(NotFound, "no open alarm"):
        accept_alarms(deployments, "flights", "daily")


@pytest.mark.parametrize("column", ["weather", "xy", RELATIONS])
def test_a_column_without_an_open_alarm_is_refused_with_the_columns_that_have_one(
    deployments, column
):
    configure(deployments.store, {"alarms.false_per_year": 1})
    judged(deployments.store, CALM + 9 * DAY, SHIFTED)

    with refused(NotFound, "'daily'", "no open alarm", f"{column!r}", "x, y"):
        accept_alarms(deployments, "flights", "daily", columns=["x", column])

    assert Monitors(deployments.store).state("flights", "daily").baseline == {}


def test_the_alert_continues_while_a_requirement_is_violated(deployments):
    store = deployments.store
    configure(store, {"alarms.false_per_year": 1})
    judged(store, CALM + 9 * DAY, replace(SHIFTED, alarms=("x", "y", "missing(x)")))
    record_result(store, deployments.settings, result_of(9, x=9.0), MonitorSpec())

    accepted = accept_alarms(deployments, "flights", "daily")

    assert {*accepted.baseline} == {"x", "y"}
    assert accepted.still_open == ("missing(x)",)
    assert len(Alerts(store).firing()) == 1


def test_an_accepted_window_does_not_count_as_a_consecutive_alarm(deployments):
    store = deployments.store
    configure(store, {"alarms.false_per_year": 1})
    judged(store, CALM + 9 * DAY, SHIFTED)
    Monitors(store).update_state("flights", "daily", consecutive=3)
    accept_alarms(deployments, "flights", "daily")
    assert Monitors(store).state("flights", "daily").consecutive == 0
    judged(store, CALM + 10 * DAY, SHIFTED)

    assert consecutive_alarms(Monitors(store).windows("flights", "daily")) == 1


@pytest.mark.parametrize("segment", ["", "carrier=AA/"])
@pytest.mark.parametrize("is_shift", [True, False])
def test_relations_are_accepted_only_by_their_name(deployments, segment, is_shift):
    configure(deployments.store, {"alarms.false_per_year": 1})
    series = FigureSeries(segment.rstrip("/"), PROJECTIONS[3], "spread").series_key
    shifts = {series: SINCE} if is_shift else {}
    alarms = (segment + RELATIONS,)
    judged(deployments.store, CALM + 9 * DAY, Evidence("bins", {series: 9.0}, alarms, shifts))

    with refused(NotFound, "no open alarm", f"flights daily --column '{RELATIONS}'"):
        accept_alarms(deployments, "flights", "daily")
    baseline = accept_alarms(deployments, "flights", "daily", columns=[RELATIONS]).baseline

    assert baseline == {segment + RELATIONS: SINCE if is_shift else (CALM + 9 * DAY).isoformat()}


@pytest.mark.parametrize("columns", [[], ["x"]])
def test_an_accepted_column_leaves_the_alarm_of_the_relations_open(deployments, columns):
    store = deployments.store
    configure(store, {"alarms.false_per_year": 1})
    series = [FigureSeries("", name, "spread").series_key for name in ("x", PROJECTIONS[0])]
    judged(
        store,
        CALM + 9 * DAY,
        Evidence(
            "bins", dict.fromkeys(series, 9.0), ("x", RELATIONS), dict.fromkeys(series, SINCE)
        ),
    )
    record_result(store, deployments.settings, result_of(9, x=9.0), MonitorSpec())

    accepted = accept_alarms(deployments, "flights", "daily", columns=columns)

    assert accepted.baseline == {"x": SINCE}
    assert accepted.still_open == (RELATIONS,)
    assert len(Alerts(store).firing()) == 1


@pytest.mark.long
def test_a_shift_starts_an_alert_until_it_is_accepted(deployments, tmp_path, new_database):
    """Each day of the reference has 75 rows, so that 0.6 is five deviations of a day's
    mean: no jump of a window.
    """
    store = deployments.store
    configure(store, {"alarms.false_per_year": 1})
    for day in range(6):
        capture(tmp_path / "home", CALM + day * DAY, 0.6 if day > 1 else 0.0)

    with tracking_at(new_database(tmp_path)):
        monitor = find_monitor(deployments, "flights", "daily")
        windows = list(run_due(deployments, monitor, print))
        (alert,) = Alerts(store).firing()
        baseline = accept_alarms(deployments, "flights", "daily").baseline
        again, _ = run_window(deployments, monitor, parse_window("2013-07-06/1d"), judge_and_log)

    verdicts = [window.verdict for window in windows]
    assert verdicts[:2] == ["no drift", "no drift"]
    assert set(verdicts[5:]) == {"drift", "not judged"}  # The later days have no rows.
    assert mentions(
        "\n".join(alert.detail["lines"]),
        "x",
        "shift",
        "higher",
        "since the window of 3 July 2013",
        "false alarms per year",
    )
    assert mentions(alert.detail["next"], "onnxserve monitor accept flights daily --column x")
    assert baseline == {"x": (CALM + 2 * DAY).isoformat()}
    assert Alerts(store).firing() == []
    assert again.revision == 2
    assert again.evidence["shifts"] == {}
    assert again.evidence["alarms"] == []


@pytest.mark.parametrize(
    ("fields", "evidence", "error", "names"),
    [
        (
            {"monitors.daily.false_alarm_rate": 0.05},
            SHIFTED,
            InvalidConfig,
            ["'daily'", "alarms.false_per_year=1"],
        ),
        (
            {"alarms.false_per_year": 1},
            replace(SHIFTED, alarms=(), shifts={}),
            NotFound,
            ["'daily'", "no open alarm"],
        ),
        (
            {
                "alarms.false_per_year": 1,
                "monitors.daily.kind": "service_level",
                "monitors.daily.require": "p99<=1",
            },
            SHIFTED,
            InvalidConfig,
            ["service_level", "monitors.daily.require=…"],
        ),
    ],
)
def test_impossible_acceptance_is_refused_with_the_remedy(
    deployments, fields, evidence, error, names
):
    configure(deployments.store, fields)
    judged(deployments.store, CALM + 9 * DAY, evidence)

    with refused(error, *names):
        accept_alarms(deployments, "flights", "daily")
    assert Monitors(deployments.store).state("flights", "daily").baseline == {}


def test_a_reference_with_windows_that_will_be_judged_is_refused_with_the_last_end(deployments):
    reference = {"monitors.daily.reference": "window:2013-06-01/2013-07-22"}

    assert check_change(deployments, "flights", reference) == []  # without a budget
    with refused(
        InvalidConfig,
        "monitors.daily.reference",
        "2013-06-01/2013-07-22",
        "END",
        "2013-07-21T00:00",
    ):
        check_change(deployments, "flights", reference | {"alarms.false_per_year": 1})
    (line,) = check_change(
        deployments,
        "flights",
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
@pytest.mark.parametrize("role", ["values", "probabilities", "label"])
def test_smallest_effect_in_a_unit_that_the_model_does_not_have_is_refused(
    deployments, tmp_path, role
):
    file = tmp_path / "model-of-flights/MLmodel"
    document = yaml.safe_load(file.read_text())
    output = graph_tensor("y", "float32", -1, 2, role=role)
    document["flavors"]["onnxserve"] |= {"outputs": [output], "prediction": ["y"]}
    file.write_text(yaml.safe_dump(document))
    change: dict[str, object] = {"alarms.false_per_year": 1, "alarms.min_effect": 20}

    if role == "values":
        assert check_change(deployments, "flights", change) == []
    else:
        with refused(InvalidConfig, "alarms.min_effect"):
            check_change(deployments, "flights", change)


@pytest.mark.usefixtures("served")
def test_a_budget_that_the_reference_can_keep_has_nothing_to_state(deployments):
    assert check_change(deployments, "flights", {"alarms.false_per_year": 1}) == []


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (
            {"monitors.daily.reference": "window:2013-07-01/2013-07-11"},
            ["window:2013-07-01/2013-07-11", "20", "10"],
        ),
        ({"monitors.daily.season": "30d"}, ["season 30d", "40", "20d"]),
    ],
)
def test_a_reference_that_is_too_short_is_refused_but_a_rolling_one_grows(
    deployments, tmp_path, fields, names
):
    for day in range(12):
        capture(tmp_path / "home", CALM + day * DAY)
    budget: dict[str, object] = {"alarms.false_per_year": 1}

    with refused(InvalidConfig, "monitors.daily", *names):
        check_change(deployments, "flights", {**budget, **fields})
    (line,) = check_change(
        deployments, "flights", budget | {"monitors.daily.reference": "rolling:2d"}
    )
    assert mentions(line, "monitor daily", "first judgement", "rolling:2d")


def test_a_reference_that_cannot_be_loaded_yet_is_checked_with_the_first_window(deployments):
    (line,) = check_change(
        deployments, "flights", {"alarms.false_per_year": 1, "monitors.other.every": "1h"}
    )[1:]

    assert mentions(line, "flights", "monitor other", "first judgement", "model-of-flights")
