"""`onnxserve gate` and `onnxserve promote`: check a version, move it to a stage or alias, wait until it is served."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlflow_deploy_plugin.cli.options import (
    NumberRange,
    opened_deployments,
    option,
    output_option,
    show_progress,
    show_result,
)
from mlflow_deploy_plugin.registry import parse_model_uri
from mlflow_deploy_plugin.registry.resolution import check_registered_name

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments import Deployments
    from mlflow_deploy_plugin.deployments.lifecycle import Deployment
    from mlflow_deploy_plugin.gate.promotion import Promotion
    from mlflow_deploy_plugin.gate.run import GateRun


_POLL_SECONDS = 0.2
_STATE_TEXT = {"waiting": "does not serve it yet", "stopped": "is not running"}
_PERMANENT_CAUSES = ("artifact", "consent", "load")
"""The causes of a refusal that do not end by waiting; a gate's tag and a fetch may come in a moment."""


ServingState = Literal["serves it", "stopped", "refused", "waiting"]


_model_argument = click.argument("model", callback=lambda _context, _parameter, model: check_registered_name(model))
"""MODEL, checked before click misses VERSION: of models:/flight-delay/7 both are meant."""


_original_option = option(
    "--original",
    default="",
    metavar="URI",
    show_default="the model that the version, or its base, names",
    help="Torch model of which VERSION was made, for a policy that demands fgsm or pgd; its code is run.",
)


@dataclass(frozen=True)
class ServedAfterPromotion:
    """The outcome for one deployment that follows the stage or alias, so many seconds after the move."""

    endpoint: str
    deployment: str
    state: ServingState
    reason: str
    seconds: float


@click.command()
@_model_argument
@click.argument("version")
@option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="the model's tag onnxserve.gate.policy, else the built-in policy",
    help="YAML file of the policy. One that differs from the model's own is tried out: its verdict is not written on "
    "the version.",
)
@option(
    "--against",
    metavar="URI",
    show_default="the version in the gated stage",
    help="Model to compare with. Any but the version in the gated stage is tried out, as above.",
)
@_original_option
@output_option
def gate(model: str, version: str, policy_file: Path | None, against: str | None, original: str, output: str) -> None:
    """Check what a version has to prove before it is promoted.

    VERSION of the registered MODEL is judged by its gate policy, and the report is logged to MLflow. Each check is one
    line; the verdict is written on the version as the tag onnxserve.gate. Exit status 1 if it has not passed. For the
    version that is served, with no other to compare it with, the verdict that it has is shown.

    \b
      onnxserve gate flight-delay 7
      onnxserve gate flight-delay 7 --policy gate.yaml --against models:/flight-delay/5
    """
    from mlflow_deploy_plugin.gate import run_gate, verdict_of_served
    from mlflow_deploy_plugin.gate.verdict import verdict_as_json

    if not against and (known := verdict_of_served(model, version, policy_file)) is not None:
        show_result(output, known, [f"{known}; --against URI compares it with the version that you name"])
        return
    gated = run_gate(
        model, version, policy_file=policy_file, against=against, original=original, progress=show_progress
    )
    run = {"run_id": gated.run.run_id, "experiment": gated.run.experiment, "url": gated.run.url}
    document = {**verdict_as_json(gated.verdict), "run": run, "tagged": gated.is_tagged}
    show_result(output, document, _verdict_lines(gated))
    if not gated.verdict.passed:
        sys.exit(1)


@click.command()
@_model_argument
@click.argument("version")
@option(
    "--to", "to", required=True, metavar="STAGE|@ALIAS", help="Stage (Production, Staging, …) or alias (@champion)."
)
@option("--force", is_flag=True, help="Promote it whatever the gate says; needs --why, and is recorded.")
@option("--why", default="", metavar="REASON", help="Reason, kept in the audit trail, and on a version that is forced.")
@option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file of the gate policy, for a model without one of its own.",
)
@_original_option
@option(
    "--wait",
    type=NumberRange(min=0),
    default=60.0,
    metavar="SECONDS",
    help="Seconds to wait until the deployments of this machine that follow the stage or alias serve it.",
)
@output_option
def promote(model: str, version: str, wait: float, output: str, **options: Any) -> None:
    """Move a version to a stage or alias, through its gate.

    VERSION of the registered MODEL is moved once it has passed its gate. A fresh passed verdict is taken, else the gate
    is run. In Production and Staging it takes the place of the others, which are archived. What was rolled back is
    refused; --force --why promotes it again. Exit status 1 if it is refused, or if a deployment here does not come to
    serve it.

    \b
      onnxserve promote flight-delay 7 --to Production
      onnxserve promote flight-delay 7 --to @champion
      onnxserve promote flight-delay 7 --to Production --force --why 'version 6 answers nonsense'
    """
    if options["force"] and not options["why"].strip():
        raise click.UsageError("--force needs its reason: --why REASON")
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.gate import promote as move

        promotion = move(model, version, **options, store=deployments.store, progress=show_progress)
        served = list(_wait(deployments, promotion, wait)) if promotion.is_moved else []
    show_result(output, {**asdict(promotion), "served": served}, _promotion_lines(promotion, served))
    if any(one.state in ("refused", "waiting") for one in served):
        sys.exit(1)


def _wait(deployments: "Deployments", promotion: "Promotion", seconds: float) -> Iterator[ServedAfterPromotion]:
    """Yield each deployment that follows the stage or alias, once it serves the version or will not."""
    start = time.monotonic()
    deployments.poll_registry(promotion.model)
    place, pending = parse_model_uri(promotion.uri), []
    for one in deployments.list():
        followed = parse_model_uri(one.endpoint.spec.variants[one.name].model)
        is_same_selector = followed.selector.lower() == place.selector.lower()  # as in MLflow
        if followed.kind == place.kind and followed.name == place.name and is_same_selector:
            pending.append(one)
    if pending:
        show_progress(f"waiting for {', '.join(one.name for one in pending)}")
    while pending:
        late = time.monotonic() - start >= seconds
        for one in list(pending):
            now = deployments.get(one.name, one.endpoint.name)
            state, reason = _serving_state(now, promotion)
            if state == "waiting" and not late:
                continue
            pending.remove(one)
            yield ServedAfterPromotion(now.endpoint.name, now.name, state, reason, round(time.monotonic() - start, 1))
        if pending:
            time.sleep(_POLL_SECONDS)


def _serving_state(deployment: "Deployment", promotion: "Promotion") -> tuple[ServingState, str]:
    observation = deployment.observation
    if observation.state in ("stopped", "failed"):
        return "stopped", observation.reason
    endpoint = deployment.endpoint.name
    if {worker.loaded(endpoint, deployment.name).version for worker in observation.workers} == {promotion.version}:
        return "serves it", ""
    for one in observation.refused:
        is_meant = (one.endpoint, one.variant, one.version) == (endpoint, deployment.name, promotion.version)
        if is_meant and one.cause in _PERMANENT_CAUSES:
            return "refused", one.reason
    return "waiting", observation.errors.get(deployment.name) or observation.registry_error or observation.reason


def _promotion_lines(promotion: "Promotion", served: list[ServedAfterPromotion]) -> Iterator[str]:
    stands = f"{promotion.model} version {promotion.version} {promotion.location_text}"
    if not promotion.is_moved:
        yield f"{stands} already: nothing is done (gate: {promotion.gate}; {promotion.reason})"
        return
    before = f" (before: version {promotion.before})" if promotion.before else ""
    yield f"{stands}{before}"
    yield f"  gate: {promotion.gate}; {promotion.reason}"
    if promotion.report:
        yield f"  report: {promotion.report}"
    for one in served:
        state = _STATE_TEXT.get(one.state, one.state)
        why = f": {one.reason}" if one.reason else ""
        yield f"  {one.endpoint}/{one.deployment} {state} after {one.seconds} s{why}"
    if not served:
        yield f"  no deployment of this machine follows {promotion.uri}"


def _verdict_lines(gated: "GateRun") -> Iterator[str]:
    verdict = gated.verdict
    compared = f", compared with {verdict.against}" if verdict.against else ""
    yield f"{verdict.model} version {verdict.version}: {verdict.state}{compared}"
    width = max(len(check.name) for check in verdict.checks)
    for check in verdict.checks:
        yield f"  {check.state:7}  {check.name:{width}}  {check.reason}"
        for note in check.notes:
            yield f"  {'':7}  {'':{width}}  note: {note}"
    yield f"  policy: {verdict.policy_from}{'' if gated.is_tagged else ' (tried out, the version keeps its tags)'}"
    where = f"run {gated.run.run_id} in experiment {gated.run.experiment}"
    yield f"  report: {gated.report if gated.run.url else where}"
