"""Checks of monitors when they are written: their references, the columns and variants that they name, their projects.

A typing error would otherwise be found with the first window, a day later, and in a report that nobody is told of. The
model's columns come from the registry (its MLmodel file alone). If nobody knows them, as for a pyfunc's answers or
while MLflow is down, a name passes.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError, RegistryUnavailable, did_you_mean
from mlflow_deploy_plugin.registry import LoggedColumns, logged_columns, resolve
from mlflow_deploy_plugin.spec import KINDS_WITH_REFERENCE, EndpointSpec, MonitorSpec

SUPPLIED_PARAMETERS = ("mode", "data", "base_model", "registered_model")
"""The parameters that every training is given, besides those of the spec."""

_DATASET = "dataset:"
_OWN_PREFIX = "_"
_MAX_LISTED = 10
_URI = re.compile(r"[^/]*:")  # as MLflow tells a Git repository from a folder
_FILE, _MLPROJECT, _SCRIPTS = "file://", "MLproject", (".py", ".sh")
_EXPECTED_PROJECT = "wanted is the folder of an MLflow project, or a Git URI"


@dataclass(frozen=True)
class _KnownColumns:
    """The columns of an endpoint's log, over all its variants.

    Attributes:
        inputs: the columns of the signatures.
        outputs: `prediction` and `output.NAME`; None if nobody knows them before a request is answered.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...] | None

    @property
    def all(self) -> tuple[str, ...]:
        return *self.inputs, *(self.outputs or ())

    def may_have(self, name: str) -> bool:
        """Return True if the log may have a column of this name; parts of a vector count (`output.scores.0`)."""
        if name.startswith(_OWN_PREFIX) or _is_among(name, self.all):
            return True
        return self.outputs is None and _is_answer(name)


def check_monitors(spec: EndpointSpec, config: Mapping[str, Any], progress: Callable[[str], None]) -> None:
    """Check the monitors that `config` changes against the models and datasets that they name.

    Args:
        progress: takes one line for each check that could not be made.

    Raises:
        InvalidConfig: a monitor names a column or a variant that is not there, or a dataset that is missing, cannot be
            read, or lacks a column to be judged.
        RegistryUnavailable: a dataset at a remote URI cannot be fetched.
    """
    changed = {
        name: monitor
        for name, monitor in spec.monitors.items()
        if any(field.startswith(f"monitors.{name}.") for field in config)
    }
    if not changed:
        return
    columns = _known_columns(spec, progress)
    for name, monitor in changed.items():
        try:
            if monitor.kind == "shadow" and spec.variants:
                _check_variants(spec, monitor)
            if columns is not None:
                _check_columns(monitor, columns)
            if monitor.kind in KINDS_WITH_REFERENCE and monitor.reference.startswith(_DATASET):
                _check_dataset(monitor, columns)
        except InvalidConfig as error:
            raise InvalidConfig(f"monitors.{name}.{error.message}") from None


def absolute_datasets(spec: EndpointSpec, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the dataset references that `config` sets, by their fields, with absolute paths.

    The controller does not run where the command is typed.
    """
    found = {}
    for name, monitor in spec.monitors.items():
        field = f"monitors.{name}.reference"
        uri = monitor.reference.removeprefix(_DATASET)
        if field in config and monitor.reference.startswith(_DATASET) and not urlparse(uri).scheme:
            found[field] = f"{_DATASET}{Path(uri).expanduser().absolute()}"
    return found


def absolute_projects(spec: EndpointSpec, config: Mapping[str, Any]) -> dict[str, str]:
    """Check the retraining projects that `config` names; return those in folders by their fields, with absolute paths.

    Raises:
        InvalidConfig: as `check_project`, with the name of the monitor.
    """
    found = {}
    for name, monitor in spec.monitors.items():
        own = f"monitors.{name}.retrain."
        fields = (f"{own}project", f"{own}entry_point", f"{own}parameters")
        if monitor.retrain is None or not any(field.startswith(fields) for field in config):
            continue
        try:
            check_project(monitor.retrain.project, monitor.retrain.entry_point, monitor.retrain.parameters)
        except InvalidConfig as error:
            raise InvalidConfig(f"{own}{error.message}") from None
        if (folder := _project_folder(monitor.retrain.project)) is not None:
            found[fields[0]] = str(folder)
    return found


def check_project(project: str, entry_point: str, parameters: Mapping[str, Any]) -> None:
    """Check an MLflow project in a folder of this machine; a remote project is checked by its run alone.

    Args:
        parameters: of the spec, by their names.

    Raises:
        InvalidConfig: the folder is missing, is no MLflow project, or its entry point or parameters differ.
    """
    folder = _project_folder(project)
    if folder is None:
        return
    if not folder.is_dir():
        raise InvalidConfig(f"project: there is no folder {folder}; {_EXPECTED_PROJECT}")
    entries = _entry_points(folder)
    if entry_point not in entries and entry_point.endswith(_SCRIPTS) and (folder / entry_point).is_file():
        return
    if not (folder / _MLPROJECT).is_file():
        raise InvalidConfig(f"project: {folder} has no {_MLPROJECT}; {_EXPECTED_PROJECT}")
    if entry_point not in entries:
        known = ", ".join(entries) or "none"
        raise InvalidConfig(f"entry_point: the project {folder} has no entry point {entry_point!r}; it has {known}")
    declared = entries[entry_point]
    where = f"entry point {entry_point!r} of the project {folder}"
    for name in parameters:  # MLflow hands an undeclared one to the command, which fails after the rows were collected
        if declared and name not in declared:
            names = ", ".join(declared)
            raise InvalidConfig(f"parameters.{name}: {where} has no parameter {name!r}; it has {names}")
    for name, parameter in declared.items():
        has_default = isinstance(parameter, dict) and parameter.get("default") is not None
        if not has_default and name not in parameters and name not in SUPPLIED_PARAMETERS:
            raise InvalidConfig(f"parameters.{name}: {where} wants a value for it, and has no default")


def _known_columns(spec: EndpointSpec, progress: Callable[[str], None]) -> _KnownColumns | None:
    logged: list[LoggedColumns] = []
    for name, variant in spec.variants.items():
        try:
            logged.append(logged_columns(resolve(variant.model).source))
        except RegistryUnavailable as error:
            progress(f"the columns that the monitors name are not checked: {error.message}")
            return None
        except OnnxserveError as error:
            progress(f"the columns of deployment {name} are not known: {error.message}")
            return None
    if not logged or not all(one.inputs for one in logged):
        return None
    inputs = dict.fromkeys(name for one in logged for name in one.inputs)
    outputs = [one.outputs for one in logged]
    known = None if None in outputs else tuple(dict.fromkeys(name for one in outputs for name in one or ()))
    return _KnownColumns(tuple(inputs), known)


def _check_variants(spec: EndpointSpec, monitor: MonitorSpec) -> None:
    for one in monitor.requirements:
        if one.argument and one.argument not in spec.variants:
            hint = did_you_mean(one.argument, spec.variants, f"it has {', '.join(spec.variants)}")
            raise InvalidConfig(f"require: {one.text}: the endpoint has no deployment {one.argument!r}{hint}")


def _check_columns(monitor: MonitorSpec, columns: _KnownColumns) -> None:
    for field, text, name in _named_columns(monitor):
        if not columns.may_have(name):
            hint = did_you_mean(name, columns.all, f"it has {_list_names(columns.all)}")
            raise InvalidConfig(f"{field}: {text}the model has no column {name!r}{hint}")


def _named_columns(monitor: MonitorSpec) -> Iterator[tuple[str, str, str]]:
    """Yield each column that the monitor names: the field it stands in, the text before it, and its name."""
    for field in ("columns", "segment_by"):
        for name in getattr(monitor, field):
            yield field, "", name
    for one in monitor.requirements:
        if monitor.kind == "data_quality" and one.argument:
            yield "require", f"{one.text}: ", one.argument


def _check_dataset(monitor: MonitorSpec, columns: _KnownColumns | None) -> None:
    """Check that the dataset has every judged column: one that only one side has is drift in every window."""
    # here: pyarrow and scipy, which no other command of deployments needs
    from mlflow_deploy_plugin.monitoring import dataset_columns

    try:
        held = dataset_columns(monitor.reference.removeprefix(_DATASET))
    except RegistryUnavailable:
        raise
    except OnnxserveError as error:
        raise InvalidConfig(f"reference: {error.message}") from None
    judged: Sequence[str] = monitor.columns
    if not judged and columns is not None:
        judged = (columns.outputs or ()) if monitor.kind == "prediction_drift" else columns.all
    missing = [name for name in judged if not _is_among(name, held)]
    if not missing:
        return
    uri = monitor.reference
    if all(_is_answer(name) for name in missing) and monitor.kind != "prediction_drift" and columns is not None:
        left = [name for name in (monitor.columns or columns.inputs) if name not in missing]
        raise InvalidConfig(
            f"reference: {uri} has no column {_list_names(missing)}, which holds what the model answers: add it (the "
            f"model's answers to these rows), or judge the others alone: columns={','.join(left)}"
        )
    raise InvalidConfig(
        f"reference: {uri} has no column {_list_names(missing)} to compare with; it has {_list_names(held)}"
    )


def _is_among(name: str, known: Sequence[str]) -> bool:
    """Return True if it is one of them, or one is a part of a vector that the other is."""
    return any(name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in known)


def _is_answer(name: str) -> bool:
    return name.partition(".")[0] in ("prediction", "output")


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _project_folder(project: str) -> Path | None:
    """Return the folder of a project (`FOLDER#BELOW` is the one below); None if it is not on this machine's disk."""
    place, _, below = project.partition("#")
    if place.startswith(_FILE):
        place = place.removeprefix(_FILE)
    elif _URI.match(place):
        return None
    return Path(place).expanduser().absolute() / below


def _entry_points(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the parameters of each entry point, as the project declares them."""
    try:
        document = yaml.safe_load((folder / _MLPROJECT).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())[:200]
        raise InvalidConfig(f"project: {folder / _MLPROJECT} cannot be read: {text}") from None
    entries = document.get("entry_points") if isinstance(document, dict) else None
    found: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        parameters = entry.get("parameters") if isinstance(entry, dict) else None
        found[str(name)] = (
            {str(key): value for key, value in parameters.items()} if isinstance(parameters, dict) else {}
        )
    return found
