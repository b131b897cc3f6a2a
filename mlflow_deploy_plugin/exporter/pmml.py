"""Write a scikit-learn, XGBoost or LightGBM model as PMML with sklearn2pmml, which is a Java program."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy_plugin.errors import CommandFailed, ConversionError, InvalidConfig
from mlflow_deploy_plugin.flavor.pmml import PMML_MODEL, require_java
from mlflow_deploy_plugin.flavor.registered import Original, load_folder, onnx_form
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.processes.child import run_to_end
from mlflow_deploy_plugin.registry import ResolvedModel, resolve
from mlflow_deploy_plugin.registry.model_files import download
from mlflow_deploy_plugin.registry.tags import WRAPPED_FROM_TAG, wrapped_from
from mlflow_deploy_plugin.runtime import FLAVOR, read_mlmodel
from mlflow_deploy_plugin.runtime.feeds import Array

__all__ = ["PMML_MODEL", "load_original", "onnx_form", "served_outputs", "write_pmml"]

_CONVERSION_SECONDS = 600


def load_original(resolved: ResolvedModel, folder: Path, work: Path, uri: str, progress: ProgressCallback) -> Original:
    """Return the fitted model at `uri`. If it is empty, return the model in the folder, or its original.

    Raises InvalidConfig if the original is unknown, NotInstalled without Java, and the errors of `load_folder`.
    """
    require_java("sklearn2pmml")
    require_java("jpmml_evaluator")
    document = read_mlmodel(folder)
    if not uri and FLAVOR in document.get("flavors", {}):
        uri = str((document.get("metadata") or {}).get(WRAPPED_FROM_TAG, ""))
        uri = uri or wrapped_from(resolved.name, resolved.version)
        if not uri.startswith(("models:/", "runs:/")):
            raise InvalidConfig(
                f"{resolved.model_uri} has only its ONNX form, and PMML is made from the fitted model; log that model "
                "with its MLflow flavor (mlflow.sklearn.log_model) and set --original URI"
            )
    if uri:
        resolved = resolve(uri)
        progress(f"loading the original {resolved.source}")
        (work / "original").mkdir()
        folder = download(resolved.source, work / "original")
    return load_folder(folder, resolved.source)


def write_pmml(original: Original, described: Mapping[str, Any], folder: Path) -> Path:
    """Return the PMML file of a fitted model. Raises NotInstalled, or ConversionError with sklearn2pmml's reason.

    Its fields have the names of the signature's columns (x1, x2, … for a tensor) and of the served outputs.
    """
    import joblib  # The packages of the extra are optional.
    import sklearn.base
    from sklearn2pmml import _escape, make_pmml_pipeline
    from sklearn2pmml.resources import _package_classpath

    model = original.model
    folder.mkdir()
    pickled, target, version = folder / "model.pkl", folder / "model.pmml", sklearn.base.__version__
    columns = [column["name"] for column in described["columns"]]
    names = [
        output["name"] if len(output["shape"]) == 1 or output["shape"][1] == 1 else f"{output['name']}_{index}"
        for output in described["outputs"]
        if output["role"] in ("label", "values")
        for index in range(output["shape"][1] if len(output["shape"]) == 2 else 1)
    ]
    try:
        if hasattr(model, "fit"):  # Boosters are converted without a pipeline.
            model = make_pmml_pipeline(model, columns or None, names or None)
        # sklearn2pmml refuses patch releases that are newer than itself, although they have the same attributes.
        sklearn.base.__version__ = re.sub(r"^(\d+\.\d+)\..*", r"\1.0", version)
        joblib.dump(_escape(model, escape_func=_escape), pickled)
    except Exception as error:  # noqa: BLE001 - The objects of a pipeline may raise any error.
        raise ConversionError(f"sklearn2pmml cannot read the model: {one_line(error, 300)}") from None
    finally:
        sklearn.base.__version__ = version
    # Without its telemetry client, sklearn2pmml cannot send the reason of a failure to its authors.
    jars = os.pathsep.join(jar for jar in _package_classpath() if "telemetry" not in Path(jar).name)
    command = [
        require_java("sklearn2pmml"),
        "-cp",
        jars,
        "com.sklearn2pmml.Main",
        "--pkl-input",
        str(pickled),
        "--pmml-output",
        str(target),
    ]
    try:
        run_to_end(command, _CONVERSION_SECONDS, _reason)
    except CommandFailed as error:
        raise ConversionError(f"sklearn2pmml cannot convert the model: {error.message}") from None
    # The same version must yield the same bytes.
    target.write_bytes(re.sub(rb"\s*<Timestamp>[^<]*</Timestamp>", b"", target.read_bytes()))
    return target


def _reason(output: str) -> str:
    """Return the message of the exception in the output of sklearn2pmml, with its suggested solution."""
    text = output.partition("=\n")[2].partition("EXCEPTION\n")[2].lstrip("=\n") or output
    head, _, rest = text.partition("\n")
    solution = re.search(r"^Solution:\n\s+(.*)$", rest, re.MULTILINE)
    message = re.sub(r"^[\w.$]*?(\w+): ", r"\1: ", head)
    return f"{message}; {solution[1]}" if solution else message


def served_outputs(
    answers: Mapping[str, Array], described: Mapping[str, Any], expected: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the answers of a PMML file as the served outputs of the same meaning. PMML may lack some of them.

    Args:
        answers: `targets` [N, T] (object) and `probabilities` [N, C].
    """
    targets, probabilities = answers["targets"], answers["probabilities"]
    named: dict[str, Array] = {}
    for output in described["outputs"]:
        name, want = output["name"], expected[output["name"]]
        values = targets
        if output["role"] == "probabilities" or (output["role"] == "values" and probabilities.size):
            values = probabilities if want.size == probabilities.size else probabilities[:, -1:]
        if values.size == want.size:
            named[name] = np.asarray(values.reshape(want.shape).tolist()).astype(want.dtype)
    if not named:
        raise ConversionError(f"the PMML file of {described['name']} returns none of the outputs of the served model")
    return named
