"""Each export format gives the same answers as the served model, or is refused without
leaving files.
"""

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import orjson
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import (
    AlreadyExists,
    ConversionError,
    InferenceError,
    InvalidConfig,
    NotFound,
    OnnxserveError,
    ParityError,
)
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.exporter import exporting
from mlflow_deploy_plugin.wrap.exporter.exporting import FORMATS
from mlflow_deploy_plugin.wrap.exporter.package import RUNNER
from mlflow_deploy_plugin.wrap.exporter.runner import METADATA_KEY, Model
from mlflow_deploy_plugin.wrap.flavor.save import load_model, save_model
from tests.support.models import tensor_column, write_model
from tests.support.pyfuncs import save_pyfuncs
from tests.support.tracking import tracking_at


def test_booleans_and_integers_that_the_graph_stacks_with_floats_keep_their_types(tmp_path):
    random = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "late": random.random(40) > 0.5,
            "hour": random.integers(0, 24, 40),
            "distance": random.normal(size=40),
        }
    )
    save_model(LogisticRegression().fit(rows, rows["late"]), tmp_path / "model", input_example=rows)
    assert onnxserve.export(str(tmp_path / "model"), "onnx", tmp_path / "m.onnx").rows == 505


@pytest.mark.long
@pytest.mark.parametrize(
    ("form", "name", "model"),
    [
        ("onnx", "m.onnx", "mixed"),
        ("ort", "m.ort", "mixed"),
        ("wheel", "dist", "mixed"),
        ("bundle", "b", "mixed"),
        ("ort", "m.ort", "forest"),
        ("onnx", "m.onnx", "tensor"),
        ("bundle", "b", "network"),
    ],
)
def test_a_version_is_exported_and_proven(form, name, model, tmp_path, request):
    folder = request.getfixturevalue(model)
    exported = onnxserve.export(str(folder), form, tmp_path / name)

    assert exported.path.exists()
    assert exported.name == folder.name
    assert exported.rows > 500
    assert exported.max_error <= (1e-5 if form == "ort" else 0.0)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_exported_graph_describes_its_columns_classes_and_parity(forest, tmp_path):
    onnxserve.export(str(forest), "onnx", tmp_path / "forest.onnx")

    graph = onnx.load(str(tmp_path / "forest.onnx"))
    onnx.checker.check_model(graph)
    metadata = orjson.loads(
        next(entry.value for entry in graph.metadata_props if entry.key == METADATA_KEY)
    )
    assert [column["name"] for column in metadata["columns"]] == ["carrier", "distance"]
    assert metadata["classes"] == ["late", "on time"]
    assert metadata["parity"] == "proven"
    assert metadata["source"] == ""  # Paths of this machine are not exported.
    inputs = [
        node.name
        for node in onnxruntime.InferenceSession(str(tmp_path / "forest.onnx")).get_inputs()
    ]
    assert inputs == [entry["name"] for entry in metadata["inputs"]]


def test_a_registered_version_keeps_its_number(mixed, tmp_path, new_database):
    with tracking_at(new_database(tmp_path)):
        client = MlflowClient()
        client.create_registered_model("Flight Delay")
        client.create_model_version("Flight Delay", mixed.as_uri())
        client.set_registered_model_alias("Flight Delay", "champion", "1")
        exported = onnxserve.export("models:/Flight Delay@champion", "wheel", tmp_path / "dist")

    assert exported.path.name == "flight_delay-1-py3-none-any.whl"
    assert exported.name == "Flight Delay"
    assert exported.version == "1"
    with zipfile.ZipFile(exported.path) as archive:
        archive.extract("flight_delay/model.onnx", tmp_path)
    model = Model(tmp_path / "flight_delay" / "model.onnx")
    assert model.name == "Flight Delay"
    assert model.version == "1"
    assert model.source == "models:/Flight Delay/1"


@pytest.mark.parametrize("name", ["m.onnx", "m.ort"])
def test_the_runner_answers_frames_as_the_original(name, forest, forest_rows, tmp_path):
    form: Any = name.partition(".")[2]
    onnxserve.export(str(forest), form, tmp_path / name, rows=forest_rows)
    served = load_model(str(forest))

    # The order of a sum depends on the shapes.
    outputs = Model(tmp_path / name, threads=1).outputs(forest_rows)

    feeds = served.schema.from_columns(
        {str(column): forest_rows[column].to_numpy() for column in forest_rows}
    )
    for output, want in served.run(feeds).items():
        np.testing.assert_array_equal(outputs[output], want)


def test_a_bundle_may_be_one_file(mixed, tmp_path):
    exported = onnxserve.export(str(mixed), "bundle", tmp_path / "m.zip")
    with zipfile.ZipFile(exported.path) as archive:
        assert {"model.onnx", "predict.py", "README.md", "examples/predict.cpp"} <= set(
            archive.namelist()
        )


@pytest.mark.long
def test_of_two_exports_to_one_path_the_second_is_refused(mixed, tmp_path):
    def export(_):
        try:
            return str(onnxserve.export(str(mixed), "bundle", tmp_path / "b").path)
        except AlreadyExists:
            return "refused"

    with ThreadPoolExecutor(4) as threads:
        results = sorted(threads.map(export, range(4)))
    assert results == [str(tmp_path / "b"), "refused", "refused", "refused"]
    assert os.listdir(tmp_path) == ["b"]
    assert sorted(os.listdir(tmp_path / "b")) == [
        "README.md",
        "example.json",
        "examples",
        "model.onnx",
        "predict.py",
    ]


def test_rows_of_a_file_are_the_rows_of_the_proof(forest, forest_rows, tmp_path):
    forest_rows.to_csv(tmp_path / "rows.csv", index=False)
    assert (
        onnxserve.export(str(forest), "onnx", tmp_path / "m.onnx", rows=tmp_path / "rows.csv").rows
        == 700
    )


@pytest.mark.long
def test_the_runner_refuses_the_rows_that_a_step_refuses(tmp_path):
    rows = np.random.default_rng(0).lognormal(size=(60, 2))
    model = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()).fit(
        rows, rows[:, 0] > 1
    )
    save_model(model, tmp_path / "model", input_example=rows)

    exported = onnxserve.export(str(tmp_path / "model"), "onnx", tmp_path / "model.onnx")

    runner = Model(exported.path)
    assert runner.predict(rows).tolist() == model.predict(rows).tolist()
    with pytest.raises(ValueError, match=r"^row 1:.*NaN.*Logistic"):
        runner.predict([[1.0, 1.0], [1.0, -5.0]])
    graph = onnx.load(exported.path)
    mlflow.onnx.save_model(
        graph, tmp_path / "stock", signature=infer_signature(rows.astype(np.float32))
    )
    save_model(graph, tmp_path / "wrapped", input_example=rows.astype(np.float32))
    for name in ("stock", "wrapped"):
        served = OnnxModel.load(tmp_path / name)
        assert [output.name for output in served.artifact.outputs] == ["label", "probabilities"]
        with pytest.raises(InferenceError, match=r"^row 0: .*NaN"):
            served.run(served.schema.from_array(np.array([[1.0, -5.0]])))


def test_a_graph_without_rows_is_proven_on_its_one_request(tmp_path):
    signature = [tensor_column("float32", 2, 3)]
    graph = "fixed (float[2,3] x) => (float[2,3] y) { y = Abs(x) }"
    folder = write_model(tmp_path / "fixed", graph, signature)
    exported = onnxserve.export(str(folder), "bundle", tmp_path / "b")
    assert exported.rows == 2
    assert orjson.loads((exported.path / "example.json").read_bytes())["x"]["dims"] == [2, 3]


def test_an_export_that_never_answers_is_refused(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_PROOF_SECONDS", 0.01)
    with pytest.raises(ParityError, match=r"within 0\.01 s"):
        onnxserve.export(str(mixed), "onnx", tmp_path / "m.onnx")


def test_a_model_that_draws_random_numbers_is_refused_and_leaves_no_file(tmp_path):
    graph = "noise (float[N,2] x) => (float[N,2] y) { n = RandomNormalLike(x)  y = Add(x, n) }"
    folder = write_model(tmp_path / "noise", graph)
    with pytest.raises(ParityError, match=r"'y', row 0:.*564 of 564"):
        onnxserve.export(str(folder), "onnx", tmp_path / "out" / "m.onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("share", "is_kept"), [(2e-6, True), (1e-4, False)])
def test_a_small_score_may_be_rounded_like_the_large_scores_of_its_row(
    tmp_path, monkeypatch, share, is_kept
):
    folder = write_model(
        tmp_path / "scores", "scores (float[N,2] x) => (float[N,2] y) { y = Identity(x) }"
    )
    rounded = f"""
_outputs = Model.outputs
def outputs(self, rows):
    y = _outputs(self, rows)["y"].copy()
    y[:, 1] += {share} * np.abs(y).max(axis=1)
    return {{"y": y}}
Model.outputs = outputs
"""
    runner = tmp_path / "runner.py"
    runner.write_text(
        RUNNER.read_text().replace(
            'if __name__ == "__main__":', rounded + 'if __name__ == "__main__":'
        )
    )
    monkeypatch.setattr(exporting, "RUNNER", runner)
    rows = {"x": np.array([[400.0, 0.3], [-90.0, 0.01]], np.float32)}
    refusal = (
        r"gives other answers .*: output 'y', row 0: 0\.34\d*, but the served model returns "
        r"0\.3\d* \(\d+ of \d+ "
    )
    with nullcontext() if is_kept else pytest.raises(ParityError, match=refusal):
        onnxserve.export(str(folder), "ort", tmp_path / "m.ort", rows=rows)


def test_an_export_that_does_not_run_is_refused(mixed, tmp_path, monkeypatch):
    broken = tmp_path / "runner.py"
    broken.write_text("import mlflow_deploy_plugin\n")
    monkeypatch.setattr(exporting, "RUNNER", broken)
    with pytest.raises(ParityError, match=r"cannot run.*mlflow_deploy_plugin"):
        onnxserve.export(str(mixed), "onnx", tmp_path / "m.onnx")


def test_a_graph_that_one_file_cannot_hold_is_refused(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_LARGEST_PROTOBUF", 100)
    with pytest.raises(ConversionError, match=r"flight-delay .*gigabytes"):
        onnxserve.export(str(mixed), "onnx", tmp_path / "m.onnx")


def test_weights_in_a_file_of_their_own_are_in_the_export(tmp_path):
    graph = "heavy (float[N,2] x) => (float[N,2] y) <float[2] w = {0.5, 0.5}> { y = Mul(x, w) }"
    folder = write_model(tmp_path / "heavy", graph)
    loaded = onnx.load(str(folder / "model.onnx"))
    loaded.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.full(2, 0.5, np.float32), "w")
    )
    onnx.save(
        loaded,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="w.data",
        size_threshold=0,
    )
    assert (folder / "w.data").exists()

    exported = onnxserve.export(str(folder), "onnx", tmp_path / "out" / "m.onnx")

    assert [path.name for path in exported.path.parent.iterdir()] == ["m.onnx"]
    assert Model(exported.path).predict(np.ones((1, 2))).tolist() == [[0.5, 0.5]]


def test_mistakes_are_refused_before_anything_is_written(mixed, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.onnx").write_text("mine")
    pyfunc = save_pyfuncs(tmp_path / "pyfuncs", ["days"])["days"]
    cases: list[tuple[type[OnnxserveError], str, str, Any, dict[str, Any]]] = [
        (
            InvalidConfig,
            "the format 'pickle' is unknown; supported are onnx, ort",
            str(mixed),
            "pickle",
            {},
        ),
        (
            InvalidConfig,
            "wheels are only supported for the format bundle",
            str(mixed),
            "onnx",
            {"wheels": tmp_path},
        ),
        (
            InvalidConfig,
            "a package name is only supported for the format wheel",
            str(mixed),
            "onnx",
            {"name": "m"},
        ),
        (InvalidConfig, "contains no wheels", str(mixed), "bundle", {"wheels": out}),
        (
            InvalidConfig,
            "the rows do not match the model: columns 'distance', 'hour', 'late'",
            str(mixed),
            "onnx",
            {"rows": {"carrier": ["a"]}},
        ),
        (
            InvalidConfig,
            r"none\.csv cannot be read",
            str(mixed),
            "onnx",
            {"rows": tmp_path / "none.csv"},
        ),
        (
            InvalidConfig,
            "'!!' is not a valid name of a Python package",
            str(mixed),
            "wheel",
            {"name": "!!"},
        ),
        (
            InvalidConfig,
            "'statistics' is not a valid name",
            str(mixed),
            "wheel",
            {"name": "statistics"},
        ),
        (NotFound, "nowhere", str(tmp_path / "nowhere"), "onnx", {}),
        (ConversionError, "has no ONNX form; convert it first", str(pyfunc), "onnx", {}),
    ]
    for error, message, uri, form, options in cases:
        with pytest.raises(error, match=message):
            onnxserve.export(uri, form, out / "new", **options)
    with pytest.raises(AlreadyExists, match=r"m\.onnx exists; specify another path"):
        onnxserve.export(str(mixed), "onnx", out / "m.onnx")
    for path, reason in [
        (out / "m.onnx" / "new", "(File exists|Not a directory)"),
        (out / ("n" * 300), "File name too long"),
    ]:
        with pytest.raises(OnnxserveError, match=f"{path} .*: {reason}"):
            onnxserve.export(str(mixed), "onnx", path)
    assert os.listdir(out) == ["m.onnx"]
    assert (out / "m.onnx").read_text() == "mine"


def test_the_metadata_has_one_name_here_and_in_the_runner():
    assert exporting.METADATA_KEY == METADATA_KEY
    assert FORMATS == ("onnx", "ort", "wheel", "bundle", "conda", "tflite", "desktop")
