"""The part of a saved model that the runtime reads: the ONNX file, and the flavor's section in the MLmodel file."""

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.models import Model

from mlflow_deploy_plugin.errors import ConversionError
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel
from mlflow_deploy_plugin.runtime import FLAVOR, MLMODEL
from mlflow_deploy_plugin.version import __version__

ONNX_FILE = "model.onnx"


def write_mlmodel(
    folder: Path, model: Model, converted: ConvertedModel, predict_fn: str, proofs: Mapping[str, Any]
) -> None:
    """What `runtime.OnnxModel` reads: the ONNX file, and the flavor's section in the MLmodel file.

    Raises:
        ConversionError: the weights do not fit into one ONNX file.
    """
    try:
        graph = converted.proto.SerializeToString()
    except Exception as error:  # noqa: BLE001 - protobuf's own classes differ between its implementations
        raise ConversionError(f"the model does not fit into one ONNX file of 2 GB: {error}") from None
    (folder / ONNX_FILE).write_bytes(graph)
    model.add_flavor(
        FLAVOR,
        data=ONNX_FILE,
        digests={ONNX_FILE: f"sha256:{hashlib.sha256(graph).hexdigest()}"},  # who fetches it compares
        onnxserve_version=__version__,
        framework=converted.framework,
        framework_version=converted.framework_version,
        inputs=[
            {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape)}
            | ({"columns": list(entry.columns)} if entry.columns else {})
            | ({"missing": entry.missing} if entry.missing is not None else {})
            for entry in converted.inputs
        ],
        outputs=[
            {"name": output.name, "dtype": output.dtype, "shape": list(output.shape), "role": output.role}
            for output in converted.outputs
        ],
        prediction=list(converted.prediction),
        classes=list(converted.classes),
        predict_fn=predict_fn,
        **proofs,
    )
    model.save(str(folder / MLMODEL))


LOCK_FILE = "requirements.lock"


def environment_lock() -> str:
    """What is installed, as `pip install -r` reads it: one `name==version` a line, sorted."""
    installed = {
        distribution.metadata["Name"]
        .lower()
        .replace("_", "-"): f"{distribution.metadata['Name']}=={distribution.version}"
        for distribution in distributions()
        if distribution.metadata["Name"]
    }
    return "".join(f"{installed[name]}\n" for name in sorted(installed))


def provenance_section(batch: Batch | None, lock: str, folder: Path | None = None) -> dict[str, Any]:
    """The section `provenance` of the MLmodel file.

    Args:
        batch: the data the model is judged by; its digest stands in where the run has no logged dataset.
        lock: text of the environment lock.
        folder: where the code is; default: the current directory.
    """
    found = {
        **_git(folder or Path.cwd()),
        **_dataset(batch),
        "environment": LOCK_FILE,
        "environment_digest": hashlib.sha256(lock.encode()).hexdigest()[:16],
        "python_version": platform.python_version(),
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _git(folder: Path) -> dict[str, Any]:
    def ask(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if not commit:
        return {}
    return {"git_commit": commit, "git_dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}


def _dataset(batch: Batch | None) -> dict[str, Any]:
    """The digest of the dataset that the active run has logged (the last one), else that of `batch`."""
    run = mlflow.active_run()
    if run is not None:
        inputs = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
        if inputs:
            dataset = inputs[-1].dataset
            return {"dataset_digest": dataset.digest, "dataset_name": dataset.name}
    return {} if batch is None else {"dataset_digest": data_digest(batch), "dataset_name": "reference"}


def data_digest(batch: Batch) -> str:
    """SHA-256 over names, types and values, the first 16 digits; equal data gives equal digests on every machine."""
    summary = hashlib.sha256()
    if isinstance(batch, pd.DataFrame):
        table = pa.Table.from_pandas(batch, preserve_index=False)
        for name in table.column_names:
            column = table[name].combine_chunks()
            summary.update(f"{name}:{column.type}:{len(column)}".encode())
            summary.update(pd.util.hash_array(column.to_pandas().to_numpy()).tobytes())
    else:
        for name, array in batch.items():
            summary.update(f"{name}:{array.dtype}:{array.shape}".encode())
            values = array.astype("U") if array.dtype.kind == "O" else array
            summary.update(np.ascontiguousarray(values).tobytes())
    return summary.hexdigest()[:16]
