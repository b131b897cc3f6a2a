"""Options, terminal output and access to the user's deployments and store, which
several commands share.

Commands import MLflow, pandas, pyarrow and other slow libraries inside functions to
keep `--help` fast.
"""

import io
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.extensions import registered_in
from mlflow_deploy_plugin.core.messages import closest_match
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from mlflow_deploy_plugin.core.store.store import Store
    from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments

_Command = TypeVar("_Command", bound=Callable[..., Any])
_NARROWEST = 8
"""The width below which no column of a table is reduced."""
POSITIVE = click.IntRange(min=1)
"""The type of an option for a whole number from 1."""


class Output(io.FileIO):
    """Standard output or standard error. After its reader has left, such as `head`, the
    output is discarded, so that a command finishes its change.
    """

    ends_command = False
    """True for a command that only reads, which ends when its reader has left."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # A full disk is an error only once: the end of the process writes again.
            discarded = os.open(os.devnull, os.O_WRONLY)
            os.dup2(discarded, self.fileno())  # Child processes write to it as well.
            os.close(discarded)
            if Output.ends_command or not isinstance(error, BrokenPipeError):
                raise
            return super().write(data)


class NumberRange(click.FloatRange):
    """A float range that rejects NaN, unlike click's range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class Commands(click.Group):
    """A group whose error for an unknown command lists the commands of the group.

    Args:
        example: the command of the example in the error, which shows a name as its
            argument; without `example`, the error has no example.
    """

    def __init__(self, *names: Any, example: str = "", **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self._example = example

    def hint(self, name: str, ctx: click.Context) -> str:
        if near := closest_match(name, self.list_commands(ctx)):
            return f"; did you mean `{ctx.command_path} {near}`?"
        names = f"; there are {', '.join(self.list_commands(ctx))}"
        if not self._example:
            return names
        return f"{names}, as in `onnxserve {self.name} {self._example} {name}`"

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        is_known = args[0].startswith("-") or self.get_command(ctx, args[0]) is not None
        if not is_known and not ctx.resilient_parsing:  # The completion of a shell ignores errors.
            raise click.UsageError(f"there is no command {args[0]!r}{self.hint(args[0], ctx)}", ctx)
        return super().resolve_command(ctx, args)


def option(*texts: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """Return click's option. The help shows the default, unless it is empty or False.

    Args:
        texts: the names and the placeholder of the value (`-n --name NAME`), the
            parameter of the command if it has another name, and the help.
        attributes: further attributes of click's option.
    """
    names = []
    for text in texts:
        if text.startswith("-"):
            for word in text.split():
                if word.startswith("-"):
                    names.append(word)
                else:
                    attributes["metavar"] = word
        elif text.isidentifier():
            names.append(text)
        else:
            attributes["help"] = text
    default = attributes.get("default")
    attributes.setdefault("show_default", default is not False and default not in (None, ""))
    return click.option(*names, **attributes)


flag = partial(option, is_flag=True)
"""An option without a value."""
dry_run_flag = flag("--dry-run", "Check and show the change, but do not make it.")
path_option = partial(option, type=click.Path(path_type=Path), metavar="FILE")
"""An option for the path of a file or folder, which need not exist."""
folder_option = partial(option, type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER")
"""An option for the path of a folder, which may not be a file."""
original_option = partial(option, "--original URI", default="")
max_rows_option = partial(option, "--max-rows ROWS", "Maximum number of rows.")


def engine_option(group: str, text: str) -> Callable[[_Command], _Command]:
    """Return the option of the engines of an entry point group."""
    choice = click.Choice(["local", *registered_in(group)])
    return option("--engine", text, type=choice, default="local")


def combine_options(*decorators: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Return the options and arguments of several commands as one decorator, in the
    order of the help.
    """

    def add(command: _Command) -> _Command:
        for decorate in reversed(decorators):
            command = decorate(command)
        return command

    return add


def format_option(help: str, *formats: str) -> Callable[[_Command], _Command]:
    """Return the option -o (output format) with these formats and the default
    `text`.
    """
    return option("-o --output", help, type=click.Choice(formats), default="text")


output_option = format_option(
    "Output format: lines for people, or JSON for programs.", "text", "json"
)
config_option = option(
    "-C --config KEY=VALUE",
    "Field to set, e.g. server.workers=2. May be repeated. `mlflow deployments help -t "
    "onnxserve` lists the fields.",
    multiple=True,
)
registry_options = combine_options(
    option(
        "--registry SELECTOR",
        "Serve every registered model that has this alias, stage or tag: @champion, Production or "
        "tag:KEY=VALUE. A model is loaded at its first request.",
    ),
    option(
        "--only PATTERN",
        "With --registry, serve only the models whose names match, such as 'team-*'.",
        default="*",
    ),
)
name_argument = click.argument("name")
optional_name_argument = click.argument("name", required=False)
model_argument = click.argument("model_uri", metavar="MODEL")
"""The argument for a model: a URI or a folder."""
optional_model_argument = click.argument("model_uri", metavar="[MODEL]", required=False)


def _check_registered(_context: click.Context, _parameter: click.Parameter, model_uri: str) -> str:
    """Return the URI. Raises UsageError if it does not select a version of a registered
    model.
    """
    with suppress(InvalidConfig):
        if parse_model_uri(model_uri).is_registered:
            return model_uri
    name = model_uri.removeprefix("models:/")
    if not name or set(":/@") & set(name):
        name = "NAME"
    raise click.UsageError(
        f"{model_uri!r} is not a version of a registered model: use models:/{name}/VERSION, "
        f"models:/{name}@ALIAS or models:/{name}/STAGE"
    )


version_argument = click.argument("model_uri", metavar="MODEL", callback=_check_registered)
"""The argument for a version of a registered model. The command resolves a stage or
alias.
"""
reason_option = partial(option, "--why REASON", default="")
why_option = reason_option("Reason for the audit trail (`onnxserve audit history NAME`).")

since_option = option(
    "--since --window WHEN",
    "since",
    "Start: an age by the time of receipt (90s, 1h, 7d), an event time in UTC "
    "(2013-07-01T12:00), or a window of event time (2013-07-01/1d).",
    show_default="everything",
)
until_option = option(
    "--until WHEN", "End (exclusive): an age, or an event time in UTC.", show_default="no end"
)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Convert InvalidConfig to a usage error, which ends the command with exit status
    2.
    """
    try:
        yield
    except InvalidConfig as error:
        raise click.UsageError(error.message) from None


def key_values(entries: Iterable[str], what: str = "-C") -> dict[str, str]:
    """Return `["server.workers=2"]` as a mapping; raise UsageError for an entry without
    `=` or a repeated name.
    """
    values: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{what} {entry!r} is not KEY=VALUE")
        if name in values:
            raise click.UsageError(f"{what} {name!r} is specified twice")
        values[name] = value
    return values


def to_names(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> tuple[str, ...]:
    """Return the value `id,image` of an option as a tuple of names, without empty
    names.
    """
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


@contextmanager
def opened_deployments(quiet: bool = False, target: str = "") -> Iterator["Deployments"]:
    """Open the user's deployments (of one target). Report long steps on standard error,
    unless `quiet`.
    """
    from mlflow_deploy_plugin.ship.deployments.backends.targets import parse_target
    from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments

    only = parse_target(target) if target else None
    report: Callable[[str], None] = (lambda line: None) if quiet else show_progress
    with open_deployments(report, only) as deployments:
        yield deployments


@contextmanager
def opened_store() -> Iterator["Store"]:
    from mlflow_deploy_plugin.core.registry.connection import find_login
    from mlflow_deploy_plugin.core.settings import load_settings
    from mlflow_deploy_plugin.core.store.database import open_store

    with closing(open_store(load_settings().store_url, find_login=find_login)) as store:
        yield store


def end_with_reader() -> None:
    """End this command, which only reads, when the reader of its output has left."""
    Output.ends_command = True


def show_progress(line: str) -> None:
    """Print a progress line on standard error; standard output contains only the
    result.
    """
    click.echo(printable(line), err=True)


def show_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output without control characters."""
    for line in lines:
        click.echo(printable(line))


def show_json(document: object) -> None:
    """Print a document on standard output as JSON: times in ISO 8601, NaN and infinity
    as null.
    """
    option = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    click.echo(orjson.dumps(document, default=str, option=option))


def show_result(output: str, document: object, lines: Iterable[str]) -> None:
    """Print a result in the format of the option -o: the document as JSON, or the
    lines.
    """
    if output == "json":
        show_json(document)
    else:
        show_lines(lines)


def show_table(
    output: str, documents: object, table: Sequence[tuple[str, ...]], empty: str
) -> None:
    """Print a list in the format of the option -o. A table without rows is replaced by
    the line `empty`.
    """
    lines: Iterable[str] = align_columns(table) if len(table) > 1 else [empty]
    show_result(output, documents, lines)


def align_columns(rows: Sequence[tuple[str, ...]], limit: int | None = None) -> Iterator[str]:
    """Yield the rows of a table as lines whose columns are aligned to the left. Cells
    are shortened if a line is longer than `limit` (default: the terminal).
    """
    widths = column_widths(rows, limit)
    for row in rows:
        cells = [shorten(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def column_widths(rows: Iterable[tuple[str, ...]], limit: int | None = None) -> list[int]:
    """Return the width of each column of a table. The widest columns are reduced until
    a line has at most `limit` characters.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = sum(widths) + 2 * (len(widths) - 1)
    if limit is None and os.isatty(1):
        limit = shutil.get_terminal_size().columns
    for _ in range(line - (limit or line)):
        widest = max(widths)
        if widest > _NARROWEST:
            widths[widths.index(widest)] -= 1
    return widths


def shorten(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    return f"{text[: width - 1]}…"


def printable(text: str) -> str:
    """Return the text without control characters, because text from a client must not
    control the terminal.
    """
    if text.isprintable():  # Tables pass millions of texts, which rarely have such characters.
        return text
    return "".join(character if character.isprintable() else " " for character in text)


@contextmanager
def working(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work` in a thread within the `with` block. At the end of the block, set the
    event and join the thread.
    """
    ended = threading.Event()
    worker = threading.Thread(target=work, args=(ended,), name="controller")
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()
