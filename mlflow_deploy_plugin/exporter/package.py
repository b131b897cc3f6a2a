"""A wheel with the graph inside: `pip install flight_delay-3-py3-none-any.whl`, `flight_delay.predict(rows)`.

https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

import base64
import hashlib
import keyword
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from mlflow_deploy_plugin.errors import InvalidConfig

PYTHON = "3.11"
REQUIREMENTS = ("onnxruntime>=1.28", "numpy>=1.26")
"""An export needs the ONNX Runtime of setup.cfg, which says why, and a Python that it has wheels for."""

_INIT = '''"""{docstring}

    import {package}
    {package}.predict(rows)         # a frame, a dict of columns, a list of records, or an array
    {package}.outputs(rows)         # every output of the graph by its name
"""

from functools import cache
from typing import Any

from {package}._runner import Model

__all__ = ["Model", "__version__", "classes", "columns", "outputs", "predict"]
__version__ = "{version}"


@cache
def model() -> Model:
    """Return the model, loaded on first use with as many threads as there are cores."""
    return Model()


def predict(rows: Any) -> Any:
    """Return what the model's `predict` answers; see `Model.predict`."""
    return model().predict(rows)


def outputs(rows: Any) -> dict[str, Any]:
    """Return every output of the graph by its name."""
    return model().outputs(rows)


def classes() -> list[Any]:
    """Return the labels in the order of the columns of the probabilities."""
    return model().classes


def columns() -> list[str]:
    """Return the columns that the model takes, in their order."""
    return model().columns
'''
_METADATA = """Metadata-Version: 2.1
Name: {distribution}
Version: {version}
Summary: {summary}
Requires-Python: >={python}
{requirements}"""
_WHEEL = "Wheel-Version: 1.0\nGenerator: onnxserve\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""The date of every file in the wheel: the same version gives the same bytes."""


def write_wheel(
    folder: Path, graph: Path, runner: Path, described: Mapping[str, Any], name: str | None
) -> tuple[Path, Path]:
    """Write the wheel into the folder, and its package as it will be installed beside it.

    Args:
        name: of the distribution and the package; None: the model's.

    Returns:
        The wheel, and the runner in the unpacked package.

    Raises:
        InvalidConfig: the name cannot be that of a Python package.
    """
    package = re.sub(r"\W+", "_", name or described["name"], flags=re.ASCII).strip("_").lower()
    taken = {"numpy", "onnxruntime", *keyword.kwlist, *sys.stdlib_module_names}
    if not package.isidentifier() or package in taken:
        raise InvalidConfig(f"{name or described['name']!r} makes no name of a Python package; say another (--name)")
    version = wheel_version(described["version"])
    summary = f"The model {described['name']}, version {described['version']}."
    docstring = summary.replace("\\", r"\\").replace('"', r"\"")
    distinfo = f"{package}-{version}.dist-info"
    texts = {"package": package, "version": version, "summary": summary, "distribution": package.replace("_", "-")}
    files = {
        f"{package}/__init__.py": _INIT.format(**texts, docstring=docstring).encode(),
        f"{package}/__main__.py": f"from {package}._runner import main\n\nmain()\n".encode(),
        f"{package}/_runner.py": runner.read_bytes(),
        f"{package}/py.typed": b"",
        f"{package}/{graph.name}": graph.read_bytes(),
        f"{distinfo}/METADATA": _METADATA.format(
            **texts, python=PYTHON, requirements="".join(f"Requires-Dist: {one}\n" for one in REQUIREMENTS)
        ).encode(),
        f"{distinfo}/WHEEL": _WHEEL.encode(),
    }
    lines = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}\n")
    files[f"{distinfo}/RECORD"] = "".join([*lines, f"{distinfo}/RECORD,,\n"]).encode()
    folder.mkdir()
    wheel = folder / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path, _FIRST_DATE), content, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return wheel, folder / "installed" / package / "_runner.py"


def wheel_version(version: str) -> str:
    """Return a model's version as pip takes it (PEP 440): "3", or "0+m.1f2e" for the id of a model."""
    try:
        return str(Version(version))
    except InvalidVersion:
        return f"0+{'.'.join(re.findall('[a-z0-9]+', version.lower())) or 'unknown'}"
