"""Conversion of specs to and from YAML, changes of fields by dotted names, and the list
of the dotted names.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mlflow_deploy_plugin.core.errors import AlreadyExists, InvalidConfig
from mlflow_deploy_plugin.core.messages import did_you_mean, join_names, one_line
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec, RetrainSpec, SampleSpec
from mlflow_deploy_plugin.core.spec.parts import (
    AlarmsSpec,
    CaptureSpec,
    ContainerSpec,
    EndpointSpec,
    GuardSpec,
    JobsSpec,
    KubernetesSpec,
    ObserveSpec,
    ProviderOptions,
    ProxySpec,
    ServerSpec,
    ServeSpec,
    SinkSpec,
    StickySpec,
    VariantSpec,
)
from mlflow_deploy_plugin.core.spec.steps import STEPS, is_steps_path, read_steps
from mlflow_deploy_plugin.core.spec.types import PATTERNS_IN_WORDS, field_descriptions

_EXPECTED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number is expected"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number is expected"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false is expected"),
    "string_type": "a text is expected",
    **dict.fromkeys(("dict_type", "model_type"), "fields with values are expected"),
    "greater_than_equal": "at least {ge} is expected",
    "greater_than": "more than {gt} is expected",
    "less_than_equal": "at most {le} is expected",
    "less_than": "less than {lt} is expected",
    "literal_error": "{expected} is expected",
}
"""The description of the expected value in a message, by the type of pydantic's error.
"""
_NOT_BY_NAME = {
    "api_version",
    "name",
    "variants.NAME.model",  # `-m` sets the model.
    "serve.signature",  # The file next to the steps contains it.
    "serve.file",
    "monitors.NAME.retrain.parameters",  # Only a spec file can contain a mapping.
}
"""The fields that `-C` does not accept."""
_TABLES = {"container.environment", "container.secrets", "container.secret_files"}
"""The fields that map names to texts. Each key of such a field has a dotted name."""
_OF_TABLE = ".VARIABLE"
_MAY_BE_SECRET = {"observe", "url", "authorization"}
"""The fields in which a user may have written a password. Messages do not repeat their
values.
"""
_PARTS: Mapping[str, type[BaseModel]] = {
    "server.": ServerSpec,
    "server.provider_options.": ProviderOptions,
    "server.jobs.": JobsSpec,
    "container.": ContainerSpec,
    "capture.": CaptureSpec,
    "capture.sinks.NAME.": SinkSpec,
    "observe.": ObserveSpec,
    "serve.": ServeSpec,
    "variants.NAME.": VariantSpec,
    "monitors.NAME.": MonitorSpec,
    "monitors.NAME.retrain.": RetrainSpec,
    "monitors.NAME.retrain.sample.": SampleSpec,
    "alarms.": AlarmsSpec,
    "sticky.": StickySpec,
    "guard.": GuardSpec,
    "kubernetes.": KubernetesSpec,
    "proxy.": ProxySpec,
    "": EndpointSpec,
}
"""The parts of a spec by the prefix of their dotted names. A field that contains a part
has no dotted name.
"""
_RETRAIN = ".retrain."
_NOT_REMOVED = ("variants.NAME", "monitors.NAME")
"""The parts that `-C` does not remove if the value is empty, because commands do."""


def load_specs(text: str, folder: Path | None = None) -> list[EndpointSpec]:
    """Return the endpoints of a YAML text, one per document, which share the server of
    the first document. Raises InvalidConfig for any other text.

    `folder` is the folder of a user's file, from which files of steps are read.
    """
    specs = load_stored_specs(text, folder)
    if empty := [spec.name for spec in specs if not spec.variants]:
        raise InvalidConfig(
            f"variants: endpoint {empty[0]!r} needs at least one variant with a `model`",
        )
    return specs


def load_stored_specs(text: str, folder: Path | None = None) -> list[EndpointSpec]:
    """Return the endpoints of a text that onnxserve has written. Raises InvalidConfig
    like `load_specs`, but endpoints may have no variants.
    """
    documents = _load_documents(text)
    if folder is not None:
        for serve, path in _paths_of_steps(documents):
            serve |= read_steps(folder / path)
    specs = [validate_spec(document) for document in documents]
    names = [spec.name for spec in specs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidConfig(f"endpoint {doubled[0]!r} is repeated in the spec")
    for spec in specs[1:]:
        if "server" in spec.model_fields_set and spec.server != specs[0].server:
            raise InvalidConfig(
                f"endpoint {spec.name!r} has another `server`, but all endpoints of a spec share "
                f"one server: specify it in the first endpoint, {specs[0].name!r}",
            )
    return specs


def steps_files(text: str, folder: Path) -> list[Path]:
    """Return the paths of the files of steps in the text of a user's file in
    `folder`.
    """
    return [folder / path for _, path in _paths_of_steps(_load_documents(text))]


def _load_documents(text: str) -> list[Any]:
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: 2001-99-99; RecursionError: brackets.
        raise InvalidConfig(f"the spec is not valid YAML: {one_line(error)}") from None
    if not documents:
        raise InvalidConfig("the spec is empty: it needs at least `name` and `variants`")
    return documents


def _paths_of_steps(documents: list[Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each part `serve` with a path of steps, and the path."""
    for document in documents:
        serve = document.get("serve") if isinstance(document, dict) else None
        if isinstance(serve, dict) and is_steps_path(serve.get("steps")):
            yield serve, serve["steps"]


def dump_spec(spec: EndpointSpec) -> str:
    """Return the spec as YAML without default values. `load_specs` is the inverse
    function.
    """
    document = {"apiVersion": spec.api_version, **spec_document(spec)}
    return yaml.safe_dump(document, sort_keys=False)


def spec_document(spec: EndpointSpec) -> dict[str, Any]:
    """Return the fields that differ from their defaults, as plain values."""
    return spec.model_dump(by_alias=True, exclude_defaults=True)


def validate_spec(document: object) -> EndpointSpec:
    """Return the spec from a document of plain values. Raise InvalidConfig, with the
    field, if a field is not valid.
    """
    if not isinstance(document, Mapping):
        raise InvalidConfig(
            f"a spec is a mapping with `name` and `variants`, not {type(document).__name__}",
        )
    try:
        return EndpointSpec.model_validate(document)
    except ValidationError as error:
        known = [*EndpointSpec.model_fields, *_NOT_BY_NAME, *(name for name, *_ in _fields())]
        raise InvalidConfig(field_problem(error, known)) from None


def field_problem(error: ValidationError, fields: Iterable[str]) -> str:
    """Return the first problem of an invalid document, with the field and its value. An
    unknown field is the first problem, because it may be a missing field that is
    misspelt. `fields` are the names to suggest for it.
    """
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        return f"unknown field {where!r}{did_you_mean(where, fields)}"
    context = first.get("ctx", {})
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] in _EXPECTED:
        message = _EXPECTED[first["type"]].format(**context)
    elif first["type"] == "string_pattern_mismatch":
        message = PATTERNS_IN_WORDS.get(context["pattern"], message)
    if where:
        message = f"{where}: {message}"
        if not (isinstance(first["input"], Mapping) or _MAY_BE_SECRET.intersection(first["loc"])):
            message += f" (got {first['input']!r})"
    return message


def field_reference() -> Iterator[tuple[str, str, str, str]]:
    """Yield every field that `-C` accepts: (dotted name, type, default, description).
    The type is a name such as `int`, or the allowed values.
    """
    for dotted, part, name in _fields():
        field = part.model_fields[name]
        description = field_descriptions(part)[name]
        kinds = [kind for kind in get_args(field.annotation) if kind not in (type(None), ...)]
        kinds = kinds or [field.annotation]
        if get_origin(kinds[0]) is Literal:
            kinds = list(get_args(kinds[0]))
        elif get_origin(kinds[0]) is Annotated:
            kinds = [get_args(kinds[0])[0]]
        kind = " | ".join(getattr(kind, "__name__", None) or str(kind) for kind in kinds)
        default = ""
        if dotted.endswith(_OF_TABLE):
            kind = "str"
        elif not field.is_required() and field.default not in (None, ()):
            default = str(field.default)
        yield dotted, kind, default, description


def _fields() -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yield the dotted name of each field that a user can set, the class that declares
    the field, and the field's name in the class.
    """
    for prefix, part in _PARTS.items():
        for name in part.model_fields:
            dotted = f"{prefix}{name}"
            has_fields = any(other.startswith(f"{dotted}.") for other in _PARTS)
            if dotted in _NOT_BY_NAME or has_fields:
                continue
            if dotted in _TABLES:
                dotted += _OF_TABLE
            yield dotted, part, name


def new_endpoint(
    name: str,
    model_uri: str,
    config: Mapping[str, object] | None = None,
    variant: str | None = None,
) -> EndpointSpec:
    """Return the endpoint `name` with one variant (default: of this name) and with
    `config`, as in `apply_config`.
    """
    document = {"name": name, "variants": {variant or name: {"model": model_uri}}}
    return apply_config(validate_spec(document), config or {})


def empty_endpoint(name: str) -> EndpointSpec:
    """Return the endpoint `name` without a variant. Such an endpoint cannot be served.
    Raises InvalidConfig.
    """
    return validate_spec({"name": name, "variants": {}})


def apply_config(spec: EndpointSpec, config: Mapping[str, object]) -> EndpointSpec:
    """Return `spec` with new values of fields by dotted names: `{"server.port":
    "8123"}`. "" restores the default.

    A path of steps is replaced by the source of the file.

    Raises InvalidConfig for an unknown name (the message contains the nearest valid
    name) or an invalid value.
    """
    document = spec_document(spec)
    if any(dotted.startswith("sticky.") for dotted in config):
        document.pop("sticky", None)  # `config` replaces the key or header: only one may be set.
    for dotted, value in config.items():
        *parents, leaf = _field_path(dotted, value, spec)
        target = document
        for parent in parents:
            target = target.setdefault(parent, {})
        if dotted == STEPS:
            target.clear()
        if value == "":
            target.pop(leaf, None)
        elif dotted == STEPS and is_steps_path(value):
            target |= read_steps(Path(str(value)))
        else:
            target[leaf] = value
    return validate_spec(
        {part: fields for part, fields in document.items() if fields != {} or part == "variants"},
    )


def _field_path(dotted: str, value: object, spec: EndpointSpec) -> list[str]:
    """Return the keys that lead to the field. Raises InvalidConfig if `spec` cannot
    have the field.
    """
    path = dotted.split(".")
    # The names of variants and monitors may contain dots.
    part, _, rest = dotted.partition(".")
    if part == "monitors" and _RETRAIN in rest:
        name, _, option = rest.rpartition(_RETRAIN)
        path = [part, name, "retrain", *option.split(".", 1)]
    elif part in ("variants", "monitors"):
        name, _, option = rest.rpartition(".")
        if name:
            path = [part, name, option]
    # The name that `_fields` has for the field.
    field = ".".join(path)
    if path[0] in ("variants", "monitors"):
        field = ".".join([path[0], "NAME", *path[2:]])
    elif path[:2] == ["capture", "sinks"]:
        field = ".".join(["capture.sinks.NAME", *path[3:]])
    elif (table := dotted.rpartition(".")[0]) in _TABLES:
        field = table + _OF_TABLE
    is_model = field == "variants.NAME.model" and path[1] in spec.variants
    is_parameter_of_project = len(path) == 5 and path[2:4] == ["retrain", "parameters"]
    is_removed = value == "" and f"{field}." in _PARTS and field not in _NOT_REMOVED
    field_names = [name for name, *_ in _fields()]
    if not (field in field_names or is_model or is_parameter_of_project or is_removed):
        listed = "`mlflow deployments help -t onnxserve` lists the fields"
        if of_part := [name for name in field_names if name.startswith(f"{field}.")]:
            raise InvalidConfig(f"the fields of {dotted!r} are {join_names(of_part)}")
        hint = did_you_mean(field, field_names, listed)
        raise InvalidConfig(f"unknown config key {dotted!r}{hint}")
    return path


def add_variant(spec: EndpointSpec, name: str, model_uri: str) -> EndpointSpec:
    """Return `spec` with another variant, without traffic if there are others. Raises
    AlreadyExists, InvalidConfig.
    """
    if name in spec.variants:
        raise AlreadyExists(
            f"the endpoint {spec.name!r} already has a deployment {name!r}: update or delete it",
        )
    weight = 0 if spec.variants else 100
    document = spec_document(spec)
    document["variants"][name] = {"model": model_uri, "weight": weight}
    return validate_spec(document)


def remove_variant(spec: EndpointSpec, name: str) -> EndpointSpec:
    """Return `spec` without a variant. Raise InvalidConfig if only variants without
    traffic would remain.
    """
    document = spec_document(spec)
    document["variants"].pop(name, None)
    return validate_spec(document)


def remove_monitor(spec: EndpointSpec, name: str) -> EndpointSpec:
    document = spec_document(spec)
    document.get("monitors", {}).pop(name, None)
    return validate_spec(document)
