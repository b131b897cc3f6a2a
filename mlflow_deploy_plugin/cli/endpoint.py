"""`onnxserve endpoint …`, `list`, `start`, `stop` and `history`: endpoints, their deployments, and their changes.

`mlflow deployments create-endpoint` raises a TypeError in MLflow itself; `onnxserve endpoint create` takes its place.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    Commands,
    align_columns,
    config_option,
    format_option,
    key_values,
    opened_deployments,
    opened_store,
    option,
    output_option,
    show_json,
    show_lines,
    show_result,
    show_table,
    why_option,
)

if TYPE_CHECKING:
    from mlflow_deploy_plugin.controller.monitors.schedule import MonitorOverview
    from mlflow_deploy_plugin.deployments import ObservedEndpoint
    from mlflow_deploy_plugin.store import AuditEvent

_DEPLOYMENT_HEAD = ("NAME", "MODEL", "VERSION", "TRAFFIC", "STATE", "WORKERS", "RESTARTS", "URL", "MONITORS")
_CREATE = "mlflow deployments create -t onnxserve --name NAME -m models:/MODEL/VERSION"
_NORMAL_STATES = ("waiting", "judging")
"""The states of a monitor that are not shown with its verdict."""
_STEP = re.compile(r"step \d+ % of a rollout")
"""The reason of a change of traffic by a rollout (`controller/rollouts/controller.py`); the step has its own event."""
_UNSHOWN = ("spec", "begun")
_UNITS = {"every": " s", "seconds": " s"}


@click.group(cls=Commands)
def endpoint() -> None:
    """Create, change, show and delete endpoints, and their traffic.

    An endpoint is a server; its deployments share its traffic by their weights:

    \b
      onnxserve endpoint create flights
      mlflow deployments create -t onnxserve --endpoint flights --name champion -m models:/flight-delay/3
      mlflow deployments create -t onnxserve --endpoint flights --name challenger -m models:/flight-delay/4
      onnxserve endpoint traffic flights champion=95 challenger=5
    """


@endpoint.command()
@click.argument("name")
@option(
    "-t",
    "--target",
    default="onnxserve",
    metavar="URI",
    help="Where its server runs; onnxserve is this machine, and `mlflow deployments help -t onnxserve` lists all.",
)
@config_option
@why_option
@output_option
def create(name: str, target: str, config: tuple[str, ...], why: str, output: str) -> None:
    """Create the endpoint NAME, without a deployment yet.

    Its server starts with the first deployment.
    """
    with opened_deployments(target=target) as deployments:
        _show(deployments.create_endpoint(name, key_values(config), why), output)


@endpoint.command()
@click.argument("name")
@config_option
@why_option
@output_option
def update(name: str, config: tuple[str, ...], why: str, output: str) -> None:
    """Change fields of the endpoint NAME.

    Only a change of server.… restarts its server; what fails changes nothing.
    """
    with opened_deployments() as deployments:
        _show(deployments.update_endpoint(name, key_values(config), why), output)


@endpoint.command()
@click.argument("name")
@click.argument("weights", nargs=-1, required=True, metavar="DEPLOYMENT=WEIGHT...")
@why_option
@output_option
def traffic(name: str, weights: tuple[str, ...], why: str, output: str) -> None:
    """Give the deployments of the endpoint NAME their traffic.

    It changes while the endpoint serves. Weights are whole numbers from 0 to 100, parts of their sum; a deployment that
    is not named gets nothing:

    \b
      onnxserve endpoint traffic flights champion=95 challenger=5
    """
    with opened_deployments() as deployments:
        _show(deployments.set_traffic(name, key_values(weights, "traffic"), why), output)


@endpoint.command()
@click.argument("name")
@why_option
def delete(name: str, why: str) -> None:
    """Delete the endpoint NAME with every deployment in it.

    Requests in flight are finished. If there is no such endpoint, standard error says that nothing was deleted, and the
    exit status is 0, as MLflow asks.
    """
    with opened_deployments() as deployments:
        was_there = deployments.delete_endpoint(name, why)
    if was_there:
        click.echo(f"{name} is deleted")


@endpoint.command()
@click.argument("name")
@output_option
def get(name: str, output: str) -> None:
    """Show the endpoint NAME and its deployments.

    The state of its server, the traffic, and the version that each worker has of each deployment.
    """
    with opened_deployments() as deployments:
        _show(deployments.get_endpoint(name), output)


@endpoint.command("list")
@output_option
def list_endpoints(output: str) -> None:
    """List the endpoints.

    `onnxserve list` shows their deployments and monitors, too.
    """
    from mlflow_deploy_plugin.deployments.config import traffic_shares
    from mlflow_deploy_plugin.deployments.description import summarize_endpoints

    with opened_deployments() as deployments:
        found = summarize_endpoints(deployments)
    rows = [("NAME", "STATE", "TRAFFIC", "URL")]
    for one in found:
        shares = [f"{name}={share:g}" for name, share in traffic_shares(one["traffic"]).items()]
        shadows = [f"{name}=shadow" for name in one["shadows"]]
        rows.append((one["name"], one["state"], " ".join([*shares, *shadows]) or "-", one["url"]))
    show_table(output, found, rows, "there are no endpoints: `onnxserve endpoint create NAME` makes one")
    if output == "text":
        show_lines([f"{one['name']}: {one['reason']}" for one in found if one["state"] == "failed"])


@click.command("list")
@output_option
def list_(output: str) -> None:
    """List the deployments, their servers and their monitors.

    One line is one deployment, of any target: NAME, or ENDPOINT/NAME if it shares an endpoint; the model as it was
    asked for (a stage or an alias is followed) and the version that the workers serve; its share of the traffic; the
    state of its server (running, starting, stopped, failed, empty), its workers and how often it was restarted; each
    monitor of the endpoint with its latest verdict. Below the table is why something does not run.

    \b
      onnxserve list
      onnxserve list -o json
      onnxserve endpoint get flights

    Servers that `onnxserve serve` runs in the foreground are not listed.
    """
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.controller.monitors.schedule import overviews
        from mlflow_deploy_plugin.deployments.description import describe_endpoints

        found = describe_endpoints(deployments)
        monitors = overviews(deployments.store)
    of_endpoint = {one["name"]: [mine for mine in monitors if mine.endpoint == one["name"]] for one in found}
    if output == "json":
        from mlflow_deploy_plugin.cli.monitor import monitor_document

        show_json([{**one, "monitors": [*map(monitor_document, of_endpoint[one["name"]])]} for one in found])
        return
    if not found:
        click.echo(f"there are no deployments: `{_CREATE}` makes one")
        return
    rows = [(one["target"], row) for one in found for row in _deployment_rows(one, of_endpoint[one["name"]])]
    table = [("TARGET", _DEPLOYMENT_HEAD), *rows]
    if {target for target, _ in rows} == {"onnxserve"}:
        show_lines(align_columns([row for _, row in table]))
    else:
        show_lines(align_columns([(*row[:1], target, *row[1:]) for target, row in table]))
    for one in found:
        for name, deployment in one["deployments"].items():
            if why := deployment["reason"] or deployment["error"]:
                show_lines([f"{_name(one, name)}: {why}"])
        if one["state"] == "empty":
            show_lines([f"{one['name']}: {one['reason']}"])


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


@click.command()
@click.argument("name")
@option(
    "-n",
    "--lines",
    type=click.IntRange(min=1),
    default=100,
    metavar="COUNT",
    help="Number of lines to show, the last ones.",
)
@option("-f", "--follow", is_flag=True, help="Go on with the lines to come, until the server ends or Ctrl-C.")
def logs(name: str, lines: int, follow: bool) -> None:
    """Show what the server of the deployment NAME has logged.

    These are its own words; `onnxserve log` is about the requests that it has answered.
    """
    is_empty = True
    with opened_deployments() as deployments:
        for line in deployments.logs(name, lines, follow):
            click.echo(line)
            is_empty = False
    if is_empty:
        click.echo(f"{name} has logged nothing: its server was not started yet, or has left no log", err=True)


@click.command()
@click.argument("name", required=False)
@option("--model", metavar="MODEL", help="Registered model whose events alone are shown; NAME may be left out.")
@option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="COUNT",
    show_default="all",
    help="Number of events to show, the newest ones.",
)
@format_option(
    "Format: lines for people; one JSON array; or one JSON object a line, with all details.", "text", "json", "jsonl"
)
def history(name: str | None, model: str | None, limit: int | None, output: str) -> None:
    """Show who changed what, when and why.

    The list has the events of the endpoint NAME and of the models that it serves, oldest first; without NAME, all
    events. A deleted endpoint keeps its history. A step of a rollout, a promotion and a rollback are one entry here;
    JSON has also the events that belong to them (the traffic, the gate, tags, the move in MLflow).
    """
    from mlflow_deploy_plugin.registry.transitions import event_as_json, event_history, without_step_events
    from mlflow_deploy_plugin.store import unknown_endpoint

    with opened_store() as store:
        if name is not None and name not in store.names() and next(store.events(name), None) is None:
            raise unknown_endpoint(name, store.names(deleted=True))
        events = event_history(store, name, model, limit)
        lines = map(event_as_json, events)
        if output == "jsonl":
            for line in lines:
                click.echo(line)
            return
        if output == "json":
            click.echo("[" + next(lines, ""), nl=False)
            for line in lines:
                click.echo(f",\n {line}", nl=False)
            click.echo("]")
            return
        found = [*events]
    shown = [one for one in without_step_events(found) if one.action != "traffic" or not _STEP.fullmatch(one.why)]
    show_lines(line for event in shown for line in _event_lines(event))
    if not found:
        click.echo(f"nothing is known of {model or name}" if model or name else "nothing was changed so far", err=True)


def _show(observed: "ObservedEndpoint", output: str) -> None:
    from mlflow_deploy_plugin.deployments.description import describe_endpoint

    described = describe_endpoint(observed)
    show_result(output, described, _endpoint_lines(described))


def _endpoint_lines(described: Mapping[str, Any]) -> Iterator[str]:
    yield f"{described['name']}: {described['state']}{' at ' + described['url'] if described['url'] else ''}"
    rows = []
    for name, one in described["deployments"].items():
        share = _share(one)
        version = f"version {one['version']}" if one["version"] else ""
        rows.append((f"  {name}", share, one["model_uri"], version, one["state"], one["error"]))
    yield from align_columns(rows)
    for key in ("reason", "error", "shipping_error", "require"):
        if described[key]:
            yield f"  {key}: {described[key]}"
    for key, value in described["sticky"].items():
        yield f"  sticky by {key}: {value}"
    for pid, versions in described["workers"].items():
        served = ", ".join(f"{name} {version or 'nothing'}" for name, version in versions.items())
        yield f"  worker {pid}: {served}"
    if described["log"]:
        yield f"  log: {described['log']}"


def _deployment_rows(endpoint: Mapping[str, Any], monitors: "Sequence[MonitorOverview]") -> Iterator[tuple[str, ...]]:
    """Yield a row for each deployment; an endpoint without one has a row, too."""
    workers = str(len(endpoint["workers"])) if endpoint["workers"] else "-"
    restarts = "-" if endpoint["restarts"] == "" else str(endpoint["restarts"])
    said = [
        f"{one.monitor}: {one.last.verdict if one.last else 'not judged yet'}"
        f"{'' if one.status in _NORMAL_STATES else f' ({one.status})'}"
        for one in monitors
    ]
    verdicts = ", ".join(said) or "-"
    for name, one in endpoint["deployments"].items():
        share = _share(one)
        server = (one["state"], workers, restarts, endpoint["url"] or "-")
        yield _name(endpoint, name), one["model_uri"], one["version"] or "-", share, *server, verdicts
    if not endpoint["deployments"]:
        yield endpoint["name"], "-", "-", "-", endpoint["state"], workers, restarts, endpoint["url"] or "-", verdicts


def _share(deployment: Mapping[str, Any]) -> str:
    return "shadow" if deployment["shadow"] else f"{deployment['share']:g}"


def _name(endpoint: Mapping[str, Any], deployment: str) -> str:
    return deployment if deployment == endpoint["name"] else f"{endpoint['name']}/{deployment}"


def _event_lines(event: "AuditEvent") -> Iterable[str]:
    named = (event.endpoint, event.model, event.version and f"version {event.version}")
    what = " ".join(part for part in named if part)
    change = f": {event.before or '–'} → {event.after or '–'}" if event.before or event.after else ""
    yield f"{event.at:%Y-%m-%d %H:%M:%S}Z  {event.actor}  {event.action}  {what}{change}"
    if event.why:
        yield f"    why: {event.why}"
    if event.action == "rollout.step":
        return
    detail = {key: value for key, value in event.detail.items() if isinstance(value, str | int | float | bool)}
    shown = ", ".join(
        f"{key} {value}{_UNITS.get(key, '')}" for key, value in detail.items() if key not in _UNSHOWN and value != ""
    )
    if shown:
        yield f"    {shown}"
