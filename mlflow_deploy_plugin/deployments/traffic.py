"""Traffic as people say it, `{"champion": 95, "challenger": 5}`, in the fields of the spec."""

from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import EndpointSpec

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
