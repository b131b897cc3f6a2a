"""Build the desktop program of a version with PyInstaller, for the operating system and the CPU of this machine."""

import json
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.desktop import FACTS, MODEL
from mlflow_deploy_plugin.errors import CommandFailed, ConversionError, NotInstalled
from mlflow_deploy_plugin.processes.child import run_to_end
from mlflow_deploy_plugin.runtime import Artifact
from mlflow_deploy_plugin.version import __version__

_SECONDS = 1800
_PACKAGE = Path(__file__).parents[1]
_ROOMS = ("processes", "protocols", "registry", "runtime", "server", "spec", "spool", "statedir", "tabular")
"""The rooms of the program, whose modules `lazy_loader` imports by name. PyInstaller cannot find these imports."""
_LIBRARIES = {
    *("_yaml", "annotated_types", "blinker", "click", "cronsim", "csimdjson", "deprecated", "ecs_logging"),
    *("et_xmlfile", "flask", "h11", "itsdangerous", "jinja2", "lazy_loader", "limits", "markupsafe"),
    *("mlflow_deploy_plugin", "numpy", "onnxruntime", "openpyxl", "orjson", "packaging", "prometheus_client", "psutil"),
    *("pydantic", "pydantic_core", "simdjson", "typing_extensions", "typing_inspection", "uvicorn", "werkzeug"),
    *("wrapt", "yaml", "zstandard"),
}
"""The libraries that the program imports. The other installed libraries would add up to gigabytes."""


def program_name(name: str) -> str:
    """Return the file name of a model's program. Raises NotInstalled if PyInstaller, openpyxl or tkinter is missing."""
    extra = "pip install 'mlflow-onnxserve[desktop]'"
    needed = {"PyInstaller": extra, "openpyxl": extra, "_tkinter": "install tkinter (Debian: the package python3-tk)"}
    for module, remedy in needed.items():
        if find_spec(module) is None:
            raise NotInstalled(f"a desktop program needs {module.strip('_')}: {remedy}")
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "model"


def write_desktop(artifact: Artifact, described: Mapping[str, Any], folder: Path) -> Path:
    """Build the program, and return its executable, which needs the other files of its folder.

    Raises ConversionError if PyInstaller fails, or if the server of the program does not start.
    """
    name, data = program_name(described["name"]), folder / "data"
    # The reference sample has rows of the training data, which are not given away.
    shutil.copytree(artifact.folder, data / MODEL, ignore=shutil.ignore_patterns(Path(artifact.reference or "").name))
    facts = {key: described[key] for key in ("name", "version", "source", "run_id", "parity")} | {**artifact.provenance}
    facts |= {"onnxserve": __version__, "platform": f"{platform.system()} {platform.machine()}"}
    (data / FACTS).write_text(json.dumps({key.replace("_", " "): str(fact) for key, fact in facts.items() if fact}))
    options: dict[str, list[object]] = {
        "add-data": [f"{data / MODEL}:{MODEL}", f"{data / FACTS}:."],
        "collect-data": ["mlflow_deploy_plugin"],
        "collect-submodules": [f"mlflow_deploy_plugin.{room}" for room in _ROOMS],
        "exclude-module": [
            "zstandard._cffi",
            *(packages_distributions().keys() - _LIBRARIES - sys.stdlib_module_names),
        ],
        "paths": [_PACKAGE.parent],
        "name": [name],
        "log-level": ["ERROR"],
        **{f"{kind}path": [folder / kind] for kind in ("dist", "work", "spec")},
    }
    command = ["env", f"PYINSTALLER_CONFIG_DIR={folder / 'config'}", sys.executable, "-m", "PyInstaller"]
    command += [f"--{option}={value}" for option, values in options.items() for value in values]
    program = folder / "dist" / name / name
    try:
        run_to_end([*command, str(_PACKAGE / "desktop" / "program.py")], _SECONDS)
        run_to_end(["env", "-i", str(program), "--check-server"], _SECONDS)
    except CommandFailed as error:
        raise ConversionError(f"the program cannot be built: {error.message}") from None
    return program
