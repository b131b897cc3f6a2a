"""Rows from files as model input, and rows generated from a signature."""

import json

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
from tests.support.refusals import refused

TABLE = pd.DataFrame({"a": [1.5, None], "b": ["x", "2013-07-01"]})


FILES = {
    "rows.csv": "a,b\n1.5,x\n,2013-07-01\n",
    "rows.jsonl": '{"a": 1.5, "b": "x"}\n{"a": null, "b": "2013-07-01"}\n\n',
    "records.json": '[{"a": 1.5, "b": "x"}, {"a": null, "b": "2013-07-01"}]',
    "columns.json": '{"a": [1.5, null], "b": ["x", "2013-07-01"]}',
    "split.json": (
        '{"dataframe_split": {"columns": ["a", "b"], "data": [[1.5, "x"], [null, "2013-07-01"]]}}'
    ),
    "rows.parquet": "",
}


@pytest.mark.parametrize(("name", "content"), FILES.items(), ids=FILES)
def test_all_formats_have_the_same_table(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    if name.endswith("parquet"):
        TABLE.to_parquet(tmp_path / name)

    pd.testing.assert_frame_equal(read_rows(tmp_path / name), TABLE, check_dtype=False)


def test_json_inputs_are_arrays(tmp_path):
    (tmp_path / "images.json").write_text('{"inputs": [[[1, 2]], [[3, 4]]]}')
    assert np.asarray(read_rows(tmp_path / "images.json")).shape == (2, 1, 2)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.txt", "a", (".csv", ".parquet")),
        ("rows.csv", "", ("rows.csv", "csv")),
        ("rows.csv", "a,b\n", ("rows.csv", "no rows")),
        ("rows.parquet", "PAR1", ("rows.parquet", "parquet")),
        ("rows.json", "{", ("rows.json", "json")),
        ("rows.json", '{"a": [1], "b": [1, 2]}', ("rows.json", "json")),
        ("rows.jsonl", '{"a": 1}\n{', ("rows.jsonl", "jsonl")),
        ("gone.csv", None, ("gone.csv", "No such file")),
    ],
)
def test_file_without_rows_is_refused(name, content, words, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with refused(InvalidConfig, *words) as caught:
        read_rows(tmp_path / name)
    assert "\n" not in str(caught.value)


def _tensors(**tensors):
    """Return a signature of tensors; an empty name is no name."""
    return ModelSignature(
        Schema(
            [
                TensorSpec(np.dtype(dtype), shape, name.strip("_") or None)
                for name, (dtype, *shape) in tensors.items()
            ]
        )
    )


TEXT = ModelSignature(Schema([ColSpec("string")]))


def test_columns_become_signed_tensors():
    rows = pd.DataFrame({"ids": [[1, 2], [3, 4]], "mask": [1, 0], "other": ["x", "y"]})
    signature = _tensors(ids=("int64", -1, 2), mask=("float32", -1))
    fitted = fit_to_signature(rows, signature)
    assert {name: (array.dtype.name, array.shape) for name, array in fitted.items()} == {
        "ids": ("int64", (2, 2)),
        "mask": ("float32", (2,)),
    }
    plain = _tensors(_=("float32", -1, 1, 2))
    assert fit_to_signature(pd.DataFrame([[1, 2], [3, 4]]), plain).shape == (2, 1, 2)
    with refused(InvalidConfig, "'mask'"):
        fit_to_signature(rows[["ids"]], signature)
    with refused(InvalidConfig, "tensors"):
        fit_to_signature(pd.DataFrame([[1, 2, 3]]), plain)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.csv", "review\ngood\nbad\n"),
        ("columns.json", '{"review": ["good", "bad"]}'),
        ("list.json", '["good", "bad"]'),
        ("inputs.json", '{"inputs": ["good", "bad"]}'),
    ],
)
def test_texts_fit_an_unnamed_string(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    rows = fit_to_signature(read_rows(tmp_path / name), TEXT)
    assert np.asarray(rows).tolist() == ["good", "bad"]


def test_several_columns_are_no_string():
    with refused(InvalidConfig, "'a', 'b'"):
        fit_to_signature(TABLE, TEXT)


def test_made_up_rows_use_learned_values():
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
    ("spec", "shape"),
    [(("float32", -1, 3, -1), (16, 3, 4)), (("int64", -1, 5), (16, 5))],
)
def test_made_up_tensors_have_the_signature(spec, shape):
    rows = made_up_rows(_tensors(_=spec), None)
    assert rows.dtype.name == spec[0]
    assert rows.shape == shape


@pytest.mark.parametrize(
    ("content", "tensors"),
    [
        ({"": [[0.5, None], [1.5, 2.5]]}, {"_": ("float32", -1, 2)}),
        (
            {"a": [[0.5], [1.5]], "b": [1, 2]},
            {"a": ("float32", -1, 1), "b": ("int64", -1)},
        ),
    ],
    ids=["an array", "tensors"],
)
def test_example_of_old_mlflow_is_read(content, tensors, tmp_path):
    inputs = content.get("", content)
    (tmp_path / "input_example.json").write_text(json.dumps({"inputs": inputs}))
    mlmodel = Model(
        signature=_tensors(**tensors),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "format": "tf-serving",
            "type": "ndarray",
        },
    )

    example = saved_example(mlmodel, tmp_path)

    arrays = example if isinstance(example, dict) else {"": example}
    for (name, values), (dtype, *_) in zip(content.items(), tensors.values(), strict=True):
        np.testing.assert_array_equal(arrays[name], np.array(values, dtype))
        assert arrays[name].dtype == dtype
