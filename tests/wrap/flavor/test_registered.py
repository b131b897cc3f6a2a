"""`wrap("models:/old/3")` registers the next version as ONNX, and copies the metadata
of the old version.
"""

import json
import pickle
import sys
from pathlib import Path

import joblib
import mlflow
import numpy as np
import pandas as pd
import pytest
import sklearn
import yaml
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

import onnxserve
from mlflow_deploy_plugin.core.errors import (
    CodeRefused,
    ConversionError,
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    NotInstalled,
)
from mlflow_deploy_plugin.serve.protocols import v2
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.wrap.flavor.registered import load_file, load_folder
from tests.support.models import parse_graph
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at

# Inferring the requirements, or importing skops, would take seconds.
_OPTIONS = {"pip_requirements": ["scikit-learn"], "serialization_format": "cloudpickle"}


@pytest.fixture(scope="module")
def old(tracking, model, table):
    """A version from mlflow.sklearn in Production, with the alias `champion` and all of
    MLflow's metadata.
    """
    client = mlflow.MlflowClient()
    with mlflow.start_run():
        mlflow.log_param("C", 1.0)
        mlflow.set_tag("mlflow.source.git.commit", "c0ffee")
        mlflow.log_input(mlflow.data.from_pandas(table, name="training"))
        info = mlflow.sklearn.log_model(
            model,
            name="updown",
            registered_model_name="old",
            input_example=table.head(3),
            metadata={"team": "sky"},
            tags={"kind": "linear"},
            pyfunc_predict_fn="predict_proba",
            **_OPTIONS,
        )
        mlflow.log_metric("accuracy", 0.97, model_id=info.model_id)
        mlflow.log_metric("loss", 0.1)
    client.update_model_version("old", "1", "The first one.")
    for key, value in (
        ("owner", "ann"),
        ("onnxserve.gate", "passed"),
        ("onnxserve.training", "full"),
    ):
        client.set_model_version_tag("old", "1", key, value)
    client.set_registered_model_alias("old", "champion", "1")
    client.transition_model_version_stage("old", "1", "Production")
    return "models:/old/1"


@pytest.mark.long
def test_next_version_keeps_the_metadata(old, table):
    client = mlflow.MlflowClient()
    first = client.get_model_version("old", "1")
    ended = client.get_run(first.run_id).info.end_time

    made = onnxserve.wrap_model("models:/old/Production")

    assert (made.source, made.name, made.warnings) == (old, "old", ())
    assert made.report.state == "proven"
    assert made.report.rows >= 1000
    before = mlflow.pyfunc.load_model(old)
    after = mlflow.pyfunc.load_model(f"models:/old/{made.version}")
    np.testing.assert_allclose(after.predict(table), before.predict(table), atol=1e-5)
    assert after.metadata.get_input_schema() == before.metadata.get_input_schema()

    new = client.get_model_version("old", made.version)
    assert new.run_id == first.run_id
    assert new.description == "The first one."
    assert new.tags == {
        "kind": "linear",
        "owner": "ann",
        "onnxserve.training": "full",
        "onnxserve.parity": "proven",
        "onnxserve.wrapped_from": old,
    }
    logged = client.get_logged_model(made.model_id)
    assert logged.name == "updown"
    assert logged.params == {"C": "1.0"}
    assert logged.source_run_id == first.run_id
    metrics = {metric.key: metric.value for metric in logged.metrics}
    assert metrics.items() >= {"accuracy": 0.97, "loss": 0.1}.items()
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/old/{made.version}"))
    assert after.metadata.metadata == {"team": "sky"}
    assert len(after.metadata.load_input_example(str(folder))) == 3
    provenance = read_artifact(folder).provenance
    assert provenance["git_commit"] == "c0ffee"
    assert provenance["dataset_name"] == "training"

    assert client.get_model_version_by_alias("old", "champion").version == 1
    assert new.current_stage == "None"
    assert client.get_run(first.run_id).info.end_time == ended


@pytest.mark.long
def test_old_run_is_used_before_mlflow_3(mlflow_server, model, table, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)  # It is in the store of this module.
    mlflow.sklearn.save_model(
        model, tmp_path / "model", input_example=table.head(3), pip_requirements=["scikit-learn"]
    )
    with proxy_to(mlflow_server.host, mlflow_server.port) as proxy, tracking_at(proxy.url):
        proxy.turn("Not Found", "/logged-models", 404)  # MLflow 2 returns this.
        with mlflow.start_run() as run:
            mlflow.log_artifacts(str(tmp_path / "model"), "model")
        first = mlflow.register_model(
            f"runs:/{run.info.run_id}/model", "before-3", tags={"owner": "ann"}
        )

        made = onnxserve.wrap_model("models:/before-3/1")

        new = mlflow.MlflowClient().get_model_version("before-3", made.version)
        assert made.model_id == ""
        assert made.run_id == new.run_id == run.info.run_id
        assert new.tags == {
            "owner": "ann",
            "onnxserve.parity": "proven",
            "onnxserve.wrapped_from": "models:/before-3/1",
        }
        assert new.source != first.source
        steps = make_pipeline(FunctionTransformer(add_mean), LogisticRegression())
        steps.fit(table, table.a > 0)
        onnxserve.log_model(
            steps,
            "model",
            input_example=table,
            registered_model_name="before-3",
            pip_requirements=[],
        )

        for version, original in ((made.version, model), (3, steps)):
            loaded = mlflow.pyfunc.load_model(f"models:/before-3/{version}")
            np.testing.assert_array_equal(loaded.predict(table), original.predict(table))


def test_dry_run_registers_nothing(old, table):
    lines = []
    versions = len(mlflow.MlflowClient().search_model_versions("name='old'"))

    made = onnxserve.wrap_model(
        old, data=table.assign(label="up"), dry_run=True, progress=lines.append
    )

    assert made.version == ""
    assert made.report.state == "proven"
    assert made.report.sources["example"] == len(table)
    assert lines == ["reading models:/old/1", "converting and proving a Pipeline"]
    assert len(mlflow.MlflowClient().search_model_versions("name='old'")) == versions


@pytest.mark.parametrize("form", ["no example", "an example", "a table"])
def test_graph_keeps_its_types(form, tracking, table):
    numbers = table.to_numpy(np.float32)
    examples = {"no example": None, "an example": numbers, "a table": table}
    graph = parse_graph("g (float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")
    options = {"input_example": examples[form], "pip_requirements": []}
    mlflow.onnx.log_model(graph, name="graph", registered_model_name=f"graph, {form}", **options)

    onnxserve.wrap_model(f"models:/graph, {form}/1")

    new = mlflow.pyfunc.load_model(f"models:/graph, {form}/2")
    types = [str(spec.type) for spec in new.metadata.signature.inputs.inputs]
    inputs = [table, table.astype(np.float32)] if form == "a table" else [numbers]
    assert types == (["DataType.double"] * 3 if form == "a table" else ["float32"])
    for rows in inputs:
        predictions = new.predict(rows)
        answer = next(iter(predictions.values())) if isinstance(predictions, dict) else predictions
        np.testing.assert_allclose(answer, numbers * 2, rtol=1e-6)


def test_made_up_rows_are_not_kept(tracking, model, table):
    signature = mlflow.models.infer_signature(table, model.predict(table))
    mlflow.sklearn.log_model(
        model, name="model", registered_model_name="signed", signature=signature, **_OPTIONS
    )

    made = onnxserve.wrap_model("models:/signed/1")

    assert "no input example" in made.warnings[0]
    artifact = read_artifact(
        Path(mlflow.artifacts.download_artifacts(f"models:/signed/{made.version}"))
    )
    assert artifact.reference is None
    assert "dataset_digest" not in artifact.provenance


def test_pickle_file_needs_consent_and_data(tracking, model, table, tmp_path):
    file = tmp_path / "updown.joblib"
    joblib.dump(model, file)
    with refused(CodeRefused, "updown.joblib", "--allow-pickle"):
        onnxserve.wrap_model(str(file), "filed")
    with refused(InvalidConfig, "updown.joblib", "--data"):
        onnxserve.wrap_model(str(file), "filed", allow_pickle=True)

    made = onnxserve.wrap_model(str(file), "filed", data=table.assign(other=1), allow_pickle=True)

    tags = mlflow.MlflowClient().get_model_version("filed", made.version).tags
    inputs = mlflow.models.get_model_info("models:/filed/1").signature.inputs
    assert tags["onnxserve.wrapped_from"] == file.as_uri()
    assert inputs.input_names() == ["a", "b", "c"]


def test_unregistered_model_needs_a_name(old, model, table, tmp_path):
    mlflow.sklearn.save_model(model, tmp_path / "saved", input_example=table, **_OPTIONS)
    with refused(InvalidConfig, "'a/b'"):
        onnxserve.wrap_model("models:/nobody/1", register="a/b")
    with refused(InvalidConfig, "--register"):
        onnxserve.wrap_model(str(tmp_path / "saved"))
    logged = mlflow.MlflowClient().get_model_version("old", "1").source

    assert onnxserve.wrap_model(str(tmp_path / "saved"), "from-folder").version == "1"
    assert onnxserve.wrap_model(logged, "from-logged", data=table).version == "1"


def _tried(folder, **options):
    """Wrap the model in the folder `saved`, and register nothing."""
    return onnxserve.wrap_model(str(folder / "saved"), dry_run=True, **options)


class Doubled(mlflow.pyfunc.PythonModel):
    """A custom Python model."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        return model_input * 2


def add_mean(rows):
    return rows + rows.mean()


def _save(kind, folder, model, table):
    """Save a model that cannot be wrapped."""
    match kind:
        case "python":
            mlflow.pyfunc.save_model(
                folder, python_model=Doubled(), signature=_signature(table), pip_requirements=[]
            )
        case "step":
            steps = make_pipeline(FunctionTransformer(add_mean), LogisticRegression()).fit(
                table, table.a > 0
            )
            mlflow.sklearn.save_model(
                steps,
                folder,
                signature=_signature(table),
                **_OPTIONS,
            )
        case "method":
            mlflow.sklearn.save_model(
                model, folder, pyfunc_predict_fn="predict_log_proba", **_OPTIONS
            )
        case "sequence":
            graph = "g (float[N,2] x) => (seq(float[1,2]) s) { s = SplitToSequence<axis = 0>(x) }"
            mlflow.onnx.save_model(parse_graph(graph), folder, pip_requirements=[])
        case "wrapped":
            onnxserve.save_model(model, folder, input_example=table)
        case "bare":
            mlflow.sklearn.save_model(model, folder, **_OPTIONS)
        case "version":
            mlflow.sklearn.save_model(
                model,
                folder,
                signature=_signature(table),
                serialization_format="cloudpickle",
                pip_requirements=["scikit-learn==0.1"],
            )
            (folder / "model.pkl").write_bytes(b"of another version")
        case "attribute":
            old = make_pipeline(SimpleImputer(), LogisticRegression()).fit(table, table.a > 0)
            del old[0]._fill_dtype  # scikit-learn 1.4 does not have this attribute.
            mlflow.sklearn.save_model(
                old,
                folder,
                signature=_signature(table),
                serialization_format="cloudpickle",
                pip_requirements=["scikit-learn==1.4.2"],
            )
        case "no model":
            folder.mkdir()
        case "no MLmodel":
            folder.mkdir()
            (folder / "MLmodel").write_text("flavors: [")


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("python", ConversionError, ("custom Python class",)),
        ("step", ConversionError, ("'functiontransformer'", "func=add_mean", "pyfunc")),
        ("method", ConversionError, ("'predict_log_proba'",)),
        ("sequence", ConversionError, ("'s'", "ConcatFromSequence")),
        ("wrapped", InvalidConfig, ("wrapped already",)),
        ("bare", InvalidConfig, ("--data",)),
        ("version", ConversionError, ("mlflow.sklearn", "scikit-learn 0.1")),
        ("attribute", InvalidConfig, ("the rows", "scikit-learn 1.4.2")),
        ("no model", InvalidArtifact, ("no MLmodel",)),
        ("no MLmodel", InvalidArtifact, ("MLmodel", "read")),
    ],
)
def test_unsupported_model_is_refused(kind, error, words, model, table, tmp_path):
    _save(kind, tmp_path / "saved", model, table)
    with refused(error, *words) as caught:
        _tried(tmp_path)
    assert "\n" not in str(caught.value)


def test_date_in_a_signature_is_refused(model, tmp_path):
    dates = ModelSignature(Schema([ColSpec("datetime", "when")]))
    mlflow.sklearn.save_model(model, tmp_path / "saved", signature=dates, **_OPTIONS)
    with refused(ConversionError, "'when'", "datetime", "--drop", "pyfunc"):
        _tried(tmp_path)


@pytest.fixture(scope="module")
def staff():
    numbers = normal_rows(300)
    return pd.DataFrame(
        {
            "id": [f"{number:08x}" for number in range(300)],
            "hired": pd.date_range("2024-01-01", periods=300, freq="h"),
            "salary": numbers,
            "team": np.where(np.abs(numbers) > 1, "red", "blue"),
        }
    )


@pytest.mark.parametrize(
    ("event_time", "read"), [("hired", ["salary", "team"]), (None, ["salary"])]
)
def test_unread_column_is_left_out(event_time, read, tracking, staff, tmp_path):
    steps = [(SimpleImputer(), ["salary"]), (OneHotEncoder(), ["team"])][: len(read)]
    model = make_pipeline(make_column_transformer(*steps), LogisticRegression())
    mlflow.sklearn.save_model(
        model.fit(staff, staff.salary > 0),
        tmp_path / "saved",
        input_example=staff.head(3),
        **_OPTIONS,
    )

    made = onnxserve.wrap_model(str(tmp_path / "saved"), "staff", data=staff, event_time=event_time)

    uri = f"models:/staff/{made.version}"
    loaded = onnxserve.load_model(uri)
    assert [*loaded.schema.names] == read
    assert [*mlflow.pyfunc.load_model(uri).predict(staff)] == [*(staff.salary > 0)]
    reference = pd.read_parquet(loaded.artifact.reference_file)  # type: ignore[arg-type]
    assert ("_event_time" in reference) == (event_time is not None)
    text = {"datatype": "BYTES", "shape": [1], "data": ["red"]}
    tensors = [{"name": "salary", "datatype": "FP64", "shape": [1], "data": [1.5]}]
    tensors += [{"name": name, **text} for name in read[1:]]
    answers = []
    for unread in ([], [{"name": name, **text} for name in ("id", "hired")]):
        body = json.dumps({"inputs": [*unread, *tensors]}).encode()
        request = v2.decode({}, body, loaded.artifact, loaded.schema, v2.OWN)
        answers.append(loaded.run(request.feeds, loaded.artifact.prediction))
    assert answers[0] == answers[1]


def test_dropped_column_may_be_signed(staff, tmp_path):
    model = LogisticRegression().fit(staff[["salary"]], staff.salary > 0)
    signature = ModelSignature(Schema([ColSpec("datetime", "hired"), ColSpec("double", "salary")]))
    mlflow.sklearn.save_model(
        model,
        tmp_path / "saved",
        signature=signature,
        serialization_format="cloudpickle",
        pip_requirements=["scikit-learn==1.0"],
    )

    made = _tried(tmp_path, data=staff, drop=["hired"])

    assert [entry.columns for entry in made.inputs] == [("salary",)]
    assert "scikit-learn 1.0" in made.warnings[0]  # Another version is installed.


@pytest.mark.parametrize(
    "rows", [None, pd.DataFrame({"review": ["good parcel", "bad parcel"]})], ids=["none", "table"]
)
def test_unnamed_texts_are_wrapped(rows, tmp_path):
    texts = ["good parcel", "bad parcel", "good", "bad"]
    words = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0])
    signature = ModelSignature(Schema([ColSpec("string")]))
    mlflow.sklearn.save_model(words, tmp_path / "saved", signature=signature, **_OPTIONS)
    assert _tried(tmp_path, data=rows).report.state == "proven"


def _boosted(table):
    xgboost = pytest.importorskip("xgboost")
    return xgboost.XGBRegressor(n_estimators=2).fit(table, table.a)


def _signature(rows, **params):
    """Return a signature with params and their defaults."""
    types = {bool: "boolean", float: "double", str: "string"}
    specs = [
        ParamSpec(name, "double", value, (-1,))
        if isinstance(value, list)
        else ParamSpec(name, types[type(value)], value)
        for name, value in params.items()
    ]
    inputs = mlflow.models.infer_signature(rows).inputs
    return ModelSignature(inputs, params=ParamSchema(specs))


@pytest.mark.parametrize(("name", "default"), [("output_margin", True), ("iteration_range", "0")])
def test_params_of_predictions_are_refused(name, default, table, tmp_path):
    signature = _signature(table, **{name: default})
    mlflow.xgboost.save_model(
        _boosted(table), tmp_path / "saved", signature=signature, pip_requirements=["xgboost"]
    )
    with refused(ConversionError, f"{name}={default!r}", "pyfunc"):
        _tried(tmp_path, data=table)


@pytest.mark.parametrize("flavor", ["sklearn", "xgboost"])
def test_unused_params_are_a_warning(flavor, model, table, tmp_path):
    params = {"threshold": 0.9}
    if flavor == "xgboost":
        params["output_margin"] = False
    signature = _signature(table, **params)
    if flavor == "sklearn":
        mlflow.sklearn.save_model(model, tmp_path / "saved", signature=signature, **_OPTIONS)
    else:
        booster = _boosted(table)
        mlflow.xgboost.save_model(
            booster, tmp_path / "saved", signature=signature, pip_requirements=["xgboost"]
        )

    made = _tried(tmp_path, data=table)

    assert made.report.state == "proven"
    assert any("threshold=0.9" in note for note in made.warnings)


def test_invalid_pyfunc_section_is_refused(table, tmp_path):
    mlflow.xgboost.save_model(_boosted(table), tmp_path / "saved", pip_requirements=["xgboost"])
    _set_pyfunc_section(tmp_path / "saved", None)
    assert _tried(tmp_path, data=table).report.state == "proven"
    _set_pyfunc_section(tmp_path / "saved", {"loader_module": "mlflow.xgboost", "config": "fast"})
    with refused(InvalidArtifact, "model_config", "'fast'"):
        _tried(tmp_path, data=table)


def _set_pyfunc_section(folder, section):
    document = yaml.safe_load((folder / "MLmodel").read_text())
    document["flavors"]["python_function"] = section
    (folder / "MLmodel").write_text(yaml.safe_dump(document))


def _save_module(module, rows, folder, **params):
    mlflow.pytorch.save_model(
        module,
        folder / "saved",
        signature=_signature(rows, **params),
        serialization_format="pickle",
        pip_requirements=["torch"],
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("param", "is_default"),
    [
        ({"factor": 1.0}, True),
        ({"factor": 2.0}, False),
        ({"weights": [1.0, 2.0]}, True),
        ({"weights": [1.0, 3.0]}, False),
    ],
)
def test_module_param_must_be_the_default(param, is_default, table, tmp_path):
    torch = pytest.importorskip("torch")

    class Scaled(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(
            self,
            rows,
            factor=1.0,
            weights=np.array([1.0, 2.0]),  # noqa: B008
        ):
            return rows * factor * float(weights[1])

    rows = table.to_numpy(np.float32)
    _save_module(Scaled(), rows, tmp_path, **param)
    if is_default:
        assert _tried(tmp_path, data=rows).report.state == "proven"
        return
    [(name, value)] = param.items()
    with refused(ConversionError, f"{name}={value}", "ONNX"):
        _tried(tmp_path, data=rows)


@pytest.mark.long
def test_traced_module_param_is_refused(table, tmp_path):
    """A traced module does not tell its parameters."""
    torch = pytest.importorskip("torch")
    rows = table.to_numpy(np.float32)
    traced = torch.jit.trace(torch.nn.ReLU(), torch.from_numpy(rows))
    _save_module(traced, rows, tmp_path, factor=2.0)
    with refused(ConversionError, "factor=2.0", "pyfunc"):
        _tried(tmp_path, data=rows)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (
            "text.txt",
            b"hello",
            InvalidConfig,
            "text.txt is not a model: the file name must end with .joblib",
        ),
        (
            "text.pkl",
            b"hello",
            InvalidArtifact,
            "text.pkl cannot be loaded as a joblib or pickle file",
        ),
        (
            "map.pkl",
            b"\x80\x04}\x94.",
            InvalidArtifact,
            r"map.pkl does not contain a model, but an object of type dict",
        ),
        ("gone.pkl", None, NotFound, "the file .*gone.pkl does not exist"),
        ("text.onnx", b"hello", ConversionError, "not a valid ONNX model: Error parsing message"),
    ],
)
def test_invalid_model_file_is_refused(name, content, error, message, table, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        onnxserve.wrap_model(str(tmp_path / name), "x", data=table, allow_pickle=True)
    assert "\n" not in str(caught.value)


def test_pickle_of_old_version_is_a_warning(model, tmp_path):
    old = pickle.dumps(model).replace(sklearn.__version__.encode(), b"1.0.2")
    (tmp_path / "old.pkl").write_bytes(old)
    loaded = load_file(tmp_path / "old.pkl", allow_pickle=True)
    assert type(loaded.model) is Pipeline
    assert loaded.warnings == (
        f"it was saved by scikit-learn 1.0.2 ({sklearn.__version__} is installed)",
    )


class Rule:
    def predict(self, rows):  # type: ignore[type-arg]
        return rows.sum(axis=1)


def test_model_of_no_framework_is_refused(tmp_path):
    options = {"pip_requirements": ["scikit-learn"], "serialization_format": "cloudpickle"}
    mlflow.sklearn.save_model(Rule(), tmp_path / "saved", **options)

    with refused(ConversionError, "Rule", "framework is not supported", "pyfunc"):
        load_folder(tmp_path / "saved", "it")


def test_unsupported_flavor_is_not_loaded(tmp_path):
    mlmodel = mlflow.models.Model(
        flavors={
            "python_function": {"loader_module": "mlflow.spark", "data": "sparkml"},
            "spark": {"model_data": "sparkml", "pyspark_version": "4.0.1"},
        }
    )
    mlmodel.save(str(tmp_path / "MLmodel"))

    unknown = (
        r"a model of mlflow.spark cannot be converted .*supported are catboost.*; "
        r"it can be served as pyfunc without"
    )
    with pytest.raises(ConversionError, match=unknown):
        load_folder(tmp_path, "it")


def test_missing_framework_is_named(tmp_path, monkeypatch):
    for name in ("xgboost", "xgboost.sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "model.pkl").write_bytes(b"cxgboost.sklearn\nXGBRegressor\n.")
    mlmodel = mlflow.models.Model(
        flavors={
            "python_function": {"loader_module": "mlflow.xgboost", "data": "model.ubj"},
            "xgboost": {"data": "model.ubj", "model_class": "xgboost.sklearn.XGBRegressor"},
        }
    )
    mlmodel.save(str(tmp_path / "MLmodel"))

    for load in (
        lambda: load_file(tmp_path / "model.pkl", allow_pickle=True),
        lambda: load_folder(tmp_path, "it"),
    ):
        with refused(NotInstalled, "xgboost", "'mlflow-onnxserve[sklearn]' xgboost"):
            load()
