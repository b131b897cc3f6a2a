"""Export a version as files that do not need onnxserve, and compare each export with
the served model.
"""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlflow_deploy_plugin.core.errors import (
    AlreadyExists,
    CommandFailed,
    ConversionError,
    InferenceError,
    InvalidConfig,
    OnnxserveError,
    ParityError,
    SchemaMismatch,
)
from mlflow_deploy_plugin.core.extensions import EXPORTERS, find_entry
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.processes.child import run_to_end
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.settings import absolute_path
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.serve.runtime.agreement import EXACT, Tolerance
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    concatenate_feeds,
    row_count,
    slice_feeds,
)
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime, session_options
from mlflow_deploy_plugin.wrap.evaluation.agreement import check_outputs, rounding_tolerance
from mlflow_deploy_plugin.wrap.evaluation.dataset import cast_to_signature, known_rows

RUNNER = Path(__file__).with_name("runner.py")
METADATA_KEY = "onnxserve.model"

_ROWS = 500
_GIVEN_ROWS = 500
_PROOF_SECONDS = 600
_LARGEST_PROTOBUF = 2**31 - 2**20
_ORT_TOLERANCE = rounding_tolerance(1e-5)
"""The tolerance for the rounding of fused nodes."""
Description: TypeAlias = Mapping[str, Any]
"""The metadata of an exported model, for its runner."""
Rows = dict[str, Array]
"""Columns [N] or tensors [N, …] by name in the signature."""
CheckedFile: TypeAlias = tuple[Path, float]
"""A checked file or folder, and its largest error."""


@dataclass(frozen=True)
class ExportedModel:
    """A checked export.

    Attributes:
        path: the file or folder.
        format: the export format.
        name: the name of the model.
        version: the version of the model.
        rows: the number of rows of the check.
        max_error: the largest difference from the served model for these rows.
    """

    path: Path
    format: str
    name: str
    version: str
    rows: int
    max_error: float


def export(
    model_uri: str,
    format: str,
    path: Path | str,
    *,
    rows: Any = None,
    progress: ProgressCallback = lambda line: None,
    **options: Any,
) -> ExportedModel:
    """Export a version, and check that it returns the same predictions as the served
    version. After an error, no file is written.

    Args:
        model_uri: the model, as in `onnxserve serve`. A stage or alias is resolved
            once.
        format: the export format; see docs/export.md.
        path: the file or folder to write, which must not exist. A folder with the
            suffix .zip is zipped. For a wheel, the path may be an existing folder, to
            which a wheel with the default name is written.
        rows: a DataFrame, columns or tensors by name, or a file (.csv, .json, .jsonl,
            .parquet) for the check. Default: the input example, the reference sample or
            random numbers. The check adds rows with noise.
        progress: called with a message before a long step, or for a tflite file of one
            row per call.
        options: the options of the format: `name` of a wheel; `wheels` (a folder) and
            `download_wheels` of a bundle (`contrib/edge/formats.py`).

    Raises:
        AlreadyExists: the path exists.
        ConversionError: the version has no ONNX form, or the format cannot be written.
        ParityError: the predictions of the export differ.
        InvalidConfig: an option or the rows are invalid.
        NotFound: the version does not exist.
        RegistryUnavailable: MLflow does not answer.
    """
    exporter = _EXPORTERS.get(format) or find_entry(EXPORTERS, format, "format", _EXPORTERS)
    accepted = [*signature(exporter).parameters][3:]
    for name in options:
        if name not in accepted:
            raise InvalidConfig(f"the format {format} does not have the option {name!r}")
    target = absolute_path(path)
    if not (format == "wheel" and target.is_dir()):
        _refuse_existing(target)
    resolved = resolve(model_uri)
    with temporary_folder("onnxserve-export-") as work:
        (work / "source").mkdir()
        folder = download(resolved.source, work / "source")
        if read_served_artifact(folder).flavor == PYTHON_FUNCTION:
            raise ConversionError(
                f"{model_uri} has no ONNX form; convert it first with onnxserve wrap"
            )
        # The exported files cannot use onnxserve-trees, which sums in another order.
        model = OnnxModel.load(folder, faster_trees=False)
        if model.artifact.tokenizer is not None:
            raise ConversionError(
                f"{model_uri} is a text model, whose tokenizer cannot be exported; use onnxserve "
                "build-docker instead"
            )
        proof = _predicted_rows(model, rows)
        version = LoadedVersion(model, _describe(resolved, model), proof, work / "model.onnx")
        _write_graph(model.artifact.onnx_file, version.graph, version.described)
        written, largest = exporter(version, work / format, progress, **options)
        if format == "wheel" and (target.is_dir() or target.suffix != ".whl"):
            target /= written.name
        _place(written, target)
    return ExportedModel(
        target,
        format,
        name=version.described["name"],
        version=version.described["version"],
        rows=row_count(proof.rows) or 1,
        max_error=largest,
    )


class _Proof(NamedTuple):
    """The rows of the proof, their feeds, and the predictions of the served model."""

    rows: Rows
    feeds: Rows
    expected: Mapping[str, Array]


def _predicted_rows(model: OnnxModel, user_rows: Any) -> _Proof:
    """Return the user's or known rows that the model predicts, if possible with noisy
    rows. Raises InvalidConfig if it refuses all.
    """
    rows = _read_rows(model, user_rows)
    attempts = [rows]
    if model.schema.has_rows and all(array.ndim for array in rows.values()):
        first_rows = slice_feeds(rows, slice(_GIVEN_ROWS))
        # Each column is drawn independently. Floats get noise of the same scale, and
        # some outliers.
        random = np.random.default_rng(0)
        count = row_count(rows)
        drawn = {name: array[random.integers(0, count, _ROWS)] for name, array in rows.items()}
        for name, array in drawn.items():
            if array.dtype.kind == "f":
                noise = random.normal(0, 0.1, array.shape)
                noise *= random.choice([0, 1, 1000], array.shape)
                drawn[name] = (array * (1 + noise)).astype(array.dtype)
        # A model may refuse noise.
        attempts = [concatenate_feeds([first_rows, drawn]), first_rows]
    refusal = ""
    for attempt in attempts:
        try:
            feeds = dict(model.schema.from_columns(attempt))
            return _Proof(attempt, feeds, model.run(feeds))
        except (SchemaMismatch, InferenceError) as error:
            refusal = error.message
    raise InvalidConfig(
        f"the model cannot predict the rows of the proof: {refusal}; pass rows that it "
        "accepts (--rows FILE)"
    )


@dataclass(frozen=True)
class LoadedVersion:
    """A version, its metadata, and the proof. A format is written next to `graph`."""

    model: OnnxModel
    described: Description
    proof: _Proof
    graph: Path

    def prove(self, runner: Path, model: Path, tolerance: Tolerance = EXACT) -> float:
        """Run the exported file `model` on the rows of the proof, and return the
        largest difference. Raises ParityError beyond the tolerance.
        """
        outputs = run_export(runner, model, self.proof.rows)
        return largest_difference(self.proof.expected, outputs, tolerance)


Exporter: TypeAlias = Callable[..., CheckedFile]
"""The writer of a format, called with a `LoadedVersion`, a folder that does not exist,
the progress callback and the options of the format, which are its parameters by name.
It returns what it has written in the folder and checked. It raises ConversionError, and
ParityError if the predictions differ.
"""


def _describe(resolved: ResolvedModel, model: OnnxModel) -> dict[str, Any]:
    """Return the metadata of the model for the runner, including its source."""
    artifact = model.artifact
    source = ""
    if resolved.source.startswith(("models:/", "runs:/")):
        source = resolved.source  # A path or an address of this machine must not be exported.
    tensors = () if artifact.columns else artifact.tensors
    return {
        "name": resolved.name,
        "version": resolved.version or artifact.model_id or "unknown",
        "source": source,
        "run_id": artifact.run_id,
        "parity": artifact.parity_state,
        "columns": [asdict(column) for column in artifact.columns],
        "tensors": [asdict(tensor) for tensor in tensors],
        "inputs": [asdict(entry) for entry in artifact.inputs],
        "refused": {
            "missing": sorted(artifact.refusals.missing),
            "infinite": sorted(artifact.refusals.infinite),
            "categories": {
                name: list(values) for name, values in artifact.refusals.categories.items()
            },
        },
        "outputs": [asdict(output) for output in artifact.outputs],
        "prediction": list(artifact.prediction),
        "classes": list(artifact.classes),
    }


def _write_graph(source: Path, target: Path, described: Description) -> None:
    """Write the graph, its weights and the metadata to one file. Raises ConversionError
    if the file is too large.
    """
    import onnx  # Importing onnx is slow.

    files = filter(Path.is_file, source.parent.iterdir())
    total_bytes = sum(file.stat().st_size for file in files)
    if total_bytes > _LARGEST_PROTOBUF:
        raise ConversionError(
            f"{described['name']} has more than two gigabytes, too large for one ONNX file"
        )
    model = onnx.load(str(source))
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, properties | {METADATA_KEY: json.dumps(described)})
    onnx.save(model, str(target))


def _write_onnx(version: LoadedVersion, folder: Path, progress: ProgressCallback) -> CheckedFile:
    return version.graph, version.prove(RUNNER, version.graph)


def _write_ort(version: LoadedVersion, folder: Path, progress: ProgressCallback) -> CheckedFile:
    """Write the graph in ONNX Runtime's ORT format
    (https://onnxruntime.ai/docs/performance/model-optimizations).
    """
    graph = version.graph
    ort = import_onnxruntime()
    folder.mkdir()
    target = folder / graph.with_suffix(".ort").name
    options = session_options(ort, 0)
    options.optimized_model_filepath = str(target)
    # The level "all" would add memory layouts that are specific to this CPU.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common class
        raise ConversionError(
            f"ONNX Runtime cannot write the ORT format: {one_line(error, 300)}"
        ) from None
    return target, version.prove(RUNNER, target, _ORT_TOLERANCE)


_EXPORTERS: dict[str, Exporter] = {"onnx": _write_onnx, "ort": _write_ort}


def _read_rows(model: OnnxModel, user_rows: Any) -> Rows:
    """Return the user's rows in the types of the signature; without them, the known
    rows of the model. Raises InvalidConfig if they do not match the model.
    """
    schema = model.schema
    try:
        if isinstance(user_rows, str | Path):
            # Importing MLflow is slow.
            from mlflow_deploy_plugin.wrap.flavor.example_rows import read_rows

            user_rows = read_rows(Path(user_rows))
        if user_rows is None:
            return known_rows(model.artifact, schema, _GIVEN_ROWS)
        if hasattr(user_rows, "keys"):
            columns = {str(name): np.asarray(user_rows[name]) for name in user_rows}
            feeds = schema.from_columns(columns)
        else:
            feeds = schema.from_array(user_rows)
        return cast_to_signature(model.artifact, schema.to_columns(feeds))
    except SchemaMismatch as error:
        raise InvalidConfig(f"the rows do not match the model: {error.message}") from None


_PROOF = """
import pickle, runpy, sys
runner, model, rows_file, outputs_file = sys.argv[1:]
sys.modules["mlflow_deploy_plugin"] = None  # An export must not need onnxserve.
outputs = runpy.run_path(runner)["Model"](model, threads=1).outputs(pickle.load(open(rows_file, "rb")))
pickle.dump(outputs, open(outputs_file, "wb"))
"""  # noqa: E501


def run_export(
    runner: Path, model: Path, rows: Rows, python: Path | str = sys.executable
) -> dict[str, Array]:
    """Return the outputs of an export for the rows, from a process without onnxserve.
    Raises ParityError if it cannot run.

    Args:
        runner: a Python file with a class `Model`.
        model: the exported file.
        rows: the rows of the proof.
        python: the Python that runs the process.
    """
    return command_outputs([str(python), "-I", "-c", _PROOF, str(runner), str(model)], rows)


def command_outputs(command: list[str], rows: Rows) -> dict[str, Array]:
    """Return the outputs that a command writes for the rows; it gets the paths of both
    files. Raises ParityError if it fails.
    """
    with temporary_folder("onnxserve-proof-") as folder:
        rows_file = folder / "rows"
        outputs_file = folder / "outputs"
        rows_file.write_bytes(pickle.dumps(rows))
        try:
            run_to_end([*command, str(rows_file), str(outputs_file)], _PROOF_SECONDS)
        except CommandFailed as failure:
            raise ParityError(
                f"the exported model cannot run and was discarded: {failure.message}"
            ) from None
        outputs: dict[str, Array] = pickle.loads(outputs_file.read_bytes())  # The command is ours.
    return outputs


def largest_difference(
    expected: Mapping[str, Array], outputs: Mapping[str, Array], tolerance: Tolerance
) -> float:
    return check_outputs(
        expected, outputs, tolerance, "the exported model gives other answers and was discarded"
    )


def _place(source: Path, target: Path) -> None:
    """Move the checked export to `target`. Raises AlreadyExists if the path exists."""
    # Copy to the target's disk first, because the copy may be slow and must not be
    # visible under the final name.
    staged = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir() and target.suffix == ".zip":
            source = Path(shutil.make_archive(str(source), "zip", source))
        shutil.move(source, staged)
        _refuse_existing(target)
        os.rename(staged, target)
    except OSError as error:
        _refuse_existing(target)
        reason = error.strerror or error
        raise OnnxserveError(f"{target} cannot be written: {reason}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        with suppress(OSError):
            staged.unlink()


def _refuse_existing(target: Path) -> None:
    if os.path.exists(target):  # All other errors of the path are raised on writing.
        raise AlreadyExists(f"{target} exists; specify another path")
