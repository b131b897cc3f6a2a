"""`onnxserve batch`: files of any size, in folders and buckets, without a server."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import option

if TYPE_CHECKING:
    from mlflow_deploy_plugin.batch import BatchProgress

_LINE_SECONDS = 10.0
_FORMATS = click.Choice(["csv", "jsonl", "parquet"])


@click.command()
@option("-m", "--model-uri", required=True, metavar="URI", help="Model to load, e.g. models:/flight-delay/Production.")
@option("-i", "--input", required=True, metavar="FILES", help="File or folder of rows, also s3://….")
@option("-o", "--output", required=True, metavar="FOLDER", help="Folder of the predictions, also s3://….")
@option("--keep", metavar="COLUMNS", default="", help="Columns of the input to pass through, as id,ts.")
@option("--format", "output_format", type=_FORMATS, show_default="that of each part", help="Format of the predictions.")
@option("--input-format", type=_FORMATS, show_default="by the files' names", help="Format of the input.")
@option(
    "--on-error",
    type=click.Choice(["fail", "skip-row", "skip-part"]),
    default="fail",
    help="What a bad row does: end the batch, be left out (and kept in _rejected/), or leave out its file.",
)
@option("--workers", type=click.IntRange(min=1), metavar="CORES", show_default="all", help="Number of cores to use.")
@option("--device", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", help="Device.")
@option(
    "--engine",
    type=click.Choice(["local", "spark"]),
    default="local",
    help="What predicts: this machine, or the cluster that Spark's own configuration names.",
)
@option("--restart", is_flag=True, help="Delete what another batch has left in the output, and begin anew.")
@option(
    "--run",
    "experiment",
    metavar="EXPERIMENT",
    default="",
    help="Record the batch as an MLflow run of this experiment.",
)
def batch(output: str, keep: str, **options: Any) -> None:
    """Predict files of any size by a model, without a server.

    Each file of the input, a part, becomes one file of the output, in the same folder below it, with its rows in their
    order. CSV, JSON Lines and Parquet are read, compressed or not.

    \b
      onnxserve batch -m models:/flight-delay/Production -i flights/ -o predictions/ --keep flight,day
      onnxserve batch -m models:/flight-delay/3 -i s3://lake/flights -o s3://lake/predictions --format parquet

    A batch that was killed goes on where it ended if the command is given again. _batch.json says what it predicts, and
    _SUCCESS that everything is there. The exit status is 1 if a part was left out.
    """
    from mlflow_deploy_plugin.batch import BatchPlan, run_batch

    kept = tuple(name.strip() for name in keep.split(",") if name.strip())
    if len(set(kept)) < len(kept):
        raise click.UsageError(f"--keep {keep}: a column stands twice")
    progress = _ProgressLines()
    result = run_batch(BatchPlan(output=output, keep=kept, **options), progress.show)
    progress.close()
    done = result.progress
    version = f"{result.model.name} {result.model.version}".strip()
    click.echo(
        f"{done.rows:,} predictions of {version} in {done.seconds:,.1f} s ({done.rows_per_second:,.0f} rows/s), "
        f"{done.parts - len(result.failed)} of {done.parts} parts"
        + (f", {done.finished_before} were there already" if done.finished_before else "")
    )
    if result.rejected:
        click.echo(f"  {result.rejected:,} bad rows were left out: {output.rstrip('/')}/_rejected has them", err=True)
    if result.run is not None:
        click.echo(f"  recorded as run {result.run.run_id} {result.run.url}".rstrip())
    for message in result.failed.values():
        click.echo(f"  left out: {message}", err=True)
    if result.failed:
        sys.exit(1)


class _ProgressLines:
    """Shows how far a batch is: on a terminal one line that changes, else a line every few seconds."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown_at = time.monotonic()

    def show(self, progress: "BatchProgress") -> None:
        if self._is_terminal:
            click.echo(f"\r\x1b[K{_progress_line(progress)}", nl=False, err=True)
        elif time.monotonic() - self._shown_at >= _LINE_SECONDS:
            self._shown_at = time.monotonic()
            click.echo(_progress_line(progress), err=True)

    def close(self) -> None:
        if self._is_terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


def _progress_line(progress: "BatchProgress") -> str:
    left = progress.seconds_left
    return (
        f"{progress.rows:,} rows, {progress.rows_per_second:,.0f} rows/s, "
        f"{progress.parts_done + progress.finished_before} of {progress.parts + progress.finished_before} parts"
        + ("" if left is None else f", about {_duration(left)} left")
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
