"""Build the desktop program of a version with PyInstaller, for the operating system and
the CPU of this machine.
"""

import json
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.core.errors import CommandFailed, ConversionError, NotInstalled
from mlflow_deploy_plugin.core.processes.child import run_to_end
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.wrap.desktop import FACTS, MODEL

_SECONDS = 1800
_NAME = "predict"
_PACKAGE = Path(__file__).parents[2]
_LIBRARIES = {
    "_yaml",
    "annotated_types",
    "blinker",
    "click",
    "cronsim",
    "csimdjson",
    "deprecated",
    "ecs_logging",
    "et_xmlfile",
    "flask",
    "h11",
    "itsdangerous",
    "jinja2",
    "limits",
    "markupsafe",
    "mlflow_deploy_plugin",
    "numpy",
    "onnxruntime",
    "openpyxl",
    "orjson",
    "packaging",
    "prometheus_client",
    "psutil",
    "pydantic",
    "pydantic_core",
    "simdjson",
    "typing_extensions",
    "typing_inspection",
    "uvicorn",
    "werkzeug",
    "wrapt",
    "yaml",
    "zstandard",
}
"""The libraries that the program imports. The other installed libraries would add up to
gigabytes.
"""


def write_desktop(
    artifact: Artifact,
    described: Mapping[str, Any],
    folder: Path,
) -> Path:
    """Build the program, and return its executable, which needs the other files of its
    folder.

    Raises:
        NotInstalled: PyInstaller, openpyxl or tkinter is missing.
        ConversionError: PyInstaller fails.
    """
    _check_installed()
    data = folder / "data"
    # The reference sample has rows of the training data, which are not given away.
    shutil.copytree(
        artifact.folder,
        data / MODEL,
        ignore=shutil.ignore_patterns(Path(artifact.reference or "").name),
    )
    (data / FACTS).write_text(json.dumps(_facts(artifact, described)))
    try:
        run_to_end(_command(folder, data), _SECONDS)
    except CommandFailed as error:
        raise ConversionError(f"the program cannot be built: {error.message}") from None
    return folder / "dist" / _NAME / _NAME


def _check_installed() -> None:
    """Raise NotInstalled if PyInstaller, openpyxl or tkinter is missing."""
    needed = ("PyInstaller", "openpyxl", "_tkinter")
    missing = [name.strip("_") for name in needed if find_spec(name) is None]
    if missing:
        remedy = (
            "pip install 'mlflow-onnxserve[desktop]', and for tkinter the Debian package python3-tk"
        )
        raise NotInstalled(f"a desktop program needs {', '.join(missing)}: {remedy}")


def _facts(
    artifact: Artifact,
    described: Mapping[str, Any],
) -> dict[str, str]:
    """Return the texts of the page "About" by name."""
    facts = {key: described[key] for key in ("name", "version", "source", "run_id", "parity")}
    facts |= artifact.provenance
    facts |= {"onnxserve": __version__, "platform": f"{platform.system()} {platform.machine()}"}
    return {key.replace("_", " "): str(fact) for key, fact in facts.items() if fact}


def _command(folder: Path, data: Path) -> list[str]:
    """Return the command of PyInstaller, which writes to `folder` and packs `data`."""
    options = {
        "name": _NAME,
        "add-data": f"{data}:.",
        "paths": _PACKAGE.parent,
        "log-level": "ERROR",
        **{f"{kind}path": folder / kind for kind in ("dist", "work", "spec")},
        # PyInstaller cannot find modules that are imported by a name in a text.
        "collect-all": _PACKAGE.name,
    }
    unused = packages_distributions().keys() - _LIBRARIES - sys.stdlib_module_names
    unused.add("zstandard._cffi")
    return [
        "env",
        f"PYINSTALLER_CONFIG_DIR={folder / 'config'}",
        sys.executable,
        "-m",
        "PyInstaller",
        *(f"--{option}={value}" for option, value in options.items()),
        *(f"--exclude-module={module}" for module in unused),
        str(_PACKAGE / "wrap" / "desktop" / "program.py"),
    ]
