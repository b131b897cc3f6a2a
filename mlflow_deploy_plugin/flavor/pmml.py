"""Log a PMML file as a pyfunc. jpmml_evaluator, which calls Java, reads the file in a process of its own."""

import json
import os
import pickle
import re
import shutil
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, Schema

from mlflow_deploy_plugin.errors import CommandFailed, InvalidArtifact, InvalidConfig, NotInstalled
from mlflow_deploy_plugin.flavor.batch import Batch, ModelData
from mlflow_deploy_plugin.flavor.saved_model import EXAMPLE_ROWS
from mlflow_deploy_plugin.processes.child import run_to_end
from mlflow_deploy_plugin.registry.runs import log_flavor
from mlflow_deploy_plugin.statedir.files import temporary_folder

PMML_MODEL = Path(__file__).with_name("pmml_model.py")
_REQUIREMENTS = ("mlflow", "pandas", "numpy", "jpmml-evaluator", "jpype1")
_READ_SECONDS = 600
_TYPES = {"double": "double", "float": "float", "integer": "long", "boolean": "boolean"}
"""The MLflow type of each PMML type. Other types, such as dates, are strings in ISO 8601."""


@dataclass(frozen=True)
class PmmlFile:
    """A PMML file that can be evaluated. `model` describes its kind; `example` has the first rows, or is None."""

    path: Path
    model: str
    signature: ModelSignature
    example: ModelData = None

    def log(self, name: str, tags: dict[str, str]) -> ModelInfo:
        """Log the file as a pyfunc, and register it as the next version of `name`."""
        return log_flavor(
            mlflow.pyfunc,
            registered_model_name=name,
            tags=tags,
            python_model=str(PMML_MODEL),
            artifacts={"pmml": str(self.path.resolve())},
            signature=self.signature,
            input_example=self.example,
            pip_requirements=[f"{package}=={version(package)}" for package in _REQUIREMENTS],
        )


def require_java(package: str) -> str:
    """Return the path of Java. Raises NotInstalled if Java, or a package of the extra `pmml`, is missing."""
    if find_spec(package) is None:
        raise NotInstalled(f"PMML needs {package}: pip install 'mlflow-onnxserve[pmml]'")
    folders = os.pathsep.join([f"{os.environ.get('JAVA_HOME', '')}/bin", os.environ.get("PATH", os.defpath)])
    if (java := shutil.which("java", path=folders)) is None:
        raise NotInstalled("PMML needs Java 11 or newer: apt-get install default-jre-headless, or set JAVA_HOME")
    return java


def read_pmml(path: Path, rows: ModelData = None) -> PmmlFile:
    """Return a PMML file after evaluating the rows.

    Raises NotInstalled, InvalidArtifact if the file cannot be evaluated, and InvalidConfig if it refuses the rows.
    """
    require_java("jpmml_evaluator")
    document = _evaluate(path, None)
    specs = {
        side: Schema([ColSpec(_TYPES.get(kind, "string"), name) for name, kind in document[side].items()])
        for side in ("inputs", "outputs")
    }
    file = PmmlFile(path, document["model"], ModelSignature(**specs))
    if rows is None:
        return file
    batch = Batch.read(rows).cast_to_signature(file.signature)
    try:
        _evaluate(path, batch.data)
    except InvalidArtifact as error:
        raise InvalidConfig(f"the rows cannot be evaluated: {error.message}") from None
    return replace(file, example=batch.take(slice(EXAMPLE_ROWS)).data)


def _evaluate(path: Path, rows: ModelData) -> dict[str, Any]:
    """Evaluate the rows, and return the summary of the model and the types of its fields by name."""
    with temporary_folder("onnxserve-pmml-") as folder:
        (folder / "rows").write_bytes(pickle.dumps(rows))
        command = [sys.executable, "-I", str(PMML_MODEL), str(path), str(folder / "rows"), str(folder / "fields")]
        try:
            run_to_end(command, _READ_SECONDS)
        except CommandFailed as error:
            reason = re.sub(r"^\[?([\w.$]+(Error|Exception)[:;] )+", "", error.message).rstrip("]")
            raise InvalidArtifact(f"{path} cannot be evaluated as PMML: {reason}") from None
        document: dict[str, Any] = json.loads((folder / "fields").read_bytes())
    return document
