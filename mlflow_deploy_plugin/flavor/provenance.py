"""Where a model comes from: git commit, dataset digest, the exact environment."""

import hashlib
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa

from mlflow_deploy_plugin.flavor.batch import Batch

LOCK = "requirements.lock"


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


def provenance(batch: Batch | None, lock: str, folder: Path | None = None) -> dict[str, Any]:
    """The section `provenance` of the MLmodel file.

    Args:
        batch: the data the model is judged by; its digest stands in where the run has no logged dataset.
        lock: text of the environment lock.
        folder: where the code is; default: the current directory.
    """
    found = {
        **_git(folder or Path.cwd()),
        **_dataset(batch),
        "environment": LOCK,
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
    return {} if batch is None else {"dataset_digest": digest(batch), "dataset_name": "reference"}


def digest(batch: Batch) -> str:
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
