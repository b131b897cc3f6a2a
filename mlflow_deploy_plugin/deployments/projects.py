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


def check_project(project: str, entry_point: str) -> None:
    """Looks at a project in a folder; of one elsewhere only its run can tell.

    Raises:
        InvalidConfig: there is no such folder, it is no MLflow project, or has no such entry point.
    """
    folder = _folder(project)
    if folder is None:
        return
    if not folder.is_dir():
        raise InvalidConfig(f"project: there is no folder {folder}; {_WANTED}")
    entries = _entry_points(folder)
    if entry_point in entries or (entry_point.endswith(_SCRIPTS) and (folder / entry_point).is_file()):
        return
    if not (folder / _MLPROJECT).is_file():
        raise InvalidConfig(f"project: {folder} has no {_MLPROJECT}; {_WANTED}")
    known = ", ".join(entries) or "none"
    raise InvalidConfig(f"entry_point: the project {folder} has no entry point {entry_point!r}; it has {known}")


def whole_projects(spec: EndpointSpec, config: Mapping[str, Any]) -> dict[str, str]:
    """The projects of monitors that `config` speaks of, by their fields: a folder by its whole path, since the
    controller does not run where the command is typed.

    Raises:
        InvalidConfig: as `check_project`, naming the monitor.
    """
    found = {}
    for name, monitor in spec.monitors.items():
        fields = [f"monitors.{name}.retrain.project", f"monitors.{name}.retrain.entry_point"]
        if monitor.retrain is None or not any(field in config for field in fields):
            continue
        try:
            check_project(monitor.retrain.project, monitor.retrain.entry_point)
        except InvalidConfig as error:
            raise InvalidConfig(f"monitors.{name}.retrain.{error.message}") from None
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


def _entry_points(folder: Path) -> list[str]:
    try:
        document = yaml.safe_load((folder / _MLPROJECT).read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())[:200]
        raise InvalidConfig(f"project: {folder / _MLPROJECT} cannot be read: {text}") from None
    entries = document.get("entry_points") if isinstance(document, dict) else None
    return [str(name) for name in entries] if isinstance(entries, dict) else []
