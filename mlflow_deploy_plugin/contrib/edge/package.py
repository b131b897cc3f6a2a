"""Package a graph and its runner as a wheel, or as a bundle for offline machines
(docs/export.md).

Wheel format:
https://packaging.python.org/en/latest/specifications/binary-distribution-format/.
"""

import base64
import hashlib
import json
import keyword
import math
import platform
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from string import Template

import numpy as np
import yaml
from packaging.version import InvalidVersion, Version

from mlflow_deploy_plugin.core.errors import CommandFailed, ConversionError, InvalidConfig
from mlflow_deploy_plugin.core.processes.child import run_to_end
from mlflow_deploy_plugin.core.settings import absolute_path
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime
from mlflow_deploy_plugin.wrap.exporter.exporting import RUNNER, Description

_PYTHON = "3.11"
REQUIREMENTS = ("onnxruntime>=1.29", "numpy>=1.26")
"""The requirements of an export. setup.cfg gives the reason for the ONNX Runtime
version.
"""

_INIT = '''"""{docstring}

    import {package}
    {package}.predict(rows)         # a DataFrame, a dict of columns, a list of records, or an array
    {package}.outputs(rows)         # all outputs of the graph by name
"""

from functools import cache
from typing import Any

from {package}._runner import Model

__all__ = ["Model", "__version__", "classes", "columns", "outputs", "predict"]
__version__ = "{version}"


@cache
def model() -> Model:
    """Return the model. It is loaded on first use, with one thread per core."""
    return Model()


def predict(rows: Any) -> Any:
    """Return the predictions of the model; see `Model.predict`."""
    return model().predict(rows)


def outputs(rows: Any) -> dict[str, Any]:
    """Return all outputs of the graph by name."""
    return model().outputs(rows)


def classes() -> list[Any]:
    """Return the labels in the order of the probability columns."""
    return model().classes


def columns() -> list[str]:
    """Return the input columns of the model in order."""
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
"""The date of all files in the wheel, so that the same version yields the same bytes.
"""
_TEMPLATES = Path(__file__).with_name("templates")
_DOWNLOAD_SECONDS = 600
_CPP_TYPES = {"float32": "float", "float64": "double", "bool": "bool", "object": "std::string"}
_CPP_TYPES |= {
    name: f"{name}_t"
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
"""The C++ type for each numpy dtype. Standard C++ has no half-precision float."""
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def write_wheel(
    folder: Path, graph: Path, described: Description, name: str | None
) -> tuple[Path, Path]:
    """Write the wheel, and return its path and its unpacked runner. Raises
    InvalidConfig for an invalid name.
    """
    title = name or described["name"]
    package = re.sub(r"\W+", "_", title, flags=re.ASCII).strip("_").lower()
    reserved = {"numpy", "onnxruntime", *keyword.kwlist, *sys.stdlib_module_names}
    if not package.isidentifier() or package in reserved:
        raise InvalidConfig(f"{title!r} is not a valid name of a Python package; set --name")
    version = wheel_version(described["version"])
    files = _wheel_files(package, version, graph, described)
    folder.mkdir()
    wheel = folder / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path, _FIRST_DATE), content, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return wheel, folder / "installed" / package / "_runner.py"


def _wheel_files(
    package: str, version: str, graph: Path, described: Description
) -> dict[str, bytes]:
    """Return the content of the wheel by path."""
    distinfo = f"{package}-{version}.dist-info"
    summary = f"The model {described['name']}, version {described['version']}."
    texts = {
        "package": package,
        "version": version,
        "summary": summary,
        "docstring": summary.replace("\\", r"\\").replace('"', r"\""),
        "distribution": package.replace("_", "-"),
        "python": _PYTHON,
        "requirements": "".join(f"Requires-Dist: {line}\n" for line in REQUIREMENTS),
    }
    files = {
        f"{package}/__init__.py": _INIT.format(**texts).encode(),
        f"{package}/__main__.py": f"from {package}._runner import main\n\nmain()\n".encode(),
        f"{package}/_runner.py": RUNNER.read_bytes(),
        f"{package}/py.typed": b"",
        f"{package}/{graph.name}": graph.read_bytes(),
        f"{distinfo}/METADATA": _METADATA.format(**texts).encode(),
        f"{distinfo}/WHEEL": _WHEEL.encode(),
    }
    lines = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
        text = digest.rstrip(b"=").decode()
        lines.append(f"{path},sha256={text},{len(content)}\n")
    files[f"{distinfo}/RECORD"] = "".join([*lines, f"{distinfo}/RECORD,,\n"]).encode()
    return files


def wheel_version(version: str) -> str:
    """Return a model's version in the format of PEP 440: "3", or "0+m.1f2e" for a model
    id.
    """
    try:
        return str(Version(version))
    except InvalidVersion:
        words = re.findall("[a-z0-9]+", version.lower())
        label = ".".join(words) or "unknown"
        return f"0+{label}"


def write_bundle(
    folder: Path,
    graph: Path,
    described: Description,
    example: Mapping[str, Array],
    wheels: Path | str | None,
    download_wheels: bool,
    has_environment: bool = False,
) -> None:
    """Write the bundle to the folder.

    Args:
        folder: the new folder.
        graph: the ONNX file.
        described: the metadata of the model.
        example: one row of the inputs by name.
        wheels: a folder of wheels that are added to the bundle, or None.
        download_wheels: True to download the wheels of onnxruntime and numpy for this
            machine.
        has_environment: True to add an environment.yml for conda, with the versions of
            this Python environment.

    Raises:
        InvalidConfig: the folder `wheels` has no wheels.
        ConversionError: pip fails, or an input type is unsupported.
    """
    (folder / "examples").mkdir(parents=True)
    shutil.copy(graph, folder / graph.name)
    shutil.copy(RUNNER, folder / "predict.py")
    has_wheels = wheels is not None or download_wheels
    if has_wheels:
        (folder / "wheels").mkdir()
    if wheels is not None:
        wheel_files = sorted(absolute_path(wheels).glob("*.whl"))
        if not wheel_files:
            raise InvalidConfig(f"{wheels} contains no wheels (*.whl)")
        for wheel in wheel_files:
            shutil.copy(wheel, folder / "wheels")
    if download_wheels:
        try:
            run_to_end(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--only-binary",
                    ":all:",
                    "--dest",
                    str(folder / "wheels"),
                    *REQUIREMENTS,
                ],
                _DOWNLOAD_SECONDS,
            )
        except CommandFailed as error:
            raise ConversionError(
                f"pip cannot download onnxruntime and numpy: {error.message}; use a folder of "
                "wheels (--wheels)"
            ) from None
    (folder / "example.json").write_text(
        json.dumps({name: _json_tensor(name, array) for name, array in example.items()}, indent=1)
    )
    texts = _template_texts(graph, described, example)
    if has_environment:
        name = re.sub(r"[^\w.-]", "-", f"{described['name']}-{described['version']}")
        content = {
            "name": name,
            "channels": ["conda-forge"],
            "dependencies": [
                f"python={platform.python_version()}",
                *(f"pip={pip.version}" for pip in distributions(name="pip")),
                {
                    "pip": [
                        f"onnxruntime=={import_onnxruntime().__version__}",
                        f"numpy=={np.__version__}",
                    ]
                },
            ],
        }
        (folder / "environment.yml").write_text(yaml.safe_dump(content, sort_keys=False))
        texts["install"] = f"conda env create -f environment.yml\nconda activate {name}"
    else:
        words = ["pip install"]
        if has_wheels:
            words.append("--no-index --find-links wheels")
        words += [f"'{requirement}'" for requirement in REQUIREMENTS]
        texts["install"] = " ".join(words)
    for template in sorted(_TEMPLATES.iterdir()):
        directory = folder if template.suffix == ".md" else folder / "examples"
        (directory / template.name).write_text(Template(template.read_text()).substitute(texts))


def _json_tensor(name: str, array: Array) -> dict[str, object]:
    """Return an example input with the type name in JavaScript. Raises ConversionError
    if the type is unsupported.
    """
    dtype = array.dtype.name
    if dtype not in _CPP_TYPES:
        raise ConversionError(
            f"the input {name!r} is a {dtype}, which the bundle's examples do not support"
        )
    data = []
    for value in array.reshape(-1).tolist():
        if isinstance(value, float):  # JSON has no NaN or infinity, so write strings.
            data.append(_NOT_FINITE.get(str(value), value))
        else:
            data.append(value)
    kind = "string" if dtype == "object" else dtype
    return {"type": kind, "dims": array.shape, "data": data}


def _template_texts(
    graph: Path, described: Description, example: Mapping[str, Array]
) -> dict[str, str]:
    """Return the texts of the templates except `install`."""
    outputs = [output["name"] for output in described["outputs"]]
    columns = [f"`{column['name']}` ({column['type']})" for column in described["columns"]]
    tensors = []
    for tensor in described["tensors"]:
        label = tensor["name"] or "the tensor"
        tensors.append(f"`{label}` ({tensor['dtype']} {tensor['shape']})")
    return {
        "name": described["name"],
        "version": described["version"],
        "graph": graph.name,
        "inputs": "\n".join(_cpp_input(name, array) for name, array in example.items()),
        "output_names": ", ".join(json.dumps(name) for name in outputs),
        "columns": ", ".join(columns or tensors),
        "outputs": ", ".join(f"`{name}`" for name in outputs),
        "python": _PYTHON,
    }


def _cpp_input(name: str, array: Array) -> str:
    """Return the line of C++ code that adds an input."""
    kind = _CPP_TYPES[array.dtype.name]
    values = []
    for value in array.reshape(-1).tolist():
        if isinstance(value, float) and not math.isfinite(value):
            limit = "quiet_NaN" if math.isnan(value) else "infinity"
            sign = "-" if value < 0 else ""
            values.append(f"{sign}std::numeric_limits<{kind}>::{limit}()")
        elif kind == "float":
            values.append(f"{value!r}f")
        else:
            values.append(json.dumps(value, ensure_ascii=False))
    shape = ", ".join(map(str, array.shape))
    content = ", ".join(values)
    return f"  add_input<{kind}>(inputs, {json.dumps(name)}, {{{content}}}, {{{shape}}});"
