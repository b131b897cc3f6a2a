"""Tests of `onnxserve silence`: create, list and end silences."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.refusals import mentions


@pytest.fixture
def flights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    store = open_store(load_settings().store_url)
    document = {
        "name": "flights",
        "variants": {"flights": {"model": "models:/m/1"}},
        "monitors": {"daily": {}},
    }
    store.add_endpoint("onnxserve", EndpointSpec.model_validate(document))
    store.close()


def silence(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["silence", *arguments])


def test_a_silence_is_begun_listed_and_ended(flights: None) -> None:
    made = silence("flights", "--monitor", "daily", "--for", "2h", "--why", "a known storm")
    assert made.exit_code == 0
    assert made.output.startswith("1  flights, monitor daily, until ")
    assert made.output.endswith(": a known storm\n")
    assert silence("flights", "--for", "30m").output.startswith("2  flights, all monitors, ")
    assert silence("--list").output.count("\n") == 2
    assert silence("taxis", "--list").output.startswith("Error: there is no endpoint 'taxis'")
    assert [entry["monitor"] for entry in json.loads(silence("--list", "-o", "json").output)] == [
        "daily",
        None,
    ]
    assert mentions(silence("--remove", "1", "--why", "passed").output, "silence 1", "over")
    assert silence("--list").output.startswith("2  ")
    history = CliRunner().invoke(main, ["history", "flights"]).output
    assert "silence  flights" in history
    assert mentions(history, "a known storm")
    assert "silence.end  flights" in history
    assert "why: passed" in history


def test_a_reason_is_text_to_the_terminal(flights: None) -> None:
    assert silence("flights", "--for", "2h", "--why", "\x1b[2Jgone").output.endswith(":  [2Jgone\n")
    assert silence("\x1b[2J", "--for", "2h").output.startswith("Error: ")
    for arguments in (["silence", "--list"], ["history"]):
        assert "\x1b" not in CliRunner().invoke(main, arguments).output


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (["--list", "--monitor", "daily"], 2, ["--monitor", "--for"]),
        ([], 2, ["NAME --for DURATION", "--list", "--remove ID"]),
        (["--for", "2h"], 2, ["the endpoint"]),
        (["flights", "--for", "2h", "--list"], 2, ["NAME --for DURATION", "--list", "--remove ID"]),
        (["flights", "--for", "soon"], 2, ["--for", "'soon'", "30s"]),
        (["flihgts", "--for", "2h"], 1, ["no endpoint", "'flihgts'", "'flights'"]),
        (["taxis", "--for", "2h"], 1, ["no endpoint", "'taxis'", "flights"]),
        (
            ["flights", "--monitor", "x", "--for", "2h"],
            1,
            ["'flights'", "monitor 'x'", "it has daily"],
        ),
        (["--remove", "9"], 1, ["no silence 9"]),
    ],
)
def test_invalid_arguments_give_a_clear_error(
    flights: None,
    arguments: list[str],
    code: int,
    names: list[str],
) -> None:
    result = silence(*arguments)
    assert result.exit_code == code
    assert mentions(result.output + result.stderr, *names)
