"""The served models, from scikit-learn or torch and as wrapped by our flavor."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import onnxserve

SMALL = "small"
"""The name of the served model."""


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        mlflow: as MLflow's scikit-learn flavor saves it.
        ours: as our flavor wraps it.
        pickled: for servers that use pickle.
        onnx: the graph within `ours`.
    """

    mlflow: Path
    ours: Path
    pickled: Path
    onnx: Path


def small(folder: Path) -> tuple[Model, pd.DataFrame, np.ndarray]:
    """Return a scaler and a logistic regression for breast cancer, 30 columns of
    floats, with scikit-learn's predictions.
    """
    data, target = load_breast_cancer(return_X_y=True, as_frame=True)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(data, target)
    return _saved(pipeline, data.head(), folder / SMALL), data, pipeline.predict(data)


def _saved(pipeline: Any, example: Any, folder: Path) -> Model:
    model = Model(
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
        onnxserve.save_model(pipeline, model.ours, signature=signature, input_example=example)
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
