"""`onnxserve gate MODEL VERSION`: what the version has to prove before it is promoted, checked now."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import output_option

if TYPE_CHECKING:
    from mlflow_deploy_plugin.gate.run import GateRun


@click.command()
@click.argument("model")
@click.argument("version")
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="the model's tag onnxserve.gate.policy, else the built-in policy",
    help="YAML file of the policy. One that differs from the model's own is tried out: its verdict is not written on "
    "the version.",
)
@click.option(
    "--against",
    metavar="URI",
    show_default="the version in the gated stage",
    help="Model to compare with. Any but the version in the gated stage is tried out, as above.",
)
@output_option
def gate(model: str, version: str, policy_file: Path | None, against: str | None, output: str) -> None:
    """Check what a version has to prove before it is promoted.

    VERSION of the registered MODEL is judged by its gate policy, and the report is logged to MLflow. Each check is one
    line; the verdict is written on the version as the tag onnxserve.gate. Exit status 1 where it has not passed. Of the
    version that is served, and that nothing is beside, the verdict that it has is told.

    \b
      onnxserve gate flight-delay 7
      onnxserve gate flight-delay 7 --policy gate.yaml --against models:/flight-delay/5
    """
    # here: MLflow, pandas and SQLAlchemy take seconds that no other command should wait for
    from mlflow_deploy_plugin.gate.run import run_gate, verdict_of_served

    if not against and (known := verdict_of_served(model, version, policy_file)) is not None:
        line = f"{known}; --against URI compares it with the version that you name"
        click.echo(json.dumps(asdict(known), indent=2) if output == "json" else line)
        return
    gated = run_gate(model, version, policy_file=policy_file, against=against, progress=show_progress)
    if output == "json":
        click.echo(json.dumps(_verdict_document(gated), indent=2, default=str))
    else:
        _show_verdict(gated)
    if not gated.verdict.passed:
        sys.exit(1)


def show_progress(line: str) -> None:
    click.echo(line, err=True)


def _show_verdict(gated: "GateRun") -> None:
    verdict = gated.verdict
    beside = f", compared with {verdict.against}" if verdict.against else ""
    click.echo(f"{verdict.model} version {verdict.version}: {verdict.state}{beside}")
    width = max(len(check.name) for check in verdict.checks)
    for check in verdict.checks:
        click.echo(f"  {check.state:7}  {check.name:{width}}  {check.reason}")
        for note in check.notes:
            click.echo(f"  {'':7}  {'':{width}}  note: {note}")
    click.echo(
        f"  policy: {verdict.policy_from}{'' if gated.is_tagged else ' (tried out, the version keeps its tags)'}"
    )
    where = f"run {gated.run.run_id} in experiment {gated.run.experiment}"
    click.echo(f"  report: {gated.report if gated.run.url else where}")


def _verdict_document(gated: "GateRun") -> dict[str, Any]:
    from mlflow_deploy_plugin.gate.report import verdict_as_json

    run = {"run_id": gated.run.run_id, "experiment": gated.run.experiment, "url": gated.run.url}
    return {**verdict_as_json(gated.verdict), "run": run, "tagged": gated.is_tagged}
