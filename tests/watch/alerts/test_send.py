"""Alerts to a real web server: the first message, a worse alarm, the end, and a channel
that works again.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.alerts import Alerts, Silences
from mlflow_deploy_plugin.watch.alerts.record import record_result
from mlflow_deploy_plugin.watch.alerts.send import send_due
from tests.support.results import result_of

from .conftest import OPS, RUN


def test_alarm_is_announced_once_and_then_its_end(see, receiver, store):
    for day, score in enumerate([1.0, 6.0, 6.1, 5.9, 1.0, 1.0]):
        see(result_of(day, temperature=score, wind=4.0 if score > 3 else 0.1, noise=0.2))

    first, last = receiver.got["/ops"]
    assert first["title"] == "onnxserve: flights: Alarm: monitor daily"
    assert first["type"] == "failure"
    assert first["message"] == "\n".join(
        [
            "Alarm: monitor daily",
            "flights, flight-delay version 1, 2013-07-02/2013-07-03: drift",
            "- temperature, distribution, Wasserstein distance 6 SD (threshold 3 SD)",
            "- wind, distribution, Wasserstein distance 4 SD (threshold 3 SD)",
            f"{RUN}/artifacts/report.html",
            (
                "next: onnxserve monitor list flights, or onnxserve alert silence flights "
                "--monitor daily --for 2h"
            ),
        ]
    )
    assert last["title"] == "onnxserve: flights: Over: monitor daily"
    assert last["type"] == "success"
    assert "next" not in last["message"]
    assert Alerts(store).firing() == []


def test_the_news_of_an_endpoint_go_together_and_to_those_whose_tags_are_named(
    store, settings, receiver
):
    science = MonitorSpec(alert=("science",))
    for monitor, spec in (("daily", OPS), ("hourly", OPS), ("weekly", science)):
        record_result(store, settings, result_of(0, monitor=monitor, temperature=6.0), spec)
    record_result(store, settings, result_of(0, endpoint="taxis", temperature=6.0), OPS)

    send_due(store, settings)

    assert sorted(receiver.titles("ops")) == [
        "onnxserve: flights: Alarm: monitor daily and 1 more",
        "onnxserve: taxis: Alarm: monitor daily",
    ]
    assert receiver.titles("science") == ["onnxserve: flights: Alarm: monitor weekly"]


def test_those_of_one_round_are_waited_for(store, settings, receiver, clock):
    record_result(store, settings, result_of(0, temperature=6.0), OPS)

    assert send_due(store, settings, wait=timedelta(seconds=5)) == 0
    clock.pass_by(seconds=5)
    assert send_due(store, settings, wait=timedelta(seconds=5)) == 1


def test_a_channel_that_fails_is_tried_again_after_pauses_that_grow(
    see, store, settings, receiver, clock, caplog
):
    receiver.is_broken = True
    assert see(result_of(0, temperature=6.0)) == 0
    assert send_due(store, settings) == 0
    # The first pause is 10 s.
    assert len([line for line in caplog.messages if "did not accept" in line]) == 1
    clock.pass_by(seconds=11)
    send_due(store, settings)
    receiver.is_broken = False
    clock.pass_by(seconds=11)
    assert send_due(store, settings) == 0
    clock.pass_by(seconds=11)
    assert send_due(store, settings) == 1
    assert send_due(store, settings) == 0
    assert receiver.titles("ops") == ["onnxserve: flights: Alarm: monitor daily"]


def test_a_clock_that_goes_back_holds_up_nothing(see, store, settings, receiver, clock):
    true_now = clock.now
    clock.pass_by(days=30)
    ahead = (clock.now - datetime(2013, 7, 2, tzinfo=UTC)).days
    see(result_of(ahead, temperature=6.0))
    receiver.is_broken = True
    see(result_of(0, monitor="hourly", temperature=6.0))
    record_result(store, settings, result_of(0, monitor="weekly", temperature=6.0), OPS)
    receiver.is_broken = False

    clock.now = true_now
    send_due(store, settings, wait=timedelta(seconds=5))
    assert receiver.titles("ops")[1:] == ["onnxserve: flights: Alarm: monitor hourly and 1 more"]

    see(result_of(1, temperature=6.0))
    see(result_of(2, temperature=1.0))
    assert [title.split(": ")[2] for title in receiver.titles("ops")[2:]] == ["Still", "Over"]


def test_alarm_that_ended_before_it_could_be_sent_is_not_sent(
    see, store, settings, receiver, clock
):
    receiver.is_broken = True
    see(result_of(0, temperature=6.0))
    receiver.is_broken = False
    see(result_of(1, temperature=1.0))
    clock.pass_by(hours=2)
    send_due(store, settings)

    assert receiver.got == {}


def test_silence_holds_back_only_the_alarms_it_covers(see, store, settings, receiver, clock):
    Silences(store).add("flights", "daily", timedelta(hours=2), "a known storm")
    see(result_of(0, temperature=6.0))
    see(result_of(0, monitor="hourly", temperature=6.0))
    assert receiver.titles("ops") == ["onnxserve: flights: Alarm: monitor hourly"]

    clock.pass_by(hours=3)
    send_due(store, settings)

    assert receiver.titles("ops")[1:] == ["onnxserve: flights: Alarm: monitor daily"]
    assert [event.why for event in store.events() if event.action == "silence"] == ["a known storm"]


def test_alarms_are_stored_but_not_sent_without_a_configuration(see, store):
    assert see(result_of(0, temperature=6.0), settings=Settings()) == 0
    assert [alert.fingerprint for alert in Alerts(store).firing()] == ["flights/daily"]


def test_two_that_tell_at_the_same_time_tell_once(store, settings, receiver):
    record_result(store, settings, result_of(0, temperature=6.0), OPS)

    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(lambda _: send_due(store, settings), range(4)))

    assert sum(sent) == 1
    assert len(receiver.titles("ops")) == 1
