"""Access to the MLflow run of a registered version: artifacts for incremental training,
and parity results.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.registry.resolution import resolve

Loaded = TypeVar("Loaded")


def load_run_artifact(model_uri: str, name: str, read: Callable[[str], Loaded]) -> Loaded | None:
    """Return the artifact, loaded by `read`, or None if the run does not have the
    artifact or it is unreadable.

    Raises:
        NotFound / RegistryUnavailable: the version does not exist, or MLflow does not
            respond.
    """
    run_id = resolve(model_uri).aspects.get("run_id", "")
    try:
        if not run_id or name not in {file.path for file in MlflowClient().list_artifacts(run_id)}:
            return None
        with tempfile.TemporaryDirectory() as folder:
            return read(
                mlflow.artifacts.download_artifacts(
                    run_id=run_id,
                    artifact_path=name,
                    dst_path=folder,
                ),
            )
    except MlflowException:
        return None
    except Exception:  # noqa: BLE001 — pickle raises any exception for a damaged file.
        return None


@contextmanager
def logged_file(name: str) -> Iterator[Path]:
    """Yield the path of a new file, and log it to the active run at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        yield path
        mlflow.log_artifact(str(path))


PREFIX = "onnxserve.parity."


def parity_line(state: str, metrics: Mapping[str, float]) -> str:
    """Return a line such as `parity proven on 3,727 rows: label equal in 100 %,
    probabilities within 2.0e-05`.

    Args:
        state: the tag `onnxserve.parity` of the run or of the registered version.
        metrics: the metrics of the run that logged the model.
    """
    figures = {
        name.removeprefix(PREFIX): value
        for name, value in metrics.items()
        if name.startswith(PREFIX)
    }
    if not figures:
        return f"parity {state}"
    parts = []
    for name in figures:
        output, _, figure = name.rpartition(".")
        relative = figures.get(f"{output}.max_relative_error", 0.0)
        if figure == "max_absolute_error" and figures[name] > 1 > relative:  # for large values
            parts.append(f"{output} within {relative:.1e} of its size")
        elif figure == "max_absolute_error":
            parts.append(f"{output} within {figures[name]:.1e}")
        elif figure == "agreement" and f"{output}.max_absolute_error" not in figures:
            parts.append(f"{output} equal in {figures[name]:.2%}")
    return f"parity {state} on {figures['rows']:,.0f} rows: {', '.join(parts)}"
