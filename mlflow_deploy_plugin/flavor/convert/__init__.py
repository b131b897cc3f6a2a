"""Trained models → ONNX: one small module for each framework, chosen by a table.

The next framework is one module with the two functions below, and one line in `_MODULES`:

    read_batch(model, data) -> Batch  returns the user's example or data as the model takes it
    forms(model, batch, predict_fn) -> list[Callable[[], ConvertedModel]]
                                      returns functions that make an ONNX form, the preferred one first; they are called
                                      until one form is proven
"""

from importlib import import_module
from typing import Any

from mlflow_deploy_plugin.errors import ConversionError
from mlflow_deploy_plugin.flavor.convert.conversion_errors import is_onnx, packages_of

_MODULES = {
    **dict.fromkeys(("catboost", "lightgbm", "xgboost"), "mlflow_deploy_plugin.flavor.convert.sklearn"),
    "onnx": "mlflow_deploy_plugin.flavor.convert.onnx",
    "sklearn": "mlflow_deploy_plugin.flavor.convert.sklearn",
    "torch": "mlflow_deploy_plugin.flavor.convert.torch",
}


def converter_for(model: Any) -> Any:
    """Return the module that converts `model`: that of the first class in its ancestry with a known package.

    Raises:
        ConversionError: no module knows the model's framework, or the framework's converter is not installed.
    """
    framework = "onnx" if is_onnx(model) else next((name for name in packages_of(model) if name in _MODULES), None)
    if framework is None:
        raise ConversionError(
            f"{type(model).__module__}.{type(model).__qualname__} is of no framework that can be converted to ONNX; "
            f"known are {', '.join(sorted(_MODULES))}"
        )
    try:
        return import_module(_MODULES[framework])  # only now: the frameworks are heavy, and optional
    except ModuleNotFoundError as error:
        extra = _MODULES[framework].rpartition(".")[2]
        raise ConversionError(
            f"converting a {framework} model needs {error.name}: pip install 'mlflow-onnxserve[{extra}]'"
        ) from None
