"""Alerts to a real web server: the first message, a worse alarm, the end, and a channel
that works again.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.alerts import Alerts, Silences
from mlflow_deploy_plugin.watch.alerts.record import announce, record_failure, record_result
from mlflow_deploy_plugin.watch.alerts.send import send_due
from mlflow_deploy_plugin.watch.result import Finding
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, SeriesKey
from tests.support.refusals import mentions
from tests.support.results import result_of

from .conftest import OPS, RUN


def test_start_and_end_are_sent(see, receiver, store):
    for day, score in enumerate([1.0, 6.0, 6.1, 5.9, 1.0, 1.0]):
        see(result_of(day, temperature=score, wind=4.0 if score > 3 else 0.1, noise=0.2))

    first, last = receiver.got["/ops"]
    assert first["title"] == "onnxserve: flights: Alarm: monitor daily"
    assert first["type"] == "failure"
    lines = first["message"].splitlines()
    assert lines[1:4] == [
        "flights, flight-delay version 1, 2013-07-02/2013-07-03: drift",
        "- temperature, distribution, Wasserstein distance 6 SD (threshold 3 SD)",
        "- wind, distribution, Wasserstein distance 4 SD (threshold 3 SD)",
    ]
    assert lines[4] == f"{RUN}/artifacts/report.html"
    assert mentions(lines[5], "next: onnxserve monitor list flights", "onnxserve alert silence")
    assert last["title"] == "onnxserve: flights: Over: monitor daily"
    assert last["type"] == "success"
    assert "next" not in last["message"]
    assert Alerts(store).firing() == []


def test_alarms_are_grouped_by_endpoint_and_tag(store, settings, receiver):
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


def test_new_alarms_wait_for_grouping(store, settings, receiver, clock):
    record_result(store, settings, result_of(0, temperature=6.0), OPS)

    assert send_due(store, settings, wait=timedelta(seconds=5)) == 0
    clock.pass_by(seconds=5)
    assert send_due(store, settings, wait=timedelta(seconds=5)) == 1


def test_failing_channel_is_retried_with_growing_pauses(
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


def test_alarms_survive_a_corrected_clock(see, store, settings, receiver, clock):
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
    assert receiver.phases("ops")[2:] == ["Still", "Over"]


def test_alarm_over_before_delivery_is_not_sent(see, store, settings, receiver, clock):
    receiver.is_broken = True
    see(result_of(0, temperature=6.0))
    receiver.is_broken = False
    see(result_of(1, temperature=1.0))
    clock.pass_by(hours=2)
    send_due(store, settings)

    assert receiver.got == {}


def test_silenced_alarms_are_sent_later(see, store, settings, receiver, clock):
    Silences(store).add("flights", "daily", timedelta(hours=2), "a known storm")
    see(result_of(0, temperature=6.0))
    see(result_of(0, monitor="hourly", temperature=6.0))
    assert receiver.titles("ops") == ["onnxserve: flights: Alarm: monitor hourly"]

    clock.pass_by(hours=3)
    send_due(store, settings)

    assert receiver.titles("ops")[1:] == ["onnxserve: flights: Alarm: monitor daily"]
    assert [event.why for event in store.events() if event.action == "silence"] == ["a known storm"]


def test_alarms_without_channels_are_stored(see, store):
    assert see(result_of(0, temperature=6.0), settings=Settings()) == 0
    assert [alert.fingerprint for alert in Alerts(store).firing()] == ["flights/daily"]


def test_concurrent_senders_send_once(store, settings, receiver):
    record_result(store, settings, result_of(0, temperature=6.0), OPS)

    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(lambda _: send_due(store, settings), range(4)))

    assert sum(sent) == 1
    assert len(receiver.titles("ops")) == 1


def test_channel_secrets_are_not_logged_or_stored(see, store, settings, receiver, caplog):
    caplog.set_level(logging.DEBUG)
    receiver.is_broken = True
    see(result_of(0, temperature=6.0))

    assert "s3cret" not in caplog.text
    assert "/ops" not in caplog.text
    assert "did not accept" in caplog.text
    assert "s3cret" not in repr(settings) + repr(Alerts(store).firing())


@pytest.mark.parametrize(("answer_bytes", "taken"), [(1_000_000, 1), (1_000_001, 0)])
def test_answer_of_a_channel_is_bounded(see, receiver, caplog, answer_bytes, taken):
    receiver.answer_bytes = answer_bytes
    assert see(result_of(0, temperature=6.0)) == taken
    assert ("did not accept" in caplog.text) is (taken == 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "the file does not exist"),
        ("", "has no channel"),
        ("nonsense://s3cret\n", "has no channel"),
        ("urls: [s3cret", "has no channel"),
    ],
)
def test_invalid_configuration_is_reported_without_its_content(
    see, store, tmp_path, caplog, text, said
):
    file = tmp_path / "broken.yaml"
    if text is not None:
        file.write_text(text)

    assert see(result_of(0, temperature=6.0), settings=Settings(alert_config=file)) == 0

    send_due(store, Settings(alert_config=file))
    assert (
        caplog.text.replace(f"{file} ", "").count(
            f"alerts cannot be sent: ONNXSERVE_ALERT_CONFIG: {said}"
        )
        == 1
    )
    assert "s3cret" not in caplog.text
    assert len(Alerts(store).firing()) == 1


def test_names_are_escaped_for_html_channels(store, settings, receiver):
    settings.alert_config.write_text(f"urls:\n  - {receiver.url('html')}?format=html\n")
    finding = Finding("<img src=x>\n- wind", "unseen", "drift", "new is <b>", 6.0, 3.0)

    record_result(store, settings, result_of(findings=(finding,)), MonitorSpec())
    send_due(store, settings)

    message = receiver.got["/html"][0]["message"]
    assert "<img" not in message
    assert mentions(message.replace("&nbsp;", " "), "&lt;img src=x&gt; - wind", "new is &lt;b&gt;")
    assert "<br" in message


@pytest.mark.parametrize("what", ["a finding", "a failure", "a message"])
def test_caller_values_are_escaped_for_chats(store, settings, receiver, what):
    value = (
        "@everyone <!channel> [the report](https://evil.example) <https://evil.example|the report>"
    )
    finding = Finding(
        "carrier", "unseen", "drift", f"new values as {value!r}", 6.0, 3.0, segment=value
    )
    acceptable = {
        "figures": {"false_alarms_per_year": 1.0},
        "evidence": Evidence(levels={SeriesKey(finding.key, "level"): 1.0}),
    }
    settings.alert_config.write_text(
        f"urls:\n  - {receiver.url('chat').replace('json:', 'mmost:')}\n"
    )

    match what:
        case "a finding":
            run = LoggedRun("abc", "onnxserve/flights", RUN)
            record_result(
                store,
                settings,
                result_of(findings=(finding,), run=run, **acceptable),
                MonitorSpec(),
            )
        case "a failure":
            record_failure(store, settings, "flights", "hourly", f"no number: {value!r}")
        case _:
            announce(
                store, "flights", "hourly", f"no number: {value!r}", f"{RUN}/artifacts/report.html"
            )
    send_due(store, settings)

    text = next(iter(receiver.got.values()))[0]["text"]
    assert ("onnxserve monitor accept" in text) == (what == "a finding")
    for active in ("@everyone", "<!channel>", "](", "https://evil"):
        assert active not in text
    assert repr(value) in text.replace("\u200b", "")
    # Our own link is not escaped.
    assert (f"{RUN}/artifacts/report.html" in text) == (what != "a failure")
