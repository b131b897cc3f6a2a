"""Tests of the help of every command: complete sentences, imperative mood, no
truncation, defaults by click.
"""

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from itertools import chain
from typing import get_args

import click
import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.spec.document import field_reference
from mlflow_deploy_plugin.core.spec.monitors import MonitorKind
from mlflow_deploy_plugin.core.spec.parts import Device
from mlflow_deploy_plugin.core.statedir.models import Scope
from mlflow_deploy_plugin.core.tabular.files import FileFormat
from tests.support.refusals import mentions

_IMPERATIVES = {
    *(
        "Accept",
        "Add",
        "Approve",
        "Build",
        "Change",
        "Check",
        "Compact",
        "Compute",
        "Compare",
        "Convert",
        "Count",
        "Create",
        "Decline",
        "Delete",
        "End",
    ),
    *("Export", "Go", "Group", "Import"),
    *(
        "Judge",
        "List",
        "Make",
        "Measure",
        "Move",
        "Pause",
        "Predict",
        "Query",
        "Remove",
        "Resume",
        "Retrain",
        "Revoke",
    ),
    *("Roll", "Run", "Serve", "Set", "Show", "Silence", "Start", "Stop", "Write"),
}
_RAW_METAVARS = {
    "TEXT",
    "PATH",
    "INTEGER",
    "FLOAT",
    "INTEGER RANGE",
    "FLOAT RANGE",
    "BOOLEAN",
    "FILENAME",
}
_WIDTH = 80


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from commands(subcommand, f"{path} {name}")


ALL = dict(commands(main, "onnxserve"))


def help_of(path: str) -> str:
    result = CliRunner().invoke(
        main,
        [*path.split()[1:], "--help"],
        terminal_width=_WIDTH,
    )
    assert result.exit_code == 0, result.output
    return result.output


def prose(command: click.Command) -> list[str]:
    """The paragraphs of its help but for the examples."""
    paragraphs = [
        " ".join(paragraph.split())
        for paragraph in (command.help or "").split("\n\n")
        if not paragraph.strip().startswith("\b")
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


def options(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option)]


def test_all_commands_are_walked() -> None:
    assert {
        "onnxserve list",
        "onnxserve serve",
        "onnxserve monitor backfill",
        "onnxserve log query",
    } <= ALL.keys()


@pytest.mark.parametrize("path", ALL)
def test_command_help_is_imperative_and_in_whole_sentences(path: str) -> None:
    paragraphs = prose(ALL[path])

    assert paragraphs, "it says nothing"
    assert paragraphs[0].split()[0].strip(",") in _IMPERATIVES
    assert [paragraph for paragraph in paragraphs if not paragraph.endswith((".", ":"))] == []


@pytest.mark.parametrize(
    "path",
    [path for path, command in ALL.items() if isinstance(command, click.Group)],
)
def test_a_list_of_commands_gives_each_its_first_sentence_on_one_line(path: str) -> None:
    listed = dict(
        re.findall(
            r"^  ([a-z-]+) +(\S.*)$",
            help_of(path).split("message and exit.\n")[1],
            re.MULTILINE,
        ),
    )
    below = {
        name.removeprefix(f"{path} "): subcommand
        for name, subcommand in ALL.items()
        if name.rpartition(" ")[0] == path
    }

    assert listed.keys() == below.keys()
    for name, sentence in listed.items():
        assert prose(below[name])[0].startswith(sentence)
        assert sentence.endswith(".")
        assert not sentence.endswith("...")


@pytest.mark.parametrize("path", ALL)
def test_each_option_has_a_sentence_a_metavar_in_our_words_and_its_default_by_click(
    path: str,
) -> None:
    command = ALL[path]
    context = click.Context(command, info_name=path)
    names = list(
        chain.from_iterable((*option.opts, *option.secondary_opts) for option in command.params)
    )
    assert len(names) == len(set(names))
    for option in options(command):
        sentence = " ".join((option.help or "").split())
        assert re.fullmatch(r"[A-Z`].*\.", sentence), f"{option.opts}: {sentence!r}"
        assert "default" not in sentence.lower(), (
            f"{option.opts}: the default is printed by show_default"
        )
        if not option.is_flag and not isinstance(option.type, click.Choice):
            assert option.make_metavar(context) not in _RAW_METAVARS, option.opts
        default = option.get_default(context)
        if not option.is_flag and isinstance(default, str | int | float) and default != "":
            assert option.show_default, option.opts


def test_the_choices_of_an_option_are_those_of_the_type_that_it_becomes() -> None:
    """The commands do not import these modules for their help, which would take a
    second.
    """
    from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName
    from mlflow_deploy_plugin.ship.batch.part import OnError
    from mlflow_deploy_plugin.ship.batch.run import Engine as BatchEngine
    from mlflow_deploy_plugin.watch.result import Engine
    from mlflow_deploy_plugin.watch.retraining.plan import TrainingMode
    from mlflow_deploy_plugin.wrap.exporter.exporting import ExportFormat
    from mlflow_deploy_plugin.wrap.flavor.wrap import ParityPolicy, PredictFunction

    types = {
        **dict.fromkeys(
            ("wrap --content-type", "predict --content-type", "predict --output-type"),
            FileFormat,
        ),
        **dict.fromkeys(
            (
                "explain --metric",
                "robustness --metric",
                "optimize --metric",
                "auto-optimize --metric",
                "backtest --metric",
            ),
            MetricName,
        ),
        "wrap --predict-fn": PredictFunction,
        "wrap --parity": ParityPolicy,
        "retrain --mode": TrainingMode,
        "keys create --scope": Scope,
        "monitor add --kind": MonitorKind,
        "monitor run --engine": Engine,
        "batch --on-error": OnError,
        "batch --device": Device,
        "batch --engine": BatchEngine,
        "export --format": ExportFormat,
    }
    offered = {
        f"{path.removeprefix('onnxserve ')} {option.opts[-1]}": tuple(option.type.choices)
        for path, command in ALL.items()
        for option in options(command)
        if isinstance(option.type, click.Choice)
    }
    of_its_own = {
        "optimize --int8",
        "batch --format",
        "batch --input-format",
        "feedback --content-type",
        "render --for",
    }
    assert {name for name in offered if not name.endswith(" --output")} == types.keys() | of_its_own
    assert {name: offered[name] for name in types} == {
        name: get_args(kind) for name, kind in types.items()
    }


def test_the_defaults_of_a_rollout_are_the_same_in_python() -> None:
    from mlflow_deploy_plugin.promote.rollouts.commands import RolloutRequest

    defaults = {
        parameter.name: parameter.default for parameter in ALL["onnxserve rollout start"].params
    }
    assert {
        field.name: field.default
        for field in fields(RolloutRequest)
        if field.default not in (MISSING, "")
    }.items() <= defaults.items()


def test_exit_statuses_are_documented_once_for_all_commands() -> None:
    text = " ".join(help_of("onnxserve").split())

    assert text.count("Exit status") == 1
    assert mentions(text, "Exit status", "0", "1", "2")
    assert CliRunner().invoke(main, ["start"]).exit_code == 2


def test_each_field_that_the_help_of_mlflow_deployments_lists_has_a_sentence() -> None:
    assert [
        name for name, _, _, sentence in field_reference() if not re.fullmatch(r"\S.*\.", sentence)
    ] == []
