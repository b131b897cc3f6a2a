"""Write a scikit-learn, XGBoost or LightGBM model as PMML with sklearn2pmml, which is a
Java program.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.errors import CodeRefused, ConversionError, InvalidConfig
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, read_mlmodel
from mlflow_deploy_plugin.core.processes.child import run_to_end
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.registry.tags import WRAPPED_FROM_TAG, wrapped_from
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.evaluation.model import Arrays, downloaded_version
from mlflow_deploy_plugin.wrap.flavor.pmml import PMML_MODEL as PMML_MODEL
from mlflow_deploy_plugin.wrap.flavor.pmml import require_java
from mlflow_deploy_plugin.wrap.flavor.registered import load_folder, onnx_form

_CONVERSION_SECONDS = 600


def fitted_model(
    resolved: ResolvedModel,
    folder: Path,
    target: Path,
    original_uri: str,
) -> tuple[Any, Path]:
    """Return the fitted model of a version or of its original, and the folder with its
    ONNX form.

    Args:
        resolved: the version.
        folder: the folder of the version.
        target: a new folder for the ONNX form of a version that has none.
        original_uri: the URI of the original, whose code may run; empty if it is not
            set.

    Raises:
        NotInstalled: Java or a package of the extra is missing.
        InvalidConfig: the version has only its ONNX form, and `original_uri` is empty.
        CodeRefused: the same, but the original of the version is known.
        OnnxserveError: the original does not exist, or cannot be loaded or converted.
    """
    require_java()
    document = read_mlmodel(folder)
    if FLAVOR not in document.get("flavors", {}):
        original = load_folder(folder, resolved.source)
        return original.model, onnx_form(original, target)
    if not original_uri:
        metadata = document.get("metadata") or {}
        uri = str(metadata.get(WRAPPED_FROM_TAG, ""))
        uri = uri or wrapped_from(resolved.name, resolved.version)
        if uri:
            raise CodeRefused(
                f"loading the original {uri} runs its own code; to consent, set --original {uri}",
            )
        raise InvalidConfig(
            f"{resolved.model_uri} has only its ONNX form, but PMML is made from the fitted "
            "model: log that model with its MLflow flavor, such as mlflow.sklearn.log_model, and "
            "export its version or set --original URI",
        )
    with downloaded_version(resolve(original_uri)) as downloaded:
        return load_folder(downloaded, original_uri).model, folder


def write_pmml(model: Any, columns: list[str], folder: Path) -> Path:
    """Return the PMML file of a fitted model. Its fields have the names of the columns,
    or x1, x2, … without columns.

    Raises NotInstalled without Java or a package of the extra, and ConversionError with
    the reason of sklearn2pmml.
    """
    java = require_java()
    import joblib  # The packages of the extra are optional.
    import sklearn.base
    from sklearn2pmml import _escape, make_pmml_pipeline
    from sklearn2pmml.resources import _package_classpath

    folder.mkdir()
    pickled = folder / "model.pkl"
    target = folder / "model.pmml"
    version = sklearn.base.__version__
    # Without its telemetry client, sklearn2pmml cannot send the reason of a failure to
    # its authors.
    jars = os.pathsep.join(jar for jar in _package_classpath() if "telemetry" not in Path(jar).name)
    options = ["--pkl-input", str(pickled), "--pmml-output", str(target)]
    try:
        if hasattr(model, "fit"):  # Boosters are converted without a pipeline.
            model = make_pmml_pipeline(model, columns or None)
        # sklearn2pmml refuses patch releases that are newer than itself, although they
        # have the same attributes.
        sklearn.base.__version__ = re.sub(r"^(\d+\.\d+)\..*", r"\1.0", version)
        joblib.dump(_escape(model, escape_func=_escape), pickled)
        run_to_end(
            [java, "-cp", jars, "com.sklearn2pmml.Main", *options],
            _CONVERSION_SECONDS,
            _reason,
        )
    except Exception as error:  # noqa: BLE001 - The objects of a pipeline may raise any error.
        raise ConversionError(
            f"sklearn2pmml cannot convert the model: {one_line(error, 500)}",
        ) from None
    finally:
        sklearn.base.__version__ = version
    # The same version must yield the same bytes.
    target.write_bytes(re.sub(rb"\s*<Timestamp>[^<]*</Timestamp>", b"", target.read_bytes()))
    return target


def _reason(output: str) -> str:
    """Return the messages of the error and its cause in the output of sklearn2pmml, and
    the suggested solution.
    """
    messages = re.findall(r"^[\w.$]+(?:Exception|Error): (.*)$", output, re.MULTILINE)[:2]
    solutions = re.findall(r"^Solution:\n\s+(.*)$", output, re.MULTILINE)[:1]
    return "; ".join([*messages, *solutions]) or output.rpartition("\n")[2]


def served_outputs(
    fields: Arrays,
    roles: Mapping[str, str],
    expected: Arrays,
) -> dict[str, Array]:
    """Return the fields of a PMML file as served outputs by name. A PMML file may lack
    some of the outputs. Raises ConversionError if it lacks all.

    Args:
        fields: the target fields and output fields, [N] by name.
        roles: the role of each served output.
        expected: the served outputs, [N, …] by name.
    """
    probabilities = [array for name, array in fields.items() if name.startswith("probability(")]
    targets = [array for name, array in fields.items() if not name.startswith("probability(")]
    outputs: dict[str, Array] = {}
    for name, want in expected.items():
        width = want.size // max(len(want), 1)
        values = targets[:width]
        if roles[name] == "probabilities" or (roles[name] == "values" and probabilities):
            values = probabilities if width == len(probabilities) else probabilities[-1:]
        if len(values) == width:
            columns = np.array([array.tolist() for array in values])
            outputs[name] = columns.T.reshape(want.shape).astype(want.dtype)
    if not outputs:
        raise ConversionError("the PMML file has none of the outputs of the served model")
    return outputs
