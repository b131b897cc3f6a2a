"""WRAP: convert a trained model to ONNX, check it against the original, and save it in MLflow's format.

log_model / save_model   convert → prove parity → save (`convert/`, `wrap.py`, `parity.py`, `saved_model.py`)
wrap_registered          the same steps for a registered model (`registered.py`)
load_model               load a saved model as `runtime.OnnxModel`
_load_pyfunc             the function that `mlflow.pyfunc.load_model` calls (`save.py`)
"""

from mlflow_deploy_plugin.flavor.example_rows import read_rows
from mlflow_deploy_plugin.flavor.onnx_file import ONNX_FILE, write_graph
from mlflow_deploy_plugin.flavor.registered import WrappedVersion, wrap_registered
from mlflow_deploy_plugin.flavor.save import _load_pyfunc, load_model, log_model, save_model
from mlflow_deploy_plugin.flavor.saved_model import PARITY_FILE
from mlflow_deploy_plugin.runtime import FLAVOR as FLAVOR_NAME

__all__ = [
    "FLAVOR_NAME",
    "ONNX_FILE",
    "PARITY_FILE",
    "WrappedVersion",
    "_load_pyfunc",
    "load_model",
    "log_model",
    "read_rows",
    "save_model",
    "wrap_registered",
    "write_graph",
]
