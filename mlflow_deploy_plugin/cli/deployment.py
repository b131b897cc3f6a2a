"""`onnxserve list`, `onnxserve start NAME` and `onnxserve stop NAME`: the deployments of this machine."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import opened_deployments, output_option
from mlflow_deploy_plugin.cli.output.terminal import align_columns, show_lines

if TYPE_CHECKING:
    from mlflow_deploy_plugin.controller import MonitorOverview


_COLUMNS = ("NAME", "MODEL", "VERSION", "TRAFFIC", "STATE", "WORKERS", "RESTARTS", "URL", "MONITORS")
_CREATE = "mlflow deployments create -t onnxserve --name NAME -m models:/MODEL/VERSION"
_NORMAL_STATES = ("waiting", "judging")
"""The states of a monitor that are not shown with its verdict."""


@click.command("list")
@output_option
def list_(output: str) -> None:
    """List the deployments, their servers and their monitors.

    One line is one deployment of this machine: NAME, or ENDPOINT/NAME if it shares an endpoint; the model as it was
    asked for (a stage or an alias is followed) and the version that the workers serve; its share of the traffic; the
    state of its server (running, starting, stopped, failed, empty), its workers and how often it was started anew; each
    monitor of the endpoint with its latest verdict. Below the table is why something does not run.

    \b
      onnxserve list
      onnxserve list -o json
      onnxserve endpoint get flights

    Servers that `onnxserve serve` runs in the foreground are not listed.
    """
    with opened_deployments() as deployments:
        # here: MLflow and pandas take a second that `--help` should not wait for
        from mlflow_deploy_plugin.controller import overviews
        from mlflow_deploy_plugin.deployments import describe_endpoints

        found = describe_endpoints(deployments)
        monitors = overviews(deployments.store)
    of_endpoint = {one["name"]: [mine for mine in monitors if mine.endpoint == one["name"]] for one in found}
    if output == "json":
        from mlflow_deploy_plugin.cli.output.monitor import monitor_document

        documents = [
            {**one, "monitors": [monitor_document(mine) for mine in of_endpoint[one["name"]]]} for one in found
        ]
        click.echo(json.dumps(documents))
        return
    if not found:
        click.echo(f"there are no deployments: `{_CREATE}` makes one")
        return
    show_lines(align_columns([_COLUMNS, *(row for one in found for row in _rows(one, of_endpoint[one["name"]]))]))
    show_lines(line for one in found for line in _reasons(one))


@click.command()
@click.argument("name")
def start(name: str) -> None:
    """Start the server of the deployment NAME again.

    It answers at the port that it had; one that runs already is left alone.
    """
    with opened_deployments() as deployments:
        deployments.start(name)


@click.command()
@click.argument("name")
def stop(name: str) -> None:
    """Stop the server of the deployment NAME, and keep the deployment.

    Requests in flight are finished; `onnxserve start NAME` brings it back.
    """
    with opened_deployments() as deployments:
        deployments.stop(name)
    click.echo(f"{name} is stopped; `onnxserve start {name}` brings it back")


def _rows(endpoint: Mapping[str, Any], monitors: "Sequence[MonitorOverview]") -> Iterator[tuple[str, ...]]:
    """Yield a row for each deployment; an endpoint without one has a row, too."""
    workers = str(len(endpoint["workers"])) if endpoint["workers"] else "-"
    restarts = "-" if endpoint["restarts"] == "" else str(endpoint["restarts"])
    verdicts = ", ".join(map(_verdict, monitors)) or "-"
    for name, one in endpoint["deployments"].items():
        share = "shadow" if one["shadow"] else str(one["weight"])
        server = (one["state"], workers, restarts, endpoint["url"] or "-")
        yield _name(endpoint, name), one["model_uri"], one["version"] or "-", share, *server, verdicts
    if not endpoint["deployments"]:
        yield endpoint["name"], "-", "-", "-", endpoint["state"], workers, restarts, endpoint["url"] or "-", verdicts


def _reasons(endpoint: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a deployment does not serve what it should; the reason names the command that helps."""
    for name, one in endpoint["deployments"].items():
        if one["reason"] or one["error"]:
            yield f"{_name(endpoint, name)}: {one['reason'] or one['error']}"
    if endpoint["state"] == "empty":
        yield f"{endpoint['name']}: no deployment yet; `{_CREATE} --endpoint {endpoint['name']}` adds one"


def _name(endpoint: Mapping[str, Any], deployment: str) -> str:
    return deployment if deployment == endpoint["name"] else f"{endpoint['name']}/{deployment}"


def _verdict(one: "MonitorOverview") -> str:
    verdict = one.last.verdict if one.last else "not judged yet"
    return f"{one.monitor}: {verdict}{'' if one.status in _NORMAL_STATES else f' ({one.status})'}"
