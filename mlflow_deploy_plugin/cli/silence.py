"""`onnxserve silence NAME --for 2h`: hold the alerts of an endpoint back for a while."""

import json
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.cli.options import list_output_option, opened_store, show_lines, why_option
from mlflow_deploy_plugin.errors import NotFound

if TYPE_CHECKING:
    from mlflow_deploy_plugin.store import Silence


@click.command()
@click.argument("name", required=False)
@click.option(
    "--monitor",
    default="",
    metavar="MONITOR",
    show_default="all of the endpoint's",
    help="Monitor whose alerts are held back.",
)
@click.option("--for", "length", metavar="DURATION", help="Length from now on: 30m, 2h, 7d.")
@why_option
@click.option("--list", "is_asked", is_flag=True, help="Show the silences that hold, of NAME or of all.")
@click.option(
    "--remove",
    "number",
    type=click.IntRange(min=1),
    metavar="ID",
    help="End the silence with this number, which --list shows.",
)
@list_output_option
def silence(
    name: str | None, monitor: str, length: str | None, why: str, is_asked: bool, number: int | None, output: str
) -> None:
    """Silence the alerts of an endpoint for a while.

    The monitors of the endpoint NAME go on; an alarm that still holds when the silence ends is sent then.

    \b
      onnxserve silence flights --monitor daily --for 2h --why 'a known storm'
      onnxserve silence --list
      onnxserve silence --remove 3
    """
    if sum((length is not None, is_asked, number is not None)) != 1:
        raise click.UsageError("say one of NAME --for DURATION, --list, --remove ID")
    if length is not None and name is None:
        raise click.UsageError("say which endpoint: onnxserve silence NAME --for 2h")
    with opened_store() as store:
        # here: SQLAlchemy takes a second that no other command should wait for
        from mlflow_deploy_plugin.inference_log import parse_duration
        from mlflow_deploy_plugin.store import Silences

        silences = Silences(store)
        if is_asked:
            active = silences.active(name)
            if not active and name is not None:
                store.require_endpoint(name)  # raises for an unknown name
            if not active and output == "text":
                click.echo(f"no silence holds: `onnxserve silence {name or 'NAME'} --for 2h` makes one")
            if output == "json":
                shown = [
                    {
                        "id": one.id,
                        "endpoint": one.endpoint,
                        "monitor": one.monitor or None,
                        "until": one.until.isoformat(),
                        "actor": one.actor,
                        "why": one.why,
                    }
                    for one in active
                ]
                click.echo(json.dumps(shown))
            else:
                show_lines(map(_line, active))
        elif number is not None:
            if silences.end(number) is None:
                raise NotFound(f"there is no silence {number}; onnxserve silence --list shows those that hold")
            click.echo(f"silence {number} is over")
        else:
            assert name is not None
            assert length is not None
            wanted = parse_duration(length, "--for")
            found = store.require_endpoint(name)
            if monitor:
                found.spec.monitor(monitor)
            click.echo(_line(silences.add(name, monitor, wanted, why)))


def _line(found: "Silence") -> str:
    what = f"{found.endpoint}, monitor {found.monitor}" if found.monitor else f"{found.endpoint}, all monitors"
    why = f": {found.why}" if found.why else ""
    return f"{found.id}  {what}, until {found.until:%Y-%m-%d %H:%M}Z by {found.actor}{why}"
