"""The ONNX file of a saved model, and the flavor's section of its MLmodel file with the provenance."""

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
LOCK_FILE = "requirements.lock"


def write_mlmodel(
    folder: Path, model: Model, converted: ConvertedModel, predict_fn: str, proofs: Mapping[str, Any]
) -> None:
    """Write the files that `runtime.OnnxModel` reads: the ONNX file, and the MLmodel file with the flavor's section.

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
        digests={ONNX_FILE: f"sha256:{hashlib.sha256(graph).hexdigest()}"},  # compared after a download
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


def environment_lock() -> str:
    """Return the installed packages in the format of `pip install -r`: one `name==version` a line, sorted."""
    installed = {
        distribution.metadata["Name"]
        .lower()
        .replace("_", "-"): f"{distribution.metadata['Name']}=={distribution.version}"
        for distribution in distributions()
        if distribution.metadata["Name"]
    }
    return "".join(f"{installed[name]}\n" for name in sorted(installed))


def provenance_section(batch: Batch | None, lock: str, folder: Path | None = None) -> dict[str, Any]:
    """Return `provenance` of the MLmodel file: git commit, dataset digest, the exact environment.

    Args:
        batch: the data the model is judged by. Its digest is used if the active run has logged no dataset.
        lock: text of the environment lock.
        folder: the folder of the code; default: the current directory.
    """
    dataset = {} if batch is None else {"dataset_digest": data_digest(batch), "dataset_name": "reference"}
    run = mlflow.active_run()
    if run is not None and (inputs := mlflow.get_run(run.info.run_id).inputs.dataset_inputs):
        logged = inputs[-1].dataset
        dataset = {"dataset_digest": logged.digest, "dataset_name": logged.name}
    found = {
        **_git_state(folder or Path.cwd()),
        **dataset,
        "environment": LOCK_FILE,
        "environment_digest": hashlib.sha256(lock.encode()).hexdigest()[:16],
        "python_version": platform.python_version(),
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def _git_state(folder: Path) -> dict[str, Any]:
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    return {"git_commit": commit, "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def data_digest(batch: Batch) -> str:
    """Return the first 16 digits of a SHA-256 over names, types and values, the same on every machine."""
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
