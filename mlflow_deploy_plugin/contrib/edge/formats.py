"""The formats wheel, bundle, conda, tflite and desktop of `onnxserve export`."""

import time
from pathlib import Path

from mlflow_deploy_plugin.contrib.edge.desktop import write_desktop
from mlflow_deploy_plugin.contrib.edge.package import write_bundle, write_wheel
from mlflow_deploy_plugin.contrib.edge.tflite import (
    LITERT,
    converter_python,
    refuse_unconvertible,
    signature_name,
    write_tflite,
)
from mlflow_deploy_plugin.core.errors import ConversionError, ParityError
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.serve.runtime.agreement import EXACT
from mlflow_deploy_plugin.serve.runtime.feeds import slice_feeds
from mlflow_deploy_plugin.wrap.evaluation.agreement import rounding_tolerance
from mlflow_deploy_plugin.wrap.exporter.exporting import (
    CheckedFile,
    LoadedVersion,
    command_outputs,
    largest_difference,
    run_export,
)

_TFLITE_TOLERANCE = rounding_tolerance(1e-4)
"""The tolerance for the rounding of TensorFlow Lite's kernels."""


def wheel(
    version: LoadedVersion, folder: Path, _: ProgressCallback, name: str | None = None
) -> CheckedFile:
    """A Python package with the model. Without `name`, it has the name of the model."""
    file, runner = write_wheel(folder, version.graph, version.described, name)
    return file, version.prove(runner, runner.with_name(version.graph.name))


def bundle(
    version: LoadedVersion,
    folder: Path,
    _: ProgressCallback,
    wheels: Path | str | None = None,
    download_wheels: bool = False,
    has_environment: bool = False,
) -> CheckedFile:
    """A folder for machines without a network.

    Args:
        wheels: a folder whose wheels are copied.
        download_wheels: True to download wheels of onnxruntime and numpy with pip for
            this machine's Python.
        has_environment: True to add an environment.yml of conda.
    """
    example = version.proof.feeds
    if version.model.schema.has_rows:
        example = slice_feeds(example, slice(1))
    write_bundle(
        folder,
        version.graph,
        version.described,
        example,
        wheels,
        download_wheels,
        has_environment=has_environment,
    )
    return folder, version.prove(folder / "predict.py", folder / version.graph.name)


def conda(version: LoadedVersion, folder: Path, progress: ProgressCallback) -> CheckedFile:
    return bundle(version, folder, progress, has_environment=True)


def desktop(version: LoadedVersion, folder: Path, progress: ProgressCallback) -> CheckedFile:
    progress("building the program with PyInstaller, which takes about a minute")
    program = write_desktop(version.model.artifact, version.described, folder)
    total_bytes = sum(file.lstat().st_size for file in program.parent.rglob("*"))
    start = time.monotonic()
    outputs = command_outputs(["env", "-i", str(program), "--check"], version.proof.rows)
    seconds = time.monotonic() - start
    progress(f"the program has {total_bytes / 1e6:,.0f} MB, and started in {seconds:.1f} s")
    return program.parent, largest_difference(version.proof.expected, outputs, EXACT)


def tflite(version: LoadedVersion, folder: Path, progress: ProgressCallback) -> CheckedFile:
    """Return a checked file and its largest error. If batches fail the check, the file
    accepts one row per call.
    """
    refuse_unconvertible(version.graph)
    python = converter_python(progress)
    folder.mkdir()

    def attempt(one_row: bool) -> CheckedFile:
        """Write and check a file, which takes one row per call if `one_row`."""
        file = write_tflite(python, version.graph, folder / f"tflite-{one_row}", one_row)
        feeds = {signature_name(name): array for name, array in version.proof.feeds.items()}
        outputs = run_export(LITERT, file, feeds, python)
        expected = version.proof.expected
        renamed = {signature_name(name): array for name, array in expected.items()}
        return file, largest_difference(renamed, outputs, _TFLITE_TOLERANCE)

    try:
        return attempt(one_row=False)
    except (ConversionError, ParityError):
        if not version.model.schema.has_rows:
            raise
        result = attempt(one_row=True)
    progress(
        "the file supports one row per call, because its answers for several rows differ from the "
        "model's"
    )
    return result
