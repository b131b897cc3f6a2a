"""`onnxserve retrain`: what it says where nothing can be done, and the list of what was done."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlflow_deploy_plugin.cli import main
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.store import Store, open_store
from mlflow_deploy_plugin.store.retrainings import Retrainings

PLAN = {
    "endpoint": "flights",
    "model": "X",
    "base_version": "1",
    "project": ".",
    "entry_point": "train",
    "mode": "full",
    "env_manager": "local",
    "timeout": 60.0,
    "then": "propose",
    "steps": "100",
    "step_every": "1s",
    "every": "1d",
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    return open_store(load_settings().store_url)


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["retrain", *arguments])


def test_without_an_endpoint_it_says_what_it_wants(store: Store) -> None:
    asked = ask()
    assert asked.exit_code == 2
    assert "say which endpoint (NAME), or --list" in asked.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--list", "--wait"], "--list starts nothing"),
        (["flights", "--list", "--mode", "full"], "--list starts nothing"),
        (["flights", "-o", "json"], "-o is of --list"),
    ],
)
def test_options_that_do_not_go_together_are_said(store: Store, options: list[str], said: str) -> None:
    asked = ask(*options)
    assert asked.exit_code == 2
    assert said in asked.output


def test_an_endpoint_that_is_not_there_is_said(store: Store) -> None:
    asked = ask("flights")
    assert asked.exit_code == 1
    assert "there is no endpoint 'flights'" in asked.output
    assert "endpoint 'flights' has had no retraining" in ask("flights", "--list").output


def test_the_list_says_why_and_what_became_of_it(store: Store) -> None:
    cause = {"kind": "asked", "why": "asked by ada: new carrier"}
    Retrainings(store).add("flights", "accuracy", "X", cause, PLAN, "waiting")
    text = ask("--list").output
    assert "flights: retraining 1 of X, full: waiting" in text
    assert "why: asked by ada: new carrier" in text
    assert json.loads(ask("--list", "-o", "json").output)[0]["state"] == "waiting"
