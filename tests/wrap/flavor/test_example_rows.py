"""Rows from files as model input, and rows generated from a signature."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.wrap.flavor.example_rows import (
    fit_to_signature,
    made_up_rows,
    read_rows,
    saved_example,
)

TABLE = pd.DataFrame({"a": [1.5, None], "b": ["x", "2013-07-01"]})


def _write(path):
    records = [{"a": 1.5, "b": "x"}, {"a": None, "b": "2013-07-01"}]
    match path.name.partition("-")[0]:
        case "rows.csv":
            TABLE.to_csv(path, index=False)
        case "rows.parquet":
            TABLE.to_parquet(path)
        case "rows.jsonl":
            path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
        case "records.json":
            path.write_text(json.dumps(records))
        case "columns.json":
            path.write_text(json.dumps({"a": [1.5, None], "b": ["x", "2013-07-01"]}))
        case "split.json":
            path.write_text(
                json.dumps(
                    {
                        "dataframe_split": {
                            "columns": ["a", "b"],
                            "data": [[1.5, "x"], [None, "2013-07-01"]],
                        }
                    }
                )
            )


@pytest.mark.parametrize(
    "name", ["rows.csv", "rows.parquet", "rows.jsonl", "records.json", "columns.json", "split.json"]
)
def test_every_format_gives_the_same_table(name, tmp_path):
    _write(tmp_path / name)
    table = read_rows(tmp_path / name)
    assert table["a"].to_list()[0] == 1.5
    assert np.isnan(table["a"].to_list()[1])
    assert table["b"].to_list() == ["x", "2013-07-01"]


def test_inputs_of_json_are_arrays(tmp_path):
    (tmp_path / "images.json").write_text('{"inputs": [[[1, 2]], [[3, 4]]]}')
    assert np.asarray(read_rows(tmp_path / "images.json")).shape == (2, 1, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", "a", "the file name must end with .csv, .json, .jsonl or .parquet"),
        ("rows.csv", "", "rows.csv cannot be read as csv: No columns to parse from file"),
        ("rows.csv", "a,b\n", "rows.csv has no rows"),
        ("rows.parquet", "PAR1", "rows.parquet cannot be read as parquet: "),
        ("rows.json", "{", "rows.json cannot be read as json: "),
        (
            "rows.json",
            '{"a": [1], "b": [1, 2]}',
            "rows.json cannot be read as json: All arrays must be",
        ),
        ("rows.jsonl", '{"a": 1}\n{', "rows.jsonl cannot be read as jsonl: "),
        ("gone.csv", None, "the file .*gone.csv cannot be read: No such file or directory"),
    ],
)
def test_a_file_without_rows_is_refused_in_one_line(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidConfig, match=message) as caught:
        read_rows(tmp_path / name)
    assert "\n" not in str(caught.value)


def _tensors(*specs):
    return ModelSignature(Schema(list(specs)))


def test_columns_become_the_tensors_of_the_signature():
    rows = pd.DataFrame({"ids": [[1, 2], [3, 4]], "mask": [1, 0], "other": ["x", "y"]})
    signature = _tensors(
        TensorSpec(np.dtype("int64"), (-1, 2), "ids"),
        TensorSpec(np.dtype("float32"), (-1,), "mask"),
    )
    fitted = fit_to_signature(rows, signature)
    assert {name: (array.dtype.name, array.shape) for name, array in fitted.items()} == {
        "ids": ("int64", (2, 2)),
        "mask": ("float32", (2,)),
    }
    plain = _tensors(TensorSpec(np.dtype("float32"), (-1, 1, 2)))
    assert fit_to_signature(pd.DataFrame([[1, 2], [3, 4]]), plain).shape == (2, 1, 2)
    with pytest.raises(InvalidConfig, match="no column 'mask'"):
        fit_to_signature(rows[["ids"]], signature)
    with pytest.raises(InvalidConfig, match="cannot be converted to the signature's tensors"):
        fit_to_signature(pd.DataFrame([[1, 2, 3]]), plain)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.csv", "review\ngood\nbad\n"),
        ("texts.json", '[{"review": "good"}, {"review": "bad"}]'),
        ("columns.json", '{"review": ["good", "bad"]}'),
        ("texts.jsonl", '{"review": "good"}\n{"review": "bad"}\n'),
        ("list.json", '["good", "bad"]'),
        ("inputs.json", '{"inputs": ["good", "bad"]}'),
    ],
)
def test_a_column_of_texts_fits_a_single_string_without_a_name(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    rows = fit_to_signature(read_rows(tmp_path / name), ModelSignature(Schema([ColSpec("string")])))
    assert np.asarray(rows).tolist() == ["good", "bad"]


def test_a_table_of_several_columns_does_not_fit_a_single_string_without_a_name():
    message = "the rows have the columns 'a', 'b', .* keep only the column of texts"
    with pytest.raises(InvalidConfig, match=message):
        fit_to_signature(TABLE, ModelSignature(Schema([ColSpec("string")])))


def test_made_up_rows_use_learned_categories_and_thresholds():
    learned = pd.DataFrame({"city": ["rome", "oslo"] * 50, "size": np.linspace(100, 900, 100)})
    steps = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough")
    model = make_pipeline(steps, DecisionTreeClassifier(max_depth=3)).fit(
        learned, learned["size"] // 300
    )
    signature = ModelSignature(Schema([ColSpec("string", "city"), ColSpec("double", "size")]))

    rows = made_up_rows(signature, model)

    assert set(rows["city"]) == {"rome", "oslo"}
    assert rows["size"].min() < 300
    assert rows["size"].max() > 600


@pytest.mark.parametrize(
    ("spec", "dtype", "shape"),
    [
        (TensorSpec(np.dtype("float32"), (-1, 3, -1)), "float32", (16, 3, 4)),
        (TensorSpec(np.dtype("int64"), (-1, 5)), "int64", (16, 5)),
    ],
)
def test_made_up_tensors_have_the_shape_of_the_signature(spec, dtype, shape):
    rows: Any = made_up_rows(_tensors(spec), None)
    assert rows.dtype.name == dtype
    assert rows.shape == shape


def test_an_array_is_read_as_older_versions_of_mlflow_have_saved_it(tmp_path):
    (tmp_path / "input_example.json").write_text('{"inputs": [[0.5, null], [1.5, 2.5]]}')
    mlmodel = Model(
        signature=ModelSignature(Schema([TensorSpec(np.dtype(np.float32), (-1, 2))])),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "format": "tf-serving",
            "type": "ndarray",
        },
    )

    example = saved_example(mlmodel, tmp_path)

    assert example.dtype == np.float32
    np.testing.assert_array_equal(example, [[0.5, np.nan], [1.5, 2.5]])


def test_tensors_are_read_by_name_as_older_versions_of_mlflow_have_saved_them(tmp_path):
    (tmp_path / "input_example.json").write_text('{"inputs": {"a": [[0.5], [1.5]], "b": [1, 2]}}')
    tensors = [
        TensorSpec(np.dtype(np.float32), (-1, 1), "a"),
        TensorSpec(np.dtype(np.int64), (-1,), "b"),
    ]
    mlmodel = Model(
        signature=ModelSignature(Schema(tensors)),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "format": "tf-serving",
            "type": "ndarray",
        },
    )

    example = saved_example(mlmodel, tmp_path)

    assert {name: (array.dtype.name, array.tolist()) for name, array in example.items()} == {
        "a": ("float32", [[0.5], [1.5]]),
        "b": ("int64", [1, 2]),
    }
