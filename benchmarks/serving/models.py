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

import mlflow_deploy_plugin as onnxserve
from projects.flight_delay.data import FEATURES, LABEL, load_flights, split
from projects.flight_delay.train import build_pipeline

TABLE_ROWS = 10_000


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
    return _saved(pipeline, data.head(), folder / "small"), data, pipeline.predict(data)


def flights(folder: Path) -> tuple[Model, pd.DataFrame, np.ndarray]:
    """Return the flight-delay pipeline, trained on a sample, with rows of mixed columns
    and scikit-learn's predictions.
    """
    parts = split(load_flights(), 0)
    sample = parts.train.sample(20_000, random_state=0)
    columns = list(FEATURES)
    pipeline = build_pipeline(max_iter=60, learning_rate=0.1).fit(sample[columns], sample[LABEL])
    rows = parts.train[columns].head(100)
    return (
        _saved(pipeline, sample[columns].head(1000), folder / "flights"),
        rows,
        pipeline.predict(rows),
    )


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


def tiled(data: pd.DataFrame, rows: int = TABLE_ROWS) -> pd.DataFrame:
    """Return `rows` different rows within the range of the data."""
    noise = np.random.default_rng(0).uniform(0.98, 1.02, (rows, data.shape[1]))
    return pd.DataFrame(
        np.resize(data.to_numpy(), (rows, data.shape[1])) * noise,
        columns=data.columns,
    )


def as_json(**document: Any) -> bytes:
    return json.dumps(document).encode()


def as_split(rows: pd.DataFrame) -> bytes:
    """Return the rows as MLflow's `dataframe_split`, which pandas calls split, without
    an index.
    """
    split = json.loads(rows.to_json(orient="split", double_precision=15))
    return as_json(dataframe_split={"columns": split["columns"], "data": split["data"]})


def as_arrow(rows: pd.DataFrame) -> bytes:
    """Return the rows as an Arrow IPC stream, in one batch."""
    import pyarrow as pa

    table = pa.Table.from_pandas(rows, preserve_index=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
