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
    reference_rows,
)
from tests.support.classifiers import labelled, write_classifier, write_rows
from tests.support.models import columns, graph_tensor, mixed_model, numbers_section, write_model
from tests.support.refusals import refused
from tests.support.tracking import DEFAULT_EXPERIMENT


@pytest.fixture
def artifact(tmp_path):
    return read_artifact(write_classifier(tmp_path / "model"))


@pytest.fixture
def reading(tmp_path, artifact):
    """Return a function that writes columns, and reads them for a model with the given
    types of columns, or with one tensor.
    """

    def read(rows, tensor=None, **types):
        columns = tuple(Column(name, kind, True) for name, kind in types.items())
        tensors = () if tensor is None else (Tensor(tensor, "float32", (-1, 2)),)
        model = replace(artifact, columns=columns, tensors=tensors)
        return load(write_rows(tmp_path / "log.parquet", rows), model)

    return read


def load(dataset, artifact, target="y", max_rows=50_000):
    return load_dataset(str(dataset), target, artifact, seed=7, max_rows=max_rows)


def test_csv_is_read_as_pandas_does(tmp_path, artifact):
    (tmp_path / "d.csv").write_text("a,city,y\n1.5,rome,late\n,,on time\n3,oslo,\n")
    dataset = load(tmp_path / "d.csv", artifact)
    assert dataset.truth.tolist() == ["late", "on time"]  # A row without a known truth is skipped.
    assert dataset.rows["city"].tolist() == ["rome", None]
    assert dataset.rows["a"][0] == 1.5
    assert np.isnan(dataset.rows["a"][1])
    assert "y" not in dataset.rows


@pytest.mark.parametrize("codes", [["01234", "90210", "NA"], ["1234", "90210"]])
def test_csv_codes_have_signature_types(codes, tmp_path, artifact):
    (tmp_path / "d.csv").write_text("\n".join(["zip,y", *(f"{code},1" for code in codes)]))
    artifact = replace(artifact, columns=(Column("zip", "string", True),))
    assert load(tmp_path / "d.csv", artifact).rows["zip"].tolist() == codes


def test_parquet_categories_and_lists_are_read(tmp_path, artifact):
    table = pd.DataFrame(
        {"c": pd.Categorical(["x", "y", None]), "v": [[1.0, 2.0]] * 3, "y": [1, 0, 1]}
    )
    table.to_parquet(tmp_path / "d.parquet")
    dataset = load(tmp_path / "d.parquet", artifact)
    assert dataset.rows["c"].tolist() == ["x", "y", None]
    assert dataset.rows["v"].shape == (3, 2)
    assert dataset.truth.dtype.kind == "i"


def test_named_arrays_are_read(tmp_path, artifact):
    cities = np.array(["rome", "oslo", "rome"])
    np.savez(tmp_path / "d.npz", a=np.ones((3, 2, 2)), city=cities, y=[1, 0, 1])
    dataset = load(tmp_path / "d.npz", artifact)
    assert dataset.rows["a"].shape == (3, 2, 2)
    assert dataset.rows["city"].tolist() == cities.tolist()
    assert dataset.truth.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.ones(3), "y": np.ones(2)}, ("a [3], y [2]",)),
        ({"a": 5}, ("a []",)),
        ({"a": np.array([{}, {}], dtype=object), "y": np.ones(2)}, ("d.npz", "cannot be")),
        (None, ("d.npz", "cannot be")),
        ({"a": np.zeros(10_000), "y": np.zeros(10_000)}, ("d.npz", "3,000 bytes")),
    ],
    ids=["lengths", "a number", "pickled objects", "no archive", "a bomb"],
)
def test_invalid_arrays_are_refused(arrays, words, tmp_path, artifact, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.wrap.evaluation.dataset.MAX_BYTES", 3000)
    (tmp_path / "d.npz").write_text("no archive")
    if arrays is not None:
        np.savez_compressed(tmp_path / "d.npz", **arrays)
    with refused(InvalidConfig, *words):
        load(tmp_path / "d.npz", artifact)


def test_lists_of_different_lengths_are_refused(reading):
    with refused(InvalidConfig, "lengths"):
        frame_rows(pd.DataFrame({"a": [[1.0, 2.0], [3.0]]}))
    with refused(InvalidConfig, "lengths"):
        reading({"a": [1.0] * 3, "y": [[1.0, 2.0], [3.0], [5.0, 6.0]]})


def test_columns_become_the_only_tensor(artifact):
    tensor = replace(artifact, columns=(), tensors=(Tensor("", "float32", (-1, 2)),))
    rows = {"b": np.arange(3), "a": np.ones(3)}
    assert cast_to_signature(tensor, rows)[""].tolist() == [[0, 1], [1, 1], [2, 1]]
    assert own_columns(tensor, rows)[""].dtype == np.float32
    with refused(InvalidConfig, "one unnamed tensor", "b, a, c"):
        own_columns(tensor, {**rows, "c": np.ones(3)})


def test_seed_chooses_the_rows(tmp_path, artifact):
    file = write_rows(tmp_path / "d.parquet", labelled(200))
    first, again = (load(file, artifact, "label", max_rows=30) for _ in range(2))
    assert len(first.truth) == 30
    assert first.rows["a"].tolist() == again.rows["a"].tolist()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.csv", None, ("gone.csv", "does not exist")),
        ("d.json", "{}", ("'.json'", ".csv, .parquet and .npz")),
        ("d.parquet", "text", ("d.parquet", "read")),
        ("d.csv", "a,b\n", ("d.csv", "no rows")),
        ("d.csv", "a,y,a\n1,2,3\n", ("'a'", "two")),
        ("d.csv", "a,b\n1,2\n", ("'y'", "a, b")),
        ("d.csv", ",".join(f"c{n}" for n in range(30)) + "\n1" + ",2" * 29, ("c9", "20 more")),
        ("d.csv", "a,y\n1,\n", ("'y'", "known")),
    ],
)
def test_unusable_dataset_is_named(name, content, words, tmp_path, artifact):
    if content is not None:
        (tmp_path / name).write_text(content)
    with refused(InvalidConfig, *words):
        load(tmp_path / name, artifact)


def test_target_is_not_an_input(tmp_path, artifact):
    (tmp_path / "d.csv").write_text("a,b,y\n1,2,3\n")
    with refused(InvalidConfig, "target", "'a'"):
        load(tmp_path / "d.csv", artifact, "a")


def test_reference_has_no_answers(tmp_path, artifact):
    assert reference_rows(artifact, 20, 7) is None
    with refused(InvalidConfig, "no reference"):
        load("reference", artifact)
    rows = {**labelled(50), "prediction": [1] * 50, "output.p": [0.5] * 50}
    artifact = read_artifact(write_classifier(tmp_path / "logged", reference=rows))
    reference = reference_rows(artifact, 20, 7)
    assert reference is not None
    assert set(reference) == {"a", "b", "label", "value"}
    assert len(reference["a"]) == 20
    assert load("reference", artifact, "label").truth.tolist() == np.asarray(rows["label"]).tolist()
    with refused(InvalidConfig, "'prediction'"):
        load("reference", artifact, "prediction")


def test_reference_has_signature_types(tmp_path):
    rows = {name: np.array(values, "float32") for name, values in labelled(50).items()}
    rows["value"] = np.arange(50) % 2 * np.float32(1)
    rows["label"] = np.full(50, np.nan, "float32")
    artifact = read_artifact(write_classifier(tmp_path / "model", reference=rows))
    types: Any = {"a": "double", "value": "boolean", "label": "long", "b": "datetime"}
    columns = tuple(Column(name, kind, True) for name, kind in types.items())
    reference = reference_rows(replace(artifact, columns=columns), 50, 7)
    assert reference is not None
    assert {name: str(values.dtype) for name, values in reference.items()} == {
        "a": "float64",
        "b": "float32",
        "value": "bool",
        "label": "float32",  # There is no default for a missing value.
    }


@pytest.mark.parametrize("name", ["image", ""])
def test_tensors_have_signature_types(name, reading):
    rows = reading({"image": [[0.0, 1.0], [2.0, 3.0]], "y": [1, 0]}, tensor=name).rows
    assert rows["image"].dtype == np.float32


def test_unnamed_logged_tensor_is_read(reading):
    # the layout of tensors in the log
    image = pa.FixedSizeListArray.from_arrays(pa.array([0.0, 1.0, 2.0, 3.0]), 2)
    logged = {
        "input": image,
        "_event_time": [1, 2],
        "output.scores": [0.5, 0.5],
        "prediction": [1, 0],
        "y": [1, 0],
    }
    dataset = reading(logged, tensor="")
    assert dataset.rows.keys() == {"input"}
    assert dataset.rows["input"].shape == (2, 2)


def test_datasets_of_runs_are_fetched(tmp_path, artifact, registry):
    file = write_rows(tmp_path / "holdout.parquet", labelled(60))
    table = pd.read_parquet(file)
    with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT) as run:
        mlflow.log_artifact(str(file), "data")
        mlflow.log_input(
            mlflow.data.from_pandas(table, source=str(file), name="holdout", targets="label")
        )
        mlflow.log_input(mlflow.data.from_pandas(table, name="memory"))
    run_id = run.info.run_id
    for uri in (f"runs:/{run_id}/data/holdout.parquet", f"dataset:/{run_id}/holdout"):
        assert len(load(uri, artifact, "label").truth) == 60
    for uri, error, words in (
        (f"dataset:/{run_id}/memory", InvalidConfig, "without a readable source"),
        (f"dataset:/{run_id}/other", NotFound, "holdout, memory"),
        (f"runs:/{run_id}/none.csv", NotFound, "none.csv"),
    ):
        with refused(error, words):
            load(uri, artifact, "label")


def test_dataset_of_code_is_not_loaded(artifact, registry):
    with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT) as run:
        pass
    source = json.dumps({"path": "some/script", "trust_remote_code": True})
    script = Dataset("script", "1", "hugging_face", source)
    registry.log_inputs(run.info.run_id, [DatasetInput(script)])
    with refused(InvalidConfig, "without a readable source"):
        load(f"dataset:/{run.info.run_id}", artifact, "label")


def test_unreachable_store_is_unavailable(artifact, monkeypatch):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with refused(RegistryUnavailable, "s3://bucket/d.csv"):
        load("s3://bucket/d.csv", artifact)
    with refused(InvalidConfig, "ftps"):
        load("ftps://host/d.csv", artifact)


def test_truth_may_have_several_known_values(reading):
    truth = [[1.0, 2.0], [3.0, float("nan")], [5.0, 6.0]]
    assert reading({"a": [1.0] * 3, "y": truth}).truth.tolist() == [[1.0, 2.0], [5.0, 6.0]]


def test_too_large_file_is_not_read(reading, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.core.tabular.streams._MAX_VALUES", 1000)
    with refused(InvalidConfig, "log.parquet", "1,050 values", "1,000"):
        reading({"y": [1.0] * 50, "lists": [[0.0] * 20] * 50})


def test_known_rows_prefer_the_example(tmp_path):
    def known(model):
        return known_rows(model.artifact, model.schema, 3)

    made_up = known(OnnxModel.load(mixed_model(tmp_path / "mixed")))
    kinds = {name: (len(values), values.dtype.kind) for name, values in made_up.items()}
    assert kinds == {"carrier": (3, "O"), "distance": (3, "f"), "hour": (3, "i"), "late": (3, "b")}

    rows = labelled(50)
    model = OnnxModel.load(write_classifier(tmp_path / "linear", reference=rows))
    sample = known(model)
    assert {name: len(values) for name, values in sample.items()} == {"a": 3, "b": 3}
    assert set(sample["a"]) <= set(rows["a"])

    document = {"dataframe_records": [{"a": 1.5, "b": 2}]}
    (model.artifact.folder / INPUT_EXAMPLE).write_text(json.dumps(document))
    assert known(model) == {"a": [1.5], "b": [2.0]}


def test_known_rows_have_signature_types(tmp_path):
    graph = "stacked (double[N,2] X) => (double[N,2] y) { y = Identity(X) }"
    section = numbers_section(
        graph_tensor("X", "float64", -1, 2, columns=["late", "distance"]),
        dtype="float64",
        shape=(2,),
    )
    signature = columns(late="boolean", distance="double")
    folder = write_model(tmp_path / "stacked", graph, signature, section)
    (folder / INPUT_EXAMPLE).write_text('{"dataframe_records": [{"late": true, "distance": 1.5}]}')
    model = OnnxModel.load(folder)
    rows = known_rows(model.artifact, model.schema, 3)
    assert rows["late"].tolist() == [True]
    assert rows["distance"].tolist() == [1.5]
    assert rows["late"].dtype == bool
