"""`onnxserve requests`, `approve` and `decline`: promotions that people decide about, on MLflow's server."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    opened_store,
    option,
    output_option,
    show_lines,
    show_progress,
    show_result,
    show_table,
)
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
        requested, missing = f"{entry.at:%Y-%m-%d %H:%M}Z by {entry.requested_by}", entry.reason or entry.ended_why
        approved = ", ".join(entry.approved_by)
        rows.append((entry.model, entry.version, entry.to, entry.state, requested, entry.verdict, approved, missing))
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
    from mlflow_deploy_plugin.registry.transitions import parse_stage_or_alias

    to = str(parse_stage_or_alias(to))
    keys = {(entry.version, entry.to.lower()): entry for entry in listed_requests(model) if entry.state == "open"}
    requested = keys.get((version, to.lower()))
    if requested is not None:
        show_lines(_request_lines(requested))
    approved = send_decision("approve", model, version, to, why, requested.report_digest if requested else "")
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
    from mlflow_deploy_plugin.registry.transitions import parse_stage_or_alias

    declined = send_decision("decline", model, version, str(parse_stage_or_alias(to)), why)
    show_lines([f"declined: {declined}"])


def request_approvals(
    model: str, version: str, output: str, *, to: str, policy_file: Path | None, why: str, **options: Any
) -> None:
    """Execute `onnxserve promote --request`. The server is called before the gate, which takes minutes."""
    from mlflow_deploy_plugin.gate.approval_client import listed_requests, send_decision
    from mlflow_deploy_plugin.gate.promotion import judge_for_approval
    from mlflow_deploy_plugin.registry.transitions import parse_stage_or_alias

    if policy_file is not None:
        raise click.UsageError("--request uses the policy of the model: omit --policy")
    to = str(parse_stage_or_alias(to))
    listed_requests(model)
    with opened_store() as store:
        judge_for_approval(model, version, to, why=why, store=store, progress=show_progress, **options)
    requested = send_decision("request", model, version, to, why)
    show_result(output, requested.model_dump(mode="json"), _request_lines(requested))


def _request_lines(entry: "ListedRequest") -> Iterator[str]:
    yield f"{entry}, requested by {entry.requested_by}{entry.why and f': {entry.why}'}"
    if entry.report_digest:
        yield f"  gate: {entry.verdict}; report: {entry.report} (sha256 {entry.report_digest})"
    else:
        yield "  gate: MLflow's server has no report; run `onnxserve gate` with the store of this server"
    yield f"  approvals: {entry.reason or 'complete'}"
