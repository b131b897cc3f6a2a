"""The group `onnxserve` with its commands. Their modules are imported when they are called; errors become one line."""

import builtins
import errno
import importlib
import os
import re
import sys
from importlib.metadata import requires
from typing import Any

import click

from mlflow_deploy_plugin.cli.options import Commands, printable
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.messages import did_you_mean, one_line
from mlflow_deploy_plugin.registry import set_service_timeouts
from mlflow_deploy_plugin.settings import load_secrets
from mlflow_deploy_plugin.version import __version__

_GROUPS = {
    "Wrap": {
        "wrap": ("wrap", "Make the next version of a registered model, as checked ONNX."),
        "optimize": ("evaluation", "Make a version smaller or faster, and measure what it loses."),
        "profile": ("evaluation", "Show where the time of a version goes."),
        "explain": ("evaluation", "Measure what each column contributes to predictions."),
        "robustness": ("evaluation", "Measure how the metric falls when rows are disturbed."),
    },
    "Promote": {
        "gate": ("promote", "Check what a version has to prove before it is promoted."),
        "promote": ("promote", "Move a version to a stage or alias, through its gate."),
        "rollout": ("controller", "Bring a new version by steps, and back if it is bad."),
        "rollback": ("controller", "Go back to what was served before."),
        "history": ("endpoint", "Show who changed what, when and why."),
    },
    "Serve": {
        "serve": ("serve", "Serve a model, or the endpoints of a spec, in the foreground."),
        "endpoint": ("endpoint", "Create, change, show and delete endpoints, and their traffic."),
        "list": ("endpoint", "List the deployments, their servers and their monitors."),
        "start": ("endpoint", "Start the server of the deployment NAME again."),
        "stop": ("endpoint", "Stop the server of the deployment NAME, and keep the deployment."),
        "logs": ("endpoint", "Show what the server of the deployment NAME has logged."),
        "predict": ("predict", "Predict every row of a file, by a deployment or a model."),
        "keys": ("keys", "Create, list and revoke API keys."),
    },
    "Ship": {
        "build-docker": ("export", "Build an image that serves a model."),
        "render": ("export", "Show an endpoint as manifests, for GitOps."),
        "export": ("export", "Export a version as files that do without onnxserve."),
        "batch": ("predict", "Predict files of any size by a model, without a server."),
        "migrate": ("controller", "Bring the store up to date, or make it."),
    },
    "Watch": {
        "monitor": ("monitor", "Judge captured traffic on a schedule, and by hand."),
        "drift": ("monitor", "Judge captured traffic against the model's reference."),
        "log": ("log", "Query, count and keep what was captured of an endpoint."),
        "feedback": ("predict", "Bring labels of earlier predictions from a file."),
        "silence": ("monitor", "Silence the alerts of an endpoint for a while."),
        "retrain": ("controller", "Train what is served on what was captured and labelled."),
        "controller": ("controller", "Run rollouts, monitors and retrainings until it is ended."),
    },
}
"""Group of the documentation → command → (module of `cli` with the command, its line in `--help`)."""
_COMMANDS = {name: entry for group in _GROUPS.values() for name, entry in group.items()}
_MLFLOW_COMMANDS = {name: name for name in ("create", "delete", "get", "help", "update")} | {"deploy": "create"}
"""Commands that people look for here → those of `mlflow deployments`, which ours do not repeat."""
_NO_TELEMETRY = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""The switches of MLflow and Evidently; the last one is for a line that MLflow would print between ours."""


class _Interrupted(BaseException):
    """Ctrl-C, which Click would turn into exit status 1."""


class _LazyCommands(Commands):
    """A group that imports a command when it is called: `onnxserve --help` and `serve` do not wait for MLflow."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"mlflow_deploy_plugin.cli.{_COMMANDS[cmd_name][0]}")
        name = f"{cmd_name}_" if cmd_name in vars(builtins) else cmd_name.replace("-", "_")
        command: click.Command = getattr(module, name)
        return command

    def hint(self, name: str, ctx: click.Context) -> str:
        if name in _MLFLOW_COMMANDS:
            return f"; MLflow's own is meant: `mlflow deployments {_MLFLOW_COMMANDS[name]} -t onnxserve --name NAME`"
        return did_you_mean(name, _COMMANDS, "`onnxserve --help` lists them")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, commands in _GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(name, description) for name, (_, description) in commands.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for argument in args:
            try:
                argument.encode()
            except UnicodeEncodeError:  # no database and no registry takes it: refused before anything is done
                _fail(f"{argument!r} is no valid text in UTF-8")
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command. Ctrl-C ends it by the signal, as Python would: after a mere exit, a shell's loop goes on."""
        try:
            return super().main(*args, **options)
        except _Interrupted:
            sys.excepthook = lambda *_: click.echo("\nAborted!", err=True)
            raise KeyboardInterrupt from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None
        except OnnxserveError as error:
            _fail(error.message)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("mlflow_deploy_plugin"):
                raise
            _fail(f"this command needs {error.name}, which is not installed here: {_where_to_get(error.name)}")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # any write may fail so, also to standard output
                raise
            _fail(f"{error.filename or 'the output, or a file,'} cannot be written: {error.strerror}")
        except Exception as error:
            exceptions = sys.modules.get("mlflow.exceptions")  # mlflow is not imported to find out
            if exceptions is None or not isinstance(error, exceptions.MlflowException):
                raise
            _fail(one_line(error))


def _where_to_get(module: str) -> str:
    """Return the pip command that brings a module, by what the installed distribution says of its extras."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wanted = canonicalize_name(module.partition(".")[0])
    for line in requires("mlflow-onnxserve") or []:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) == wanted:
            extra = re.search(r"extra == .(\w+)", line)
            return f"pip install 'mlflow-onnxserve[{extra[1]}]'" if extra else "the images hold what `serve` needs"
    return f"pip install {module.partition('.')[0]}"


def disable_telemetry() -> None:
    """Switch off the telemetry of MLflow and Evidently, before their import, unless the environment sets it."""
    for variable, value in _NO_TELEMETRY.items():
        os.environ.setdefault(variable, value)


def _fail(message: str) -> None:
    click.echo("\n".join(map(printable, f"Error: {message}".split("\n"))), err=True)
    sys.exit(1)


@click.group(cls=_LazyCommands, context_settings={"help_option_names": ["--help"]})
@click.version_option(__version__, prog_name="onnxserve")
def main() -> None:
    """Serve MLflow models as ONNX, and watch them.

    A deployment is made by MLflow's own command; its model is a stage, an alias, a version or a folder:

    \b
      mlflow deployments create -t onnxserve --name flights -m models:/flight-delay/Production
      onnxserve list
      mlflow deployments help -t onnxserve

    Exit status: 0 if the command succeeded; 2 if its options make no sense: one is unknown or missing, has a value that
    it cannot have, or does not go with another; 1 if it failed or was refused. The reason follows "Error:" on standard
    error; a command that gives 1 for anything else says so in its help. Ctrl-C ends it by SIGINT, which a shell shows
    as 130.
    """
    os.umask(os.umask(0o077) | 0o002)  # whoever may write a model that is loaded again may run code here
    disable_telemetry()
    load_secrets()
    set_service_timeouts()  # by default a command would hang for minutes if MLflow is down
