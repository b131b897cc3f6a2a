"""The trained model behind an MLmodel folder of any MLflow flavor, or a file: joblib, pickle, ONNX, Keras, torch.

MLflow's own flavors load it, by what the MLmodel file says. The installed versions of its packages are compared with
those of its requirements.txt: another version of the framework may refuse its files, or answer otherwise.
"""

import importlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mlflow.models import Model

from mlflow_deploy_plugin.errors import CodeRefused, ConversionError, InvalidArtifact, InvalidConfig
from mlflow_deploy_plugin.flavor import convert
from mlflow_deploy_plugin.flavor.wrap import PredictFunction
from mlflow_deploy_plugin.pyfunc import error_summary, load_failure, version_differences
from mlflow_deploy_plugin.runtime import FLAVOR, MLMODEL, PYTHON_FUNCTION

PICKLES = (".joblib", ".pkl", ".pickle")
FILE_ENDINGS = (*PICKLES, *convert.FILE_ENDINGS)
_FRAMEWORKS = ("scikit-learn", "xgboost", "lightgbm", "catboost", "torch", "keras", "tensorflow", "statsmodels")
"""Distributions of which another version is worth a warning even if the model could be loaded."""


@dataclass(frozen=True)
class Original:
    """A trained model, as its framework has loaded it.

    Attributes:
        mlmodel: its MLmodel file; None for a file without one.
        predict_fn: the method that its pyfunc calls.
        warnings: what the user should know, a line each.
    """

    model: Any
    mlmodel: Model | None = None
    predict_fn: PredictFunction = "predict"
    warnings: tuple[str, ...] = ()


def load_folder(folder: Path, shown: str) -> Original:
    """Load the model of an MLmodel folder; its files may run code, as with MLflow's own `load_model`.

    Args:
        shown: the name of the model in messages.

    Raises:
        InvalidArtifact: the folder has no MLmodel file, or MLflow cannot read it.
        InvalidConfig: it is in our flavor already.
        ConversionError: it is Python code, its pyfunc answers by another method, or it cannot be loaded here.
    """
    if not (folder / MLMODEL).is_file():
        raise InvalidArtifact(f"{shown} is no model: it has no MLmodel file")
    try:
        mlmodel = Model.load(str(folder))
        flavors: dict[str, Any] = mlmodel.flavors
        names = [name for name in flavors if name not in (FLAVOR, PYTHON_FUNCTION)]
    except Exception as error:  # noqa: BLE001 - whatever the YAML holds
        raise InvalidArtifact(f"{shown} is no model: its MLmodel file cannot be read: {error_summary(error)}") from None
    if FLAVOR in flavors:
        raise InvalidConfig(f"{shown} is wrapped already: it is served as ONNX as it stands")
    pyfunc = flavors.get(PYTHON_FUNCTION, {})
    loader = str(pyfunc.get("loader_module", f"mlflow.{names[0]}" if names else "mlflow.pyfunc.model"))
    if not names or not loader.startswith(f"mlflow.{names[0]}"):
        what = "a Python class" if loader.startswith("mlflow.pyfunc.") else f"Python code, loaded by {loader},"
        raise ConversionError(
            f"{shown} cannot be converted to ONNX: it is {what} of its author; it is served as pyfunc as it stands"
        )
    predict_fn = pyfunc.get("predict_fn", "predict")
    if predict_fn not in get_args(PredictFunction):
        raise ConversionError(
            f"{shown} cannot be converted to ONNX: it answers by {predict_fn!r}; an ONNX form answers by "
            f"{' or '.join(get_args(PredictFunction))}; it is served as pyfunc as it stands"
        )
    differences = version_differences(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other versions, which are named below
            if backend := flavors.get("keras", {}).get("keras_backend"):
                os.environ.setdefault("KERAS_BACKEND", backend)  # Keras is imported by the next line
            model = importlib.import_module(f"mlflow.{names[0]}").load_model(str(folder))
    except Exception as error:
        raise ConversionError(
            f"{shown} cannot be loaded by mlflow.{names[0]}: {load_failure(error, folder)}"
        ) from error
    notes = [f"it was logged with {one}" for one in differences if one.split()[0] in _FRAMEWORKS]
    return Original(model, mlmodel, predict_fn, tuple(notes))


def load_file(path: Path, allow_pickle: bool) -> Original:
    """Load a joblib or pickle file, or a file of a framework's own format.

    Raises:
        CodeRefused: it is a joblib or pickle file, which can run any code, and `allow_pickle` is false.
        InvalidConfig: its ending is unknown.
        InvalidArtifact, ConversionError: it is no such file.
    """
    ending = path.suffix.lower()
    if ending in convert.FILE_ENDINGS:
        return Original(convert.load_file(str(path)))
    if ending not in PICKLES:
        raise InvalidConfig(
            f"{path} is no model: a file ends in {', '.join(FILE_ENDINGS)}; else name a model in MLflow, or the "
            "folder of an MLmodel file"
        )
    if not allow_pickle:
        raise CodeRefused(
            f"{path} can run any code while it is loaded; --allow-pickle (in Python allow_pickle=True) says that you "
            "trust who made it"
        )
    import joblib  # here: it comes with scikit-learn, an extra; it reads plain pickles, too

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = joblib.load(path)
        except Exception as error:
            raise InvalidArtifact(
                f"{path} cannot be loaded as a joblib or pickle file: {error_summary(error)}"
            ) from error
    versions = {
        f"it was saved by scikit-learn {one.message.original_sklearn_version} "  # type: ignore[union-attr]
        f"({one.message.current_sklearn_version} is installed)"  # type: ignore[union-attr]
        for one in caught
        if one.category.__name__ == "InconsistentVersionWarning"
    }
    return Original(model, warnings=tuple(sorted(versions)))
