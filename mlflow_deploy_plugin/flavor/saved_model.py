"""Writing the folder of a saved model: model.onnx, MLmodel, parity.json, reference.parquet, requirements.

`mlflow.models.Model.log` gets a module and calls its `save_model`; this is that module.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.utils.environment as environment
import onnx
import yaml
from mlflow import pyfunc
from mlflow.models import Model
from mlflow.models.utils import _save_example
from mlflow.utils.file_utils import get_total_file_size
from mlflow.utils.model_utils import _validate_and_copy_code_paths, _validate_and_prepare_target_save_path

from mlflow_deploy_plugin.flavor.mlmodel import LOCK_FILE, ONNX_FILE, write_mlmodel
from mlflow_deploy_plugin.flavor.pyfunc import DEFAULT_CONFIG
from mlflow_deploy_plugin.flavor.reference_sample import REFERENCE_FILE, write_reference
from mlflow_deploy_plugin.flavor.wrap import WrappedModel
from mlflow_deploy_plugin.runtime import MLMODEL, import_onnxruntime
from mlflow_deploy_plugin.version import __version__

PARITY_FILE = "parity.json"
_LOADER = "mlflow_deploy_plugin.flavor"


def save_model(
    path: str | Path,
    wrapped: WrappedModel,
    mlflow_model: Model | None = None,
    *,
    predict_fn: str = "predict",
    metadata: Mapping[str, Any] | None = None,
    conda_env: Any = None,
    pip_requirements: Any = None,
    extra_pip_requirements: Any = None,
    code_paths: list[str] | None = None,
) -> None:
    """Write the model to `path`, a folder that is empty or does not exist."""
    environment._validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    _validate_and_prepare_target_save_path(str(path))
    folder = Path(path)
    code = _validate_and_copy_code_paths(code_paths, str(folder))
    model = mlflow_model if mlflow_model is not None else Model()
    model.signature = wrapped.signature
    if metadata is not None:
        model.metadata = dict(metadata)
    if wrapped.example is not None:
        _save_example(model, wrapped.example, str(folder))
    pyfunc.add_to_model(
        model,
        loader_module=_LOADER,
        conda_env=environment._CONDA_ENV_FILE_NAME,
        python_env=environment._PYTHON_ENV_FILE_NAME,
        model_config=DEFAULT_CONFIG,
        code=code,  # no predict_fn: the flavor's section names the outputs that `predict` returns
    )
    model.add_flavor(
        "onnx",
        onnx_version=onnx.__version__,
        data=ONNX_FILE,
        providers=["CPUExecutionProvider"],
        onnx_session_options=None,
        code=code,
    )
    (folder / PARITY_FILE).write_text(json.dumps(wrapped.report.as_dict(), indent=2, allow_nan=False) + "\n")
    (folder / LOCK_FILE).write_text(wrapped.lock)
    proofs: dict[str, Any] = {"parity": wrapped.report.figures(), "provenance": dict(wrapped.provenance)}
    if wrapped.reference is not None:
        write_reference(wrapped.reference, folder)
        proofs["reference"] = {"data": REFERENCE_FILE, "rows": wrapped.reference.num_rows}
    write_mlmodel(folder, model, wrapped.converted, predict_fn, proofs)
    model.model_size_bytes = get_total_file_size(str(folder))
    model.save(str(folder / MLMODEL))
    _write_environment(folder, conda_env, pip_requirements, extra_pip_requirements)


def default_requirements() -> list[str]:
    """Return the packages that `mlflow models serve` and `build-docker` install beside MLflow.

    MLflow would infer them by loading the model in a second process; here the runtime needs no training framework.
    """
    return [f"mlflow-onnxserve[cpu]=={__version__}", f"onnxruntime=={import_onnxruntime().__version__}"]


def _write_environment(folder: Path, conda_env: Any, pip_requirements: Any, extra_pip_requirements: Any) -> None:
    if conda_env is None:
        defaults = default_requirements() if pip_requirements is None else None
        processed = environment._process_pip_requirements(defaults, pip_requirements, extra_pip_requirements)
    else:
        processed = environment._process_conda_env(conda_env)
    conda, requirements, constraints = processed
    (folder / environment._CONDA_ENV_FILE_NAME).write_text(yaml.safe_dump(conda, default_flow_style=False))
    if constraints:
        (folder / environment._CONSTRAINTS_FILE_NAME).write_text("\n".join(constraints))
    (folder / environment._REQUIREMENTS_FILE_NAME).write_text("\n".join(requirements))
    environment._PythonEnv.current().to_yaml(str(folder / environment._PYTHON_ENV_FILE_NAME))
