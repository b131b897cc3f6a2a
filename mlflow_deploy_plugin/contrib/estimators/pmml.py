"""Read a PMML file with jpmml_evaluator, which runs Java in this process."""

import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_deploy_plugin.core.errors import InvalidArtifact, NotInstalled, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData
from mlflow_deploy_plugin.wrap.flavor.saved_model import EXAMPLE_ROWS

PMML_MODEL = Path(__file__).with_name("pmml_model.py")
_REQUIREMENTS = ("mlflow", "pandas", "numpy", "jpmml-evaluator", "jpype1")
_TYPES = {"double": "double", "float": "float", "integer": "long", "boolean": "boolean"}
"""The MLflow type of each PMML type. Other types, such as dates, are strings in ISO
8601.
"""
_INPUT_TYPES = _TYPES | {"integer": "double"}
"""MLflow's integers cannot be missing. The conversion is exact, because
jpmml_evaluator's integers have 32 bits.
"""


def require_java() -> None:
    """Raise NotInstalled if Java or the extra `pmml` is missing."""
    if find_spec("jpmml_evaluator") is None:
        raise NotInstalled("PMML needs jpmml-evaluator: pip install 'mlflow-onnxserve[pmml]'")
    if shutil.which("java") is None:
        raise NotInstalled(
            "PMML needs Java 11 or newer on the PATH: apt-get install default-jre-headless"
        )


def read_pmml(path: Path, data: ModelData) -> tuple[str, dict[str, Any]]:
    """Evaluate the rows, and return the kind of model, as the file names it, and the
    arguments of MLflow's `log_model` except `artifacts`.

    Raises:
        NotInstalled: Java or the extra `pmml` is missing.
        InvalidConfig: the rows have another type.
        InvalidArtifact: Java refuses the file or a row.
    """
    require_java()
    import jpype  # The packages of the extra are optional.
    from jpmml_evaluator import make_backend

    from mlflow_deploy_plugin.contrib.estimators.pmml_model import PmmlModel

    try:
        # This starts Java, which would print each error of the XML to the standard
        # output.
        make_backend("jpype")
        jpype.java.lang.System.setOut(
            jpype.java.io.PrintStream(jpype.java.io.OutputStream.nullOutputStream())
        )
        model = PmmlModel(str(path))
        inputs, outputs = model.fields()
        if not outputs:
            raise InvalidArtifact(
                f"{path} has no named target and no output field; add an Output element to its "
                "model"
            )
        signature = ModelSignature(_schema(inputs, _INPUT_TYPES), _schema(outputs, _TYPES))
        example = None
        if data is not None:
            batch = Batch.read(data).cast_to_signature(signature)
            model.predict(None, pd.DataFrame(batch.data))
            example = batch.take(slice(EXAMPLE_ROWS)).data
    except OnnxserveError:
        raise
    except Exception as error:  # noqa: BLE001 - The errors of Java and of Python have no common class.
        text = str(error).rpartition("\n")[2]
        if isinstance(error, AttributeError):
            text = "a field has no valid dataType"
        # The names of Java's exception classes are removed.
        reason = re.sub(
            r"^\[?([\w.$]+(Error|Exception)[:;] )+|\. Expected elements.*|\]$",
            "",
            text or repr(error),
        )
        raise InvalidArtifact(
            f"{path} cannot be evaluated as PMML: {one_line(reason, 300)}"
        ) from None
    return f"{model.evaluator.javaEvaluator.getSummary()} in PMML", {
        "python_model": str(PMML_MODEL),
        "signature": signature,
        "input_example": example,
        "pip_requirements": [f"{package}=={version(package)}" for package in _REQUIREMENTS],
    }


def _schema(fields: Mapping[str, str], types: Mapping[str, str]) -> Schema:
    return Schema([ColSpec(types.get(kind, "string"), name) for name, kind in fields.items()])
