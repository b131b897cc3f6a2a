"""`onnxserve export`: a version as files that need none of us."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from mlflow_deploy_plugin.exporter import ExportFormat

_FORMATS = ("onnx", "ort", "wheel", "bundle", "tflite", "savedmodel")


@click.command()
@click.argument("model_uri", metavar="MODEL_URI")
@click.option(
    "--format",
    "export_format",
    type=click.Choice(_FORMATS),
    default="onnx",
    show_default=True,
    help="Form of the export.",
)
@click.option(
    "-o",
    "--output-path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write; a folder for a bundle, or for a wheel under its own name.",
)
@click.option(
    "--rows",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="the model's own example",
    help="Rows for the proof: CSV, JSON, JSON Lines or Parquet.",
)
@click.option("--name", metavar="NAME", show_default="the model's", help="Name of the wheel's package.")
@click.option("--wheels", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder whose wheels a bundle gets.")
@click.option("--download-wheels", is_flag=True, help="Fetch onnxruntime and numpy with pip, into a bundle.")
def export(
    model_uri: str,
    export_format: str,
    output_path: Path,
    rows: Path | None,
    name: str | None,
    wheels: Path | None,
    download_wheels: bool,
) -> None:
    """Export a version as files that need neither onnxserve nor MLflow.

    \b
      onnxserve export models:/flight-delay/3 --format wheel -o dist
      onnxserve export models:/flight-delay@champion --format bundle -o flights.zip --download-wheels

    onnx is the bare graph with metadata, ort ONNX Runtime's own format, wheel a Python package with predict(), bundle a
    folder (or a .zip) for machines without network. What is exported is run on rows in a process of its own; if it
    answers otherwise than the version does when it is served, nothing is left at FILE.
    """
    # here: onnx and MLflow take a second that `--help` should not wait for
    from mlflow_deploy_plugin.exporter import export as export_model

    made = export_model(
        model_uri,
        cast("ExportFormat", export_format),
        output_path,
        rows=rows,
        name=name,
        wheels=wheels,
        download_wheels=download_wheels,
    )
    difference = f", numbers within {made.max_error:.1g}" if made.max_error else ""
    click.echo(f"{made.name} version {made.version}: {made.path}, proven on {made.rows} rows{difference}")
