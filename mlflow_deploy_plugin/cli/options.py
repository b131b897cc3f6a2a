"""Options that several commands have, each once and in the same words."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.errors import InvalidConfig

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments.lifecycle import Deployments


output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of the answer: lines for people, or JSON for programs.",
)
why_option = click.option(
    "--why", default="", metavar="REASON", help="Reason, kept in the audit trail (`onnxserve history NAME`)."
)


def key_values(entries: Iterable[str], what: str = "-C") -> dict[str, str]:
    """`["server.workers=2"]` as a mapping; the value may have `=` itself.

    Raises:
        InvalidConfig: one has no `=` or no name, or a name stands twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise InvalidConfig(f"{what} {entry!r} is not KEY=VALUE")
        if name in found:
            raise InvalidConfig(f"{what} {name!r} is said twice")
        found[name] = value
    return found


@contextmanager
def opened_deployments() -> Iterator["Deployments"]:
    """What a long step does is told on standard error."""
    # here: SQLAlchemy and MLflow take a second that `--help` should not wait for
    from mlflow_deploy_plugin.deployments.lifecycle import open_deployments

    with open_deployments(lambda line: click.echo(line, err=True)) as deployments:
        yield deployments
