"""The Python environment of a version without an ONNX form, which uv builds from the
version's python_env.yaml and requirements.txt.

The server's own MLflow replaces the version's, because the side process uses private
names of MLflow. onnxserve is not installed: the process imports it from the server.
"""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import yaml

from mlflow_deploy_plugin.core.errors import (
    CommandFailed,
    InvalidArtifact,
    NotInstalled,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import hash_files
from mlflow_deploy_plugin.core.packages import installed_version
from mlflow_deploy_plugin.core.processes.child import run_to_end
from mlflow_deploy_plugin.core.registry.connection import redact_credentials
from mlflow_deploy_plugin.core.statedir.files import build_once
from mlflow_deploy_plugin.core.yaml_text import load_yaml

PYFUNC_PREFIX = "pyfunc-"
IMAGE_ENVIRONMENTS = Path("/opt/ml/environments")
"""The environment that `onnxserve build-docker` has put into an image."""
_PROGRAM = "bin/python"
_FILES = ("python_env.yaml", "requirements.txt", "constraints.txt")
_OVERRIDES = "overrides.txt"
_WHEELS = "wheels"
"""The subfolder in which MLflow's `add_libraries_to_model` stores wheels."""
_OF_MACHINE = re.compile(r"(?im)^[^#\n]*(?:file:|\.\./|(?<![\w./:-])/)|^\s*-\w/|\$\{")
"""A requirement of a file or variable of this machine. The author can read uv's errors,
which contain both. Equal texts would be different environments.
"""
_BUILD_SECONDS = 3600.0
_PYTHON = re.compile(r"(3\.(?:1[1-9]|[2-9]\d))(\.\d+)?")
"""A Python that can import this package."""
_REASON = re.compile(r"(?:error|cause): (.+?)(?=\n *(?:cause|hint):|\n\n|\Z)", re.DOTALL)
"""An error or a cause in uv's output, which may have several lines."""


def environment_python(folder: Path, root: Path) -> Path:
    """Return the Python of the environment for the pyfunc in an MLmodel folder. The
    environment is built in `root` unless it exists.

    Raises:
        InvalidArtifact: the model has no python_env.yaml or requirements.txt, or they
            cannot be read or refer to files or variables of this machine.
        NotInstalled: uv is not installed.
        OnnxserveError: uv cannot build the environment, or `root` cannot be written.
    """
    mlflow = installed_version("mlflow-skinny") or installed_version("mlflow")
    packages = [f"{name}=={mlflow}\n" for name in ("mlflow", "mlflow-skinny", "mlflow-tracing")]
    # A marker that is never true removes a requirement.
    inputs = {_OVERRIDES: "".join(packages) + "mlflow-onnxserve; python_version < '0'\n"}
    for name in _FILES:
        try:
            inputs[name] = (folder / name).read_text("utf-8-sig")
        except FileNotFoundError:
            inputs[name] = ""
        except (OSError, UnicodeDecodeError):
            raise InvalidArtifact(f"its file {name} cannot be read") from None
        if _OF_MACHINE.search(inputs[name]):
            raise InvalidArtifact(
                f"its file {name} refers to a file or a variable of this machine: log the model "
                "again with packages of an index, or with wheels"
            )
    try:
        python = _PYTHON.fullmatch(str(load_yaml(inputs[_FILES[0]])["python"]))
    except (yaml.YAMLError, ValueError, TypeError, KeyError):
        python = None
    if python is None or not inputs[_FILES[1]]:
        raise InvalidArtifact(
            "uv needs its requirements.txt, and its python_env.yaml with Python 3.11 or newer: log "
            "the model again with such a Python, or set server.pyfunc_env to local"
        )
    # Patch releases of Python are compatible, so any installed one is used.
    wheels = hash_files(folder / _WHEELS)
    identity = "\0".join([python[1], *inputs.values(), *wheels.values()]).encode()
    environment = root / f"{PYFUNC_PREFIX}{hashlib.sha256(identity).hexdigest()[:32]}"
    in_image = IMAGE_ENVIRONMENTS / environment.name / _PROGRAM
    if in_image.exists():
        return in_image
    own_programs = Path(sys.executable).parent
    uv = shutil.which("uv", path=f"{own_programs}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None and not (environment / _PROGRAM).exists():
        raise NotInstalled("server.pyfunc_env is uv, but uv is not installed: pip install uv")

    try:
        paths = [folder / _WHEELS / name for name in wheels]
        build_once(environment, _PROGRAM, partial(_build, str(uv), python[1], inputs, paths))
        os.utime(environment)  # The cache keeps environments that were used lately.
    except CommandFailed as error:
        raise OnnxserveError(f"uv cannot build its environment: {error.message}") from None
    except OSError as error:
        raise OnnxserveError(
            f"its environment cannot be stored in {root}: {error.strerror}"
        ) from None
    return environment / _PROGRAM


def _build(
    uv: str, python: str, inputs: Mapping[str, str], wheels: Sequence[Path], environment: Path
) -> None:
    command = [uv, "--quiet", "--color", "never", "--directory"]
    venv = [str(environment.parent), "venv", "--relocatable", "--python", python, str(environment)]
    run_to_end([*command, *venv], _BUILD_SECONDS, _reason)
    # In the model's folder, uv would read uv.toml, and a build would write files.
    model = environment / "model"
    (model / _WHEELS).mkdir(parents=True)
    for name, text in inputs.items():
        (model / name).write_text(text)
    for wheel in wheels:
        shutil.copy(wheel, model / _WHEELS)
    install = [str(model), "pip", "install", "--python", str(environment)]
    # The side process writes no byte code.
    install += ["--overrides", _OVERRIDES, "--compile-bytecode"]
    run_to_end([*command, *install, "-r", _FILES[1], "mlflow"], _BUILD_SECONDS, _reason)
    shutil.rmtree(model)


def _reason(output: str) -> str:
    """Return the error and its causes from uv's output; otherwise its last line."""
    reasons = _REASON.findall(output) or output.splitlines()[-1:]
    return one_line(redact_credentials(": ".join(reasons)))


def main(arguments: Sequence[str]) -> int:
    """Build the environment of a model's folder, for `onnxserve build-environment`."""
    try:
        environment_python(Path(arguments[0]), IMAGE_ENVIRONMENTS)
    except OnnxserveError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        return 1
    return 0
