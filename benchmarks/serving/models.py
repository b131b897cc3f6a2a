"""The served models of scikit-learn, as saved by MLflow and as wrapped by us."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow.models import Model as MLflowModel
from mlflow.models import infer_signature
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import onnxserve

SMALL = "small"
COLUMNS = 30
ESTIMATORS = {
    "logistic": lambda seed: LogisticRegression(),
    "forest": lambda seed: RandomForestClassifier(50, random_state=seed),
    "boosting": lambda seed: GradientBoostingClassifier(random_state=seed),
}


@dataclass(frozen=True)
class Model:
    """A fitted model on disk.

    Attributes:
        mlflow: as MLflow's scikit-learn flavor saves it.
        ours: as our flavor wraps it.
        pickled: for servers that use pickle.
        onnx: the graph within `ours`.
    """

    name: str
    estimator: Any
    mlflow: Path
    ours: Path
    pickled: Path
    onnx: Path


def small(folder: Path) -> tuple[Model, pd.DataFrame]:
    """Return a scaler and a logistic regression for breast cancer, with its rows of 30
    columns of floats.
    """
    data, target = load_breast_cancer(return_X_y=True, as_frame=True)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(data, target)
    return _saved(pipeline, data.head(), folder / SMALL), data


def several(folder: Path, number: int) -> tuple[list[Model], pd.DataFrame]:
    """Return different models with their 500 rows of 30 float64 columns: a logistic
    regression, a forest of 50 trees, boosting of 100, and again from the start.
    """
    names = [f"x{place}" for place in range(COLUMNS)]
    values = np.random.default_rng(0).normal(size=(500, COLUMNS))
    rows = pd.DataFrame(values, columns=names)
    kinds = [*ESTIMATORS]
    models = []
    for index in range(number):
        kind = kinds[index % len(kinds)]
        target = (values[:, 0] + values[:, index % COLUMNS] > 0).astype(int)
        estimator = ESTIMATORS[kind](index).fit(rows, target)
        models.append(_saved(estimator, rows.head(), folder / f"{kind}-{index}"))
    return models, rows


def _saved(pipeline: Any, example: Any, folder: Path) -> Model:
    model = Model(
        folder.name,
        pipeline,
        folder / "mlflow",
        folder / "ours",
        folder / "model.pkl",
        folder / "ours" / "model.onnx",
    )
    if not folder.exists():
        signature = infer_signature(example, pipeline.predict(example))
        # Requirements are set, because MLflow otherwise loads the model in another
        # process to find them.
        mlflow.sklearn.save_model(
            pipeline,
            model.mlflow,
            signature=signature,
            serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
        )
        # perf_analyzer parses the version as a number, as a registered model has it.
        numbered = MLflowModel(model_uuid="1")
        onnxserve.save_model(
            pipeline,
            model.ours,
            signature=signature,
            input_example=example,
            mlflow_model=numbered,
        )
        model.pickled.write_bytes(pickle.dumps(pipeline))
    return model


def as_json(**document: Any) -> bytes:
    return json.dumps(document).encode()


def as_split(rows: pd.DataFrame) -> bytes:
    """Return the rows as MLflow's `dataframe_split`, which pandas calls split, without
    an index.
    """
    split = json.loads(rows.to_json(orient="split", double_precision=15))
    return as_json(dataframe_split={"columns": split["columns"], "data": split["data"]})
