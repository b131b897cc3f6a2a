"""Each export format gives the same answers as the served model, or is refused without
leaving files.
"""

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import mlflow
import numpy as np
import onnx
import onnxruntime
import orjson
import pytest
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import onnxserve
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
from mlflow_deploy_plugin.wrap.exporter.exporting import RUNNER
from mlflow_deploy_plugin.wrap.exporter.runner import METADATA_KEY, Model
from mlflow_deploy_plugin.wrap.flavor.save import load_model, save_model
from tests.support.models import tensor_column, write_model
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import refused
from tests.support.tracking import tracking_at


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
def test_version_is_exported_and_proven(form, name, model, tmp_path, request):
    folder = request.getfixturevalue(model)
    exported = onnxserve.export(str(folder), form, tmp_path / name)

    assert exported.path.exists()
    assert exported.name == folder.name
    assert exported.rows > 500
    assert exported.max_error <= (1e-5 if form == "ort" else 0.0)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture(scope="module")
def exported(forest, forest_rows, tmp_path_factory):
    """The export of the forest as ONNX, which is proven with the rows of a file."""
    folder = tmp_path_factory.mktemp("exported")
    forest_rows.to_csv(folder / "rows.csv", index=False)
    return onnxserve.export(str(forest), "onnx", folder / "m.onnx", rows=folder / "rows.csv")


def test_rows_of_a_file_are_proven(exported):
    assert exported.rows == 700


def test_exported_graph_describes_the_version(exported):
    graph = onnx.load(str(exported.path))
    onnx.checker.check_model(graph)
    metadata = orjson.loads(
        next(entry.value for entry in graph.metadata_props if entry.key == METADATA_KEY)
    )
    assert [column["name"] for column in metadata["columns"]] == ["carrier", "distance"]
    assert metadata["classes"] == ["late", "on time"]
    assert metadata["parity"] == "proven"
    assert metadata["source"] == ""  # Paths of this machine are not exported.
    inputs = [node.name for node in onnxruntime.InferenceSession(str(exported.path)).get_inputs()]
    assert inputs == [entry["name"] for entry in metadata["inputs"]]


def test_registered_version_keeps_its_number(mixed, tmp_path, new_database):
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


@pytest.mark.parametrize("form", ["onnx", pytest.param("ort", marks=pytest.mark.long)])
def test_runner_answers_as_the_original(form, exported, forest, forest_rows, tmp_path):
    file = exported.path
    if form == "ort":
        file = onnxserve.export(str(forest), form, tmp_path / "m.ort", rows=forest_rows).path
    served = load_model(str(forest))

    # The order of a sum depends on the shapes.
    outputs = Model(file, threads=1).outputs(forest_rows)

    feeds = served.schema.from_columns(
        {str(column): forest_rows[column].to_numpy() for column in forest_rows}
    )
    for output, want in served.run(feeds).items():
        np.testing.assert_array_equal(outputs[output], want)


def test_bundle_may_be_one_file(mixed, tmp_path):
    exported = onnxserve.export(str(mixed), "bundle", tmp_path / "m.zip")
    with zipfile.ZipFile(exported.path) as archive:
        assert {"model.onnx", "predict.py", "README.md", "examples/predict.cpp"} <= set(
            archive.namelist()
        )


@pytest.mark.long
def test_concurrent_export_is_refused(mixed, tmp_path):
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


@pytest.mark.long
def test_runner_refuses_rows_of_a_step(tmp_path):
    rows = np.random.default_rng(0).lognormal(size=(60, 2))
    model = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression())
    save_model(model.fit(rows, rows[:, 0] > 1), tmp_path / "model", input_example=rows)

    exported = onnxserve.export(str(tmp_path / "model"), "onnx", tmp_path / "model.onnx")

    runner = Model(exported.path)
    assert runner.predict(rows).tolist() == model.predict(rows).tolist()
    with refused(ValueError, "row 1", "NaN"):
        runner.predict([[1.0, 1.0], [1.0, -5.0]])
    graph = onnx.load(exported.path)
    floats = rows.astype(np.float32)
    mlflow.onnx.save_model(graph, tmp_path / "stock", signature=infer_signature(floats))
    save_model(graph, tmp_path / "wrapped", input_example=floats)
    for name in ("stock", "wrapped"):
        served = OnnxModel.load(tmp_path / name)
        assert [output.name for output in served.artifact.outputs] == ["label", "probabilities"]
        with refused(InferenceError, "row 0", "NaN"):
            served.run(served.schema.from_array(np.array([[1.0, -5.0]])))


def test_graph_without_rows_is_proven(tmp_path):
    signature = [tensor_column("float32", 2, 3)]
    graph = "fixed (float[2,3] x) => (float[2,3] y) { y = Abs(x) }"
    folder = write_model(tmp_path / "fixed", graph, signature)
    exported = onnxserve.export(str(folder), "bundle", tmp_path / "b")
    assert exported.rows == 2
    assert orjson.loads((exported.path / "example.json").read_bytes())["x"]["dims"] == [2, 3]


def test_export_without_an_answer_is_refused(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_PROOF_SECONDS", 0.01)
    with refused(ParityError, "within 0.01 s"):
        onnxserve.export(str(mixed), "onnx", tmp_path / "m.onnx")


def test_random_answers_leave_no_file(tmp_path):
    graph = "noise (float[N,2] x) => (float[N,2] y) { n = RandomNormalLike(x)  y = Add(x, n) }"
    folder = write_model(tmp_path / "noise", graph)
    with refused(ParityError, "'y', row 0:", "564 of 564"):
        onnxserve.export(str(folder), "onnx", tmp_path / "out" / "m.onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("share", "is_kept"), [(2e-6, True), (1e-4, False)])
def test_scores_may_be_rounded(tmp_path, monkeypatch, share, is_kept):
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


def test_broken_runner_is_refused(mixed, tmp_path, monkeypatch):
    broken = tmp_path / "runner.py"
    broken.write_text("import mlflow_deploy_plugin\n")
    monkeypatch.setattr(exporting, "RUNNER", broken)
    with refused(ParityError, "cannot run", "mlflow_deploy_plugin"):
        onnxserve.export(str(mixed), "onnx", tmp_path / "m.onnx")


def test_too_large_graph_is_refused(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_LARGEST_PROTOBUF", 100)
    with refused(ConversionError, "flight-delay", "gigabytes"):
        onnxserve.export(str(mixed), "onnx", tmp_path / "m.onnx")


def test_external_weights_are_in_the_export(tmp_path):
    weights = onnx.numpy_helper.from_array(np.full(2, 0.5, np.float32), "w")
    folder = write_model(
        tmp_path / "heavy",
        "heavy (float[N,2] x) => (float[N,2] y) <float[2] w = {0, 0}> { y = Mul(x, w) }",
    )
    file = str(folder / "model.onnx")
    graph = onnx.load(file)
    graph.graph.initializer[0].CopyFrom(weights)
    external = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    onnx.save(graph, file, **external)
    assert (folder / "w.data").exists()

    exported = onnxserve.export(str(folder), "onnx", tmp_path / "out" / "m.onnx")

    assert [path.name for path in exported.path.parent.iterdir()] == ["m.onnx"]
    assert Model(exported.path).predict(np.ones((1, 2))).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("form", "options", "words"),
    [
        ("pickle", {}, ("'pickle'", "onnx, ort")),
        ("onnx", {"wheels": "out"}, ("onnx", "'wheels'")),
        ("bundle", {"name": "m"}, ("bundle", "'name'")),
        ("bundle", {"wheels": "out"}, ("no wheels",)),
        ("onnx", {"rows": {"carrier": ["a"]}}, ("'distance', 'hour', 'late'",)),
        ("onnx", {"rows": "none.csv"}, ("none.csv",)),
        ("wheel", {"name": "!!"}, ("'!!'",)),
        ("wheel", {"name": "statistics"}, ("'statistics'",)),
    ],
)
def test_invalid_option_writes_nothing(form, options, words, mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with refused(InvalidConfig, *words):
        onnxserve.export(str(mixed), form, tmp_path / "new", **options)
    assert os.listdir(tmp_path) == ["out"]


def test_invalid_source_and_path_write_nothing(mixed, tmp_path):
    pyfunc = save_pyfuncs(tmp_path / "pyfuncs", ["days"])["days"]
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.onnx").write_text("mine")
    for model, path, error, words in (
        (tmp_path / "nowhere", out / "new", NotFound, "nowhere"),
        (pyfunc, out / "new", ConversionError, "no ONNX form"),
        (mixed, out / "m.onnx", AlreadyExists, "m.onnx"),
        (mixed, out / "m.onnx" / "new", OnnxserveError, str(out)),
        (mixed, out / ("n" * 300), OnnxserveError, "File name too long"),
    ):
        with refused(error, words):
            onnxserve.export(str(model), "onnx", path)
    assert os.listdir(out) == ["m.onnx"]
    assert (out / "m.onnx").read_text() == "mine"
