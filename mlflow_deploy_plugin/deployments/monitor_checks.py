"""Monitors, checked when they are written: their references, and the columns that they name.

A slip of the pen would be found with the first window, a day later, and in a report that nobody is told of. The model's
columns are asked of the registry (its MLmodel file alone). Where nobody can say them, as of a pyfunc's answers or while
MLflow is down, a name passes.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.nearest import did_you_mean
from mlflow_deploy_plugin.registry import LoggedColumns, logged_columns, resolve
from mlflow_deploy_plugin.spec import EndpointSpec, MonitorSpec

_DATASET = "dataset:"
_KINDS_WITH_REFERENCE = ("drift", "prediction_drift", "data_quality")
_OWN_PREFIX = "_"
_MAX_LISTED = 10


def absolute_datasets(spec: EndpointSpec, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the dataset references that `config` sets, by their fields, each path made absolute: the controller does
    not run where the command is typed.
    """
    found = {}
    for name, monitor in spec.monitors.items():
        field = f"monitors.{name}.reference"
        uri = monitor.reference.removeprefix(_DATASET)
        if field in config and monitor.reference.startswith(_DATASET) and not urlparse(uri).scheme:
            found[field] = f"{_DATASET}{Path(uri).expanduser().absolute()}"
    return found


def check_monitors(spec: EndpointSpec, config: Mapping[str, Any], progress: Callable[[str], None]) -> None:
    """Check the monitors that `config` changes against the models and datasets that they speak of.

    Args:
        progress: is told in one line what could not be asked.

    Raises:
        InvalidConfig: a monitor names a column or a variant that is not there, or a dataset that is missing, that
            cannot be read, or that lacks a column to be judged.
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
            _check_variants(spec, monitor)
            if columns is not None:
                _check_names(monitor, columns)
            if monitor.kind in _KINDS_WITH_REFERENCE and monitor.reference.startswith(_DATASET):
                _check_dataset(monitor, columns)
        except InvalidConfig as error:
            raise InvalidConfig(f"monitors.{name}.{error.message}") from None


@dataclass(frozen=True)
class _KnownColumns:
    """The columns that the log of an endpoint has, of all its variants.

    Attributes:
        inputs: of the signatures.
        answers: `prediction` and `output.NAME`; None: nobody says them before a request is answered.
    """

    inputs: tuple[str, ...]
    answers: tuple[str, ...] | None

    @property
    def all(self) -> tuple[str, ...]:
        return *self.inputs, *(self.answers or ())

    def has(self, name: str) -> bool:
        """Return whether the log may have a column of this name; parts of a vector count (`output.scores.0`)."""
        if name.startswith(_OWN_PREFIX) or _is_among(name, self.all):
            return True
        return self.answers is None and _is_answer(name)


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
    answers = [one.outputs for one in logged]
    known = None if None in answers else tuple(dict.fromkeys(name for one in answers for name in one or ()))
    return _KnownColumns(tuple(inputs), known)


def _check_variants(spec: EndpointSpec, monitor: MonitorSpec) -> None:
    if monitor.kind != "shadow" or not spec.variants:
        return
    for one in monitor.requirements:
        if one.of and one.of not in spec.variants:
            hint = did_you_mean(one.of, spec.variants, f"it has {', '.join(spec.variants)}")
            raise InvalidConfig(f"require: {one.text}: the endpoint has no deployment {one.of!r}{hint}")


def _check_names(monitor: MonitorSpec, columns: _KnownColumns) -> None:
    for field, text, name in _named_columns(monitor):
        if not columns.has(name):
            hint = did_you_mean(name, columns.all, f"it has {_list_names(columns.all)}")
            raise InvalidConfig(f"{field}: {text}the model has no column {name!r}{hint}")


def _named_columns(monitor: MonitorSpec) -> Iterator[tuple[str, str, str]]:
    """Yield each column that the monitor names: the field it stands in, the text before it, and its name."""
    for field in ("columns", "segment_by"):
        for name in getattr(monitor, field):
            yield field, "", name
    for one in monitor.requirements:
        if monitor.kind == "data_quality" and one.of:
            yield "require", f"{one.text}: ", one.of


def _check_dataset(monitor: MonitorSpec, columns: _KnownColumns | None) -> None:
    """A column that only one side has is drift in every window, so the dataset has to have each that is judged."""
    # here: pyarrow and scipy, which no other command of deployments needs
    from mlflow_deploy_plugin.monitoring.drift.references.dataset import dataset_columns

    try:
        held = dataset_columns(monitor.reference.removeprefix(_DATASET))
    except RegistryUnavailable:
        raise
    except OnnxserveError as error:
        raise InvalidConfig(f"reference: {error.message}") from None
    judged = monitor.columns or _judged_columns(monitor, columns)
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


def _judged_columns(monitor: MonitorSpec, columns: _KnownColumns | None) -> Sequence[str]:
    """Return the columns that are judged where `columns` names none, as far as they are known."""
    if columns is None:
        return ()
    return (columns.answers or ()) if monitor.kind == "prediction_drift" else columns.all


def _is_among(name: str, known: Sequence[str]) -> bool:
    """Return whether it is one of them, or the part of a vector of one, on either side."""
    return any(name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in known)


def _is_answer(name: str) -> bool:
    return name.partition(".")[0] in ("prediction", "output")


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


_URI = re.compile(r"[^/]*:")  # as MLflow tells a Git repository from a folder
_FILE, _MLPROJECT, _SCRIPTS = "file://", "MLproject", (".py", ".sh")
_WANTED = "wanted is the folder of an MLflow project, or a Git URI"


SUPPLIED_PARAMETERS = ("mode", "data", "base_model", "registered_model")
"""The parameters that every training is given, beside those of the spec."""


def check_project(project: str, entry_point: str, parameters: Mapping[str, Any]) -> None:
    """Looks at a project in a folder; of one elsewhere only its run can tell.

    Args:
        parameters: of the spec, by their names.

    Raises:
        InvalidConfig: there is no such folder, it is no MLflow project, has no such entry point, or other parameters.
    """
    folder = _folder(project)
    if folder is None:
        return
    if not folder.is_dir():
        raise InvalidConfig(f"project: there is no folder {folder}; {_WANTED}")
    entries = _entry_points(folder)
    if entry_point not in entries and entry_point.endswith(_SCRIPTS) and (folder / entry_point).is_file():
        return
    if not (folder / _MLPROJECT).is_file():
        raise InvalidConfig(f"project: {folder} has no {_MLPROJECT}; {_WANTED}")
    if entry_point not in entries:
        known = ", ".join(entries) or "none"
        raise InvalidConfig(f"entry_point: the project {folder} has no entry point {entry_point!r}; it has {known}")
    _check_parameters(entries[entry_point], f"entry point {entry_point!r} of the project {folder}", parameters)


def _check_parameters(known: Mapping[str, Any], where: str, said: Mapping[str, Any]) -> None:
    """MLflow hands one that is not declared on to the command, which then refuses it after the rows were collected."""
    for name in said:
        if known and name not in known:
            names = ", ".join(known)
            raise InvalidConfig(f"parameters.{name}: {where} has no parameter {name!r}; it has {names}")
    for name, declared in known.items():
        has_default = isinstance(declared, dict) and declared.get("default") is not None
        if not has_default and name not in said and name not in SUPPLIED_PARAMETERS:
            raise InvalidConfig(f"parameters.{name}: {where} wants a value for it, and has no default")


def absolute_projects(spec: EndpointSpec, config: Mapping[str, Any]) -> dict[str, str]:
    """The projects of monitors that `config` speaks of, by their fields: a folder by its whole path, since the
    controller does not run where the command is typed.

    Raises:
        InvalidConfig: as `check_project`, naming the monitor.
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
        if (folder := _folder(monitor.retrain.project)) is not None:
            found[fields[0]] = str(folder)
    return found


def _folder(project: str) -> Path | None:
    """The project's folder, of FOLDER#BELOW the one below; None: it is not on this machine's disk."""
    place, _, below = project.partition("#")
    if place.startswith(_FILE):
        place = place.removeprefix(_FILE)
    elif _URI.match(place):
        return None
    return Path(place).expanduser().absolute() / below


def _entry_points(folder: Path) -> dict[str, dict[str, Any]]:
    """Each entry point's parameters, as they are declared."""
    try:
        document = yaml.safe_load((folder / _MLPROJECT).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())[:200]
        raise InvalidConfig(f"project: {folder / _MLPROJECT} cannot be read: {text}") from None
    entries = document.get("entry_points") if isinstance(document, dict) else None
    return {str(name): _declared(entry) for name, entry in entries.items()} if isinstance(entries, dict) else {}


def _declared(entry: Any) -> dict[str, Any]:
    parameters = entry.get("parameters") if isinstance(entry, dict) else None
    return {str(name): said for name, said in parameters.items()} if isinstance(parameters, dict) else {}
