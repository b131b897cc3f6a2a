"""`onnxserve promote MODEL VERSION --to Production`: the gate, the stage, and until the endpoints here serve it."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.cli.gate import show_progress
from mlflow_deploy_plugin.cli.opened import opened_deployments
from mlflow_deploy_plugin.cli.options import output_option
from mlflow_deploy_plugin.registry.model_uri import parse_model_uri

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments.lifecycle import Deployment, Deployments
    from mlflow_deploy_plugin.gate.promote import Promotion

_POLL_SECONDS = 0.2
_PERMANENT_CAUSES = ("artifact", "consent", "load")
"""Causes of a refusal that no waiting helps against; a gate's tag and a fetch may come in a moment."""


@dataclass(frozen=True)
class ServedAfterPromotion:
    """What became of one deployment that follows the place.

    Attributes:
        state: `serves it`, `stopped`, `refused` (with the reason), or `waiting` where the time was up.
        seconds: since the move.
    """

    endpoint: str
    deployment: str
    state: str
    reason: str
    seconds: float


@click.command()
@click.argument("model")
@click.argument("version")
@click.option(
    "--to", "to", required=True, metavar="STAGE|@ALIAS", help="Stage (Production, Staging, …) or alias (@champion)."
)
@click.option("--force", is_flag=True, help="Promote it whatever the gate says; needs --why, and is recorded.")
@click.option(
    "--why", default="", metavar="REASON", help="Reason, kept in the audit trail, and on a version that is forced."
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file of the gate policy, for a model without one of its own.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds to wait until the deployments of this machine that follow the stage or alias serve it.",
)
@output_option
def promote(
    model: str, version: str, to: str, force: bool, why: str, policy_file: Path | None, wait: float, output: str
) -> None:
    """Move a version to a stage or alias, through its gate.

    VERSION of the registered MODEL is moved once it has passed its gate. A fresh passed verdict is taken, else the gate
    is run. In Production and Staging it takes the place of the others, which are archived. What was rolled back is
    refused; --force --why promotes it again. Exit status 1 where it is refused, or where a deployment here does not
    come to serve it.

    \b
      onnxserve promote flight-delay 7 --to Production
      onnxserve promote flight-delay 7 --to @champion
      onnxserve promote flight-delay 7 --to Production --force --why 'version 6 answers nonsense'
    """
    with opened_deployments() as deployments:
        # here: MLflow, pandas and SQLAlchemy take seconds that no other command should wait for
        from mlflow_deploy_plugin.gate.promote import promote as move

        promotion = move(
            model, version, to, force, why, policy_file=policy_file, store=deployments.store, progress=show_progress
        )
        served = list(_wait(deployments, promotion, wait)) if promotion.is_moved else []
    if output == "json":
        click.echo(json.dumps({**asdict(promotion), "served": [asdict(one) for one in served]}, indent=2))
    else:
        _show(promotion, served)
    if any(one.state in ("refused", "waiting") for one in served):
        sys.exit(1)


def _wait(deployments: "Deployments", promotion: "Promotion", seconds: float) -> Iterator[ServedAfterPromotion]:
    """Each deployment that follows the place, once it serves the version or will not."""
    start = time.monotonic()
    deployments.poll_registry(promotion.model)
    pending = [one for one in deployments.list() if _follows(one, promotion)]
    if pending:
        show_progress(f"waiting for {', '.join(one.name for one in pending)}")
    while pending:
        late = time.monotonic() - start >= seconds
        for one in list(pending):
            now = deployments.get(one.name, one.endpoint.name)
            state, reason = _state(now, promotion)
            if state == "waiting" and not late:
                continue
            pending.remove(one)
            yield ServedAfterPromotion(now.endpoint.name, now.name, state, reason, round(time.monotonic() - start, 1))
        if pending:
            time.sleep(_POLL_SECONDS)


def _follows(deployment: "Deployment", promotion: "Promotion") -> bool:
    followed = parse_model_uri(deployment.endpoint.spec.variants[deployment.name].model)
    place = parse_model_uri(promotion.uri)
    return followed.kind == place.kind and followed.name == place.name and _same(followed.selector, place.selector)


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower()  # as in MLflow


def _state(deployment: "Deployment", promotion: "Promotion") -> tuple[str, str]:
    """What a deployment makes of the version by now, and why."""
    seen = deployment.observation
    if seen.state in ("stopped", "failed"):
        return "stopped", seen.reason
    endpoint = deployment.endpoint.name
    loaded = [worker.endpoints.get(endpoint, {}).get(deployment.name) for worker in seen.workers]
    if loaded and all(one is not None and one.version == promotion.version for one in loaded):
        return "serves it", ""
    for one in seen.refused:
        is_meant = (one.endpoint, one.variant, one.version) == (endpoint, deployment.name, promotion.version)
        if is_meant and one.cause in _PERMANENT_CAUSES:
            return "refused", one.reason
    return "waiting", seen.errors.get(deployment.name) or seen.registry_error or seen.reason


def _show(promotion: "Promotion", served: list[ServedAfterPromotion]) -> None:
    stands = f"{promotion.model} version {promotion.version} {promotion.stands}"
    if not promotion.is_moved:
        click.echo(f"{stands} already: nothing is done (gate: {promotion.gate}; {promotion.reason})")
        return
    before = f" (before: version {promotion.before})" if promotion.before else ""
    click.echo(f"{stands}{before}")
    click.echo(f"  gate: {promotion.gate}; {promotion.reason}")
    if promotion.report:
        click.echo(f"  report: {promotion.report}")
    for one in served:
        state = {"waiting": "does not serve it yet", "stopped": "is not running"}.get(one.state, one.state)
        click.echo(
            f"  {one.endpoint}/{one.deployment} {state} after {one.seconds} s{f': {one.reason}' if one.reason else ''}"
        )
    if not served:
        click.echo(f"  no deployment of this machine follows {promotion.uri}")
