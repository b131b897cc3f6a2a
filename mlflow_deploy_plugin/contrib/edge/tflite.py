"""Write TensorFlow Lite with onnx2tf. Its pinned packages are installed in a separate
environment on first use.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import CommandFailed, ConversionError
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.processes.child import run_to_end
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.statedir.files import build_once

if TYPE_CHECKING:
    import onnx

LITERT = Path(__file__).with_name("litert.py")
_REQUIREMENTS = Path(__file__).with_name("tflite-requirements.txt")
_PROGRAM = "bin/python"
_SIZE = "310 MB"
_INSTALL_SECONDS = 1800
_CONVERSION_SECONDS = 600
# onnx2tf declares Python 3.12 as its minimum, but it also runs on 3.11.
_PIP = (
    "-m",
    "pip",
    "--disable-pip-version-check",
    "--no-input",
    "--retries",
    "1",
    "install",
    "--quiet",
)
_PIP_OPTIONS = (
    "--no-deps",
    "--ignore-requires-python",
    "--only-binary",
    ":all:",
    "--no-cache-dir",
    "--no-compile",
)


def refuse_unconvertible(graph: Path) -> None:
    """Raise ConversionError for string inputs or outputs and for operators outside
    ONNX's default domain.
    """
    import onnx  # Importing onnx is slow.

    model = onnx.load(str(graph), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            raise ConversionError(
                f"cannot export tflite, because {value.name!r} contains strings, which tflite "
                "does not support"
            )
    for node in _nodes(model.graph):
        if node.domain not in ("", "ai.onnx"):
            raise ConversionError(
                f"cannot export tflite, because operator {node.op_type} ({node.domain}) is not "
                "supported: tflite is for neural networks; export trees, linear models and text "
                "models as onnx, ort, wheel or bundle"
            )


def _nodes(graph: "onnx.GraphProto") -> Iterator["onnx.NodeProto"]:
    """Yield the nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def converter_python(progress: ProgressCallback) -> Path:
    """Return the Python of the converter's environment, created on first use. Raises
    ConversionError if it cannot be created.
    """
    identity = _REQUIREMENTS.read_bytes() + f"{sys.base_prefix} {sys.version}".encode()
    digest = hashlib.sha256(identity).hexdigest()[:16]
    folder = load_settings().cache_path / "environments" / f"tflite-{digest}"

    def install(environment: Path) -> None:
        progress(f"installing the tflite converter (once, {_SIZE}) into {folder}")
        run_to_end([sys.executable, "-m", "venv", str(environment)], _INSTALL_SECONDS)
        # A rename is safe: bin/python locates its packages relative to itself.
        packages = [str(environment / _PROGRAM), *_PIP, *_PIP_OPTIONS, "-r", str(_REQUIREMENTS)]
        run_to_end(packages, _INSTALL_SECONDS)

    try:
        build_once(folder, _PROGRAM, install)
    except CommandFailed as error:
        raise ConversionError(
            f"the tflite converter cannot be installed: {error.message}; it needs venv and a "
            "package index (PIP_INDEX_URL, PIP_FIND_LINKS)"
        ) from None
    except OSError as error:
        raise ConversionError(
            f"the tflite converter cannot be installed into {folder}: {error.strerror}"
        ) from None
    return folder / _PROGRAM


def signature_name(name: str) -> str:
    """Return the name that onnx2tf gives to an input or output, such as "input:0"
    (tf2onnx) or "/output".
    """
    return re.sub("^/", "wa/", name.replace(":", "__"))


def write_tflite(python: Path, graph: Path, folder: Path, one_row: bool) -> Path:
    """Write the TensorFlow Lite file with onnx2tf, and return its path. Raises
    ConversionError with the last line of onnx2tf's output.

    Args:
        python: the Python of the converter's environment.
        graph: the ONNX file.
        folder: the new folder of the file.
        one_row: True for a file that takes one row per call.
    """
    import onnx  # Importing onnx is slow.

    inputs = onnx.load(str(graph), load_external_data=False).graph.input
    command = [
        str(python),
        "-m",
        "onnx2tf",
        "--input_onnx_file_path",
        str(graph),
        "--output_folder_path",
        str(folder),
        "--output_signaturedefs",
        "--not_use_onnxsim",  # onnxsim would run a program from the PATH.
        "--non_verbose",
        "--keep_shape_absolutely_input_names",
        *(value.name for value in inputs),
    ]
    if one_row:
        command += ["--batch_size", "1"]
    try:
        run_to_end(command, _CONVERSION_SECONDS)
    except CommandFailed as error:
        raise ConversionError(f"cannot export tflite, because {error.message}") from None
    return folder / f"{graph.stem}_float32.tflite"
