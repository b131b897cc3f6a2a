"""The parts that several commands share: options, lines for a terminal, the user's deployments and store.

Commands import MLflow, pandas, pyarrow and other slow libraries within functions, so that `--help` need not wait.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

from mlflow_deploy_plugin.errors import InvalidConfig

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments import Deployments
    from mlflow_deploy_plugin.store import Store

_Command = TypeVar("_Command", bound=Callable[..., Any])


class NumberRange(click.FloatRange):
    """A range of numbers without NaN, which click takes for a number within any range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class Commands(click.Group):
    """A group that answers an unknown command with those that it has."""

    def hint(self, name: str, ctx: click.Context) -> str:
        return f"; there are {', '.join(self.list_commands(ctx))}"

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.list_commands(ctx) and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!r}{self.hint(args[0], ctx)}", ctx)
        return super().resolve_command(ctx, args)


def option(*names: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """Return click's option of these names, whose help shows its default, unless that is empty or a flag's."""
    default = attributes.get("default")
    attributes.setdefault("show_default", default is not False and default not in (None, ""))
    return click.option(*names, **attributes)


def format_option(help: str, *formats: str) -> Callable[[_Command], _Command]:
    """Return the option -o of these formats, of which text is the default."""
    return option("-o", "--output", type=click.Choice(formats), default="text", help=help)


output_option = format_option("Format of the answer: lines for people, or JSON for programs.", "text", "json")
list_output_option = format_option("Format of what --list shows.", "text", "json")
config_option = option(
    "-C",
    "--config",
    multiple=True,
    metavar="KEY=VALUE",
    help="Field to set, e.g. server.workers=2; may be given again. `mlflow deployments help -t onnxserve` lists the "
    "fields.",
)
why_option = option(
    "--why", default="", metavar="REASON", help="Reason, kept in the audit trail (`onnxserve history NAME`)."
)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn the refusal of an option's value into a usage error, which ends the command with exit status 2."""
    try:
        yield
    except InvalidConfig as error:
        raise click.UsageError(error.message) from None


def key_values(entries: Iterable[str], what: str = "-C") -> dict[str, str]:
    """Return `["server.workers=2"]` as a mapping; raise UsageError for an entry without `=` or a name given twice."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{what} {entry!r} is not KEY=VALUE")
        if name in found:
            raise click.UsageError(f"{what} {name!r} is said twice")
        found[name] = value
    return found


def read_spec_file(path: Path) -> str:
    """Return the text of a spec; raise InvalidConfig if it cannot be read."""
    try:
        return path.read_text()
    except FileNotFoundError:
        raise InvalidConfig(f"the spec {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise InvalidConfig(f"the spec {path} cannot be read: {why}") from None


@contextmanager
def opened_deployments(quiet: bool = False, target: str = "") -> Iterator["Deployments"]:
    """Open the user's deployments (of one target); long steps report on standard error, unless `quiet`."""
    from mlflow_deploy_plugin.deployments import parse_target
    from mlflow_deploy_plugin.deployments.lifecycle import open_deployments

    only = parse_target(target) if target else None
    with open_deployments((lambda line: None) if quiet else show_progress, only) as deployments:
        yield deployments


@contextmanager
def opened_store() -> Iterator["Store"]:
    from mlflow_deploy_plugin.settings import load_settings
    from mlflow_deploy_plugin.store import open_store

    with closing(open_store(load_settings().store_url)) as store:
        yield store


def show_progress(line: str) -> None:
    """Print a line about the work on standard error, which leaves standard output to the result."""
    click.echo(printable(line), err=True)


def show_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output, each as `printable`."""
    for line in lines:
        click.echo(printable(line))


def show_json(document: object) -> None:
    """Print a document on standard output as JSON: times in ISO 8601, NaN and infinity as null."""
    option = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    click.echo(orjson.dumps(document, default=str, option=option))


def show_result(output: str, document: object, lines: Iterable[str]) -> None:
    """Print a result in the format of the option -o: its document as JSON, or its lines."""
    if output == "json":
        show_json(document)
    else:
        show_lines(lines)


def show_table(output: str, documents: object, table: Sequence[tuple[str, ...]], empty: str) -> None:
    """Print a list in the format of the option -o: its documents as JSON, or its table, or `empty` for a bare head."""
    show_result(output, documents, align_columns(table) if len(table) > 1 else [empty])


def align_columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def printable(text: str) -> str:
    """Return the text without control characters: anybody may have typed it, and a terminal must only show it."""
    return text if text.isprintable() else "".join(one if one.isprintable() else " " for one in text)
