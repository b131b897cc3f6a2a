"""`onnxserve endpoint …`, `list`, `start`, `stop`, `delete` and `logs`: endpoints and
their deployments.

`onnxserve endpoint create` exists because `mlflow deployments create-endpoint` raises a
TypeError in MLflow.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    Commands,
    align_columns,
    config_option,
    dry_run_flag,
    end_with_reader,
    flag,
    key_values,
    name_argument,
    opened_deployments,
    opened_store,
    option,
    output_option,
    show_json,
    show_lines,
    show_progress,
    show_result,
    show_table,
    why_option,
)
from mlflow_deploy_plugin.core.messages import join_names

if TYPE_CHECKING:
    from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
    from mlflow_deploy_plugin.watch.monitors.schedule import MonitorOverview

    _Monitors = defaultdict[str, list[MonitorOverview]]

_DEPLOYMENT_HEAD = (
    "NAME",
    "TARGET",
    "MODEL",
    "VERSION",
    "TRAFFIC",
    "STATE",
    "WORKERS",
    "RESTARTS",
    "URL",
    "MONITORS",
)
_CREATE = "mlflow deployments create -t onnxserve --name NAME -m models:/MODEL/VERSION"
_NORMAL_STATES = ("waiting", "judging")
"""The usual monitor states, which `list` does not print after the verdict."""


@click.group(cls=Commands)
def endpoint() -> None:
    """Create, change, show and delete endpoints and their traffic.

    An endpoint is a server. Its deployments share the traffic in proportion to their
    weights:

    \b
      onnxserve endpoint create flights
      mlflow deployments create -t onnxserve --endpoint flights --name champion \\
          -m models:/flight-delay/3
      mlflow deployments create -t onnxserve --endpoint flights --name challenger \\
          -m models:/flight-delay/4
      onnxserve endpoint traffic flights champion=95 challenger=5
    """


@endpoint.command()
@name_argument
@option(
    "-t --target URI",
    "Target that runs the server. onnxserve is this machine; `mlflow deployments help -t "
    "onnxserve` lists all.",
    default="onnxserve",
)
@config_option
@why_option
@output_option
def create(name: str, target: str, config: tuple[str, ...], why: str, output: str) -> None:
    """Create the endpoint NAME without a deployment.

    The server starts with the first deployment.
    """
    with opened_deployments(target=target) as deployments:
        _show(deployments.create_endpoint(name, key_values(config), why), output)


@endpoint.command()
@name_argument
@config_option
@why_option
@output_option
def update(name: str, config: tuple[str, ...], why: str, output: str) -> None:
    """Change fields of the endpoint NAME.

    Only a change of a server.… field restarts the server. If the command fails, no
    field is changed.
    """
    changes = key_values(config)
    with opened_deployments() as deployments:
        # The import takes a second.
        if any(field.startswith(("alarms.", "monitors.")) for field in changes):
            from mlflow_deploy_plugin.watch.monitors.alarm_budget import check_change

            for line in check_change(deployments, name, changes):
                show_progress(line)
        _show(deployments.update_endpoint(name, changes, why), output)


@endpoint.command()
@name_argument
@click.argument("weights", nargs=-1, required=True, metavar="DEPLOYMENT=WEIGHT...")
@why_option
@output_option
def traffic(name: str, weights: tuple[str, ...], why: str, output: str) -> None:
    """Set the traffic weights of the deployments of the endpoint NAME.

    The endpoint serves during the change. Weights are whole numbers from 0 to 100; the
    share of a deployment is its weight divided by the sum of the weights. A deployment
    that is not listed gets the weight 0:

    \b
      onnxserve endpoint traffic flights champion=95 challenger=5
    """
    with opened_deployments() as deployments:
        _show(deployments.set_traffic(name, key_values(weights, "traffic"), why), output)


@endpoint.command()
@name_argument
@option(
    "--alias ALIAS", "Alias to follow, e.g. champion. A missing alias is created.", required=True
)
@option("--deployment DEPLOYMENT", "Deployment to change.", show_default="all that follow a stage")
@dry_run_flag
@why_option
@output_option
def follow(
    name: str, alias: str, deployment: str | None, dry_run: bool, why: str, output: str
) -> None:
    """Make the endpoint NAME follow an alias instead of a stage.

    The version that is in the stage gets the alias, and the deployments of the stage
    then follow the alias. The server answers with the same version during the change.
    If the command is interrupted, run it again.

    \b
      onnxserve endpoint follow flights --alias champion
    """
    with opened_deployments() as deployments:
        followers = deployments.follow_alias(
            name, alias.removeprefix("@"), deployment, why, is_trial=dry_run
        )
    verb = "now follows"
    if dry_run:
        verb = "would follow"
    lines = [
        f"{item.deployment} {verb} {item.alias_uri} (version {item.version})" for item in followers
    ]
    lines = lines or [f"{name} already follows @{alias.removeprefix('@')}"]
    show_result(output, [asdict(item) for item in followers], lines)


@endpoint.command("delete")
@name_argument
@why_option
def delete_endpoint(name: str, why: str) -> None:
    """Delete the endpoint NAME with every deployment in it.

    Requests in flight are finished.
    """
    with opened_deployments() as deployments:
        deployments.delete_endpoint(name, why)
    click.echo(f"{name} is deleted")


@endpoint.command()
@name_argument
@output_option
def get(name: str, output: str) -> None:
    """Show the endpoint NAME and its deployments.

    The output contains the state of the server, the traffic, and the version of each
    deployment per worker.
    """
    with opened_deployments() as deployments:
        _show(deployments.get_endpoint(name), output)


@endpoint.command()
@name_argument
@why_option
@flag("--release", "Release the endpoint.")
def hold(name: str, why: str, release: bool) -> None:
    """Keep all data of the endpoint NAME until it is released.

    Its captured rows, judged windows and alerts are then not deleted, neither by
    commands nor by a controller, and the endpoint cannot be deleted.
    """
    from mlflow_deploy_plugin.core.registry.audit_trail import require_administrator
    from mlflow_deploy_plugin.core.store.holds import held_endpoints
    from mlflow_deploy_plugin.core.store.holds import hold as put_on_hold

    with opened_store() as store:
        event = held_endpoints(store).get(name)
        if release and event is not None:
            what = f"or {event.actor} can release endpoint {name}"
            require_administrator(store, what, event.actor)
        put_on_hold(store, name, why, release)
    click.echo(f"endpoint {name} is {'released' if release else 'on hold'}")


@endpoint.command("list")
@output_option
def list_endpoints(output: str) -> None:
    """List the endpoints.

    `onnxserve list` also shows their deployments and monitors.
    """
    from mlflow_deploy_plugin.ship.deployments.config import traffic_shares
    from mlflow_deploy_plugin.ship.deployments.description import summarize_endpoints

    with opened_deployments() as deployments:
        summaries = summarize_endpoints(deployments)
    rows = [("NAME", "STATE", "TRAFFIC", "URL")]
    for summary in summaries:
        shares = [f"{name}={share:g}" for name, share in traffic_shares(summary["traffic"]).items()]
        shadows = [f"{name}=shadow" for name in summary["shadows"]]
        traffic = " ".join([*shares, *shadows]) or "-"
        rows.append((summary["name"], summary["state"], traffic, summary["url"]))
    empty = "there are no endpoints: run `onnxserve endpoint create NAME`"
    show_table(output, summaries, rows, empty)
    if output != "text":
        return
    for summary in summaries:
        if summary["state"] == "failed":
            show_lines([f"{summary['name']}: {summary['reason']}"])
    for summary in summaries:
        show_lines(f"{summary['name']}: {text}" for text in summary["unapproved"])


@click.command("list")
@output_option
def list_(output: str) -> None:
    """List the deployments with their servers and monitors.

    Each line is a deployment of any target. It contains NAME, or ENDPOINT/NAME if the
    endpoint has several deployments; the requested model and the version that the
    workers serve; the share of the traffic; the state of the server (running, starting,
    stopped, failed, empty), its workers and restarts; and each monitor of the endpoint
    with its latest verdict. Reasons for problems follow below the table.

    \b
      onnxserve list
      onnxserve list -o json
      onnxserve endpoint get flights

    Servers that `onnxserve serve` runs in the foreground are not listed.
    """
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.ship.deployments.description import describe_endpoints
        from mlflow_deploy_plugin.watch.monitors.schedule import overviews

        endpoints = describe_endpoints(deployments)
        monitors: _Monitors = defaultdict(list)
        for overview in overviews(deployments.store):
            monitors[overview.endpoint].append(overview)
    if output == "json":
        from mlflow_deploy_plugin.cli.monitor import monitor_document

        for described in endpoints:
            described["monitors"] = [*map(monitor_document, monitors[described["name"]])]
        show_json(endpoints)
        return
    table: list[tuple[str, ...]] = [_DEPLOYMENT_HEAD]
    for described in endpoints:
        table += _deployment_rows(described, monitors[described["name"]])
    if all(described["target"] == "onnxserve" for described in endpoints):
        table = [(name, *cells) for name, _, *cells in table]
    show_table(output, endpoints, table, f"there are no deployments: run `{_CREATE}`")
    for described in endpoints:
        for name, deployment in described["deployments"].items():
            reasons = (deployment["reason"] or deployment["error"], deployment["unapproved"])
            show_lines(f"{_name(described, name)}: {reason}" for reason in reasons if reason)
        if described["reason"] and not described["deployments"]:
            show_lines([f"{described['name']}: {described['reason']}"])


@click.command()
@name_argument
def start(name: str) -> None:
    """Start the stopped server of the deployment NAME.

    The server uses its previous port. If the server already runs, it is not restarted.
    """
    with opened_deployments() as deployments:
        deployments.start(name)


@click.command()
@name_argument
def stop(name: str) -> None:
    """Stop the server of the deployment NAME, and keep the deployment.

    Requests in flight are finished. `onnxserve start NAME` starts the server again.
    """
    with opened_deployments() as deployments:
        deployments.stop(name)
    click.echo(f"{name} is stopped; `onnxserve start {name}` starts it again")


@click.command()
@name_argument
@option(
    "--endpoint ENDPOINT",
    "Endpoint of the deployment. The endpoint is then kept.",
    show_default="the only one with a deployment NAME",
)
@dry_run_flag
def delete(name: str, endpoint: str | None, dry_run: bool) -> None:
    """Delete the deployment NAME.

    Requests in flight are finished. The last deployment of an endpoint with the same
    name is deleted together with the endpoint, like `mlflow deployments delete`.
    """
    with opened_deployments(quiet=dry_run) as deployments:
        remaining = deployments.delete(name, endpoint, is_trial=dry_run)
    outcome = "is deleted"
    if dry_run:
        outcome = "would be deleted"
    if remaining is None:
        click.echo(f"{name} {outcome}, with its endpoint and server")
        return
    others = join_names(remaining.variants) or "no deployment"
    click.echo(f"{name} {outcome}; the endpoint {remaining.name} keeps {others}")


@click.command()
@name_argument
@option("--lines COUNT", "Number of last lines to show.", type=POSITIVE, default=100)
@flag("-f --follow", "Also show new lines until the server ends or Ctrl-C.")
def logs(name: str, lines: int, follow: bool) -> None:
    """Show the log of the server of the deployment NAME.

    The captured requests of the server are in a different log, which `onnxserve log`
    queries.
    """
    end_with_reader()
    is_empty = True
    with opened_deployments() as deployments:
        for line in deployments.logs(name, lines, follow):
            click.echo(line)
            is_empty = False
    if is_empty:
        show_progress(
            f"the log of {name} is empty: its server was not started yet, or its log was deleted"
        )


def _show(observed: "ObservedEndpoint", output: str) -> None:
    """Show the state of an endpoint, its deployments and its workers."""
    from mlflow_deploy_plugin.ship.deployments.description import describe_endpoint

    described = describe_endpoint(observed)
    lines = [f"{described['name']}: {described['state']}"]
    if described["url"]:
        lines[0] += f" at {described['url']}"
    rows = []
    for name, item in described["deployments"].items():
        version = f"version {item['version']}" if item["version"] else ""
        rows.append(
            (
                f"  {name}",
                _share(item),
                item["model_uri"],
                version,
                item["state"],
                item["error"],
            )
        )
    lines += align_columns(rows)
    for key in ("reason", "error", "shipping_error", "require", "steps"):
        if described[key]:
            lines.append(f"  {key}: {described[key]}")
    lines += [f"  {text}" for text in described["unapproved"]]
    for key, value in described["sticky"].items():
        lines.append(f"  sticky by {key}: {value}")
    for pid, versions in described["workers"].items():
        texts = ", ".join(f"{name} {version or 'nothing'}" for name, version in versions.items())
        lines.append(f"  worker {pid}: {texts}")
    if described["log"]:
        lines.append(f"  log: {described['log']}")
    show_result(output, described, lines)


def _deployment_rows(
    endpoint: Mapping[str, Any], monitors: "Sequence[MonitorOverview]"
) -> Iterator[tuple[str, ...]]:
    """Yield a table row for each deployment of an endpoint, or one row for an endpoint
    without deployments.
    """
    workers = str(len(endpoint["workers"])) if endpoint["workers"] else "-"
    restarts = "-" if endpoint["restarts"] == "" else str(endpoint["restarts"])
    verdicts = []
    for monitor in monitors:
        outcome = monitor.last.outcome if monitor.last else "not judged yet"
        if monitor.status not in _NORMAL_STATES:
            outcome = f"{outcome} ({monitor.status})"
        verdicts.append(f"{monitor.monitor}: {outcome}")
    server = (workers, restarts, endpoint["url"] or "-", ", ".join(verdicts) or "-")
    for name, deployment in endpoint["deployments"].items():
        yield (
            _name(endpoint, name),
            endpoint["target"],
            deployment["model_uri"],
            deployment["version"] or "-",
            _share(deployment),
            deployment["state"],
            *server,
        )
    if not endpoint["deployments"]:
        yield (endpoint["name"], endpoint["target"], "-", "-", "-", endpoint["state"], *server)


def _share(deployment: Mapping[str, Any]) -> str:
    if deployment["shadow"]:
        return "shadow"
    return f"{deployment['share']:g}"


def _name(endpoint: Mapping[str, Any], deployment: str) -> str:
    if deployment == endpoint["name"]:
        return deployment
    return f"{endpoint['name']}/{deployment}"
