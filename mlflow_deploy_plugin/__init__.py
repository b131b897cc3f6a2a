"""onnxserve wraps MLflow models as verified ONNX, and serves the versions that the registry selects.

    import mlflow_deploy_plugin as onnxserve

    onnxserve.log_model(pipeline, name="model", input_example=X.head(), registered_model_name="flight-delay")

    onnxserve.optimize("models:/flight-delay/1", int8="dynamic")

The functions are imported on first use, because the server imports this package and must not import mlflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.version import __version__

if TYPE_CHECKING:
    from mlflow_deploy_plugin.embed import asgi_app, wsgi_app
    from mlflow_deploy_plugin.evaluation import explain, robustness
    from mlflow_deploy_plugin.exporter import export
    from mlflow_deploy_plugin.flavor import load_model, log_model, save_model
    from mlflow_deploy_plugin.flavor import wrap_registered as wrap
    from mlflow_deploy_plugin.optimization.optimizer import optimize

__all__ = [
    "__version__",
    "asgi_app",
    "explain",
    "export",
    "load_model",
    "log_model",
    "optimize",
    "robustness",
    "save_model",
    "wrap",
    "wsgi_app",
]

_HOMES = {
    "asgi_app": ("embed", "asgi_app"),
    "explain": ("evaluation", "explain"),
    "export": ("exporter", "export"),
    "load_model": ("flavor", "load_model"),
    "log_model": ("flavor", "log_model"),
    "optimize": ("optimization.optimizer", "optimize"),
    "robustness": ("evaluation", "robustness"),
    "save_model": ("flavor", "save_model"),
    "wrap": ("flavor", "wrap_registered"),
    "wsgi_app": ("embed", "wsgi_app"),
}
"""Public name → (module, name in that module)."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        room, own_name = _HOMES[name]
        return getattr(import_module(f"mlflow_deploy_plugin.{room}"), own_name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
