"""Build the desktop program of a version with PyInstaller, for the operating system and
the CPU of this machine.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.contrib.edge.desktop_program import FACTS, MODEL
from mlflow_deploy_plugin.core.errors import CommandFailed, ConversionError, NotInstalled
from mlflow_deploy_plugin.core.processes.child import run_to_end
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact

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
    "flask",
    "itsdangerous",
    "jinja2",
    "limits",
    "markupsafe",
    "mlflow_deploy_plugin",
    "numpy",
    "onnxruntime",
    "orjson",
    "packaging",
    "prometheus_client",
    "psutil",
    "pydantic",
    "pydantic_core",
    "simdjson",
    "typing_extensions",
    "typing_inspection",
    "werkzeug",
    "wrapt",
    "yaml",
    "zstandard",
}
"""The libraries that the program imports. The other installed libraries would add up to
gigabytes.
"""
_UNUSED_MODULES = ("zstandard._cffi", "tkinter")


def write_desktop(artifact: Artifact, described: Mapping[str, Any], folder: Path) -> Path:
    """Build the program, and return its executable, which needs the other files of its
    folder. Raises NotInstalled without PyInstaller, and ConversionError if it fails.
    """
    if find_spec("PyInstaller") is None:
        raise NotInstalled(
            "a desktop program needs PyInstaller: pip install 'mlflow-onnxserve[desktop]'"
        )
    data = folder / "data"
    # The reference sample has rows of the training data, which are not given away.
    shutil.copytree(
        artifact.folder,
        data / MODEL,
        ignore=shutil.ignore_patterns(Path(artifact.reference or "").name),
    )
    facts = {"name": described["name"], "version": described["version"]}
    (data / FACTS).write_text(json.dumps(facts))
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
    command = [
        "env",
        f"PYINSTALLER_CONFIG_DIR={folder / 'config'}",
        sys.executable,
        "-m",
        "PyInstaller",
        *(f"--{option}={value}" for option, value in options.items()),
        *(f"--exclude-module={module}" for module in (*unused, *_UNUSED_MODULES)),
        str(Path(__file__).with_name("desktop_program.py")),
    ]
    try:
        run_to_end(command, _SECONDS)
    except CommandFailed as error:
        raise ConversionError(f"the program cannot be built: {error.message}") from None
    return folder / "dist" / _NAME / _NAME
