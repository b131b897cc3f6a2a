"""Tests that the telemetry of libraries is disabled."""

import os

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main


@pytest.mark.parametrize(("said", "kept"), [("", "true"), ("false", "false")])
def test_every_command_keeps_mlflow_from_telling_its_makers(said, kept, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", said)
    if not said:
        del os.environ["MLFLOW_DISABLE_TELEMETRY"]

    CliRunner().invoke(main, ["alert", "--help"])

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == kept
