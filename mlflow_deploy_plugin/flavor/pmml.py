"""Read a PMML file with jpmml_evaluator, which runs Java in this process, and log the file as a pyfunc."""

import os
import re
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import mlflow.pyfunc
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, Schema

from mlflow_deploy_plugin.errors import InvalidArtifact, NotInstalled, OnnxserveError
from mlflow_deploy_plugin.flavor.batch import Batch, ModelData
from mlflow_deploy_plugin.flavor.saved_model import EXAMPLE_ROWS
from mlflow_deploy_plugin.registry.runs import log_flavor

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


def read_pmml(path: Path, data: ModelData) -> tuple[str, ModelSignature, ModelData]:
    """Evaluate the rows, and return the kind of model, its signature and the first rows, or None without rows.

    Raises NotInstalled, InvalidConfig for rows of another type, and InvalidArtifact if Java refuses the file or a row.
    """
    require_java()
    from jpmml_evaluator import make_backend  # The packages of the extra are optional.

    from mlflow_deploy_plugin.flavor.pmml_model import PmmlModel

    try:
        system = make_backend("jpype")._ensureJavaClass("java.lang.System")
        system.setOut(system.err)  # Java would print errors of the XML next to the output of this program.
        model = PmmlModel(str(path))
        evaluator = model.evaluator
        sides = evaluator.getInputFields(), evaluator.getTargetFields() + evaluator.getOutputFields()
        signature = ModelSignature(
            *(
                # The target of a clustering has no name, which jpmml_evaluator calls "None".
                Schema(
                    [ColSpec(_TYPES.get(item.dataType, "string"), item.name) for item in side if item.name != "None"]
                )
                for side in sides
            )
        )
        batch = None if data is None else Batch.read(data).cast_to_signature(signature)
        if batch is not None:
            model.predict(None, batch.data)
    except OnnxserveError:
        raise
    except Exception as error:  # noqa: BLE001 - The errors of Java and of Python have no common class.
        reason = str(error).splitlines()[-1] if not isinstance(error, AttributeError) else "a field has an unknown type"
        reason = re.sub(r"^\[?([\w.$]+(Error|Exception)[:;] )+", "", reason)[:_MOST_CHARACTERS].rstrip("]")
        raise InvalidArtifact(f"{path} cannot be evaluated as PMML: {reason}") from None
    return str(evaluator.javaEvaluator.getSummary()), signature, batch and batch.take(slice(EXAMPLE_ROWS)).data


def log_pmml(
    path: Path, signature: ModelSignature, example: ModelData, registered_model_name: str, tags: dict[str, str]
) -> ModelInfo:
    """Log a PMML file as a pyfunc, and register it."""
    return log_flavor(
        mlflow.pyfunc,
        registered_model_name=registered_model_name,
        tags=tags,
        python_model=str(PMML_MODEL),
        artifacts={"pmml": str(path.resolve())},
        signature=signature,
        input_example=example,
        pip_requirements=[f"{package}=={version(package)}" for package in _REQUIREMENTS],
    )
