import json
from dataclasses import replace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.entities import Dataset, DatasetInput

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, RegistryUnavailable
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Tensor, read_artifact
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    cast_to_signature,
    frame_rows,
    known_rows,
    load_dataset,
    own_columns,
    read_rows,
    reference_rows,
)
from tests.support.classifiers import labelled, write_classifier, write_rows
from tests.support.models import columns, graph_tensor, mixed_model, write_model
from tests.support.tracking import DEFAULT_EXPERIMENT


@pytest.fixture
def artifact(tmp_path):
    return read_artifact(write_classifier(tmp_path / "model"))


def load(dataset, artifact, target="y", max_rows=50_000):
    return load_dataset(str(dataset), target, artifact, seed=7, max_rows=max_rows)


def test_a_csv_is_read_as_pandas_does(tmp_path, artifact):
    (tmp_path / "d.csv").write_text("a,city,y\n1.5,rome,late\n,,on time\n3,oslo,\n")
    dataset = load(tmp_path / "d.csv", artifact)
    assert dataset.truth.tolist() == ["late", "on time"]  # A row without a known truth is skipped.
    assert dataset.rows["city"].tolist() == ["rome", None]
    assert dataset.rows["a"][0] == 1.5
    assert np.isnan(dataset.rows["a"][1])
    assert "y" not in dataset.rows


def test_the_codes_of_a_csv_have_the_signatures_type(tmp_path, artifact):
    (tmp_path / "d.csv").write_text("zip,y\n01234,1\n90210,2\nNA,3\n")
    artifact = replace(artifact, columns=(Column("zip", "string", True),))
    assert load(tmp_path / "d.csv", artifact).rows["zip"].tolist() == ["01234", "90210", "NA"]
    (tmp_path / "d.csv").write_text("zip,y\n1234,1\n90210,2\n")
    assert load(tmp_path / "d.csv", artifact).rows["zip"].tolist() == ["1234", "90210"]


def test_parquet_with_categories_and_lists_is_read(tmp_path, artifact):
    table = pd.DataFrame(
        {"c": pd.Categorical(["x", "y", None]), "v": [[1.0, 2.0]] * 3, "y": [1, 0, 1]}
    )
    table.to_parquet(tmp_path / "d.parquet")
    dataset = load(tmp_path / "d.parquet", artifact)
    assert dataset.rows["c"].tolist() == ["x", "y", None]
    assert dataset.rows["v"].shape == (3, 2)
    assert dataset.truth.dtype.kind == "i"


def test_arrays_by_name_are_read_and_objects_that_only_pickle_could_read_are_not(
    tmp_path, artifact, monkeypatch
):
    np.savez(
        tmp_path / "d.npz",
        a=np.ones((3, 2, 2)),
        city=np.array(["rome", "oslo", "rome"]),
        y=[1, 0, 1],
    )
    dataset = load(tmp_path / "d.npz", artifact)
    assert dataset.rows["a"].shape == (3, 2, 2)
    assert dataset.rows["city"].tolist() == ["rome", "oslo", "rome"]
    assert dataset.truth.tolist() == [1, 0, 1]
    np.savez(tmp_path / "lengths.npz", a=np.ones(3), y=np.ones(2))
    with pytest.raises(InvalidConfig, match=r"arrays.*a \[3\], y \[2\]"):
        load(tmp_path / "lengths.npz", artifact)
    np.savez(tmp_path / "objects.npz", a=np.array([{}, {}], dtype=object), y=np.ones(2))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("objects.npz", "text.npz"):
        with pytest.raises(InvalidConfig, match=rf"{name} cannot be"):
            load(tmp_path / name, artifact)
    monkeypatch.setattr("mlflow_deploy_plugin.wrap.evaluation.dataset.MAX_BYTES", 3000)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10_000), y=np.zeros(10_000))
    with pytest.raises(InvalidConfig, match=r"bomb\.npz .*3,000 bytes"):
        load(tmp_path / "bomb.npz", artifact)


def test_data_with_an_unclear_number_of_rows_is_refused_by_name(tmp_path, artifact):
    np.savez(tmp_path / "number.npz", a=5)
    with pytest.raises(InvalidConfig, match=r"number\.npz.*a \[\]"):
        load(tmp_path / "number.npz", artifact)
    with pytest.raises(InvalidConfig, match=r"equal length|different lengths"):
        frame_rows(pd.DataFrame({"a": [[1.0, 2.0], [3.0]]}))


def test_columns_of_numbers_become_the_only_tensor_of_that_width(artifact):
    tensor = replace(artifact, columns=(), tensors=(Tensor("", "float32", (-1, 2)),))
    rows = {"b": np.arange(3), "a": np.ones(3)}
    assert cast_to_signature(tensor, rows)[""].tolist() == [[0, 1], [1, 1], [2, 1]]
    assert own_columns(tensor, rows)[""].dtype == np.float32
    with pytest.raises(InvalidConfig, match=r"one unnamed tensor.*b, a, c"):
        own_columns(tensor, {**rows, "c": np.ones(3)})


def test_the_seed_chooses_the_rows(tmp_path, artifact):
    file = write_rows(tmp_path / "d.parquet", labelled(200))
    first, again = (load(file, artifact, "label", max_rows=30) for _ in range(2))
    assert len(first.truth) == 30
    assert first.rows["a"].tolist() == again.rows["a"].tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, r"the dataset .*gone\.csv does not exist"),
        ("d.json", "{}", r"ends in '\.json'; supported are \.csv, \.parquet and \.npz"),
        ("d.parquet", "text", r"d\.parquet cannot be read"),
        ("d.csv", "a,b\n", "has no rows"),
        ("d.csv", "a,y,a\n1,2,3\n", "has two columns named 'a'"),
        ("d.csv", "a,b\n1,2\n", r"has no column 'y'; it has a, b"),
        (
            "d.csv",
            ",".join(f"c{n}" for n in range(30)) + "\n1" + ",2" * 29,
            r"it has c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 20 more$",
        ),
        ("d.csv", "a,y\n1,\n", "has no row with a known 'y'"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_named(name, content, message, tmp_path, artifact):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidConfig, match=message):
        load(tmp_path / name, artifact)


def test_a_column_of_the_model_cannot_be_the_target(tmp_path, artifact):
    (tmp_path / "d.csv").write_text("a,b,y\n1,2,3\n")
    with pytest.raises(InvalidConfig, match="target 'a'"):
        load(tmp_path / "d.csv", artifact, "a")


def test_a_reference_is_without_the_models_own_answers(tmp_path):
    rows = {**labelled(50), "prediction": [1] * 50, "output.p": [0.5] * 50}
    artifact = read_artifact(write_classifier(tmp_path / "model", reference=rows))
    reference = reference_rows(artifact, 20, 7)
    assert reference is not None
    assert set(reference) == {"a", "b", "label", "value"}
    assert len(reference["a"]) == 20
    assert load("reference", artifact, "label").truth.tolist() == np.asarray(rows["label"]).tolist()
    with pytest.raises(InvalidConfig, match="no column 'prediction'"):
        load("reference", artifact, "prediction")


def test_integers_and_booleans_have_the_types_of_the_signature_in_a_float_graph(tmp_path):
    rows = {name: np.array(values, "float32") for name, values in labelled(50).items()}
    rows["value"] = np.arange(50) % 2 * np.float32(1)
    rows["label"] = np.full(50, np.nan, "float32")
    artifact = read_artifact(write_classifier(tmp_path / "model", reference=rows))
    types: dict[str, Any] = {"a": "double", "value": "boolean", "label": "long", "b": "datetime"}
    artifact = replace(
        artifact, columns=tuple(Column(name, kind, True) for name, kind in types.items())
    )
    reference = reference_rows(artifact, 50, 7)
    assert reference is not None
    assert {name: str(values.dtype) for name, values in reference.items()} == {
        "a": "float64",
        "b": "float32",
        "value": "bool",
        "label": "float32",  # There is no default for a missing value.
    }
    artifact = replace(artifact, columns=(Column("value", "long", True),))
    again = reference_rows(artifact, 50, 7)
    assert again is not None
    assert again["value"].tolist() == [0, 1] * 25


def test_logged_rows_come_in_the_signatures_types(tmp_path, artifact):
    kinds: dict[str, Any] = {"hour": "long", "rain": "boolean", "temp": "double", "gust": "float"}
    artifact = replace(
        artifact, columns=tuple(Column(name, kind, True) for name, kind in kinds.items())
    )
    logged = {name: np.array([1, 0, 1], "float32") for name in kinds} | {"y": [1, 0, 1]}
    dataset = load(write_rows(tmp_path / "log.parquet", logged), artifact)
    types = {"hour": "int64", "rain": "bool", "temp": "float64", "gust": "float32"}
    assert {name: str(values.dtype) for name, values in dataset.rows.items()} == types
    assert dataset.rows["hour"].tolist() == [1, 0, 1]


def test_tensors_come_in_the_signatures_types_also_the_one_without_a_name(tmp_path, artifact):
    file = write_rows(tmp_path / "log.parquet", {"image": [[0.0, 1.0], [2.0, 3.0]], "y": [1, 0]})
    for name in ("image", ""):
        tensors = replace(artifact, columns=(), tensors=(Tensor(name, "float32", (-1, 2)),))
        assert load(file, tensors).rows["image"].dtype == np.float32


def test_logged_rows_of_one_tensor_without_a_name_are_its_values_alone(tmp_path, artifact):
    # the layout of tensors in the log
    image = pa.FixedSizeListArray.from_arrays(pa.array([0.0, 1.0, 2.0, 3.0]), 2)
    logged = {
        "input": image,
        "_event_time": [1, 2],
        "output.scores": [0.5, 0.5],
        "prediction": [1, 0],
        "y": [1, 0],
    }
    tensors = replace(artifact, columns=(), tensors=(Tensor("", "float32", (-1, 2)),))
    dataset = load(write_rows(tmp_path / "log.parquet", logged), tensors)
    assert dataset.rows.keys() == {"input"}
    assert dataset.rows["input"].shape == (2, 2)


def test_a_model_without_a_reference_has_no_sample(artifact):
    assert reference_rows(artifact, 20, 7) is None
    with pytest.raises(InvalidConfig, match="no reference"):
        load("reference", artifact)


def test_datasets_and_artifacts_of_runs_are_fetched(tmp_path, artifact, registry):
    file = write_rows(tmp_path / "holdout.parquet", labelled(60))
    with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT) as run:
        mlflow.log_artifact(str(file), "data")
        table = pd.read_parquet(file)
        mlflow.log_input(
            mlflow.data.from_pandas(table, source=str(file), name="holdout", targets="label")
        )
        mlflow.log_input(mlflow.data.from_pandas(table, name="memory"))
    run_id = run.info.run_id
    assert len(load(f"runs:/{run_id}/data/holdout.parquet", artifact, "label").truth) == 60
    assert len(load(f"dataset:/{run_id}/holdout", artifact, "label").truth) == 60
    with pytest.raises(InvalidConfig, match="without a readable source"):
        load(f"dataset:/{run_id}/memory", artifact, "label")
    with pytest.raises(NotFound, match=r"no dataset 'other'.*holdout, memory"):
        load(f"dataset:/{run_id}/other", artifact, "label")
    with pytest.raises(NotFound, match=r"none\.csv"):
        load(f"runs:/{run_id}/none.csv", artifact, "label")


def test_a_dataset_whose_source_is_code_is_not_loaded(artifact, registry):
    with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT) as run:
        pass
    script = Dataset(
        "script",
        "1",
        "hugging_face",
        json.dumps({"path": "some/script", "trust_remote_code": True}),
    )
    registry.log_inputs(run.info.run_id, [DatasetInput(script)])
    with pytest.raises(InvalidConfig, match="without a readable source"):
        load(f"dataset:/{run.info.run_id}", artifact, "label")


def test_a_store_that_is_down_says_nothing_of_the_version(artifact, monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    for name, value in {
        "MAX_ATTEMPTS": "1",
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(RegistryUnavailable, match=r"s3://bucket/d\.csv"):
        load("s3://bucket/d.csv", artifact)
    with pytest.raises(InvalidConfig, match="store for ftps:"):
        load("ftps://host/d.csv", artifact)


def test_the_truth_may_hold_several_values_a_row_where_all_are_known(artifact, tmp_path):
    rows = labelled(3)
    file = write_rows(
        tmp_path / "many.parquet", {**rows, "y": [[1.0, 2.0], [3.0, float("nan")], [5.0, 6.0]]}
    )
    assert load(file, artifact).truth.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    file = write_rows(tmp_path / "ragged.parquet", {**rows, "y": [[1.0, 2.0], [3.0], [5.0, 6.0]]})
    with pytest.raises(InvalidConfig, match=r"equal length|different lengths"):
        load(file, artifact)


def test_a_file_that_would_not_fit_into_memory_is_not_read(artifact, tmp_path, monkeypatch):
    file = write_rows(tmp_path / "large.parquet", {"y": [1.0] * 50, "lists": [[0.0] * 20] * 50})
    monkeypatch.setattr("mlflow_deploy_plugin.core.tabular.streams._MAX_VALUES", 1000)
    with pytest.raises(InvalidConfig, match=r"large\.parquet.*1,050 values.*1,000"):
        load(file, artifact)


@pytest.mark.parametrize(
    "values", [["x" * 1000] * 500, [["x" * 100] * 10] * 500], ids=["texts", "lists of texts"]
)
def test_a_text_counts_in_every_row_that_has_it(artifact, tmp_path, monkeypatch, values):
    file = write_rows(tmp_path / "bomb.parquet", {"text": values})
    assert list(read_rows(file, "b", artifact)["text"][0]) == list(values[0])  # type: ignore[call-overload]
    monkeypatch.setattr("mlflow_deploy_plugin.core.tabular.streams.MAX_BYTES", 400_000)
    with pytest.raises(InvalidConfig, match=r"dataset b.*400,000 bytes"):
        read_rows(file, "b", artifact)


def test_known_rows_are_the_example_otherwise_the_reference_otherwise_random(tmp_path):
    mixed = OnnxModel.load(mixed_model(tmp_path / "mixed"))
    made_up = known_rows(mixed.artifact, mixed.schema, 3)
    kinds = {name: (values.shape, values.dtype.kind) for name, values in made_up.items()}
    assert kinds == {
        "carrier": ((3,), "O"),
        "distance": ((3,), "f"),
        "hour": ((3,), "i"),
        "late": ((3,), "b"),
    }

    model = OnnxModel.load(write_classifier(tmp_path / "linear", reference=labelled(50)))
    sample = known_rows(model.artifact, model.schema, 3)
    assert {name: values.shape for name, values in sample.items()} == {"a": (3,), "b": (3,)}
    assert set(sample["a"]) <= set(np.asarray(labelled(50)["a"]))

    document = {"dataframe_records": [{"a": 1.5, "b": 2}]}
    (model.artifact.folder / INPUT_EXAMPLE).write_text(json.dumps(document))
    assert {
        name: values.tolist()
        for name, values in known_rows(model.artifact, model.schema, 3).items()
    } == {"a": [1.5], "b": [2.0]}


def test_known_rows_have_the_types_of_the_signature_although_the_graph_stacks_booleans_with_floats(
    tmp_path,
):
    graph = "stacked (double[N,2] X) => (double[N,2] y) { y = Identity(X) }"
    stacked = [graph_tensor("X", "float64", -1, 2, columns=["late", "distance"])]
    outputs = [graph_tensor("y", "float64", -1, 2, role="values")]
    section = {"inputs": stacked, "outputs": outputs, "prediction": ["y"]}
    folder = write_model(
        tmp_path / "stacked", graph, columns(late="boolean", distance="double"), section
    )
    (folder / INPUT_EXAMPLE).write_text('{"dataframe_records": [{"late": true, "distance": 1.5}]}')
    model = OnnxModel.load(folder)
    rows = known_rows(model.artifact, model.schema, 3)
    assert {name: values.tolist() for name, values in rows.items()} == {
        "late": [True],
        "distance": [1.5],
    }
    assert rows["late"].dtype == bool
