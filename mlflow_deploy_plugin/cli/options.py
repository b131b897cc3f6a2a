"""Options that several commands share, KEY=VALUE arguments, and the user's deployments and store.

The deployments and the store are imported late: SQLAlchemy and MLflow take a second that `--help` should not wait for.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.cli.output.terminal import show_progress
from mlflow_deploy_plugin.errors import InvalidConfig

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments import Deployments
    from mlflow_deploy_plugin.store import Store

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
    """Return `["server.workers=2"]` as a mapping; a value may contain `=`.

    Raises:
        InvalidConfig: an entry has no `=` or no name, or a name is given twice.
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
def opened_deployments(quiet: bool = False) -> Iterator["Deployments"]:
    """Open the user's deployments; long steps report on standard error, unless `quiet`."""
    from mlflow_deploy_plugin.deployments import open_deployments

    with open_deployments((lambda line: None) if quiet else show_progress) as deployments:
        yield deployments


@contextmanager
def opened_store() -> Iterator["Store"]:
    """Open the user's store."""
    from mlflow_deploy_plugin.settings import load_settings
    from mlflow_deploy_plugin.store import open_store

    with closing(open_store(load_settings().store_url)) as store:
        yield store
