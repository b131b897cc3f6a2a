"""`onnxserve diff`, `gate`, `promote` and `request …`: comparisons and checks of
versions, and their moves to a stage or alias.

MLflow's server records requests and approvals of promotions. `promote` waits until the
version is served.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlflow_deploy_plugin.cli.options import (
    Commands,
    NumberRange,
    align_columns,
    dry_run_flag,
    flag,
    opened_deployments,
    option,
    optional_name_argument,
    original_option,
    output_option,
    path_option,
    reason_option,
    shorten,
    show_lines,
    show_progress,
    show_result,
    show_table,
    version_argument,
)
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.registry.transitions import parse_stage_or_alias

if TYPE_CHECKING:
    from mlflow_deploy_plugin.promote.gate.approval_client import ListedRequest
    from mlflow_deploy_plugin.promote.gate.promotion import Promotion
    from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployment, Deployments


_MOST_CHARACTERS = 60
_POLL_SECONDS = 0.2
_STATE_TEXT = {"waiting": "does not serve it yet", "stopped": "is not running"}
_PERMANENT_CAUSES = ("artifact", "consent", "load")
"""The causes for which agents refuse a version for good. A missing gate tag or a failed
download may be temporary.
"""


ServingState = Literal["serves it", "stopped", "refused", "waiting"]


_to_option = option(
    "--to @ALIAS|STAGE",
    "Alias (@champion) or stage (Production, Staging, …).",
    required=True,
    callback=lambda _context, _parameter, text: str(parse_stage_or_alias(text)),
)
_original_option = original_option(
    "Torch model that MODEL was made from. Needed if the policy requires fgsm or pgd. Its "
    "code is run.",
    show_default="the model that the version or its base names",
)


@dataclass(frozen=True)
class ServedAfterPromotion:
    """The state of a deployment that follows the stage or alias, and the seconds since
    the move.
    """

    endpoint: str
    deployment: str
    state: ServingState
    reason: str
    seconds: float


@click.command()
@version_argument
@path_option(
    "--policy",
    "policy_file",
    "YAML file of the policy. If the policy differs from the model's policy, the verdict is "
    "not stored as a tag.",
    show_default="the model's tag onnxserve.gate.policy, otherwise the built-in policy",
)
@option(
    "--against URI",
    "Model to compare with. The verdict of a comparison with another model is not stored as a tag.",
    show_default="the version with the gated alias or stage",
)
@_original_option
@output_option
def gate(
    model_uri: str,
    policy_file: Path | None,
    against: str | None,
    original: str,
    output: str,
) -> None:
    """Check whether a version may be promoted.

    The command checks the version MODEL against the gate policy of its registered
    model, prints one line per check, logs a report to MLflow and stores the verdict in
    the version's tag onnxserve.gate. Exit status 1 if the version does not pass. If the
    version is already served and --against is not set, its stored verdict is shown.

    \b
      onnxserve gate models:/flight-delay/7
      onnxserve gate models:/flight-delay@challenger --policy gate.yaml \\
          --against models:/flight-delay/5
    """
    from mlflow_deploy_plugin.promote.gate.run import run_gate, verdict_of_served
    from mlflow_deploy_plugin.promote.gate.verdict import verdict_as_json

    model, version = _registered_version(model_uri)
    served = None if against else verdict_of_served(model, version, policy_file)
    if served is not None:
        show_result(output, served, [f"{served}; --against URI compares it with another version"])
        return
    gated = run_gate(
        model,
        version,
        policy_file=policy_file,
        against=against,
        original=original,
        progress=show_progress,
    )
    verdict = gated.verdict
    compared = f", compared with {verdict.against}" if verdict.against else ""
    lines = [f"{model} version {version}: {verdict.state}{compared}"]
    width = max(len(check.name) for check in verdict.checks)
    for check in verdict.checks:
        lines.append(f"  {check.state:7}  {check.name:{width}}  {check.reason}")
        lines += [f"  {'':7}  {'':{width}}  note: {note}" for note in check.notes]
    lines.append(f"  policy: {verdict.policy_from}")
    if not gated.is_tagged:
        lines[-1] += " (trial: the tags did not change)"
    report = gated.report
    if not gated.run.url:
        report = f"run {gated.run.run_id} in experiment {gated.run.experiment}"
    lines.append(f"  report: {report}")
    logged = {"run": asdict(gated.run), "tagged": gated.is_tagged}
    show_result(output, verdict_as_json(verdict) | logged, lines)
    if not verdict.passed:
        sys.exit(1)


@click.command()
@version_argument
@_to_option
@flag("--force", "Promote the version even if the gate fails. Requires --why, and is recorded.")
@reason_option("Reason for the audit trail and, with --force, for a tag.")
@path_option(
    "--policy", "policy_file", "YAML file of the gate policy for a model without a policy."
)
@flag("--request", "is_request", "Run the gate and request approvals, but do not move the version.")
@option(
    "--to-registry URI", "MLflow server to which the version is copied before the gate.", default=""
)
@option("--to-model NAME", "Registered model to which the version is copied.", default="")
@_original_option
@option(
    "--wait SECONDS",
    "Maximum seconds to wait until the deployments that follow the stage or alias serve "
    "the version.",
    type=NumberRange(min=0),
    default=60.0,
)
@dry_run_flag
@output_option
def promote(
    model_uri: str,
    wait: float,
    output: str,
    is_request: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Move a version to a stage or alias if it passes its gate.

    The gate of the version MODEL is run, unless a recent verdict is `passed`. Other
    versions in Production or Staging are archived when the version moves there. A
    version that was rolled back is refused, unless --force and --why are specified. If
    the policy requires approvals, --request requests them, and the same command without
    --request moves the version after the last approval. Exit status 1 if the version is
    refused, or if a deployment does not serve it in time.

    \b
      onnxserve promote models:/flight-delay/7 --to @champion
      onnxserve promote models:/flight-delay@challenger --to Production
      onnxserve promote models:/flight-delay/7 --to @champion --force \\
          --why 'version 6 answers nonsense'
      onnxserve promote models:/flight-delay/7 --to @champion \\
          --to-registry https://mlflow.example.com
    """
    if options["force"] and not options["why"].strip():
        raise click.UsageError("--force requires --why REASON")
    if is_request and options["policy_file"]:
        raise click.UsageError("--request uses the policy of the model: omit --policy")
    model, version = _registered_version(model_uri)
    copied = None
    destination = (options.pop("to_registry"), options.pop("to_model"))
    if dry_run:
        if is_request or any(destination):
            raise click.UsageError("--dry-run is without --request, --to-registry and --to-model")
        _show_trial(model, version, output, **options)
        return
    with ExitStack() as target:
        if any(destination):
            from mlflow_deploy_plugin.promote.evidence.transfer import copied_version

            copied = target.enter_context(
                copied_version(model, version, *destination, show_progress),
            )
            model = copied.model
            version = copied.version
        from mlflow_deploy_plugin.promote.gate.promotion import promote as move

        if is_request:
            from mlflow_deploy_plugin.promote.gate.approval_client import (
                listed_requests,
                send_decision,
            )

            listed_requests(model)  # Call the server before the gate, which takes minutes.
            move(model, version, **options, is_request=True, progress=show_progress)
            requested = send_decision("request", model, version, options["to"], options["why"])
            show_result(output, requested.model_dump(mode="json"), _request_lines(requested))
            return
        deployments = target.enter_context(opened_deployments())
        promotion = move(model, version, **options, store=deployments.store, progress=show_progress)
        served = list(_wait(deployments, promotion, wait)) if promotion.is_moved else []
    document = {**asdict(promotion), "served": served}
    lines = [*_promotion_lines(promotion, served)]
    if copied:
        copied.record(promotion)
        document["copy"] = copied
        lines.append(f"  {copied}")
    show_result(output, document, lines)
    if any(outcome.state in ("refused", "waiting") for outcome in served):
        sys.exit(1)


@click.group(cls=Commands)
def request() -> None:
    """List, approve and decline requested promotions.

    `onnxserve promote MODEL --to @ALIAS --request` requests a promotion.
    """


@request.command("list")
@optional_name_argument
@output_option
def list_requests(name: str | None, output: str) -> None:
    """List the promotions that people requested, and their approvals.

    The MLflow server at MLFLOW_TRACKING_URI lists the open requests for models that you
    may read, or only for the registered model NAME.

    \b
      onnxserve request list
      onnxserve request list flight-delay -o json
    """
    from mlflow_deploy_plugin.promote.gate.approval_client import listed_requests

    listed = listed_requests(name or "")
    rows = [("MODEL", "VERSION", "TO", "REQUESTED", "GATE", "APPROVED BY", "MISSING")]
    for entry in listed:
        requested = f"{entry.at:%Y-%m-%d %H:%M}Z by {entry.requested_by}"
        approved = ", ".join(entry.approved_by)
        move = (entry.model, entry.version, entry.to)
        rows.append((*move, requested, entry.verdict, approved, entry.reason))
    empty = "there are no requests: run `onnxserve promote MODEL --to @ALIAS --request`"
    show_table(output, [entry.model_dump(mode="json") for entry in listed], rows, empty)


@request.command()
@version_argument
@_to_option
@reason_option("Reason for the audit trail.")
def approve(model_uri: str, to: str, why: str) -> None:
    """Approve a requested promotion.

    The command prints the gate report of the version MODEL, and approves the promotion
    on the MLflow server at MLFLOW_TRACKING_URI. The approval records the digest of this
    report. You need an account that the policy of the registered model accepts as an
    approver.

    \b
      onnxserve request approve models:/flight-delay/7 --to @champion \\
          --why 'the report is fine'
    """
    from mlflow_deploy_plugin.promote.gate.approval_client import listed_requests, send_decision

    model, version = _registered_version(model_uri)
    report = ""
    for entry in listed_requests(model):
        if entry.version == version and entry.to.lower() == to.lower():
            show_lines(_request_lines(entry))
            report = entry.report_digest
    approved = send_decision("approve", model, version, to, why, report)
    state = approved.reason or "all approvals are there"
    show_lines([f"approved; {state}"])


@request.command()
@version_argument
@_to_option
@reason_option("Reason for the audit trail.", default=None, required=True)
def decline(model_uri: str, to: str, why: str) -> None:
    """Decline a requested promotion.

    The request for the version MODEL and its approvals end on the MLflow server at
    MLFLOW_TRACKING_URI. People who may approve the promotion may also decline it, and
    the requester may withdraw it.

    \b
      onnxserve request decline models:/flight-delay/7 --to @champion \\
          --why 'version 8 is better'
    """
    from mlflow_deploy_plugin.promote.gate.approval_client import send_decision

    model, version = _registered_version(model_uri)
    declined = send_decision("decline", model, version, to, why)
    show_lines([f"declined: {declined}"])


def _registered_version(model_uri: str) -> tuple[str, str]:
    """Return the name of the registered model and the number of the version that the
    URI selects now.
    """
    uri = parse_model_uri(model_uri)
    if uri.kind == "version":
        return uri.name, uri.selector
    resolved = resolve(model_uri)
    return resolved.name, resolved.version


def _wait(
    deployments: "Deployments",
    promotion: "Promotion",
    seconds: float,
) -> Iterator[ServedAfterPromotion]:
    """Yield each deployment that follows the stage or alias once it serves or refuses
    the version, or times out.
    """
    start = time.monotonic()
    deployments.poll_registry(promotion.model)
    pending = [entry for entry in deployments.list() if _follows(entry, promotion.uri)]
    if pending:
        names = ", ".join(entry.name for entry in pending)
        show_progress(f"waiting for {names}")
    while pending:
        is_late = time.monotonic() - start >= seconds
        for deployment in list(pending):
            current = deployments.get(deployment.name, deployment.endpoint.name)
            state, reason = _serving_state(current, promotion)
            if state == "waiting" and not is_late:
                continue
            pending.remove(deployment)
            yield ServedAfterPromotion(
                endpoint=current.endpoint.name,
                deployment=current.name,
                state=state,
                reason=reason,
                seconds=round(time.monotonic() - start, 1),
            )
        if pending:
            time.sleep(_POLL_SECONDS)


def follower_lines(deployments: "Deployments", uri: str) -> Iterator[str]:
    """Yield a line with the deployments that follow `uri`; none for another URI."""
    if not parse_model_uri(uri).followed:
        return
    followers = [
        f"{entry.endpoint.name}/{entry.name}"
        for entry in deployments.list()
        if _follows(entry, uri)
    ]
    yield f"  deployments that follow {uri}: {join_names(followers) or 'none'}"


def _follows(deployment: "Deployment", uri: str) -> bool:
    """Return True if a deployment follows the stage or alias `uri`."""
    followed = parse_model_uri(deployment.endpoint.spec.variants[deployment.name].model)
    destination = parse_model_uri(uri)
    return (
        followed.kind == destination.kind
        and followed.name == destination.name
        # MLflow ignores case.
        and followed.selector.lower() == destination.selector.lower()
    )


def _serving_state(deployment: "Deployment", promotion: "Promotion") -> tuple[ServingState, str]:
    """Return whether a deployment serves the promoted version, and the reason if it
    does not; the reason may be empty.
    """
    observation = deployment.observation
    if observation.state in ("stopped", "failed"):
        return "stopped", observation.reason
    endpoint = deployment.endpoint.name
    name = deployment.name
    versions = {worker.loaded(endpoint, name).version for worker in observation.workers}
    if versions == {promotion.version}:
        return "serves it", ""
    promoted = (endpoint, name, promotion.version)
    for entry in observation.refused:
        is_promoted = (entry.endpoint, entry.variant, entry.version) == promoted
        if is_promoted and entry.cause in _PERMANENT_CAUSES:
            return "refused", entry.reason
    error = observation.errors.get(name) or observation.registry_error
    return "waiting", error or observation.reason


def _show_trial(model: str, version: str, output: str, **options: Any) -> None:
    """Show what a promotion with these options would do, without a change."""
    from mlflow_deploy_plugin.promote.gate.promotion import promote as move

    with opened_deployments() as deployments:
        trial = move(model, version, **options, store=deployments.store, is_trial=True)
        followers = [*follower_lines(deployments, trial.uri)]
    before = trial.before or "none"
    lines = [f"{trial.to} of {model} would be version {version} (before: {before})"]
    if not trial.is_moved:
        lines = [f"{trial.to} of {model} is version {version} already"]
    show_result(
        output, asdict(trial), [*lines, f"  gate: {trial.gate}; {trial.reason}", *followers]
    )


def _promotion_lines(promotion: "Promotion", served: list[ServedAfterPromotion]) -> Iterator[str]:
    """Yield the new position of a version, and the state of each deployment that
    follows it.
    """
    position = f"{promotion.model} version {promotion.version} {promotion.location_text}"
    if not promotion.is_moved:
        yield f"{position} already: no change (gate: {promotion.gate}; {promotion.reason})"
        return
    before = f" (before: version {promotion.before})" if promotion.before else ""
    yield f"{position}{before}"
    yield f"  gate: {promotion.gate}; {promotion.reason}"
    if promotion.report:
        yield f"  report: {promotion.report}"
    for outcome in served:
        state = _STATE_TEXT.get(outcome.state, outcome.state)
        reason = f": {outcome.reason}" if outcome.reason else ""
        yield f"  {outcome.endpoint}/{outcome.deployment} {state} after {outcome.seconds} s{reason}"
    if not served:
        yield f"  no deployment follows {promotion.uri}"


def _request_lines(entry: "ListedRequest") -> Iterator[str]:
    """Yield a requested promotion, its gate report and its approvals."""
    why = f": {entry.why}" if entry.why else ""
    yield f"{entry}, requested by {entry.requested_by}{why}"
    if entry.report_digest:
        yield f"  gate: {entry.verdict} by {entry.judged_by}"
        yield f"  report: {entry.report} (sha256 {entry.report_digest})"
    else:
        yield (
            "  gate: MLflow's server has no report; run `onnxserve gate` with the store of this "
            "server"
        )
    approvals = entry.reason or "complete"
    yield f"  approvals: {approvals}"


@click.command()
@click.argument("before", metavar="MODEL")
@click.argument("after", metavar="MODEL")
@flag("--all", "shows_all", "Also show the facts that are equal.")
@output_option
def diff(before: str, after: str, shows_all: bool, output: str) -> None:
    """Compare two versions of a registered model.

    The command shows which recorded metrics, gate reports, parameters, data, code,
    signatures, parity, environments and graphs differ, and compares the predictions of
    the ONNX forms for the example rows.

    \b
      onnxserve diff models:/flight-delay/3 models:/flight-delay/4
      onnxserve diff models:/flight-delay@champion models:/flight-delay/4 --all -o json
    """
    from mlflow_deploy_plugin.promote.evidence.diff import diff_versions

    compared = diff_versions(before, after)
    shown = tuple(row for row in compared.rows if shows_all or row.is_changed)
    compared = replace(compared, rows=shown)
    table = [("SECTION", "NAME", compared.before, compared.after, "TREND")]
    for row in shown:
        table.append((row.section, row.name, _text(row.before), _text(row.after), row.trend))
    lines = [f"{compared.sentence}.", *align_columns(table)]
    if isinstance(compared.predictions, Refused):
        lines.append(f"predictions: not compared; {compared.predictions.reason}")
    else:
        changes = [("OUTPUT", "CHANGED ROWS", "LARGEST DIFFERENCE")]
        for change in compared.predictions:
            changed_rows = f"{change.changed_rows} of {change.rows}"
            changes.append((change.output, changed_rows, _text(change.largest)))
        lines += align_columns(changes)
    lines += [f"note: {note}" for note in compared.notes]
    show_result(output, {"sentence": compared.sentence, **asdict(compared)}, lines)


def _text(value: str | float | None) -> str:
    """Return a value as the text of a cell, shortened if it is long."""
    if value is None:
        text = "–"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = one_line(value)
    return shorten(text, _MOST_CHARACTERS)
