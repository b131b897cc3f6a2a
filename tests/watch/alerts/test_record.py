"""Alerts in the store: their start, worsening, continuation, end and content."""

from dataclasses import replace

import pytest

from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.watch.alerts.record import (
    announce,
    announce_request,
    record_failure,
    record_result,
)
from mlflow_deploy_plugin.watch.alerts.send import send_due
from mlflow_deploy_plugin.watch.result import Finding
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, SeriesKey
from tests.support.metrics_page import serving
from tests.support.refusals import mentions
from tests.support.results import result_of
from tests.support.tracking import tracking_at

from .conftest import OPS, RUN


def test_alarm_repeats_if_worse_or_old(see, receiver, clock):
    see(result_of(0, temperature=6.0))
    see(result_of(1, temperature=8.0))
    see(result_of(2, temperature=10.0))
    clock.pass_by(days=6, hours=23)
    see(result_of(3, temperature=10.0))
    clock.pass_by(hours=2)
    see(result_of(4, temperature=10.0))

    assert receiver.phases("ops") == ["Alarm", "Worse", "Still"]


def test_change_without_harm_is_sent_once(see, receiver, store, clock):
    wind = Finding("wind", "distribution", "changed", "far", 6.0, 3.0)
    both = (wind, replace(wind, subject="humid"))
    estimate = "accuracy is probably unchanged: 0.830"
    stronger = replace(wind, value=60.0)
    for number, findings in enumerate([(wind,), (stronger,), both, both, (wind,), both]):
        see(result_of(number, state="changed", findings=findings, estimate=estimate))
        clock.pass_by(days=8)
    assert (len(Alerts(store).open()), Alerts(store).firing()) == (1, [])

    see(result_of(6, findings=(replace(wind, state="drift"),)))
    see(result_of(7, state="changed", findings=(wind,)))
    see(result_of(8, state="no drift"))

    # Another column is told, and again when its change returns.
    assert receiver.phases("ops") == ["Changed"] * 3 + ["Alarm", "Changed", "Over"]
    message = receiver.got["/ops"][0]["message"]
    assert message.index(estimate) < message.index("- wind")
    assert Alerts(store).open() == []


@pytest.mark.parametrize("undecided", ["not judged", "cannot tell"])
def test_undecided_window_changes_no_alarm(see, receiver, store, undecided):
    see(result_of(0, state=undecided, reason="accuracy: 0.79"))
    assert Alerts(store).firing() == []

    see(result_of(1, temperature=6.0))
    see(result_of(2, state=undecided, reason="accuracy: 0.79"))
    assert len(Alerts(store).firing()) == 1

    see(result_of(3, state="kept"))
    assert receiver.phases("ops") == ["Alarm", "Over"]


def test_older_or_repeated_window_is_not_announced(see, receiver, store):
    see(result_of(5, temperature=6.0))
    see(result_of(5, temperature=6.0))
    see(result_of(2, temperature=1.0))
    see(result_of(6, state="not judged", temperature=1.0))

    assert len(receiver.titles("ops")) == 1
    assert [alert.count for alert in Alerts(store).firing()] == [1]


def test_failing_monitor_is_an_alert(see, store, settings, receiver):
    document = {
        "name": "flights",
        "variants": {"flights": {"model": "models:/m/1"}},
        "monitors": {"daily": {"alert": "ops"}},
    }
    store.add_endpoint("onnxserve", EndpointSpec.model_validate(document))
    for _ in range(3):
        record_failure(store, settings, "flights", "daily", "MLflow does not answer")
        send_due(store, settings)
    see(result_of(0, temperature=1.0))

    assert receiver.phases("ops") == ["Failing", "Over"]
    message = receiver.got["/ops"][0]["message"]
    assert mentions(message, "MLflow does not answer", "next: onnxserve monitor list flights")
    assert receiver.titles("science") == []


def test_retraining_is_proposed_if_configured(store, settings, receiver):
    trained = MonitorSpec.model_validate({"alert": "ops", "retrain": {"project": "."}})
    for monitor, spec in (("daily", trained), ("hourly", OPS)):
        record_result(store, settings, result_of(0, monitor=monitor, temperature=6.0), spec)
    send_due(store, settings)

    message = receiver.got["/ops"][0]["message"]
    assert mentions(message, "onnxserve retrain run flights --monitor daily")
    assert message.count("onnxserve retrain") == 1


def test_requests_are_sent_once(store, settings, receiver):
    text = "eva requests it: trained on more"
    step = "next: onnxserve request approve"
    announce_request(store, "flight-delay", text, RUN, step, {"model": "flight-delay"})
    for _ in range(2):
        announce(store, "flights", "daily", "version 7 waits", RUN)
        send_due(store, settings)

    request, waiting = sorted(receiver.got["/ops"], key=lambda message: message["title"])
    assert request["title"] == "onnxserve: flight-delay: For you"
    assert mentions(request["message"], "eva", RUN, "onnxserve request approve")
    assert "version 7 waits" in waiting["message"]


def test_message_describes_each_finding(see, receiver):
    wind = Finding(
        "wind", "distribution", "drift", "far", 6.0, 3.0, change="mean 3.2 → 8.9, higher"
    )
    hours = ("2013-06-29T14:00:00+00:00", "2013-06-29T15:00:00+00:00")
    wind = replace(wind, since=hours[0], since_end=hours[1], in_a_row=3)
    gone = Finding("humid", "presence", "drift", "in the reference, not in the window", 1.0, 0.0)
    accuracy = Finding("accuracy", "criterion", "violated", "0.71 < 0.8", 0.71, 0.8, "carrier=AA")

    see(result_of(0, findings=(wind, gone, accuracy)))

    message = receiver.got["/ops"][0]["message"]
    since = "since the window of 29 June 2013, 14:00 to 15:00 UTC"
    assert mentions(message, "wind", "distribution 6", "threshold 3", wind.change, since, "far")
    assert mentions(message, "humid", "presence", gone.reason, "window 3")
    assert mentions(message, "accuracy [carrier=AA]", "criterion 0.71", "threshold 0.8")


def test_alarms_without_effect_share_one_line(see, receiver):
    unused = replace(SHIFT, subject="depth", segment="", effect=0.0, effect_size=0.0)
    see(result_of(0, findings=(SHIFT, unused, replace(unused, subject="table"))))

    message = receiver.got["/ops"][0]["message"]
    assert "\n- wind" in message
    assert "- depth" not in message
    assert mentions(message, "without an effect on the predictions: depth, table")


SHIFT = Finding(
    "wind",
    "shift",
    "drift",
    "+2.4 standard deviations",
    2.4,
    segment="carrier=AA",
    change="mean 3.2 → 8.9, higher",
    since="2013-06-08T00:00:00+00:00",
    since_end="2013-06-09T00:00:00+00:00",
    since_range=("2013-06-05T00:00:00+00:00", "2013-06-11T00:00:00+00:00"),
)


def test_lasting_shift_is_announced_until_its_end(see, receiver, store):
    budget = {"false_alarms_per_year": 0.2}
    see(result_of(0, findings=(SHIFT,), figures=budget))
    see(result_of(1, findings=(SHIFT,), figures=budget))
    assert len(Alerts(store).firing()) == 1
    see(result_of(2, wind=1.0))

    assert receiver.phases("ops") == ["Alarm", "Over"]
    message = receiver.got["/ops"][0]["message"]
    since = "since the window of 8 June 2013 (95 % interval: 5 to 10 June 2013, if it was a step)"
    assert mentions(
        message, "wind [carrier=AA]", "shift", SHIFT.change, since, SHIFT.reason, "0.2 false alarms"
    )


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({}, " onnxserve monitor accept flights daily --column 'carrier=AA/air temp',"),
        ({"figures": {}}, ""),
        ({"kind": "performance"}, ""),
        ({"evidence": Evidence()}, ""),
    ],
    ids=["a budget", "no budget", "no reference", "no levels"],
)
def test_message_has_the_command_to_accept(see, receiver, fields, command):
    shift = replace(SHIFT, subject="air temp")
    gone = replace(SHIFT, subject="gone")  # Without levels, it has no baseline.
    acceptable = {
        "findings": (gone, shift),
        "figures": {"false_alarms_per_year": 1.0},
        "evidence": Evidence(levels={SeriesKey(shift.key, "level"): 1.0}),
    }
    see(result_of(0, **acceptable | fields))

    step = receiver.got["/ops"][0]["message"].splitlines()[-1]
    silence = "onnxserve alert silence flights --monitor daily --for 2h"
    assert step == f"next: onnxserve monitor list flights,{command} or {silence}"


def test_second_shift_is_announced_as_worse(see, receiver):
    see(result_of(0, findings=(SHIFT,)))
    see(result_of(1, findings=(SHIFT, replace(SHIFT, subject="humid"))))

    assert receiver.phases("ops") == ["Alarm", "Worse"]


def test_message_stays_short(store, settings, receiver):
    finding = Finding("x" * 100_000, "presence", "drift", "no such column\n" * 1000)

    record_result(store, settings, result_of(findings=(finding,), reason="because " * 1000), OPS)
    send_due(store, settings)

    assert len(receiver.got["/ops"][0]["message"]) < 1500


@pytest.mark.parametrize(
    "files", [{"/onnxserve/console.css": ""}, {}], ids=["console", "mlflow alone"]
)
def test_message_links_to_the_console(see, store, settings, receiver, files):
    with serving(files) as url, tracking_at(url):
        see(result_of(0, temperature=6.0))
        record_failure(store, settings, "taxis", "daily", "no column 'y'")
        send_due(store, settings)

    for message, endpoint in zip(receiver.got["/ops"], ("flights", "taxis"), strict=True):
        prefix = f"next ({url}/onnxserve?endpoint={endpoint}): " if files else "next: "
        assert f"\n{prefix}onnxserve monitor list {endpoint}" in message["message"]
