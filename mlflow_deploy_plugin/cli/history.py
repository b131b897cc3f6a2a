"""`onnxserve history NAME`: the audit trail."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.cli.options import opened_store, printable, show_lines, unknown_endpoint

if TYPE_CHECKING:
    from mlflow_deploy_plugin.store import AuditEvent

_STEP = re.compile(r"step \d+ % of a rollout")
"""The reason of a change of traffic by a rollout (`controller/rollouts/controller.py`); the step has its own event."""
_UNSHOWN = ("spec", "begun")
_UNITS = {"every": " s", "seconds": " s"}


@click.command()
@click.argument("name", required=False)
@click.option("--model", metavar="MODEL", help="Registered model whose events alone are shown; NAME may be left out.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="COUNT",
    show_default="all",
    help="Number of events to show, the newest ones.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "jsonl"]),
    default="text",
    show_default=True,
    help="Format: lines for people; one JSON array; or one JSON object a line, with all details.",
)
def history(name: str | None, model: str | None, limit: int | None, output: str) -> None:
    """Show who changed what, when and why.

    The list has the events of the endpoint NAME and of the models that it serves, oldest first; without NAME, all
    events. A deleted endpoint keeps its history. A step of a rollout, a promotion and a rollback are one entry here;
    JSON has also the events that belong to them (the traffic, the gate, tags, the move in MLflow).
    """
    # here: SQLAlchemy takes a second that no other command should wait for
    from mlflow_deploy_plugin.registry import event_as_json, event_history, without_step_events

    with opened_store() as store:
        if name is not None and name not in store.names() and not store.events(name, limit=1):
            raise unknown_endpoint(name, [*store.names(), *(event.endpoint for event in store.events())])
        found = event_history(store, name, model, limit)
    if output == "jsonl":
        lines: Iterable[str] = map(event_as_json, found)
    elif output == "json":
        lines = ["[" + ",\n ".join(map(event_as_json, found)) + "]"]
    else:
        shown = [one for one in without_step_events(found) if one.action != "traffic" or not _STEP.fullmatch(one.why)]
        lines = [line for event in shown for line in _lines(event)]
    show_lines(lines)
    if not found and output == "text":
        click.echo(f"nothing is known of {model or name or 'anything'}", err=True)


def _lines(event: "AuditEvent") -> Iterable[str]:
    named = (event.endpoint, event.model, event.version and f"version {event.version}")
    what = " ".join(part for part in named if part)
    change = f": {event.before or '–'} → {event.after or '–'}" if event.before or event.after else ""
    yield printable(f"{event.at:%Y-%m-%d %H:%M:%S}Z  {event.actor}  {event.action}  {what}{change}")
    if event.why:
        yield "    " + printable(f"why: {event.why}")
    if event.action == "rollout.step":
        return
    detail = {key: value for key, value in event.detail.items() if isinstance(value, str | int | float | bool)}
    shown = ", ".join(
        f"{key} {value}{_UNITS.get(key, '')}" for key, value in detail.items() if key not in _UNSHOWN and value != ""
    )
    if shown:
        yield "    " + printable(shown)
