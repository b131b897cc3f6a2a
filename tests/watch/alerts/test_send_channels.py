"""Messages to channels, without any secret in the log or the store."""

import logging
from typing import Any

import pytest

from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.watch.alerts.record import announce, record_failure, record_result
from mlflow_deploy_plugin.watch.alerts.send import send_due
from mlflow_deploy_plugin.watch.result import Finding
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, SeriesKey
from tests.support.refusals import mentions
from tests.support.results import result_of

from .conftest import RUN


def test_no_secret_reaches_the_log_the_store_or_a_repr(see, store, settings, receiver, caplog):
    caplog.set_level(logging.DEBUG)
    receiver.is_broken = True
    see(result_of(0, temperature=6.0))

    assert "s3cret" not in caplog.text
    assert "/ops" not in caplog.text
    assert "did not accept" in caplog.text
    assert "s3cret" not in repr(settings) + repr(Alerts(store).firing())


@pytest.mark.parametrize(("answer_bytes", "taken"), [(1_000_000, 1), (1_000_001, 0)])
def test_the_answer_of_a_channel_is_bounded(see, receiver, caplog, answer_bytes, taken):
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
def test_unusable_configuration_is_reported_without_quoting_it(
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


def test_a_channel_that_takes_html_is_sent_the_names_as_text(store, settings, receiver):
    assert settings.alert_config is not None
    settings.alert_config.write_text(f"urls:\n  - {receiver.url('html')}?format=html\n")
    finding = Finding("<img src=x>\n- wind", "unseen", "drift", "new is <b>", 6.0, 3.0)

    record_result(store, settings, result_of(findings=(finding,)), MonitorSpec())
    send_due(store, settings)

    message = receiver.got["/html"][0]["message"]
    assert "<img" not in message
    assert mentions(message.replace("&nbsp;", " "), "&lt;img src=x&gt; - wind", "new is &lt;b&gt;")
    assert "<br" in message


@pytest.mark.parametrize("what", ["a finding", "a failure", "a message"])
def test_caller_values_cannot_form_mentions_or_links_in_a_chat(store, settings, receiver, what):
    value = (
        "@everyone <!channel> [the report](https://evil.example) <https://evil.example|the report>"
    )
    finding = Finding(
        "carrier", "unseen", "drift", f"new values as {value!r}", 6.0, 3.0, segment=value
    )
    acceptable: dict[str, Any] = {
        "figures": {"false_alarms_per_year": 1.0},
        "evidence": Evidence(levels={SeriesKey(finding.key, "level"): 1.0}),
    }
    assert settings.alert_config is not None
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
