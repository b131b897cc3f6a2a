"""MLflow projects that a spec names: whether they are there, before anybody waits for a training of them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import EndpointSpec

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
