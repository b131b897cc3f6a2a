"""`python -m mlflow_deploy_plugin.contrib.mlserver.adopt FILE KIND`: load a model file
as MLServer 1.7.1 does, and write the MLmodel file next to it.

XGBoost's, LightGBM's and CatBoost's files get MLflow's own flavor, so that MLflow loads
the original. A joblib or pickle file gets the flavor sklearn in joblib's format, and
the loader `original.py`. The settings are in the file model-settings.json. The exit
status is 1 if the file cannot be loaded; the last line of the standard error is the
reason.
"""

import json
import logging
import platform
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from mlflow_deploy_plugin.contrib.mlserver.folders import METADATA, MODEL_SETTINGS
from mlflow_deploy_plugin.contrib.mlserver.original import Original
from mlflow_deploy_plugin.core.errors import InvalidArtifact, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import JOBLIB, MLMODEL, PYTHON_FUNCTION
from mlflow_deploy_plugin.core.processes.memory import limit_conversion
from mlflow_deploy_plugin.serve.pyfunc.process import error_summary
from mlflow_deploy_plugin.wrap.flavor.example_rows import known_columns, made_up_rows
from mlflow_deploy_plugin.wrap.flavor.registered import load_file

_ROWS = 3
_XGBOOST_VERSION = re.compile(rb'"version"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)')
_CLASS_LOSSES = ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll")


def main() -> int:
    file = Path(sys.argv[1])
    kind = sys.argv[2]
    limit_conversion(file.stat().st_size)
    logging.disable(logging.WARNING)
    try:
        adopt(file, kind)
        return 0
    except OnnxserveError as error:
        reason = error.message.replace(str(file), file.name)
    except Exception as error:  # noqa: BLE001 - a damaged file may raise any error
        reason = error_summary(error)
    sys.stderr.write(f"\n{one_line(reason, 400)}\n")
    return 1


def adopt(file: Path, kind: str) -> None:
    """Write the MLmodel file of a model file of this kind (`folders.RUNTIMES`). Raises
    InvalidArtifact, or the errors of the library, if the file cannot be loaded.
    """
    model, section = _LOADERS[kind](file)
    loader = f"mlflow.{kind}"
    predict: Callable[[Any], Any] = model.predict
    if kind == "sklearn":
        loader = "mlflow_deploy_plugin.contrib.mlserver.original"
        predict = Original(model).predict
    mlmodel = Model(
        signature=_signature(model, predict),
        metadata={METADATA: json.loads((file.parent / MODEL_SETTINGS).read_text())},
    )
    mlmodel.add_flavor(kind, **section)
    python = platform.python_version()
    mlmodel.add_flavor(PYTHON_FUNCTION, loader_module=loader, data=file.name, python_version=python)
    mlmodel.save(str(file.parent / MLMODEL))


def _signature(model: Any, predict: Callable[[Any], Any]) -> ModelSignature | None:
    """Return the signature: a matrix, which is what MLServer's clients send by default,
    or named columns if some of them are texts. The outputs are those of a prediction.
    None if the number of columns is unknown.
    """
    width, names, texts = known_columns(model)
    if not width:
        return None
    inputs = Schema([TensorSpec(np.dtype("float64"), (-1, width))])
    if texts:
        columns = []
        for name in names:
            kind = DataType.string if name in texts else DataType.double
            columns.append(ColSpec(kind, name))
        inputs = Schema(columns)
    outputs = None
    with suppress(Exception):  # The first answer then describes the outputs.
        rows = made_up_rows(ModelSignature(inputs), model)[:_ROWS]
        outputs = infer_signature(None, predict(rows)).outputs
    return ModelSignature(inputs, outputs)


def load_sklearn(file: Path) -> tuple[Any, dict[str, Any]]:
    section = {"pickled_model": file.name, "serialization_format": JOBLIB}
    return load_file(file, allow_pickle=True).model, section


def load_xgboost(file: Path) -> tuple[Any, dict[str, Any]]:
    """Load a file as a regressor, otherwise as a classifier, like MLServer. Raises
    InvalidArtifact for a file of a newer version.
    """
    import xgboost  # optional library

    kinds = (xgboost.XGBRegressor, xgboost.XGBClassifier)
    saved = _XGBOOST_VERSION.search(file.read_bytes())
    if saved is not None:
        newest = tuple(map(int, saved.groups()))
        if newest > tuple(map(int, xgboost.__version__.split(".")[:2])):
            raise InvalidArtifact(
                f"it was saved by XGBoost {newest[0]}.{newest[1]}, and {xgboost.__version__} is "
                "installed: install the newer version"
            )
    try:
        model = kinds[0]()
        model.load_model(str(file))
    except TypeError:
        model = kinds[1]()
        model.load_model(str(file))
    section = {
        "data": file.name,
        "model_class": f"xgboost.sklearn.{type(model).__name__}",
        "xgb_version": xgboost.__version__,
    }
    return model, section


def load_lightgbm(file: Path) -> tuple[Any, dict[str, Any]]:
    import lightgbm  # optional library

    section = {"data": file.name, "model_class": "lightgbm.basic.Booster"}
    return lightgbm.Booster(model_file=str(file)), section | {"lgb_version": lightgbm.__version__}


def load_catboost(file: Path) -> tuple[Any, dict[str, Any]]:
    """Load a file as a classifier if its loss is one of classes, otherwise as a
    regressor. MLServer loads each file as a classifier, and predicts 0 and 1 with a
    regressor.
    """
    import catboost  # optional library

    model = catboost.CatBoost()
    model.load_model(str(file), "cbm")
    loss = str(model.get_all_params().get("loss_function", "RMSE")).partition(":")[0]
    kind = "CatBoostClassifier" if loss in _CLASS_LOSSES else "CatBoostRegressor"
    model = getattr(catboost, kind)()
    model.load_model(str(file), "cbm")
    section = {"data": file.name, "model_type": kind, "save_format": "cbm"}
    return model, section | {"catboost_version": catboost.__version__}


_LOADERS = {
    "sklearn": load_sklearn,
    "xgboost": load_xgboost,
    "lightgbm": load_lightgbm,
    "catboost": load_catboost,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
