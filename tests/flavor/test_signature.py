from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.pipeline import Pipeline

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.errors import InvalidConfig


def test_given_signature_decides_order_and_types(model: Pipeline, table: pd.DataFrame, tmp_path: Path) -> None:
    signature = infer_signature(table.astype(np.float32), model.predict(table))

    onnxserve.save_model(model, tmp_path / "model", input_example=table[["c", "b", "a"]], signature=signature)

    loaded = onnxserve.load_model(str(tmp_path / "model"))
    assert [(column.name, column.type) for column in loaded.artifact.columns] == [
        ("a", "float"),
        ("b", "float"),
        ("c", "float"),
    ]


def test_the_signature_that_mlflow_infers_from_an_array_is_taken(
    model: Pipeline, table: pd.DataFrame, tmp_path: Path
) -> None:
    rows = table.to_numpy()
    model.fit(rows, model.predict(table))
    signature = infer_signature(rows, model.predict(rows))

    onnxserve.save_model(model, tmp_path / "model", input_example=rows[:5], signature=signature)

    (tensor,) = onnxserve.load_model(str(tmp_path / "model")).artifact.tensors
    assert (tensor.name, tensor.dtype, tensor.shape) == ("", "float64", (-1, rows.shape[1]))


@pytest.mark.parametrize("name", ["prediction", "output.label", "_row"])
def test_a_column_whose_name_the_log_needs_is_refused(
    name: str, model: Pipeline, table: pd.DataFrame, tmp_path: Path
) -> None:
    example = table.rename(columns={table.columns[0]: name})
    with pytest.raises(InvalidConfig, match=f"the name '{name}' is taken"):
        onnxserve.save_model(model, tmp_path / "model", input_example=example)
