"""Tests of `onnxserve alert silence`, `silences` and `unsilence`."""

import json

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.refusals import mentions


@pytest.fixture
def flights(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    store = open_store(load_settings().store_url)
    document = {
        "name": "flights",
        "variants": {"flights": {"model": "models:/m/1"}},
        "monitors": {"daily": {}},
    }
    store.add_endpoint("onnxserve", EndpointSpec.model_validate(document))
    store.close()


def typed(*arguments):
    return CliRunner().invoke(main, arguments)


def test_a_silence_is_begun_listed_and_ended(flights):
    made = typed(
        "alert", "silence", "flights", "--monitor", "daily", "--for", "2h", "--why", "a known storm"
    )
    assert made.exit_code == 0
    assert made.output.startswith("1  flights, monitor daily, until ")
    assert made.output.endswith(": a known storm\n")
    assert typed("alert", "silence", "flights", "--for", "30m").output.startswith(
        "2  flights, all monitors, "
    )
    assert typed("alert", "silences").output.count("\n") == 2
    assert typed("alert", "silences", "taxis").output.startswith(
        "Error: there is no endpoint 'taxis'"
    )
    assert [
        entry["monitor"] for entry in json.loads(typed("alert", "silences", "-o", "json").output)
    ] == ["daily", None]
    assert mentions(typed("alert", "unsilence", "1", "--why", "passed").output, "silence 1", "over")
    assert typed("alert", "silences").output.startswith("2  ")
    history = typed("audit", "history", "flights").output
    assert "silence  flights" in history
    assert mentions(history, "a known storm")
    assert "silence.end  flights" in history
    assert "why: passed" in history


def test_a_reason_is_text_to_the_terminal(flights):
    assert typed(
        "alert", "silence", "flights", "--for", "2h", "--why", "\x1b[2Jgone"
    ).output.endswith(":  [2Jgone\n")
    assert typed("alert", "silence", "\x1b[2J", "--for", "2h").output.startswith("Error: ")
    for command in (["alert", "silences"], ["audit", "history"]):
        assert "\x1b" not in typed(*command).output


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (["alert", "silence"], 2, ["NAME"]),
        (["alert", "silence", "--for", "2h"], 2, ["NAME"]),
        (["alert", "silence", "flights"], 2, ["--for"]),
        (["alert", "silence", "flights", "--for", "soon"], 2, ["--for", "'soon'", "30s"]),
        (
            ["alert", "silence", "flihgts", "--for", "2h"],
            1,
            ["no endpoint", "'flihgts'", "'flights'"],
        ),
        (["alert", "silence", "taxis", "--for", "2h"], 1, ["no endpoint", "'taxis'", "flights"]),
        (
            ["alert", "silence", "flights", "--monitor", "x", "--for", "2h"],
            1,
            ["'flights'", "monitor 'x'", "it has daily"],
        ),
        (["alert", "unsilence", "9"], 1, ["no silence 9"]),
        (["alert", "unsilence", "0"], 2, ["ID", "0"]),
    ],
)
def test_invalid_arguments_give_a_clear_error(flights, arguments, code, names):
    result = typed(*arguments)
    assert result.exit_code == code
    assert mentions(result.output + result.stderr, *names)
