"""Read a PMML file with jpmml_evaluator, which runs Java in this process."""

import os
import re
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_deploy_plugin.errors import InvalidArtifact, NotInstalled, OnnxserveError
from mlflow_deploy_plugin.flavor.batch import Batch, ModelData
from mlflow_deploy_plugin.flavor.python_model import LogOptions
from mlflow_deploy_plugin.flavor.saved_model import EXAMPLE_ROWS

PMML_MODEL = Path(__file__).with_name("pmml_model.py")
_REQUIREMENTS = ("mlflow", "pandas", "numpy", "jpmml-evaluator", "jpype1")
_MOST_CHARACTERS = 300
_TYPES = {"double": "double", "float": "float", "integer": "long", "boolean": "boolean"}
"""The MLflow type of each PMML type. Other types, such as dates, are strings in ISO 8601."""


def require_java() -> str:
    """Return the path of Java. Raises NotInstalled if Java or the extra `pmml` is missing."""
    if not (find_spec("jpmml_evaluator") and find_spec("sklearn2pmml")):
        raise NotInstalled("PMML needs jpmml-evaluator and sklearn2pmml: pip install 'mlflow-onnxserve[pmml]'")
    home = os.environ.get("JAVA_HOME")
    java = (shutil.which("java", path=Path(home, "bin")) if home else None) or shutil.which("java")
    if java is None:
        raise NotInstalled("PMML needs Java 11 or newer: apt-get install default-jre-headless, or set JAVA_HOME")
    return java


def read_pmml(path: Path, data: ModelData) -> tuple[str, LogOptions]:
    """Evaluate the rows, and return the kind of model and the arguments of `mlflow.pyfunc.log_model`.

    Raises NotInstalled, InvalidConfig for rows of another type, and InvalidArtifact if Java refuses the file or a row.
    """
    require_java()
    import jpype  # The packages of the extra are optional.
    from jpmml_evaluator import make_backend

    from mlflow_deploy_plugin.flavor.pmml_model import PmmlModel

    try:
        make_backend("jpype")  # This starts Java, which would print each error of the XML to the standard output.
        jpype.java.lang.System.setOut(jpype.java.io.PrintStream(jpype.java.io.OutputStream.nullOutputStream()))
        model = PmmlModel(str(path))
        outputs = model.evaluator.getTargetFields() + model.evaluator.getOutputFields()
        signature = ModelSignature(_schema(model.evaluator.getInputFields()), _schema(outputs))
        batch = None if data is None else Batch.read(data).cast_to_signature(signature)
        if batch is not None:
            model.predict(None, pd.DataFrame(batch.data))
    except OnnxserveError:
        raise
    except Exception as error:  # noqa: BLE001 - The errors of Java and of Python have no common class.
        reason = str(error).splitlines()[-1] if not isinstance(error, AttributeError) else "a field has an unknown type"
        reason = re.sub(r"^\[?([\w.$]+(Error|Exception)[:;] )+", "", reason)[:_MOST_CHARACTERS].rstrip("]")
        raise InvalidArtifact(f"{path} cannot be evaluated as PMML: {reason}") from None
    return str(model.evaluator.javaEvaluator.getSummary()), {
        "python_model": str(PMML_MODEL),
        "artifacts": {"pmml": str(path.resolve())},
        "signature": signature,
        "input_example": None if batch is None else batch.take(slice(EXAMPLE_ROWS)).data,
        "pip_requirements": [f"{package}=={version(package)}" for package in _REQUIREMENTS],
    }


def _schema(fields: Iterable[Any]) -> Schema:
    # The target of a clustering has no name, which jpmml_evaluator calls "None".
    named = [field for field in fields if field.name != "None"]
    return Schema([ColSpec(_TYPES.get(field.dataType, "string"), field.name) for field in named])
