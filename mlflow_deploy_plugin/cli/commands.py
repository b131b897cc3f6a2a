"""The group `onnxserve`, which imports the module of a command on demand and prints an
error as one line.
"""

import builtins
import errno
import importlib
import os
import sys
from importlib.metadata import EntryPoint
from itertools import chain
from typing import Any

import click

from mlflow_deploy_plugin.cli.options import Commands, printable
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.extensions import load_entry, registered_in
from mlflow_deploy_plugin.core.messages import closest_match, did_you_mean, one_line
from mlflow_deploy_plugin.core.packages import NEEDED, check_fit, own_requirements
from mlflow_deploy_plugin.core.registry.connection import own_process, set_service_timeouts
from mlflow_deploy_plugin.core.settings import load_secrets
from mlflow_deploy_plugin.core.version import __version__

_GROUPS = {
    "Wrap": {
        "wrap": ("wrap", "Convert a model to checked ONNX as a new registered version."),
        "sign": ("wrap", "Sign all files of a version."),
        "verify": ("wrap", "Check the signature of a version."),
        "optimize": ("evaluation", "Make a version smaller or faster, and measure the loss."),
        "explain": ("evaluation", "Measure how much each column contributes to predictions."),
        "robustness": ("evaluation", "Measure how much the metric drops when rows are disturbed."),
    },
    "Promote": {
        "diff": ("promote", "Compare two versions of a registered model."),
        "gate": ("promote", "Check whether a version may be promoted."),
        "promote": ("promote", "Move a version to a stage or alias if it passes its gate."),
        "request": ("promote", "List, approve and decline requested promotions."),
        "rollout": ("rollout", "Roll out a new version in steps, with automatic rollback."),
        "rollback": ("rollout", "Go back to the version that was served before."),
        "audit": ("audit", "Show who changed what, and write documents for reviewers."),
    },
    "Serve": {
        "serve": ("serve", "Serve a model or the endpoints of a spec in the foreground."),
        "endpoint": ("endpoint", "Create, change, show and delete endpoints and their traffic."),
        "list": ("endpoint", "List the deployments with their servers and monitors."),
        "start": ("endpoint", "Start the stopped server of the deployment NAME."),
        "stop": ("endpoint", "Stop the server of the deployment NAME, and keep the deployment."),
        "delete": ("endpoint", "Delete the deployment NAME."),
        "logs": ("endpoint", "Show the log of the server of the deployment NAME."),
        "predict": ("predict", "Predict every row of a file with a deployment or a model."),
        "fetch": ("serve", "Write the checked files of a version into a folder."),
        "keys": ("keys", "Create, list and revoke API keys."),
    },
    "Ship": {
        "build-docker": ("export", "Build an image that serves a model."),
        "render": ("export", "Show an endpoint as manifests for GitOps."),
        "export": ("export", "Export a version as files that run without onnxserve."),
        "batch": ("predict", "Predict files of any size with a model, without a server."),
        "doctor": ("doctor", "Check that the environment fits, and what is not set up."),
        "migrate": ("controller", "Create the store, or upgrade it to this version."),
    },
    "Watch": {
        "observe": ("observe", "Read the rows of a model that another server serves."),
        "monitor": ("monitor", "Judge captured traffic on a schedule or by hand."),
        "drift": ("monitor", "Judge captured traffic against the model's reference."),
        "log": ("log", "Query, count and expire captured rows, and group failures by cause."),
        "replay": ("replay", "Compute a captured request again."),
        "backtest": ("replay", "Compare a candidate with the captured answers."),
        "feedback": ("predict", "Import labels of earlier predictions from a file."),
        "alert": ("monitor", "Silence the alerts of monitors for a limited time."),
        "retrain": ("controller", "Retrain served models, and list the retrainings."),
        "controller": ("controller", "Run rollouts, monitors and retrainings until stopped."),
    },
}
"""A group of commands in `--help` → the name of a command → its module in `cli`, and
its help line.
"""
_COMMANDS = dict(chain.from_iterable(group.items() for group in _GROUPS.values()))
GROUP = "onnxserve.commands"
"""The entry point group of further commands: the name of a command → its
`click.Command`.
"""
_MLFLOW_COMMANDS = {"create": "create", "deploy": "create", "get": "get", "update": "update"}
"""A command that `onnxserve` does not have → the command of `mlflow deployments` that
users need instead.
"""
_OTHER_WORDS = {
    "undeploy": "delete",
    "ps": "list",
    "models": "serve",
    "convert": "wrap",
    "score": "predict",
    "compare": "diff",
    "quantize": "optimize",
}
"""A command of another tool → the name of our command."""
_SAME_OPTIONS = (
    {"-m", "--model-uri", "--model", "model_uri", "model"},
    {"-n", "--name", "--endpoint", "name"},
    {"-o", "--output", "--output-path", "--folder", "folder"},
    {"-i", "-f", "--input", "--input-path", "--file", "--data"},
    {"--no-conda", "--env-manager"},
    {"--tail", "--lines"},
)
"""The options and arguments that users of commands here and of MLflow may confuse."""
_NO_TELEMETRY = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment variables that disable the telemetry of MLflow and Evidently, and a line
that MLflow prints to stdout.
"""

_OF_FILES = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.ENOTDIR, errno.EROFS)
"""Errors of a full disk, and of paths that the user specified."""
_DISTRIBUTIONS = {"cyclonedx": "cyclonedx-python-lib"}
"""A package whose distribution has another name → the distribution."""


class _Interrupted(BaseException):
    """A Ctrl-C, as an exception that click does not convert to exit status 1."""


class _LazyCommands(Commands):
    """A group that imports a command on demand, so that `onnxserve --help` and `serve`
    do not wait for MLflow.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *_extensions()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            entry = _extensions().get(cmd_name)
            return None if entry is None else load_entry(entry, click.Command)
        module = importlib.import_module(f"mlflow_deploy_plugin.cli.{_COMMANDS[cmd_name][0]}")
        if cmd_name in vars(builtins):
            name = f"{cmd_name}_"
        else:
            name = cmd_name.replace("-", "_")
        command: click.Command = getattr(module, name)
        return command

    def hint(self, name: str, ctx: click.Context) -> str:
        if name in _MLFLOW_COMMANDS:
            return (
                f"; use MLflow's command: `mlflow deployments {_MLFLOW_COMMANDS[name]} -t "
                "onnxserve --name NAME`"
            )
        paths = {command: f"`onnxserve {command}`" for command in self.list_commands(ctx)}
        for group_name in _COMMANDS:
            group = self.get_command(ctx, group_name)
            if isinstance(group, click.Group):
                for command in group.commands.keys() - _COMMANDS:
                    others = f"{paths[command]} or " if command in paths else ""
                    paths[command] = f"{others}`onnxserve {group_name} {command}`"
        near = closest_match(_OTHER_WORDS.get(name, name), paths)
        if near is None:
            return "; `onnxserve --help` lists the commands"
        return f"; did you mean {paths[near]}?"

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, commands in _GROUPS.items():
            with formatter.section(group):
                formatter.write_dl(
                    [(name, description) for name, (_, description) in commands.items()],
                )
        descriptions = []
        for name, entry in _extensions().items():
            try:
                extension = load_entry(entry, click.Command)
                descriptions.append((name, extension.get_short_help_str(limit=100)))
            except OnnxserveError as error:
                descriptions.append((name, error.message))
        if descriptions:  # A copy that is not installed has no entry points.
            with formatter.section("Extensions"):
                formatter.write_dl(descriptions)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for argument in args:
            try:
                argument.encode()
            except UnicodeEncodeError:  # A database would refuse this text later.
                _fail(f"{argument!r} is not valid UTF-8")
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command. After Ctrl-C, end by SIGINT, because a shell's loop would
        continue after a normal exit.
        """
        try:
            return super().main(*args, **options)
        except _Interrupted:
            sys.excepthook = lambda *_: click.echo("\nAborted!", err=True)
            raise KeyboardInterrupt from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            context = error.ctx or ctx
            hint = option_hint(error.option_name, context)
            raise click.UsageError(
                f"there is no option {error.option_name!r}{hint}", context
            ) from None
        except KeyboardInterrupt:
            raise _Interrupted from None
        except OnnxserveError as error:
            _fail(error.message)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("mlflow_deploy_plugin"):
                raise
            from packaging.utils import canonicalize_name

            package = error.name.partition(".")[0]
            distribution = canonicalize_name(_DISTRIBUTIONS.get(package, package))
            source = f"pip install {distribution}"
            for extra, requirement in own_requirements():
                if canonicalize_name(requirement.name) == distribution:
                    source = "the images contain it"
                    if extra:
                        source = f"pip install 'mlflow-onnxserve[{extra}]'"
                    break
            _fail(f"this command needs {error.name}, which is not installed: {source}")
        except OSError as error:
            if error.errno not in _OF_FILES:
                raise
            # A write to stdout may also cause this error.
            place = error.filename or "the output or a file"
            _fail(f"{place} cannot be read or written: {error.strerror}")
        except Exception as error:
            # Do not import MLflow only for this check.
            exceptions = sys.modules.get("mlflow.exceptions")
            if exceptions is None or not isinstance(error, exceptions.MlflowException):
                raise
            _fail(one_line(error))


def _extensions() -> dict[str, EntryPoint]:
    """Return the commands of the rim and of other distributions, without those that
    have the name of a command here.
    """
    registered = registered_in(GROUP)
    return {name: entry for name, entry in registered.items() if name not in _COMMANDS}


def _fail(message: str) -> None:
    """Print an error without control characters, and exit with status 1."""
    lines = f"Error: {message}".split("\n")
    click.echo("\n".join(map(printable, lines)), err=True)
    sys.exit(1)


def option_hint(name: str, ctx: click.Context) -> str:
    """Return the argument or option that a user of the option `name`, which the command
    does not have, probably means.
    """
    same = next((options for options in _SAME_OPTIONS if name in options), set[str]())
    for parameter in ctx.command.params:
        if same.intersection(parameter.opts):
            if isinstance(parameter, click.Option):
                return f"; did you mean {parameter.opts[-1]!r}?"
            shown = parameter.make_metavar(ctx)
            return f"; {shown.strip('[]')} is an argument: `{ctx.command_path} {shown}`"
    options = chain.from_iterable(parameter.opts for parameter in ctx.command.params)
    return did_you_mean(name, options, f"`{ctx.command_path} --help` lists the options")


@click.group(cls=_LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxserve")
@click.pass_context
def main(context: click.Context) -> None:
    """Serve MLflow models as ONNX, and monitor them.

    Create a deployment with MLflow's command. The model is an alias, a stage, a version
    or a folder:

    \b
      mlflow deployments create -t onnxserve --name flights \\
          -m models:/flight-delay@champion
      onnxserve list
      mlflow deployments help -t onnxserve

    Exit status: 0 if the command succeeds, 1 if it fails or is refused, and 2 if an
    option is unknown, missing, invalid or incompatible with another option. The reason
    follows "Error:" on standard error. The help of a command lists any other reason for
    status 1. After Ctrl-C, a command ends by SIGINT, which a shell shows as 130.
    """
    if context.invoked_subcommand != "doctor":
        check_fit(*NEEDED)
    # Other users must not write models, whose loading may run code.
    os.umask(os.umask(0o077) | 0o002)
    for variable, value in _NO_TELEMETRY.items():
        os.environ.setdefault(variable, value)
    load_secrets()
    own_process()
    set_service_timeouts()  # MLflow's default timeouts are several minutes.
