"""`onnxserve diff` and `card`: the evidence about registered versions."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.cli.options import align_columns, opened_store, option, output_option, show_result
from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.messages import one_line

if TYPE_CHECKING:
    from mlflow_deploy_plugin.evidence.diff import VersionDiff

_MOST_CHARACTERS = 60
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("before", metavar="URI")
@click.argument("after", metavar="URI")
@option("--all", "shows_all", is_flag=True, help="Also show the facts that are equal.")
@output_option
def diff(before: str, after: str, shows_all: bool, output: str) -> None:
    """Compare two versions of a registered model.

    The command shows which recorded data, code, parameters, metrics, signatures, graphs, environments, parity and gate
    reports differ, and compares the predictions of the ONNX forms for the example rows.

    \b
      onnxserve diff models:/flight-delay/3 models:/flight-delay/4
      onnxserve diff models:/flight-delay@champion models:/flight-delay/4 --all -o json
    """
    from mlflow_deploy_plugin.evidence.diff import diff_versions

    compared = diff_versions(before, after)
    compared = replace(compared, rows=tuple(row for row in compared.rows if shows_all or row.is_changed))
    show_result(output, asdict(compared), _diff_lines(compared))


def _diff_lines(compared: "VersionDiff") -> Iterator[str]:
    rows = [(row.section, row.name, _text(row.before), _text(row.after)) for row in compared.rows]
    yield from align_columns([("SECTION", "NAME", compared.before, compared.after), *rows])
    if isinstance(compared.predictions, Refused):
        yield f"predictions: not compared; {compared.predictions.reason}"
    else:
        changes = [
            (row.output, f"{row.changed_rows} of {row.rows}", _text(row.largest)) for row in compared.predictions
        ]
        yield from align_columns([("OUTPUT", "CHANGED ROWS", "LARGEST DIFFERENCE"), *changes])
    yield from (f"note: {note}" for note in compared.notes)


def _text(value: str | float | None) -> str:
    text = "–" if value is None else f"{value:.6g}" if isinstance(value, float) else one_line(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


@click.command()
@click.argument("model_uri", metavar="URI")
@option("-o", "--output-path", type=_FOLDER, metavar="FOLDER", show_default="NAME-VERSION-card", help="Folder.")
def card(model_uri: str, output_path: Path | None) -> None:
    """Write the model card of a version.

    The files model_card.html and model_card.json have the recorded facts about the version, from its purpose to its
    monitors. Each sentence has a link to its run, tag or audit event.

    \b
      onnxserve card models:/flight-delay/4
    """
    from mlflow_deploy_plugin.evidence.card import make_card

    with opened_store() as store:
        made = make_card(model_uri, store)
    folder = output_path or Path(f"{made.name}-{made.version}-card")
    made.write(folder)
    click.echo(f"{made.name} version {made.version}: {folder}/model_card.html, {folder}/model_card.json")
