"""onnxserve wraps MLflow models as verified ONNX, and serves the versions that the
registry selects.

    import onnxserve

    onnxserve.log_model(pipeline, name="model", input_example=X.head(),
    registered_model_name="flight-delay")

    onnxserve.optimize("models:/flight-delay/1", int8="dynamic")

The names are imported on first use, because the server imports this package and must
not import mlflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.core.version import __version__

if TYPE_CHECKING:
    from mlflow_deploy_plugin.contrib.spark.batch import predict_frame
    from mlflow_deploy_plugin.core.errors import (
        ConversionError,
        DeploymentFailed,
        GateRefused,
        InvalidConfig,
        InvalidRequest,
        NotFound,
        OnnxserveError,
        ParityError,
        RegistryUnavailable,
        TooManyRequests,
    )
    from mlflow_deploy_plugin.core.signatures import Signer
    from mlflow_deploy_plugin.serve.client.client import (
        AsyncClient,
        Client,
        Prediction,
        RetryPolicy,
    )
    from mlflow_deploy_plugin.serve.embed import wsgi_app
    from mlflow_deploy_plugin.serve.inference.applied_steps import call
    from mlflow_deploy_plugin.serve.runtime.steps import Request
    from mlflow_deploy_plugin.ship.batch.part import BatchPlan
    from mlflow_deploy_plugin.ship.batch.run import run_batch
    from mlflow_deploy_plugin.wrap.evaluation.curves import robustness
    from mlflow_deploy_plugin.wrap.evaluation.explanation import explain
    from mlflow_deploy_plugin.wrap.exporter.exporting import export
    from mlflow_deploy_plugin.wrap.flavor.registered import wrap_registered as wrap_model
    from mlflow_deploy_plugin.wrap.flavor.save import load_model, log_model, save_model
    from mlflow_deploy_plugin.wrap.optimization.optimizer import optimize

__all__ = [
    "AsyncClient",
    "BatchPlan",
    "Client",
    "ConversionError",
    "DeploymentFailed",
    "GateRefused",
    "InvalidConfig",
    "InvalidRequest",
    "NotFound",
    "OnnxserveError",
    "ParityError",
    "Prediction",
    "RegistryUnavailable",
    "Request",
    "RetryPolicy",
    "Signer",
    "TooManyRequests",
    "__version__",
    "call",
    "explain",
    "export",
    "load_model",
    "log_model",
    "optimize",
    "predict_frame",
    "robustness",
    "run_batch",
    "save_model",
    "wrap_model",
    "wsgi_app",
]

_HOMES = {
    "AsyncClient": ("serve.client.client", "AsyncClient"),
    "BatchPlan": ("ship.batch.part", "BatchPlan"),
    "Client": ("serve.client.client", "Client"),
    "Prediction": ("serve.client.client", "Prediction"),
    "Request": ("serve.runtime.steps", "Request"),
    "RetryPolicy": ("serve.client.client", "RetryPolicy"),
    "Signer": ("core.signatures", "Signer"),
    "_load_pyfunc": ("wrap.flavor.save", "_load_pyfunc"),
    "call": ("serve.inference.applied_steps", "call"),
    "explain": ("wrap.evaluation.explanation", "explain"),
    "export": ("wrap.exporter.exporting", "export"),
    "load_model": ("wrap.flavor.save", "load_model"),
    "log_model": ("wrap.flavor.save", "log_model"),
    "optimize": ("wrap.optimization.optimizer", "optimize"),
    "predict_frame": ("contrib.spark.batch", "predict_frame"),
    "robustness": ("wrap.evaluation.curves", "robustness"),
    "run_batch": ("ship.batch.run", "run_batch"),
    "save_model": ("wrap.flavor.save", "save_model"),
    "wrap_model": ("wrap.flavor.registered", "wrap_registered"),
    "wsgi_app": ("serve.embed", "wsgi_app"),
}
"""Public name → (module, name in that module), without the errors that users
catch. MLflow calls `_load_pyfunc` to load a saved model.
"""


def __getattr__(name: str) -> Any:
    if name in _HOMES or name in __all__:
        # Not imported by workers, whose start it would delay.
        from mlflow_deploy_plugin.core.packages import NEEDED, check_fit

        check_fit(*NEEDED)
        module, own_name = _HOMES.get(name, ("core.errors", name))
        return getattr(import_module(f"mlflow_deploy_plugin.{module}"), own_name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
