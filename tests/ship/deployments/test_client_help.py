"""Tests that every command in the help of the target is valid."""

import re
import shlex

import click
import pytest

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.spec.document import field_reference
from mlflow_deploy_plugin.ship.deployments.client import target_help

COMMANDS = re.findall(
    r"^ +((?:mlflow deployments|onnxserve) [a-z].*?)(?: {3,}[a-z].*)?$", target_help(), re.MULTILINE
)


@pytest.fixture(scope="module")
def programs():
    from mlflow.cli import cli

    return {"mlflow": cli, "onnxserve": main}


@pytest.mark.parametrize("typed", COMMANDS)
def test_every_command_of_the_help_is_valid(programs, typed):
    program, *arguments = shlex.split(typed)
    command = programs[program]
    context = click.Context(command)
    while isinstance(command, click.Group):
        name, *arguments = arguments
        subcommand = command.get_command(context, name)
        assert subcommand is not None, f"{program} has no command {name}"
        command = subcommand

    # This raises if an option does not exist or a required option is missing.
    command.make_context(command.name, arguments)


def test_help_has_every_field():
    text = target_help()

    assert len(COMMANDS) > 14
    for name, *_ in field_reference():
        assert f"  {name} (" in text
    for needed in (
        "TARGET URI",
        "traffic.NAME",
        "dataframe_split",
        "endpoint create",
        "models:/NAME/tag:KEY=VALUE",
    ):
        assert needed in text
