from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.pipeline import Pipeline

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.flavor import batch as batches


@pytest.mark.parametrize(
    ("values", "found", "column_type"),
    [
        (pd.Series([1, 2], dtype="int32"), [1, 2], "integer"),
        (pd.Series([1, 2]), [1, 2], "long"),
        (pd.Series([1, None], dtype="Int64"), [1.0, None], "double"),
        (pd.Series([1.5, 2.5], dtype="float32"), [1.5, 2.5], "float"),
        (pd.Series([True, False]), [True, False], "boolean"),
        (pd.Series(["x", None]), ["x", None], "string"),
        (pd.Series(["x", "y"], dtype="category"), ["x", "y"], "string"),
        (pd.Series([True, None], dtype=object), [True, None], "boolean"),
    ],
)
def test_a_column_has_one_of_mlflows_types(values: Any, found: list[Any], column_type: str) -> None:
    read = [None if isinstance(one, float) and np.isnan(one) else one for one in batches.column_values(values).tolist()]
    assert read == found
    assert batches.columns_of(pd.DataFrame({"a": values}))[0].type == column_type


def test_a_column_of_times_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidConfig, match="column 'when' has the type datetime64"):
        batches.columns_of(pd.DataFrame({"when": pd.date_range("2026-01-01", periods=2)}))


@pytest.mark.parametrize("batch", [pd.DataFrame({"a": range(5)}), {"a": np.arange(5)}])
def test_chunks_of_a_batch_are_the_batch_again(batch: batches.Batch) -> None:
    parts = list(batches.chunks(batch, 2))
    assert [batches.row_count(part) for part in parts] == [2, 2, 1]
    assert np.asarray(batches.concatenate(parts)["a"]).tolist() == list(range(5))
    assert np.asarray(batches.take_rows(batch, [3, 1])["a"]).tolist() == [3, 1]


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
