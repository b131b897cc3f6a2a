"""The user's configuration (`-C NAME=VALUE`, a flavor, traffic) as fields of an
endpoint's spec.

Monitors are checked when they are configured. Otherwise a typo would only be detected
with the first window, a day later. The model's columns are read from the MLmodel file
in the registry. If the columns are unknown (the outputs of a pyfunc, or while MLflow is
down), a monitor may name any column.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlparse

import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.core.messages import did_you_mean, join_names, one_line
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, PYTHON_FUNCTION
from mlflow_deploy_plugin.core.registry.model_files import (
    LoggedColumns,
    fetch_mlmodel,
    logged_columns,
)
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.settings import absolute_path
from mlflow_deploy_plugin.core.spec.document import apply_config
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import load_time_zone
from mlflow_deploy_plugin.core.store.tables import Json

Config = Mapping[str, object]
"""The dotted name of a field of a spec → the value of the field."""

SUPPLIED_PARAMETERS = ("mode", "data", "base_model", "registered_model")
"""The parameters that every training receives in addition to the parameters of the
spec.
"""
_ONNX_FLAVORS = (FLAVOR, "onnx")
_FLAVORS = (*_ONNX_FLAVORS, PYTHON_FUNCTION)
_TRAFFIC = "traffic"
_OWN_PREFIX = "_"
_URI = re.compile(r"[^/]*:")  # MLflow recognises a project's URI by the same rule.
_FILE = "file://"
_MLPROJECT = "MLproject"
_PROJECT_FIELDS = ("project", "entry_point", "parameters")
_SCRIPTS = (".py", ".sh")
_EXPECTED_PROJECT = "the folder of an MLflow project or a Git URI is expected"


def configure(spec: EndpointSpec, config: Config) -> EndpointSpec:
    """Return `spec` with the fields of `config`. Traffic and paths are converted to the
    format of the spec.

    Raises InvalidConfig if a field or its value is invalid, a time zone is unknown, or
    a training project is missing.
    """
    fields = {**_expand_traffic(spec, config)}
    for name, value in fields.items():
        if name.startswith("variants.") and name.endswith(".model"):
            fields[name] = absolute_model_uri(str(value))
    changed = apply_config(spec, fields)
    for name, value in config.items():
        if name.startswith("monitors.") and name.endswith(".time_zone") and value:
            load_time_zone(str(value))
    # The controller has another working folder, so it needs absolute paths.
    absolute: dict[str, str] = {}
    for name, monitor in changed.monitors.items():
        prefix = f"monitors.{name}."
        retrain = monitor.retrain
        of_project = tuple(f"{prefix}retrain.{field}" for field in _PROJECT_FIELDS)
        if retrain is not None and _has_field(config, of_project):
            try:
                if folder := check_project(
                    retrain.project, retrain.entry_point, retrain.parameters
                ):
                    absolute[f"{prefix}retrain.project"] = str(folder)
            except InvalidConfig as error:
                raise InvalidConfig(f"{prefix}retrain.{error.message}") from None
        uri = monitor.reference_value
        if (
            monitor.reference_kind == "dataset"
            and f"{prefix}reference" in config
            and not urlparse(uri).scheme
        ):
            absolute[f"{prefix}reference"] = f"dataset:{absolute_path(uri)}"
    return apply_config(changed, absolute) if absolute else changed


def traffic_shares(weights: Mapping[str, int]) -> dict[str, float]:
    """Return the share of the traffic per variant in percent."""
    total = sum(weights.values())
    return {name: round(100 * weight / total, 2) for name, weight in weights.items()}


def absolute_model_uri(model_uri: str) -> str:
    """Return a URI whose folder is absolute, because the server has another working
    directory than the command.
    """
    reference = parse_model_uri(model_uri)
    if reference.kind != "path":
        return model_uri
    return str(absolute_path(reference.name))


def sets_weight(field: str) -> bool:
    """Return True if the field with this dotted name sets the weight of a
    deployment.
    """
    is_weight = field.startswith("variants.") and field.endswith(".weight")
    return is_weight or field == _TRAFFIC or field.startswith(f"{_TRAFFIC}.")


def traffic_weights(spec: EndpointSpec) -> dict[str, int]:
    """Return the weight of every variant except shadows."""
    return {name: variant.weight for name, variant in spec.variants.items() if not variant.shadow}


def apply_flavor(
    name: str, model_uri: str | None, flavor: str | None, config: Config | None
) -> Config:
    """Return `config` with the field that `flavor` implies for the deployment `name`.

    The flavor python_function also allows versions without an ONNX form, to which a
    stage or alias may move later, and does not convert them. With any flavor, a version
    with an ONNX form is served as ONNX. Raises InvalidConfig if the flavor is unknown
    or the model does not have it, and the errors of `resolve`.
    """
    if flavor is None:
        return config or {}
    if flavor not in _FLAVORS:
        raise InvalidConfig(f"unknown flavor {flavor!r}; the flavors are {', '.join(_FLAVORS)}")
    if flavor in _ONNX_FLAVORS and model_uri is not None:
        flavors = fetch_mlmodel(resolve(model_uri).source).flavors
        if not any(name_of_flavor in flavors for name_of_flavor in _ONNX_FLAVORS):
            raise InvalidConfig(
                f"{model_uri} has no flavor {flavor!r}; it has {', '.join(sorted(flavors))}"
            )
    is_pyfunc = flavor == PYTHON_FUNCTION
    fields = {
        f"variants.{name}.allow_pyfunc": is_pyfunc,
        f"variants.{name}.convert": "never" if is_pyfunc else "example",
    }
    return {**fields, **(config or {})}


def _expand_traffic(spec: EndpointSpec, config: Config) -> Config:
    """Return `config` with its `traffic` converted to weights of the variants.

    `{"traffic": {NAME: WEIGHT}}` is the complete traffic: omitted deployments get 0.
    `traffic.NAME` is a single weight.
    """
    fields: Json = {}
    for name, value in config.items():
        if name.startswith(f"{_TRAFFIC}."):
            fields |= _weight(spec, name.removeprefix(f"{_TRAFFIC}."), value)
        elif name != _TRAFFIC:
            fields[name] = value
        elif not isinstance(value, Mapping) or not value:
            raise InvalidConfig(
                f"traffic: {{NAME: WEIGHT}} is expected, not {value!r}; on the command line: -C "
                f"{_TRAFFIC}.NAME=WEIGHT"
            )
        else:
            fields |= {f"variants.{variant}.weight": 0 for variant in traffic_weights(spec)}
            for variant, weight in value.items():
                fields |= _weight(spec, variant, weight)
    return fields


def _weight(spec: EndpointSpec, name: str, weight: object) -> Config:
    """Return the field with the weight of a variant. Raises InvalidConfig if the
    endpoint has no variant `name`, the variant is a shadow or the weight is empty.
    """
    if name not in spec.variants:
        names = ", ".join(spec.variants) or "none yet"
        raise InvalidConfig(
            f"the endpoint {spec.name!r} has no deployment {name!r}; it has {names}"
        )
    if spec.variants[name].shadow:
        raise InvalidConfig(
            f"{name!r} is a shadow, which does not answer; set variants.{name}.shadow=false"
        )
    if weight == "":  # Refuse an empty weight, which `apply_config` would replace by the default.
        raise InvalidConfig(f"traffic of {name!r}: an integer from 0 to 100 is expected")
    return {f"variants.{name}.weight": weight}


def check_monitors(spec: EndpointSpec, config: Config, progress: Callable[[str], None]) -> None:
    """Check the changed monitors against the models and datasets to which they refer.

    `progress` receives one line per check that is not possible. Raises InvalidConfig if
    a monitor refers to a missing column, variant or dataset, or if a dataset is
    unreadable or lacks a judged column, and RegistryUnavailable if a remote dataset
    cannot be downloaded.
    """
    changed = {
        name: monitor
        for name, monitor in spec.monitors.items()
        if _has_field(config, f"monitors.{name}.")
    }
    if not changed:
        return
    columns = _known_columns(spec, progress)
    for name, monitor in changed.items():
        try:
            _check_names(spec, monitor, columns)
            if monitor.kind == "drift" and monitor.reference_kind == "dataset":
                _check_dataset(monitor, columns or LoggedColumns((), ()))
        except InvalidConfig as error:
            raise InvalidConfig(f"monitors.{name}.{error.message}") from None


def _has_field(config: Config, prefix: str | tuple[str, ...]) -> bool:
    return any(field.startswith(prefix) for field in config)


def check_project(project: str, entry_point: str, parameters: Mapping[str, object]) -> Path | None:
    """Check an MLflow project in a local folder, and return the folder (for
    `FOLDER#BELOW`, the subfolder). A remote project has no folder, and is not checked
    before its run.

    Raises InvalidConfig if the folder is missing, is not an MLflow project, or lacks
    the entry point or parameters.
    """
    location, _, below = project.partition("#")
    if _URI.match(location) and not location.startswith(_FILE):
        return None
    folder = absolute_path(location.removeprefix(_FILE)) / below
    if not folder.is_dir():
        raise InvalidConfig(f"project: the folder {folder} does not exist; {_EXPECTED_PROJECT}")
    document: object = None
    try:
        document = yaml.safe_load((folder / _MLPROJECT).read_text())
    except FileNotFoundError:
        pass  # Without this file, the project has no entry points.
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidConfig(
            f"project: {folder / _MLPROJECT} cannot be read: {one_line(error, 200)}"
        ) from None
    entries = {
        name: _field(entry, "parameters")
        for name, entry in _field(document, "entry_points").items()
    }
    is_script = entry_point.endswith(_SCRIPTS) and (folder / entry_point).is_file()
    if entry_point not in entries and is_script:
        return folder
    if not (folder / _MLPROJECT).is_file():
        raise InvalidConfig(f"project: {folder} has no {_MLPROJECT}; {_EXPECTED_PROJECT}")
    if entry_point not in entries:
        raise InvalidConfig(
            f"entry_point: the project {folder} has no entry point {entry_point!r}; it has "
            f"{', '.join(entries) or 'none'}"
        )
    where = f"entry point {entry_point!r} of the project {folder}"
    declared = entries[entry_point]
    # MLflow passes undeclared parameters to the command, which fails after the rows
    # were collected.
    for name in parameters:
        if declared and name not in declared:
            raise InvalidConfig(
                f"parameters.{name}: {where} has no parameter {name!r}; it has "
                f"{', '.join(declared)}"
            )
    for name, parameter in declared.items():
        if isinstance(parameter, dict) and parameter.get("default") is not None:
            continue
        if name not in parameters and name not in SUPPLIED_PARAMETERS:
            raise InvalidConfig(
                f"parameters.{name}: {where} needs a value for it, because it has no default"
            )
    return folder


def _known_columns(spec: EndpointSpec, progress: Callable[[str], None]) -> LoggedColumns | None:
    """Return the columns that the endpoint's variants log; None if they are unknown.
    `progress` receives the reason if they cannot be read.
    """
    logged: list[LoggedColumns] = []
    for name, variant in spec.variants.items():
        try:
            logged.append(logged_columns(resolve(variant.model).source))
        except RegistryUnavailable as error:
            progress(f"the columns of the monitors are not checked: {error.message}")
            return None
        except OnnxserveError as error:
            progress(f"the columns of deployment {name} are unknown: {error.message}")
            return None
    inputs: dict[str, None] = {}
    outputs: dict[str, None] | None = {}
    for item in logged:
        if not item.inputs:
            return None
        inputs |= dict.fromkeys(item.inputs)
        if outputs is None or item.outputs is None:
            outputs = None
        else:
            outputs |= dict.fromkeys(item.outputs)
    if not inputs:
        return None
    return LoggedColumns(tuple(inputs), None if outputs is None else tuple(outputs))


def _check_names(spec: EndpointSpec, monitor: MonitorSpec, columns: LoggedColumns | None) -> None:
    """Raise InvalidConfig if a monitor names a deployment or a column that the endpoint
    does not have. If `columns` is None, the columns are unknown and not checked.
    """
    required = [requirement for requirement in monitor.requirements if requirement.argument]
    if monitor.kind == "shadow" and spec.variants:
        expected = f"it has {', '.join(spec.variants)}"
        for item in required:
            if item.argument not in spec.variants:
                hint = did_you_mean(item.argument, spec.variants, expected)
                raise InvalidConfig(
                    f"require: {item.text}: the endpoint has no deployment {item.argument!r}{hint}"
                )
    if columns is None:
        return
    # Each column that the monitor names follows the beginning of its message.
    references = [("columns: ", name) for name in monitor.columns]
    references += [("segment_by: ", name) for name in monitor.segment_by]
    if monitor.kind == "drift":
        references += [(f"require: {item.text}: ", item.argument) for item in required]
    if monitor.sample is not None and monitor.sample.stratify is not None:
        references.append(("retrain.sample.stratify: ", monitor.sample.stratify))
    for where, name in references:
        may_be_answer = columns.outputs is None and _is_answer(name)
        if not (name.startswith(_OWN_PREFIX) or _is_among(name, columns.all) or may_be_answer):
            hint = did_you_mean(name, columns.all, f"it has {join_names(columns.all)}")
            raise InvalidConfig(f"{where}the model has no column {name!r}{hint}")


def _check_dataset(monitor: MonitorSpec, columns: LoggedColumns) -> None:
    """Check that the dataset has every judged column, because a missing column would
    count as drift in every window. Raises InvalidConfig if it lacks one or cannot be
    read, and RegistryUnavailable.
    """
    # No other command of deployments needs pyarrow.
    from mlflow_deploy_plugin.core.registry.datasets import dataset_columns

    try:
        present = dataset_columns(monitor.reference_value)
    except RegistryUnavailable:
        raise
    except OnnxserveError as error:
        raise InvalidConfig(f"reference: {error.message}") from None
    judged = monitor.columns or columns.all
    missing = [name for name in judged if not _is_among(name, present)]
    if not missing:
        return
    remaining = [name for name in monitor.columns or columns.inputs if name not in missing]
    if all(map(_is_answer, missing)) and remaining:
        raise InvalidConfig(
            f"reference: {monitor.reference} lacks the column {join_names(missing)} with the "
            "model's outputs: add the model's outputs for these rows, or judge only the other "
            f"columns: columns={','.join(remaining)}"
        )
    raise InvalidConfig(
        f"reference: {monitor.reference} has no column {join_names(missing)} for the comparison; "
        f"it has {join_names(present)}"
    )


def _is_among(name: str, columns: Sequence[str]) -> bool:
    """Return True if `columns` contains the column `name`, the vector of which it is a
    part, or a part of this vector.
    """
    return any(
        name == column or name.startswith(f"{column}.") or column.startswith(f"{name}.")
        for column in columns
    )


def _is_answer(name: str) -> bool:
    return name.partition(".")[0] in ("prediction", "output")


def _field(document: object, name: str) -> Json:
    """Return the mapping in a field of a document; empty if there is none."""
    value = document.get(name) if isinstance(document, dict) else None
    if not isinstance(value, dict):
        return {}
    return {str(key): item for key, item in value.items()}
