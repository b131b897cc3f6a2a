"""Tests of all commands: choices, defaults, completion and MLflow's telemetry."""

import os
from dataclasses import MISSING, fields
from typing import get_args

import click
import pytest
from click.shell_completion import ShellComplete

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.spec.monitors import MonitorKind
from mlflow_deploy_plugin.core.spec.parts import Device, PyfuncEnv
from mlflow_deploy_plugin.core.statedir.models import Scope
from mlflow_deploy_plugin.core.tabular.row_files import FileFormat
from tests.support.commands import onnxserve


def commands(command, path):
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from commands(subcommand, f"{path} {name}")


ALL = dict(commands(main, "onnxserve"))


def test_choices_are_those_of_the_type():
    """The commands do not import these modules for their help, which would take a
    second.
    """
    from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName
    from mlflow_deploy_plugin.ship.batch.part import OnError
    from mlflow_deploy_plugin.watch.retraining.plan import TrainingMode
    from mlflow_deploy_plugin.wrap.flavor.wrap import ParityPolicy, PredictFunction

    types = {
        **dict.fromkeys(
            ("wrap --content-type", "predict --content-type", "predict --output-type"), FileFormat
        ),
        **dict.fromkeys(
            ("explain --metric", "robustness --metric", "optimize --metric", "backtest --metric"),
            MetricName,
        ),
        "wrap --predict-fn": PredictFunction,
        "wrap --parity": ParityPolicy,
        "retrain run --mode": TrainingMode,
        "keys create --scope": Scope,
        "monitor add --kind": MonitorKind,
        "batch --on-error": OnError,
        "batch --device": Device,
        "serve --env-manager": PyfuncEnv,
        "build-docker --env-manager": PyfuncEnv,
    }
    offered = {}
    for path, command in ALL.items():
        for option in command.params:
            if isinstance(option.type, click.Choice):
                name = f"{path.removeprefix('onnxserve ')} {option.opts[-1]}"
                offered[name] = tuple(option.type.choices)
    of_its_own = {
        "audit dossier --framework",
        "optimize --int8",
        "export --format",
        "monitor run --engine",
        "batch --engine",
        "batch --format",
        "batch --input-format",
        "feedback --content-type",
        "render --for",
    }
    assert {name for name in offered if not name.endswith(" --output")} == types.keys() | of_its_own
    assert {name: offered[name] for name in types} == {
        name: get_args(kind) for name, kind in types.items()
    }


@pytest.mark.parametrize(
    ("words", "start", "completions"),
    [
        ([], "mon", ["monitor"]),
        (["audit"], "c", ["card"]),
        (["promote"], "--dr", ["--dry-run"]),
        (["history"], "fl", []),
    ],
)
def test_shells_complete_commands_and_options(words, start, completions):
    shell = ShellComplete(main, {}, "onnxserve", "_ONNXSERVE_COMPLETE")
    assert [item.value for item in shell.get_completions(words, start)] == completions


def test_rollout_defaults_equal_those_of_python():
    from mlflow_deploy_plugin.promote.rollouts.commands import RolloutRequest

    defaults = {
        parameter.name: parameter.default for parameter in ALL["onnxserve rollout start"].params
    }
    assert {
        field.name: field.default
        for field in fields(RolloutRequest)
        if field.default not in (MISSING, "")
    }.items() <= defaults.items()


@pytest.mark.parametrize(("value", "kept"), [("", "true"), ("false", "false")])
def test_mlflow_telemetry_is_off_by_default(value, kept, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", value)
    if not value:
        del os.environ["MLFLOW_DISABLE_TELEMETRY"]

    onnxserve("alert --help")

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == kept
