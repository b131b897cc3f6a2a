"""Tests of the pruning of a network, and of the choice of its fastest form."""

from pathlib import Path

import mlflow
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from onnx import numpy_helper

from tests.support.random_rows import normal_rows


@pytest.fixture
def labelled(tmp_path):
    rows = normal_rows(400, 4).astype(np.float32)
    table = pa.table({"x": rows.tolist(), "label": (rows[:, 0] > 0).astype(np.int64)})
    pq.write_table(table, tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


@pytest.mark.long
def test_pruned_network_is_sparse_and_registered(labelled, tmp_path, new_mlflow, new_home):
    torch = pytest.importorskip("torch")
    from projects.prune.train import Training, train

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    client = MlflowClient()
    mlflow.set_experiment(experiment_id=client.create_experiment("prune", tmp_path.as_uri()))
    mlflow.pytorch.log_model(
        network,
        name="model",
        registered_model_name="net",
        pip_requirements=["torch"],
        serialization_format="pickle",
    )
    info = train(Training(original="models:/net/1", data=str(labelled), epochs=40))
    fastest = client.get_model_version_by_alias("pruned", "fastest")
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri))
    model = onnx.load(folder / "model.onnx")

    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    matrices = [array for array in weights if array.ndim == 2]
    assert [float((array == 0).mean()) for array in matrices] == [0.5, 0.5]
    assert fastest.name == "pruned"
