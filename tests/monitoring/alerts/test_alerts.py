"""Alerts to a real web server: told once, again when worse, when over, and when a channel works again."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.monitoring.alerts import announce, record_failure, record_result, send_due
from mlflow_deploy_plugin.monitoring.result import Finding, MonitorResult
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import EndpointSpec, MonitorSpec
from mlflow_deploy_plugin.store.alerts import Alerts, Silences
from mlflow_deploy_plugin.store.store import Store
from tests.monitoring.alerts.conftest import Clock
from tests.support.results import result_of
from tests.support.services.alert_receiver import Receiver

RUN = "http://mlflow/#/experiments/1/runs/abc"
OPS = MonitorSpec(alert=("ops",))


@pytest.fixture
def see(store: Store, settings: Settings) -> Callable[..., Any]:
    """Takes a judgement, and tells what is to be told."""

    def take(result: MonitorResult, spec: MonitorSpec = OPS, settings: Settings = settings) -> int:
        record_result(store, settings, result, RUN, spec)
        return send_due(store, settings)

    return take


def test_an_alarm_is_told_once_and_then_that_it_is_over(
    see: Callable[..., Any], receiver: Receiver, store: Store
) -> None:
    for day, score in enumerate([1.0, 6.0, 6.1, 5.9, 1.0, 1.0]):
        see(result_of(day, temperature=score, wind=4.0 if score > 3 else 0.1, noise=0.2))

    first, last = receiver.got["/ops"]
    assert (first["title"], first["type"]) == ("onnxserve: flights: Alarm: monitor daily", "failure")
    assert first["message"] == "\n".join(
        [
            "Alarm: monitor daily",
            "flights, flight-delay version 1, 2013-07-02/2013-07-03: drift",
            "the largest score is beyond the threshold",
            "- temperature, distribution 6 (threshold 3)",
            "- wind, distribution 4 (threshold 3)",
            f"{RUN}/artifacts/report.html",
        ]
    )
    assert (last["title"], last["type"]) == ("onnxserve: flights: Over: monitor daily", "success")
    assert Alerts(store).firing() == []


def test_it_is_told_again_when_it_is_half_as_bad_again_or_goes_on_for_the_repeat_interval(
    see: Callable[..., Any], receiver: Receiver, clock: Clock
) -> None:
    see(result_of(0, temperature=6.0))
    see(result_of(1, temperature=8.0))
    see(result_of(2, temperature=10.0))
    clock.pass_by(hours=23)
    see(result_of(3, temperature=10.0))
    clock.pass_by(hours=2)
    see(result_of(4, temperature=10.0))

    assert [title.split(": ")[2] for title in receiver.titles("ops")] == ["Alarm", "Worse", "Still"]


@pytest.mark.parametrize("undecided", ["not judged", "cannot tell"])
def test_a_window_of_which_nothing_can_be_said_begins_no_alarm_and_ends_none(
    see: Callable[..., Any], receiver: Receiver, store: Store, undecided: str
) -> None:
    see(result_of(0, state=undecided, reason="accuracy: 0.79"))
    assert Alerts(store).firing() == []

    see(result_of(1, temperature=6.0))
    see(result_of(2, state=undecided, reason="accuracy: 0.79"))
    assert len(Alerts(store).firing()) == 1

    see(result_of(3, state="kept"))
    assert [title.split(": ")[2] for title in receiver.titles("ops")] == ["Alarm", "Over"]


def test_a_window_that_is_judged_again_or_that_is_older_is_not_told(
    see: Callable[..., Any], receiver: Receiver, store: Store
) -> None:
    see(result_of(5, temperature=6.0))
    see(result_of(5, temperature=6.0))
    see(result_of(2, temperature=1.0))
    see(result_of(6, state="not judged", temperature=1.0))

    assert len(receiver.titles("ops")) == 1
    assert [one.count for one in Alerts(store).firing()] == [1]


def test_the_news_of_an_endpoint_go_together_and_to_those_whose_tags_are_named(
    store: Store, settings: Settings, receiver: Receiver
) -> None:
    science = MonitorSpec(alert=("science",))
    for monitor, spec in (("daily", OPS), ("hourly", OPS), ("weekly", science)):
        record_result(store, settings, result_of(0, monitor=monitor, temperature=6.0), RUN, spec)
    record_result(store, settings, result_of(0, endpoint="taxis", temperature=6.0), RUN, OPS)

    send_due(store, settings)

    assert sorted(receiver.titles("ops")) == [
        "onnxserve: flights: Alarm: monitor daily and 1 more",
        "onnxserve: taxis: Alarm: monitor daily",
    ]
    assert receiver.titles("science") == ["onnxserve: flights: Alarm: monitor weekly"]


def test_those_of_one_round_are_waited_for(store: Store, settings: Settings, receiver: Receiver, clock: Clock) -> None:
    record_result(store, settings, result_of(0, temperature=6.0), RUN, OPS)

    assert send_due(store, settings, wait=timedelta(seconds=5)) == 0
    clock.pass_by(seconds=5)
    assert send_due(store, settings, wait=timedelta(seconds=5)) == 1


def test_a_channel_that_fails_is_tried_again_after_pauses_that_grow(
    see: Callable[..., Any],
    store: Store,
    settings: Settings,
    receiver: Receiver,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.is_broken = True
    assert see(result_of(0, temperature=6.0)) == 0
    assert send_due(store, settings) == 0
    assert len([line for line in caplog.messages if "did not take the alert" in line]) == 1  # a pause of 10 s holds
    clock.pass_by(seconds=11)
    send_due(store, settings)
    receiver.is_broken = False
    clock.pass_by(seconds=11)
    assert send_due(store, settings) == 0
    clock.pass_by(seconds=11)
    assert send_due(store, settings) == 1
    assert send_due(store, settings) == 0
    assert receiver.titles("ops") == ["onnxserve: flights: Alarm: monitor daily"]


def test_a_clock_that_goes_back_holds_up_nothing(
    see: Callable[..., Any], store: Store, settings: Settings, receiver: Receiver, clock: Clock
) -> None:
    true_now = clock.now
    clock.pass_by(days=30)
    ahead = (clock.now - datetime(2013, 7, 2, tzinfo=UTC)).days
    see(result_of(ahead, temperature=6.0))
    receiver.is_broken = True
    see(result_of(0, monitor="hourly", temperature=6.0))
    record_result(store, settings, result_of(0, monitor="weekly", temperature=6.0), RUN, OPS)
    receiver.is_broken = False

    clock.now = true_now
    send_due(store, settings, wait=timedelta(seconds=5))
    assert receiver.titles("ops")[1:] == ["onnxserve: flights: Alarm: monitor hourly and 1 more"]

    see(result_of(1, temperature=6.0))
    see(result_of(2, temperature=1.0))
    assert [title.split(": ")[2] for title in receiver.titles("ops")[2:]] == ["Still", "Over"]


def test_what_was_over_before_it_could_be_told_is_not_told(
    see: Callable[..., Any], store: Store, settings: Settings, receiver: Receiver, clock: Clock
) -> None:
    receiver.is_broken = True
    see(result_of(0, temperature=6.0))
    receiver.is_broken = False
    see(result_of(1, temperature=1.0))
    clock.pass_by(hours=2)
    send_due(store, settings)

    assert receiver.got == {}


def test_a_silence_holds_back_what_it_covers_and_nothing_else(
    see: Callable[..., Any], store: Store, settings: Settings, receiver: Receiver, clock: Clock
) -> None:
    Silences(store).add("flights", "daily", timedelta(hours=2), "a known storm")
    see(result_of(0, temperature=6.0))
    see(result_of(0, monitor="hourly", temperature=6.0))
    assert receiver.titles("ops") == ["onnxserve: flights: Alarm: monitor hourly"]

    clock.pass_by(hours=3)
    send_due(store, settings)

    assert receiver.titles("ops")[1:] == ["onnxserve: flights: Alarm: monitor daily"]
    assert [event.why for event in store.events() if event.action == "silence"] == ["a known storm"]


def test_a_monitor_that_fails_is_told_to_its_channels_until_it_works_again(
    see: Callable[..., Any], store: Store, settings: Settings, receiver: Receiver
) -> None:
    spec = EndpointSpec.model_validate(
        {"name": "flights", "variants": {"flights": {"model": "models:/m/1"}}, "monitors": {"daily": {"alert": "ops"}}}
    )
    store.add_endpoint("onnxserve", spec)
    for _ in range(3):
        record_failure(store, settings, "flights", "daily", "MLflow does not answer")
        send_due(store, settings)
    see(result_of(0, temperature=1.0))

    assert [title.split(": ")[2] for title in receiver.titles("ops")] == ["Failing", "Over"]
    assert "flights: the monitor fails: MLflow does not answer" in receiver.got["/ops"][0]["message"]
    assert receiver.titles("science") == []


def test_what_waits_for_a_person_is_told_once(store: Store, settings: Settings, receiver: Receiver) -> None:
    for _ in range(2):
        announce(store, "flights", "daily", "flight-delay version 7 waits for approval", RUN)
        send_due(store, settings)

    (message,) = receiver.got["/ops"]
    assert "flight-delay version 7 waits for approval" in message["message"]


def test_of_a_criterion_segment_and_value_are_named(see: Callable[..., Any], receiver: Receiver) -> None:
    found = Finding("accuracy", "criterion", "violated", "0.71 < 0.8", 0.71, 0.8, "carrier=AA")
    see(result_of(0, kind="performance", state="violated", findings=(found,)))

    message = receiver.got["/ops"][0]["message"]
    assert "- accuracy [carrier=AA], criterion 0.71 (threshold 0.8): 0.71 < 0.8" in message


def test_no_secret_reaches_the_log_the_store_or_a_repr(
    see: Callable[..., Any], store: Store, settings: Settings, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.is_broken = True
    see(result_of(0, temperature=6.0))

    assert "s3cret" not in caplog.text
    assert "/ops" not in caplog.text
    assert "did not take the alert" in caplog.text
    assert "s3cret" not in repr(settings) + repr(Alerts(store).firing())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no file"),
        ("", "names no channel"),
        ("nonsense://s3cret\n", "names no channel"),
        ("urls: [s3cret", "names no channel"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_said_without_quoting_it(
    see: Callable[..., Any], store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None, said: str
) -> None:
    file = tmp_path / "broken.yaml"
    if text is not None:
        file.write_text(text)

    assert see(result_of(0, temperature=6.0), settings=Settings(alert_config=file)) == 0

    send_due(store, Settings(alert_config=file))
    assert caplog.text.replace(f"{file} ", "").count(f"nobody is told: ONNXSERVE_ALERT_CONFIG: {said}") == 1
    assert "s3cret" not in caplog.text
    assert len(Alerts(store).firing()) == 1


def test_without_a_configuration_alarms_are_kept_and_nobody_is_told(see: Callable[..., Any], store: Store) -> None:
    assert see(result_of(0, temperature=6.0), settings=Settings()) == 0
    assert [one.fingerprint for one in Alerts(store).firing()] == ["flights/daily"]


def test_a_column_is_told_with_what_has_become_of_it_and_since_when(
    see: Callable[..., Any], receiver: Receiver
) -> None:
    change = "mean 3.2 → 8.9, higher"
    since = "2013-06-29T00:00:00+00:00"
    wind = Finding("wind", "distribution", "drift", "far", 6.0, 3.0, change=change, since=since, in_a_row=3)
    gone = Finding("humid", "presence", "drift", "in the reference, not in the window", 1.0, 0.0)

    see(result_of(0, findings=(wind, gone)))

    told = receiver.got["/ops"][0]["message"].splitlines()
    history = "mean 3.2 → 8.9, higher; drift since 2013-06-29, window 3 in a row"
    assert f"- wind, distribution 6 (threshold 3): {history}; far" in told
    assert "- humid, presence: in the reference, not in the window" in told


def test_two_that_tell_at_the_same_time_tell_once(store: Store, settings: Settings, receiver: Receiver) -> None:
    record_result(store, settings, result_of(0, temperature=6.0), RUN, OPS)

    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(lambda _: send_due(store, settings), range(4)))

    assert sum(sent) == 1
    assert len(receiver.titles("ops")) == 1


def test_a_channel_that_takes_html_is_sent_the_names_as_text(
    store: Store, settings: Settings, receiver: Receiver
) -> None:
    assert settings.alert_config is not None
    settings.alert_config.write_text(f"urls:\n  - {receiver.url('html')}?format=html\n")
    found = Finding("<img src=x>\n- wind", "unseen", "drift", "new is <b>", 6.0, 3.0)

    record_result(store, settings, result_of(findings=(found,)), RUN, MonitorSpec())
    send_due(store, settings)

    message = receiver.got["/html"][0]["message"]
    assert "<img" not in message
    assert "&lt;img src=x&gt; - wind, unseen 6 (threshold 3): new is &lt;b&gt;" in message.replace("&nbsp;", " ")
    assert "<br" in message


def test_what_is_said_stays_short(store: Store, settings: Settings, receiver: Receiver) -> None:
    found = Finding("x" * 100_000, "presence", "drift", "no such column\n" * 1000)

    record_result(store, settings, result_of(findings=(found,), reason="because " * 1000), RUN, OPS)
    send_due(store, settings)

    assert len(receiver.got["/ops"][0]["message"]) < 1500
