"""Build the desktop program of a version with PyInstaller, for the operating system and the CPU of this machine."""

import json
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy_plugin.desktop import FACTS, MODEL
from mlflow_deploy_plugin.errors import CommandFailed, ConversionError, NotInstalled
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.processes.child import run_to_end
from mlflow_deploy_plugin.runtime import Artifact
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.version import __version__

_SECONDS = 1800
_PACKAGE = Path(__file__).parents[1]
_ROOMS = ("processes", "protocols", "registry", "runtime", "server", "spec", "spool", "statedir", "tabular")
"""The rooms of the program, whose modules `lazy_loader` imports by name. PyInstaller cannot find these imports."""
_LIBRARIES = {
    *(
        "annotated_types",
        "blinker",
        "click",
        "cronsim",
        "csimdjson",
        "deprecated",
        "ecs_logging",
        "et_xmlfile",
        "flask",
    ),
    *("h11", "itsdangerous", "jinja2", "lazy_loader", "limits", "markupsafe", "mlflow_deploy_plugin", "numpy"),
    *("onnxruntime", "openpyxl", "orjson", "packaging", "prometheus_client", "psutil", "pydantic", "pydantic_core"),
    *(
        "simdjson",
        "typing_extensions",
        "typing_inspection",
        "uvicorn",
        "werkzeug",
        "wrapt",
        "yaml",
        "_yaml",
        "zstandard",
    ),
}
"""The installed libraries that the program imports. All others, such as mlflow, would only add gigabytes."""


def program_name(name: str) -> str:
    """Return the file name of the program of a model."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "model"


def require_builder() -> None:
    """Raise NotInstalled if PyInstaller, openpyxl or tkinter is missing."""
    for module, remedy in (
        ("PyInstaller", "pip install 'mlflow-onnxserve[desktop]'"),
        ("openpyxl", "pip install 'mlflow-onnxserve[desktop]'"),
        ("_tkinter", "install tkinter for this Python (Debian: apt-get install python3-tk)"),
    ):
        if find_spec(module) is None:
            raise NotInstalled(f"a desktop program needs {module.strip('_')}: {remedy}")


def write_desktop(artifact: Artifact, described: Mapping[str, Any], folder: Path, progress: ProgressCallback) -> Path:
    """Build the program, and return its folder, in which the executable has the folder's name. Raises ConversionError."""
    name, data = program_name(described["name"]), folder / "data"
    # The reference sample contains rows of the training data, which the program does not need.
    shutil.copytree(artifact.folder, data / MODEL, ignore=shutil.ignore_patterns(artifact.reference or ""))
    facts = {name: str(described[name]) for name in ("name", "version", "source", "run_id", "parity")}
    facts |= {name: str(value) for name, value in artifact.provenance.items()}
    facts |= {"onnxserve": __version__, "platform": f"{platform.system()} {platform.machine()}"}
    (data / FACTS).write_text(json.dumps({name.replace("_", " "): fact for name, fact in facts.items() if fact}))
    unused = [name for name in packages_distributions() if name.isidentifier() and name not in _LIBRARIES]
    options = {
        "--add-data": [f"{data / MODEL}:{MODEL}", f"{data / FACTS}:."],
        "--collect-data": ["mlflow_deploy_plugin"],
        "--collect-submodules": [f"mlflow_deploy_plugin.{room}" for room in _ROOMS],
        "--exclude-module": [*sorted(unused), "zstandard._cffi"],
        "--paths": [_PACKAGE.parent],
        "--name": [name],
        **{f"--{kind}path": [folder / kind] for kind in ("dist", "work", "spec")},
    }
    arguments = [f"{option}={value}" for option, values in options.items() for value in values]
    command = ["env", f"PYINSTALLER_CONFIG_DIR={folder / 'config'}", sys.executable, "-m", "PyInstaller", *arguments]
    progress("building the program with PyInstaller, which takes up to a minute")
    try:
        run_to_end([*command, "--log-level=ERROR", str(_PACKAGE / "desktop" / "program.py")], _SECONDS)
    except CommandFailed as error:
        raise ConversionError(f"PyInstaller cannot build the program: {error.message}") from None
    return folder / "dist" / name


def run_desktop(
    program: Path, artifact: Artifact, feeds: Mapping[str, Array], progress: ProgressCallback
) -> dict[str, Array]:
    """Return the outputs of a built program for feeds, from a process without environment variables.

    Report the size and the start time. Raises ConversionError if the program cannot start.
    """
    rows, outputs = program.with_name("rows.npz"), program.with_name("outputs.npz")
    np.savez(rows, *plain_arrays(feeds[entry.name] for entry in artifact.inputs))
    started = time.monotonic()
    try:
        run_to_end(["env", "-i", str(program / program.name), "--check", str(rows), str(outputs)], _SECONDS)
    except CommandFailed as error:
        raise ConversionError(f"the program cannot start and was discarded: {error.message}") from None
    size = sum(file.stat().st_size for file in program.rglob("*") if not file.is_symlink())
    progress(f"{program.name}: {size / 1e6:,.0f} MB, starts in {time.monotonic() - started:.1f} s")
    with np.load(outputs) as arrays:
        return dict(zip([output.name for output in artifact.outputs], arrays.values(), strict=True))


def plain_arrays(arrays: Iterable[Array]) -> list[Array]:
    """Return arrays of texts instead of objects, so that files of arrays need no pickles."""
    return [array.astype(str) if array.dtype == object else array for array in arrays]
