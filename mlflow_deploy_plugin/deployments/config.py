"""What people say of an endpoint, as its spec: fields, shares of the traffic, models in folders of theirs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.deployments.monitor_checks import absolute_datasets, absolute_projects
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.registry.connection import registry_errors
from mlflow_deploy_plugin.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.registry.resolve import resolve
from mlflow_deploy_plugin.runtime import FLAVOR, PYTHON_FUNCTION
from mlflow_deploy_plugin.spec import EndpointSpec, apply_config, load_time_zone


def configure(spec: EndpointSpec, config: Mapping[str, Any]) -> EndpointSpec:
    """`spec` with what `config` says.

    Raises:
        InvalidConfig: a name or a value cannot be, a time zone is not known, or a project that trains is not where it
            is said to be.
    """
    fields = expand_traffic(spec, config)
    models = {name: uri for name, uri in fields.items() if name.startswith("variants.") and name.endswith(".model")}
    changed = apply_config(spec, {**fields, **{name: absolute_model_uri(str(uri)) for name, uri in models.items()}})
    for name, value in config.items():
        if name.startswith("monitors.") and name.endswith(".time_zone") and value:
            load_time_zone(value)
    whole = {**absolute_projects(changed, config), **absolute_datasets(changed, config)}
    return apply_config(changed, whole) if whole else changed


def absolute_model_uri(model_uri: str) -> str:
    """A folder by its whole path: the server does not run where the command is typed."""
    reference = parse_model_uri(model_uri)
    if reference.kind != "path":
        return model_uri
    return str(Path(reference.name).expanduser().absolute())


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


_TRAFFIC = "traffic"


def expand_traffic(spec: EndpointSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what it says of `traffic` as the weights of the variants.

    `{"traffic": {NAME: WEIGHT}}` is the whole of it, who is not named gets nothing; `traffic.NAME` is one share.

    Raises:
        InvalidConfig: a name is no deployment of the endpoint, or is a shadow; or `traffic` is no mapping.
    """
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if name == _TRAFFIC:
            fields |= _all_weights(spec, value)
        elif name.startswith(f"{_TRAFFIC}."):
            fields |= _weight(spec, name.removeprefix(f"{_TRAFFIC}."), value)
        else:
            fields[name] = value
    return fields


def sets_weight(field: str) -> bool:
    """Whether a field of a config gives somebody a share of the traffic."""
    is_weight = field.startswith("variants.") and field.endswith(".weight")
    return is_weight or field == _TRAFFIC or field.startswith(f"{_TRAFFIC}.")


def traffic_weights(spec: EndpointSpec) -> dict[str, int]:
    """The weight of every variant that may answer."""
    return {name: variant.weight for name, variant in spec.variants.items() if not variant.shadow}


def _all_weights(spec: EndpointSpec, weights: Any) -> dict[str, Any]:
    if not isinstance(weights, Mapping) or not weights:
        raise InvalidConfig(
            f"traffic is {{NAME: WEIGHT}}, not {weights!r}; on a command line: -C {_TRAFFIC}.NAME=WEIGHT"
        )
    fields: dict[str, Any] = dict.fromkeys((f"variants.{name}.weight" for name in traffic_weights(spec)), 0)
    for name, weight in weights.items():
        fields |= _weight(spec, name, weight)
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
