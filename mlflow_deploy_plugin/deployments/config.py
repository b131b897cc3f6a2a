"""The configuration that people give (`-C NAME=VALUE`, a flavor, traffic) as fields of an endpoint's spec."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.deployments.monitor_checks import absolute_datasets, absolute_projects
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.registry import parse_model_uri, registry_errors, resolve
from mlflow_deploy_plugin.runtime import FLAVOR, PYTHON_FUNCTION
from mlflow_deploy_plugin.spec import EndpointSpec, apply_config, load_time_zone

_ONNX_FLAVORS = (FLAVOR, "onnx")
_FLAVORS = (*_ONNX_FLAVORS, PYTHON_FUNCTION)
_TRAFFIC = "traffic"


def configure(spec: EndpointSpec, config: Mapping[str, Any]) -> EndpointSpec:
    """Return `spec` with the fields of `config`; traffic and paths are brought into the form of the spec.

    Raises:
        InvalidConfig: a field or its value is invalid, a time zone is unknown, or a training project is not there.
    """
    fields = _expand_traffic(spec, config)
    models = {name: uri for name, uri in fields.items() if name.startswith("variants.") and name.endswith(".model")}
    changed = apply_config(spec, {**fields, **{name: absolute_model_uri(str(uri)) for name, uri in models.items()}})
    for name, value in config.items():
        if name.startswith("monitors.") and name.endswith(".time_zone") and value:
            load_time_zone(value)
    absolute = {**absolute_projects(changed, config), **absolute_datasets(changed, config)}
    return apply_config(changed, absolute) if absolute else changed


def absolute_model_uri(model_uri: str) -> str:
    """Return a folder by its absolute path: the server does not run where the command is typed."""
    reference = parse_model_uri(model_uri)
    if reference.kind != "path":
        return model_uri
    return str(Path(reference.name).expanduser().absolute())


def sets_weight(field: str) -> bool:
    """Return True if a field of a config gives a deployment a share of the traffic."""
    is_weight = field.startswith("variants.") and field.endswith(".weight")
    return is_weight or field == _TRAFFIC or field.startswith(f"{_TRAFFIC}.")


def traffic_weights(spec: EndpointSpec) -> dict[str, int]:
    """Return the weight of every variant that may answer."""
    return {name: variant.weight for name, variant in spec.variants.items() if not variant.shadow}


def apply_flavor(
    name: str, model_uri: str | None, flavor: str | None, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return `config` for the deployment `name`, with the fields that its flavor implies.

    python_function lets its stage or alias move to a version without an ONNX form. A version that has that form is
    served as ONNX, whatever flavor is given.

    Raises:
        InvalidConfig: there is no such flavor, or the model does not have it.
        NotFound, RegistryUnavailable: the model cannot be had.
    """
    if flavor is None:
        return dict(config or {})
    if flavor not in _FLAVORS:
        raise InvalidConfig(f"unknown flavor {flavor!r}; known are {', '.join(_FLAVORS)}")
    if flavor in _ONNX_FLAVORS and model_uri is not None:
        from mlflow.models import Model  # here: only a named flavor needs it

        source = resolve(model_uri).source
        with registry_errors(f"model {model_uri}"):
            flavors = Model.load(source).flavors
        if not any(one in flavors for one in _ONNX_FLAVORS):
            raise InvalidConfig(f"{model_uri} has no flavor {flavor!r}; it has {', '.join(sorted(flavors))}")
    return {f"variants.{name}.allow_pyfunc": flavor == PYTHON_FUNCTION, **(config or {})}


def _expand_traffic(spec: EndpointSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with its `traffic` as weights of the variants.

    `{"traffic": {NAME: WEIGHT}}` is all of the traffic: a deployment that is not named gets nothing.
    `traffic.NAME` is the weight of one.

    Raises:
        InvalidConfig: a name is no deployment of the endpoint, or is a shadow; or `traffic` is no mapping.
    """
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if name.startswith(f"{_TRAFFIC}."):
            fields |= _weight(spec, name.removeprefix(f"{_TRAFFIC}."), value)
        elif name != _TRAFFIC:
            fields[name] = value
        elif not isinstance(value, Mapping) or not value:
            raise InvalidConfig(
                f"traffic is {{NAME: WEIGHT}}, not {value!r}; on a command line: -C {_TRAFFIC}.NAME=WEIGHT"
            )
        else:
            fields |= {f"variants.{variant}.weight": 0 for variant in traffic_weights(spec)}
            for variant, weight in value.items():
                fields |= _weight(spec, variant, weight)
    return fields


def _weight(spec: EndpointSpec, name: str, weight: Any) -> dict[str, Any]:
    if name not in spec.variants:
        known = ", ".join(spec.variants) or "none yet"
        raise InvalidConfig(f"the endpoint {spec.name!r} has no deployment {name!r}; it has {known}")
    if spec.variants[name].shadow:
        raise InvalidConfig(f"{name!r} is a shadow and never answers; variants.{name}.shadow=false makes it answer")
    if weight == "":  # which would bring back the default of a single deployment
        raise InvalidConfig(f"traffic of {name!r}: a whole number from 0 to 100 is expected")
    return {f"variants.{name}.weight": weight}
