"""Write the small models of the recordings, in MLServer's layout.

Run it with MLServer's own environment (see record.py):
`python projects/mlserver/train_models.py`
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import joblib
import lightgbm
import mlflow
import numpy as np
import pandas as pd
import xgboost
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

MODELS = Path(__file__).parents[2] / "tests/contrib/mlserver/recordings/models"
ROWS, CLASSES = load_iris(return_X_y=True)
WIDTHS = ROWS[:, 3]
IS_FIRST = (CLASSES == 0).astype(int)
NAMES = np.array(["setosa", "versicolor", "virginica"])[CLASSES]
COLUMNS = ["length", "width", "petal"]
TABLE = pd.DataFrame(ROWS[:, :3], columns=COLUMNS)
FLIGHTS = pd.DataFrame(
    {
        "carrier": np.array(["UA", "AA", "B6"])[CLASSES],
        "distance": np.round(ROWS[:, 0] * 300),
        "hour": np.arange(len(ROWS)) % 24,
    }
)
IS_LATE = (FLIGHTS.hour > 12).astype(int)
FEW_TREES = {"n_estimators": 3, "max_depth": 2, "random_state": 0}


def settings(name: str, implementation: str, file: str = "", **parameters: str) -> Path:
    """Make the folder of a model with its model-settings.json, and return it."""
    folder = MODELS / name
    folder.mkdir(parents=True)
    if file:
        parameters["uri"] = f"./{file}"
    document: dict[str, Any] = {"name": name, "implementation": implementation}
    if parameters:
        document["parameters"] = parameters
    (folder / "model-settings.json").write_text(json.dumps(document, indent=1) + "\n")
    return folder


def save_estimator(name: str, model: Any, file: str = "model.joblib", **parameters: str) -> None:
    joblib.dump(model, settings(name, "mlserver_sklearn.SKLearnModel", file, **parameters) / file)


def save_mlflow(name: str, save: Callable[..., object], **fields: Any) -> None:
    """Save a model of MLflow below the folder of its settings, without the files that a
    server does not read.
    """
    folder = settings(name, "mlserver_mlflow.MLflowRuntime", "model") / "model"
    save(path=folder, pip_requirements=[], **fields)
    for other in ("conda.yaml", "python_env.yaml", "requirements.txt"):
        (folder / other).unlink()


LATE_FLIGHTS = """import mlflow
import numpy as np
import pandas as pd


class LateFlights(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        hours = np.asarray(model_input["hour"])
        words = (params or {}).get("words", 1)
        names = [" ".join(["late" if hour > 12 else "early"] * words) for hour in hours]
        answers = {"texts": names, "table": pd.DataFrame({"delay": hours * 1.5, "name": names})}
        return answers["RESULT"]


mlflow.models.set_model(LateFlights())
"""


def save_code(name: str, result: str, **fields: Any) -> None:
    """Save a pyfunc, as code, that returns texts or a table."""
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "late_flights.py")
        code.write_text(LATE_FLIGHTS.replace("RESULT", result))
        save_mlflow(name, mlflow.pyfunc.save_model, python_model=str(code), **fields)


def save_estimators() -> None:
    save_estimator("iris", LogisticRegression(max_iter=500).fit(ROWS, CLASSES))
    save_estimator("names", DecisionTreeClassifier(max_depth=2, random_state=0).fit(ROWS, NAMES))
    save_estimator("widths", LinearRegression().fit(ROWS[:, :3], WIDTHS), version="v3")
    columns = ColumnTransformer(
        [
            ("texts", OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
            ("numbers", StandardScaler(), ["distance", "hour"]),
        ]
    )
    flights = make_pipeline(columns, LogisticRegression()).fit(FLIGHTS, IS_LATE)
    save_estimator("flights", flights, content_type="pd")


def save_boosters() -> None:
    xgboost_runtime = "mlserver_xgboost.XGBoostModel"
    folder = settings("xgb-classes", xgboost_runtime, "model.json")
    xgboost.XGBClassifier(**FEW_TREES).fit(ROWS, CLASSES).save_model(folder / "model.json")
    folder = settings("xgb-binary", xgboost_runtime, "model.json", version="7")
    xgboost.XGBClassifier(**FEW_TREES).fit(ROWS, IS_FIRST).save_model(folder / "model.json")
    folder = settings("xgb-widths", xgboost_runtime, "model.ubj")
    xgboost.XGBRegressor(**FEW_TREES).fit(ROWS[:, :3], WIDTHS).save_model(folder / "model.ubj")
    lightgbm_runtime = "mlserver_lightgbm.LightGBMModel"
    few_leaves = {"n_estimators": 3, "num_leaves": 3, "random_state": 0, "verbose": -1}
    for name, kind, rows, target, file in (
        ("lgb-classes", lightgbm.LGBMClassifier, ROWS, CLASSES, "model.bst"),
        ("lgb-binary", lightgbm.LGBMClassifier, ROWS, IS_FIRST, "model.bst"),
        ("lgb-widths", lightgbm.LGBMRegressor, ROWS[:, :3], WIDTHS, "model.txt"),
    ):
        folder = settings(name, lightgbm_runtime, file)
        kind(**few_leaves).fit(rows, target).booster_.save_model(folder / file)
    folder = settings("cat-classes", "mlserver_catboost.CatboostModel", "model.cbm")
    catboost.CatBoostClassifier(
        iterations=3, depth=2, random_seed=0, verbose=False, allow_writing_files=False
    ).fit(ROWS, CLASSES).save_model(str(folder / "model.cbm"))


def save_mlflow_estimators() -> None:
    on_table = LogisticRegression(max_iter=500).fit(TABLE, CLASSES)
    save_mlflow(
        "mlflow-columns",
        mlflow.sklearn.save_model,
        sk_model=on_table,
        serialization_format="cloudpickle",
        signature=infer_signature(TABLE, on_table.predict(TABLE)),
        input_example=TABLE[:5],
    )
    save_mlflow(
        "mlflow-plain",
        mlflow.sklearn.save_model,
        sk_model=LinearRegression().fit(ROWS[:, :3], WIDTHS),
        serialization_format="cloudpickle",
    )
    on_array = LogisticRegression(max_iter=500).fit(ROWS[:, :3], CLASSES)
    save_mlflow(
        "mlflow-array",
        mlflow.sklearn.save_model,
        sk_model=on_array,
        serialization_format="cloudpickle",
        signature=infer_signature(ROWS[:, :3], on_array.predict_proba(ROWS[:, :3])),
        pyfunc_predict_fn="predict_proba",
    )


def save_functions() -> None:
    inputs = Schema([ColSpec("string", "carrier"), ColSpec("long", "hour")])
    table = Schema([ColSpec("double", "delay"), ColSpec("string", "name")])
    save_code("mlflow-table", "table", signature=ModelSignature(inputs, table))
    words = ParamSchema([ParamSpec("words", "long", 1)])
    texts = ModelSignature(inputs, Schema([ColSpec("string")]), words)
    save_code("mlflow-texts", "texts", signature=texts)


if __name__ == "__main__":
    shutil.rmtree(MODELS, ignore_errors=True)
    save_estimators()
    save_boosters()
    save_mlflow_estimators()
    save_functions()
