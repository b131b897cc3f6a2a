"""Specs as YAML documents and back, changes to them by dotted names, and the reference of these names."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mlflow_deploy_plugin.errors import AlreadyExists, InvalidConfig
from mlflow_deploy_plugin.messages import did_you_mean, one_line
from mlflow_deploy_plugin.spec.monitors import MonitorSpec, RetrainSpec
from mlflow_deploy_plugin.spec.parts import (
    CaptureSpec,
    ContainerSpec,
    EndpointSpec,
    KubernetesSpec,
    ProviderOptions,
    ServerSpec,
    StickySpec,
    VariantSpec,
)
from mlflow_deploy_plugin.spec.types import PATTERNS_IN_WORDS, field_descriptions

_EXPECTED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number is expected"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number is expected"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false is expected"),
    "string_type": "a text is expected",
    "greater_than_equal": "at least {ge} is expected",
    "greater_than": "more than {gt} is expected",
    "less_than_equal": "at most {le} is expected",
    "less_than": "less than {lt} is expected",
    "literal_error": "{expected} is expected",
}
"""The part of a message that says what would be right, by the type of pydantic's error."""
_NOT_BY_NAME = {
    "api_version",
    "name",
    "variants.NAME.model",  # -m says it
    "monitors.NAME.retrain.parameters",  # a table of its own, for a spec file
}
"""The fields that `-C` does not take."""
_TABLES = {"container.environment", "container.secrets", "container.secret_files"}
"""The fields that are mappings of texts; each key has a dotted name."""
_OF_TABLE = ".VARIABLE"
_PARTS: Mapping[str, type[BaseModel]] = {
    "server.": ServerSpec,
    "server.provider_options.": ProviderOptions,
    "container.": ContainerSpec,
    "capture.": CaptureSpec,
    "variants.NAME.": VariantSpec,
    "monitors.NAME.": MonitorSpec,
    "monitors.NAME.retrain.": RetrainSpec,
    "sticky.": StickySpec,
    "kubernetes.": KubernetesSpec,
    "": EndpointSpec,
}
"""The parts of a spec by the prefix of their fields. The field of a part has no dotted name itself."""
_RETRAIN = ".retrain."


def load_specs(text: str, may_be_empty: bool = False) -> list[EndpointSpec]:
    """Return the endpoints of a YAML text, one per document. They share one server, which the first document describes.

    Raises InvalidConfig for anything else. If `may_be_empty`, an endpoint may have no variant, like a stored endpoint.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2001-99-99; RecursionError: brackets
        raise InvalidConfig(f"the spec is not valid YAML: {one_line(error)}") from None
    specs = [validate_spec(document) for document in documents]
    if not specs:
        raise InvalidConfig("the spec is empty: it needs at least `name` and `variants`")
    names = [spec.name for spec in specs]
    if not may_be_empty and (empty := [spec.name for spec in specs if not spec.variants]):
        raise InvalidConfig(f"variants: endpoint {empty[0]!r} has none; it needs at least one, with a `model`")
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidConfig(f"endpoint {doubled[0]!r} stands twice in the spec")
    for spec in specs[1:]:
        if "server" in spec.model_fields_set and spec.server != specs[0].server:
            raise InvalidConfig(
                f"endpoint {spec.name!r} has a `server` of its own, and all of a spec share one: say it in the first, "
                f"{specs[0].name!r}"
            )
    return specs


def dump_spec(spec: EndpointSpec) -> str:
    """Return the spec as YAML without its defaults; `load_specs` reads it back."""
    document = {"apiVersion": spec.api_version, **spec_document(spec)}
    return yaml.safe_dump(document, sort_keys=False)


def spec_document(spec: EndpointSpec) -> dict[str, Any]:
    """Return the fields that differ from their defaults, as plain values."""
    return spec.model_dump(by_alias=True, exclude_defaults=True)


def validate_spec(document: object) -> EndpointSpec:
    """Return the spec that a document of plain values describes; raise InvalidConfig that names the field."""
    if not isinstance(document, Mapping):
        raise InvalidConfig(f"a spec is a mapping with `name` and `variants`, not {type(document).__name__}")
    try:
        return EndpointSpec.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        if first["type"] == "extra_forbidden":
            known = [dotted for dotted, *_ in _fields()] + list(EndpointSpec.model_fields)
            raise InvalidConfig(f"unknown field {where!r}{did_you_mean(where, known)}") from None
        context, message = first.get("ctx", {}), str(first["msg"]).removeprefix("Value error, ")
        if first["type"] in _EXPECTED:
            message = _EXPECTED[first["type"]].format(**context)
        elif first["type"] == "string_pattern_mismatch":
            message = PATTERNS_IN_WORDS.get(context["pattern"], message)
        given = "" if isinstance(first["input"], Mapping) else f" (got {first['input']!r})"
        raise InvalidConfig(f"{where}: {message}{given}" if where else message) from None


def field_reference() -> Iterator[tuple[str, str, str, str]]:
    """Yield every field that `-C` takes: (dotted name, type, default, description)."""
    for dotted, part, name in _fields():
        field, description = part.model_fields[name], field_descriptions(part)[name]
        is_table = dotted.endswith(_OF_TABLE)
        default = "" if is_table or field.is_required() or field.default in (None, ()) else str(field.default)
        yield dotted, "str" if is_table else _type_name(field.annotation), default, description


def _fields() -> Iterator[tuple[str, type[BaseModel], str]]:
    for prefix, part in _PARTS.items():
        for name in part.model_fields:
            dotted = f"{prefix}{name}"
            if dotted not in _NOT_BY_NAME and not any(other.startswith(f"{dotted}.") for other in _PARTS):
                yield f"{dotted}{_OF_TABLE if dotted in _TABLES else ''}", part, name


def _type_name(annotation: object) -> str:
    """Return the type of a field as help texts write it: `int`, or the values it takes."""
    kinds = [kind for kind in get_args(annotation) if kind not in (type(None), Ellipsis)] or [annotation]
    if get_origin(kinds[0]) is Literal:
        kinds = list(get_args(kinds[0]))
    elif get_origin(kinds[0]) is Annotated:
        kinds = [get_args(kinds[0])[0]]
    return " | ".join(getattr(kind, "__name__", None) or str(kind) for kind in kinds)


def new_endpoint(
    name: str, model_uri: str, config: Mapping[str, object] | None = None, variant: str | None = None
) -> EndpointSpec:
    """Return the endpoint `name` with one variant (default: of its name) at 100 %, changed as by `apply_config`."""
    document = {"name": name, "variants": {variant or name: {"model": model_uri}}}
    return apply_config(validate_spec(document), config or {})


def empty_endpoint(name: str) -> EndpointSpec:
    """Return the endpoint `name` without a variant; it needs one before it can be served. Raises as `new_endpoint`."""
    return validate_spec({"name": name, "variants": {}})


def apply_config(spec: EndpointSpec, config: Mapping[str, object]) -> EndpointSpec:
    """Return `spec` with fields replaced by their dotted names: `{"server.port": "8123"}`; "" restores the default.

    Raises InvalidConfig for an unknown name (the nearest valid one is named) or a value that does not fit its field.
    """
    document = spec_document(spec)
    if any(dotted.startswith("sticky.") for dotted in config):
        document.pop("sticky", None)  # header and key replace each other
    known = [name for name, *_ in _fields()]
    for dotted, value in config.items():
        path = _path(dotted)
        field = ".".join([path[0], "NAME", *path[2:]] if path[0] in ("variants", "monitors") else path)
        if len(path) == 3 and ".".join(path[:2]) in _TABLES:
            field = ".".join(path[:2]) + _OF_TABLE
        is_model = field == "variants.NAME.model" and path[1] in spec.variants
        is_parameter = len(path) == 5 and path[2:4] == ["retrain", "parameters"]  # only the MLflow project knows them
        if not (field in known or is_model or is_parameter):
            hint = did_you_mean(field, known, "`mlflow deployments help -t onnxserve` lists the fields")
            raise InvalidConfig(f"unknown config key {dotted!r}{hint}")
        *parents, leaf = path
        target = document
        for parent in parents:
            target = target.setdefault(parent, {})
        if value == "":
            target.pop(leaf, None)
        else:
            target[leaf] = value
    for part in [part for part, fields in document.items() if fields == {} and part != "variants"]:
        del document[part]
    return validate_spec(document)


def add_variant(spec: EndpointSpec, name: str, model_uri: str) -> EndpointSpec:
    """Return `spec` with another variant, without traffic if there are others. Raises AlreadyExists, InvalidConfig."""
    if name in spec.variants:
        raise AlreadyExists(f"the endpoint {spec.name!r} has a deployment {name!r} already: update or delete it")
    added = {"model": model_uri, "weight": 0 if spec.variants else 100}
    variants = {**spec_document(spec)["variants"], name: added}
    return validate_spec({**spec_document(spec), "variants": variants})


def remove_variant(spec: EndpointSpec, name: str) -> EndpointSpec:
    """Return `spec` without one of its variants; raise InvalidConfig if others remain and none of them would answer."""
    variants = {key: variant for key, variant in spec_document(spec)["variants"].items() if key != name}
    return validate_spec({**spec_document(spec), "variants": variants})


def remove_monitor(spec: EndpointSpec, name: str) -> EndpointSpec:
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
