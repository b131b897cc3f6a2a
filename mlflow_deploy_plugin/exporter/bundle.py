"""A folder for machines without network: the model, a runner in Python, wheels, and examples in C++ and JavaScript.

model.onnx               the graph, with what the runner knows of it in its metadata
predict.py               `python predict.py rows.csv`, and `from predict import Model`
example.json             a row as the graph takes it
wheels/                  of onnxruntime and numpy, if they were asked for
examples/predict.cpp     the same row by ONNX Runtime's C++ API
examples/predict.mjs     the same row by onnxruntime-node
README.md                how to use them
"""

import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from mlflow_deploy_plugin.errors import CommandFailed, ConversionError, InvalidConfig
from mlflow_deploy_plugin.exporter.package import PYTHON, REQUIREMENTS
from mlflow_deploy_plugin.processes import run_to_end
from mlflow_deploy_plugin.runtime import Array
from mlflow_deploy_plugin.settings import absolute_path

_TEMPLATES = Path(__file__).with_name("templates")
_DOWNLOAD_SECONDS = 600
_CPP_TYPES = {"float32": "float", "float64": "double", "bool": "bool", "object": "std::string"}
_CPP_TYPES |= {f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)}
"""numpy's dtype → the type in C++. Half-precision floats have none."""
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def write_bundle(
    folder: Path,
    graph: Path,
    runner: Path,
    described: Mapping[str, Any],
    example: Mapping[str, Array],
    wheels: Path | str | None,
    download_wheels: bool,
) -> Path:
    """Write the bundle into the folder, and return it.

    Args:
        example: a row as the graph takes it.
        wheels: a folder whose wheels are copied.
        download_wheels: have pip fetch those of onnxruntime and numpy for this machine's Python.

    Raises:
        InvalidConfig: the folder has no wheels.
        ConversionError: pip cannot fetch them, or an input has a type that the examples cannot write.
    """
    (folder / "examples").mkdir(parents=True)
    shutil.copy(graph, folder / graph.name)
    shutil.copy(runner, folder / "predict.py")
    if wheels is not None or download_wheels:
        _add_wheels(folder / "wheels", wheels, download_wheels)
    document = {}
    for name, array in example.items():
        dtype = array.dtype.name
        if dtype not in _CPP_TYPES:
            raise ConversionError(f"the input {name!r} is a {dtype}, which the bundle's examples cannot write")
        kind = "string" if dtype == "object" else dtype  # as JavaScript has it
        data = array.reshape(-1).tolist()  # what JSON has no form for as the text that JavaScript reads
        data = [_NOT_FINITE.get(str(value), value) if isinstance(value, float) else value for value in data]
        document[name] = {"type": kind, "dims": array.shape, "data": data}
    (folder / "example.json").write_text(json.dumps(document, indent=1))
    outputs = [output["name"] for output in described["outputs"]]
    columns = [f"`{one['name']}` ({one['type']})" for one in described["columns"]]
    tensors = [f"`{one['name'] or 'the tensor'}` ({one['dtype']} {one['shape']})" for one in described["tensors"]]
    texts = {
        "name": described["name"],
        "version": described["version"],
        "graph": graph.name,
        "inputs": "\n".join(_cpp_input(name, array) for name, array in example.items()),
        "output_names": ", ".join(json.dumps(name) for name in outputs),
        "columns": ", ".join(columns or tensors),
        "outputs": ", ".join(f"`{name}`" for name in outputs),
        "python": PYTHON,
        "install": " ".join(
            [
                "pip install",
                *(["--no-index --find-links wheels"] if (folder / "wheels").exists() else []),
                *(f"'{one}'" for one in REQUIREMENTS),
            ]
        ),
    }
    for template in sorted(_TEMPLATES.iterdir()):
        place = folder if template.suffix == ".md" else folder / "examples"
        (place / template.name).write_text(Template(template.read_text()).substitute(texts))
    return folder


def _add_wheels(folder: Path, wheels: Path | str | None, download: bool) -> None:
    folder.mkdir()
    if wheels is not None:
        found = sorted(absolute_path(wheels).glob("*.whl"))
        if not found:
            raise InvalidConfig(f"{wheels} holds no wheels (*.whl)")
        for wheel in found:
            shutil.copy(wheel, folder)
    if download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(folder)]
        try:
            run_to_end([*command, *REQUIREMENTS], _DOWNLOAD_SECONDS)
        except CommandFailed as error:
            reason = f"pip cannot fetch onnxruntime and numpy: {error.message}; name a folder (--wheels)"
            raise ConversionError(reason) from None


def _cpp_input(name: str, array: Array) -> str:
    """Return the line of C++ that adds one input."""
    kind = _CPP_TYPES[array.dtype.name]
    values = []
    for value in array.reshape(-1).tolist():
        if isinstance(value, float) and not math.isfinite(value):
            limit = "quiet_NaN" if math.isnan(value) else "infinity"
            values.append(f"{'-' if value < 0 else ''}std::numeric_limits<{kind}>::{limit}()")
        else:
            values.append(f"{value!r}f" if kind == "float" else json.dumps(value, ensure_ascii=False))
    shape = ", ".join(map(str, array.shape))
    return f"  add_input<{kind}>(inputs, {json.dumps(name)}, {{{', '.join(values)}}}, {{{shape}}});"
