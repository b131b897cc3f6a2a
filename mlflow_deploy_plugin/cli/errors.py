"""`onnxserve errors`: the failed requests of an endpoint by cause."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from mlflow_deploy_plugin.cli.log import open_user_log, time_text, warn_of_unreadable
from mlflow_deploy_plugin.cli.options import opened_deployments, option, output_option, show_result, usage_errors
from mlflow_deploy_plugin.errors import REMEDIES, OnnxserveError, Refused

_SHOWN_CAUSES = 20


@click.command()
@click.argument("name")
@option("--last", default="24h", metavar="DURATION", help="Maximum age by the time of receipt: 90s, 1h, 7d.")
@output_option
def errors(name: str, last: str, output: str) -> None:
    """Group the failed requests of the endpoint NAME by cause.

    A cause is a status, an error code, a column and a message without values. Only captured requests are counted.

    \b
      onnxserve errors flights --last 24h
      onnxserve errors flights --last 7d -o json
    """
    from mlflow_deploy_plugin.inference_log import TimeRange
    from mlflow_deploy_plugin.inference_log.failures import group_failures
    from mlflow_deploy_plugin.inference_log.windows import time_before

    with usage_errors():
        times = TimeRange(received_from=time_before(datetime.now(UTC), last, "--last"))
    opened = open_user_log()
    answered, groups = group_failures(opened, name, times)
    failed = sum(group.count for group in groups)
    document: dict[str, Any] = {
        "endpoint": name,
        "answered": answered,
        "failed": failed,
        "causes": [
            asdict(group)
            | {"share": group.count / (answered + failed), "remedy": REMEDIES.get(group.error_code, "").format(name)}
            for group in groups
        ],
        "unrouted": _unrouted(name),
    }
    show_result(output, document, _lines(document, last))
    warn_of_unreadable(opened)


def _unrouted(name: str) -> dict[str, int] | None:
    """Return status → the number of requests that were refused before a version was selected; None without a server."""
    try:
        with opened_deployments(quiet=True) as deployments:
            pages = deployments.server_metrics(deployments.get_endpoint(name)).values()
    except OnnxserveError:  # The log may have endpoints that the store does not have.
        return None
    servers = [page.unrouted for page in pages if not isinstance(page, Refused)]
    statuses = sorted({status for server in servers for status in server})
    return {status: int(sum(server.get(status, 0) for server in servers)) for status in statuses} if servers else None


def _lines(document: dict[str, Any], last: str) -> Iterator[str]:
    failed, causes, unrouted = document["failed"], document["causes"], document["unrouted"]
    count = f"{failed:,} of {document['answered'] + failed:,} requests" if failed else "no request"
    yield f"{document['endpoint']}: {count} failed in the last {last}"
    for cause in causes[:_SHOWN_CAUSES]:
        column = f"column {cause['column']!r}" if cause["column"] else ""
        newest = cause["newest"]
        yield f"{cause['count']:,} ({cause['share']:.2%})  {cause['status']} {cause['error_code']} {column}".rstrip()
        yield f"  time      {time_text(cause['first'])} to {time_text(cause['last'])}"
        yield f"  versions  {', '.join(cause['versions'])}"
        yield f"  example   {newest['message'] or 'the message is not captured if capture drops or masks columns'}"
        yield f"            request {newest['request_id']}, prediction {newest['prediction_id']}"
        if cause["remedy"]:
            yield f"  remedy    {cause['remedy']}"
    if (more := len(causes) - _SHOWN_CAUSES) > 0:
        yield f"… and {more:,} more causes: -o json shows all"
    if unrouted is None:
        yield "note: requests that did not reach a version are counted only in /metrics, and no server answers"
    elif unrouted:
        counts = ", ".join(f"{count:,} with status {status}" for status, count in unrouted.items())
        yield f"since the server's start, these requests did not reach a version: {counts}"
