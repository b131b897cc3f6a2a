"""New specs, and changes to a spec: fields by their dotted names, variants, monitors."""

from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.errors import AlreadyExists, InvalidConfig, did_you_mean
from mlflow_deploy_plugin.spec.document import field_reference, spec_document, validate_spec
from mlflow_deploy_plugin.spec.parts import EndpointSpec

_RETRAIN = ".retrain."


def new_endpoint(
    name: str, model_uri: str, config: Mapping[str, Any] | None = None, variant: str | None = None
) -> EndpointSpec:
    """Return the endpoint `name` with one variant at 100 %, changed by `config` (dotted field names).

    The variant has the name of the endpoint unless `variant` names it.

    Raises:
        InvalidConfig: the name, or a field of `config`, is unknown or has a value it cannot have.
    """
    document = {"name": name, "variants": {variant or name: {"model": model_uri}}}
    return apply_config(validate_spec(document), config or {})


def empty_endpoint(name: str) -> EndpointSpec:
    """Return the endpoint `name` without a variant; it needs one before it can be served. Raises as `new_endpoint`."""
    return validate_spec({"name": name, "variants": {}})


def apply_config(spec: EndpointSpec, config: Mapping[str, Any]) -> EndpointSpec:
    """Return `spec` with fields replaced by their dotted names: `{"server.port": "8123"}`.

    An empty text restores the default of a field.

    Raises:
        InvalidConfig: a name is unknown (the nearest valid one is named) or a value does not fit its field.
    """
    document = spec_document(spec)
    if any(dotted.startswith("sticky.") for dotted in config):
        document.pop("sticky", None)  # header and key replace each other
    for dotted, value in config.items():
        _check_name(spec, dotted)
        *parents, leaf = _path(dotted)
        target = document
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = value
        if value == "":
            del target[leaf]
    for part in [part for part, fields in document.items() if fields == {} and part != "variants"]:
        del document[part]
    return validate_spec(document)


def add_variant(spec: EndpointSpec, name: str, model_uri: str, config: Mapping[str, Any] | None = None) -> EndpointSpec:
    """Return `spec` with another variant, changed by `config` (dotted field names).

    It gets no traffic yet if there are other variants.

    Raises:
        AlreadyExists: there is a variant of this name.
        InvalidConfig: as `new_endpoint`.
    """
    if name in spec.variants:
        raise AlreadyExists(f"the endpoint {spec.name!r} has a deployment {name!r} already: update or delete it")
    added = {"model": model_uri, "weight": 0 if spec.variants else 100}
    variants = {**spec_document(spec)["variants"], name: added}
    return apply_config(validate_spec({**spec_document(spec), "variants": variants}), config or {})


def remove_variant(spec: EndpointSpec, name: str) -> EndpointSpec:
    """Return `spec` without one of its variants; it may have been the last.

    Raises:
        InvalidConfig: variants remain, and none of them would answer.
    """
    variants = {key: variant for key, variant in spec_document(spec)["variants"].items() if key != name}
    return validate_spec({**spec_document(spec), "variants": variants})


def remove_monitor(spec: EndpointSpec, name: str) -> EndpointSpec:
    """Return `spec` without one of its monitors."""
    monitors = {key: monitor for key, monitor in spec_document(spec).get("monitors", {}).items() if key != name}
    return validate_spec({**spec_document(spec), "monitors": monitors})


def _path(dotted: str) -> list[str]:
    """Split a dotted name into keys. The names of variants and monitors may contain dots."""
    part, _, rest = dotted.partition(".")
    if part == "monitors" and _RETRAIN in rest:
        name, _, field = rest.rpartition(_RETRAIN)
        table, _, key = field.partition(".")
        return [part, name, "retrain", table, *([key] if key else [])]
    name, _, field = rest.rpartition(".")
    return [part, name, field] if part in ("variants", "monitors") and name else dotted.split(".")


def _check_name(spec: EndpointSpec, dotted: str) -> None:
    known = [name for name, *_ in field_reference()]
    parts = _path(dotted)
    generic = ".".join([parts[0], "NAME", *parts[2:]]) if parts[0] in ("variants", "monitors") else dotted
    if generic in known or (generic == "variants.NAME.model" and parts[1] in spec.variants):
        return
    if len(parts) == 5 and parts[2:4] == ["retrain", "parameters"]:  # only the MLflow project knows its parameters
        return
    hint = did_you_mean(generic, known, f"known are {', '.join(known)}")
    raise InvalidConfig(f"unknown config key {dotted!r}{hint}")
