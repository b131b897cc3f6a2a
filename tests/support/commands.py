"""Commands that are run in this process, and their output."""

import json
import shlex

from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main


def onnxserve(line, *more, given=None):
    """Run a command. A line is split like by a shell; `more` are further arguments."""
    arguments = [*shlex.split(line), *map(str, more)]
    return CliRunner().invoke(main, arguments, input=given, prog_name="onnxserve")


def done(line, *more):
    """Return the output of a command that succeeds."""
    result = onnxserve(line, *more)
    assert result.exit_code == 0, result.output
    return result.stdout


def told(line, *more):
    """Return the JSON output of a command that succeeds."""
    return json.loads(done(f"{line} -o json", *more))


def said(result):
    """Return the single line that a failed command has printed."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.strip().removeprefix("Error: ")
