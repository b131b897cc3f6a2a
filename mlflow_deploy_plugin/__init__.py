"""onnxserve: MLflow models as checked ONNX, served by what the registry says.

    import mlflow_deploy_plugin as onnxserve

    onnxserve.log_model(pipeline, name="model", input_example=X.head(), registered_model_name="flight-delay")

The flavor's functions are loaded on first use: the server imports this package too, and must not import mlflow.
"""

from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.version import __version__

if TYPE_CHECKING:
    from mlflow_deploy_plugin.flavor import load_model, log_model, save_model
    from mlflow_deploy_plugin.flavor import wrap_registered as wrap

__all__ = ["__version__", "load_model", "log_model", "save_model", "wrap"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mlflow_deploy_plugin import flavor

        return getattr(flavor, "wrap_registered" if name == "wrap" else name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
