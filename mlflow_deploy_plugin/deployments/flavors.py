"""The flavor that a deployment is asked for by name."""

from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.registry.connection import registry_errors
from mlflow_deploy_plugin.registry.resolve import resolve
from mlflow_deploy_plugin.runtime import FLAVOR, PYTHON_FUNCTION

_ONNX_FLAVORS = (FLAVOR, "onnx")
_FLAVORS = (*_ONNX_FLAVORS, PYTHON_FUNCTION)


def apply_flavor(
    name: str, model_uri: str | None, flavor: str | None, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`config` for the deployment `name`, with what its flavor implies: python_function lets its stage or alias move to
    a version without an ONNX form. One that has that form is served so, whatever flavor is asked for.

    Raises:
        InvalidConfig: there is no such flavor, or the model has not got it.
        NotFound, RegistryUnavailable: the model is not to be had.
    """
    implied: dict[str, Any] = {}
    if flavor is not None:
        if flavor not in _FLAVORS:
            raise InvalidConfig(f"unknown flavor {flavor!r}; known are {', '.join(_FLAVORS)}")
        if flavor in _ONNX_FLAVORS and model_uri is not None:
            _check_onnx(model_uri, flavor)
        implied[f"variants.{name}.allow_pyfunc"] = flavor == PYTHON_FUNCTION
    return implied | dict(config or {})


def _check_onnx(model_uri: str, flavor: str) -> None:
    from mlflow.models import Model  # here: only who names a flavor waits for it

    source = resolve(model_uri).source
    with registry_errors(f"model {model_uri}"):
        flavors = Model.load(source).flavors
    if not any(name in flavors for name in _ONNX_FLAVORS):
        raise InvalidConfig(f"{model_uri} has no flavor {flavor!r}; it has {', '.join(sorted(flavors))}")
