"""`onnxserve requests`, `approve` and `decline`: promotions that people decide about, on MLflow's server."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import option, output_option, show_lines, show_progress, show_result, show_table
from mlflow_deploy_plugin.cli.promote import model_argument, to_option

if TYPE_CHECKING:
    from mlflow_deploy_plugin.gate.approval_client import ListedRequest


@click.command()
@click.argument("model", default="")
@output_option
def requests(model: str, output: str) -> None:
    """List the promotions that people requested, and their approvals.

    The MLflow server at MLFLOW_TRACKING_URI lists the requests for models that you may read, or only for MODEL: all
    open requests, and the last requests that ended.

    \b
      onnxserve requests
      onnxserve requests flight-delay -o json
    """
    from mlflow_deploy_plugin.gate.approval_client import listed_requests

    listed = listed_requests(model)
    rows = [("MODEL", "VERSION", "TO", "STATE", "REQUESTED", "GATE", "APPROVED BY", "MISSING")]
    for entry in listed:
        requested, approved = f"{entry.at:%Y-%m-%d %H:%M}Z by {entry.requested_by}", ", ".join(entry.approved_by)
        row = entry.model, entry.version, entry.to, entry.state, requested, entry.verdict, approved
        rows.append((*row, entry.reason or entry.ended_why))
    empty = "there are no requests: run `onnxserve promote MODEL VERSION --to @ALIAS --request`"
    show_table(output, [entry.model_dump(mode="json") for entry in listed], rows, empty)


@click.command()
@model_argument
@click.argument("version")
@to_option
@option("--why", default="", metavar="REASON", help="Reason for the audit trail.")
def approve(model: str, version: str, to: str, why: str) -> None:
    """Approve a requested promotion.

    The command prints the gate report of VERSION of the registered MODEL, and approves the promotion on the MLflow
    server at MLFLOW_TRACKING_URI. The approval records the digest of this report. You need an account that the policy
    of MODEL accepts as an approver.

    \b
      onnxserve approve flight-delay 7 --to @champion --why 'the report is fine'
    """
    from mlflow_deploy_plugin.gate.approval_client import listed_requests, send_decision

    report = ""
    for entry in listed_requests(model):
        if (entry.state, entry.version, entry.to.lower()) == ("open", version, to.lower()):
            show_lines(_request_lines(entry))
            report = entry.report_digest
    approved = send_decision("approve", model, version, to, why, report)
    show_lines([f"approved; {approved.reason or 'all approvals are there'}"])


@click.command()
@model_argument
@click.argument("version")
@to_option
@option("--why", required=True, metavar="REASON", help="Reason for the audit trail.")
def decline(model: str, version: str, to: str, why: str) -> None:
    """Decline a requested promotion.

    The request for VERSION of the registered MODEL and its approvals end on the MLflow server at MLFLOW_TRACKING_URI.
    People who may approve the promotion may also decline it, and the requester may withdraw it.

    \b
      onnxserve decline flight-delay 7 --to @champion --why 'version 8 is better'
    """
    from mlflow_deploy_plugin.gate.approval_client import send_decision

    show_lines([f"declined: {send_decision('decline', model, version, to, why)}"])


def request_approvals(model: str, version: str, output: str, **options: Any) -> None:
    """Execute `onnxserve promote --request`. The server is called before the gate, which takes minutes."""
    from mlflow_deploy_plugin.gate import promote
    from mlflow_deploy_plugin.gate.approval_client import listed_requests, send_decision

    if options["policy_file"] is not None:
        raise click.UsageError("--request uses the policy of the model: omit --policy")
    listed_requests(model)
    promote(model, version, **options, is_request=True, progress=show_progress)
    requested = send_decision("request", model, version, options["to"], options["why"])
    show_result(output, requested.model_dump(mode="json"), _request_lines(requested))


def _request_lines(entry: "ListedRequest") -> Iterator[str]:
    yield f"{entry}, requested by {entry.requested_by}{entry.why and f': {entry.why}'}"
    if entry.report_digest:
        yield f"  gate: {entry.verdict}; report: {entry.report} (sha256 {entry.report_digest})"
    else:
        yield "  gate: MLflow's server has no report; run `onnxserve gate` with the store of this server"
    yield f"  approvals: {entry.reason or 'complete'}"
