"""`wrap("models:/old/3")` registers the next version as ONNX, and copies the metadata
of the old version.
"""

import json
from pathlib import Path
from typing import Any

import joblib
import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import (
    CodeRefused,
    ConversionError,
    InvalidArtifact,
    InvalidConfig,
)
from mlflow_deploy_plugin.serve.protocols import v2
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from tests.support.models import parse_graph
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at

# Inferring them would take seconds.
_REQUIREMENTS: dict[str, Any] = {"pip_requirements": ["scikit-learn"]}


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
            **_REQUIREMENTS,
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
def test_the_next_version_is_onnx_and_answers_as_the_old_one(old, table):
    before = mlflow.pyfunc.load_model(old).predict(table)

    made = onnxserve.wrap_model("models:/old/Production")

    assert made.source == old
    assert made.name == "old"
    assert made.report.state == "proven"
    assert made.warnings == ()
    assert made.report.rows >= 1000
    after = mlflow.pyfunc.load_model(f"models:/old/{made.version}")
    np.testing.assert_allclose(after.predict(table), before, atol=1e-5)
    assert (
        after.metadata.get_input_schema()
        == mlflow.pyfunc.load_model(old).metadata.get_input_schema()
    )


@pytest.mark.long
def test_the_next_version_keeps_the_metadata_of_the_old_one(old):
    client = mlflow.MlflowClient()
    made = onnxserve.wrap_model(old)

    first, new = (client.get_model_version("old", version) for version in ("1", made.version))
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
    assert {"accuracy": 0.97, "loss": 0.1}.items() <= {
        metric.key: metric.value for metric in logged.metrics
    }.items()
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/old/{made.version}"))
    saved = mlflow.models.Model.load(str(folder))
    assert saved.metadata == {"team": "sky"}
    assert len(saved.load_input_example(str(folder))) == 3
    provenance = read_artifact(folder).provenance
    assert provenance["git_commit"] == "c0ffee"
    assert provenance["dataset_name"] == "training"


def test_aliases_stages_and_the_run_stay_as_they_were(old):
    client = mlflow.MlflowClient()
    ended = client.get_run(client.get_model_version("old", "1").run_id).info.end_time

    made = onnxserve.wrap_model("models:/old@champion")

    assert client.get_model_version_by_alias("old", "champion").version == 1
    assert client.get_model_version("old", made.version).current_stage == "None"
    assert client.get_run(made.run_id).info.end_time == ended


@pytest.mark.long
def test_before_mlflow_3_the_next_version_is_saved_in_the_run_of_the_old_one(
    mlflow_server, model, table, tmp_path, monkeypatch
):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)  # It is in the store of this module.
    mlflow.sklearn.save_model(
        model, tmp_path / "model", input_example=table.head(3), **_REQUIREMENTS
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
        assert made.run_id == run.info.run_id
        assert made.model_id == ""
        assert new.run_id == run.info.run_id
        assert new.tags == {
            "owner": "ann",
            "onnxserve.parity": "proven",
            "onnxserve.wrapped_from": "models:/before-3/1",
        }
        assert new.source != first.source
        steps = make_pipeline(FunctionTransformer(add_mean), LogisticRegression()).fit(
            table, table.a > 0
        )
        onnxserve.log_model(
            steps, "model", input_example=table, registered_model_name="before-3", **_REQUIREMENTS
        )

        predictions = [
            mlflow.pyfunc.load_model(f"models:/before-3/{version}").predict(table)
            for version in (1, made.version)
        ]
        np.testing.assert_array_equal(*predictions)
        np.testing.assert_array_equal(
            mlflow.pyfunc.load_model("models:/before-3/3").predict(table), steps.predict(table)
        )


def test_a_dry_run_registers_nothing_and_data_brings_real_rows(old, table):
    lines: list[str] = []
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
def test_the_next_version_of_a_graph_takes_the_graphs_own_types(form, tracking, table):
    numbers = table.to_numpy(np.float32)
    examples = {"no example": None, "an example": numbers, "a table": table}
    graph = parse_graph("g (float[N,3] x) => (float[N,3] y) { y = Add(x, x) }")
    options: dict[str, Any] = {"input_example": examples[form], "pip_requirements": []}
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


def test_without_an_example_the_rows_are_made_up_from_the_signature_and_not_kept(
    tracking, model, table
):
    signature = mlflow.models.infer_signature(table, model.predict(table))
    mlflow.sklearn.log_model(
        model, name="model", registered_model_name="signed", signature=signature, **_REQUIREMENTS
    )

    made = onnxserve.wrap_model("models:/signed/1")

    assert made.warnings[0].startswith(
        "it has no input example: it is compared on rows generated from its signature"
    )
    artifact = read_artifact(
        Path(mlflow.artifacts.download_artifacts(f"models:/signed/{made.version}"))
    )
    assert (artifact.reference, "dataset_digest" in artifact.provenance) == (None, False)


def test_a_file_is_loaded_with_consent_only(tracking, model, table, tmp_path):
    joblib.dump(model, tmp_path / "updown.joblib")
    file = str(tmp_path / "updown.joblib")
    with pytest.raises(CodeRefused, match=r"updown\.joblib .*--allow-pickle"):
        onnxserve.wrap_model(file, "filed")
    with pytest.raises(InvalidConfig, match=r"updown\.joblib .*--data FILE"):
        onnxserve.wrap_model(file, "filed", allow_pickle=True)

    made = onnxserve.wrap_model(file, "filed", data=table.assign(other=1), allow_pickle=True)

    tags = mlflow.MlflowClient().get_model_version("filed", made.version).tags
    assert tags["onnxserve.wrapped_from"] == (tmp_path / "updown.joblib").as_uri()
    assert [
        column.name for column in mlflow.models.get_model_info("models:/filed/1").signature.inputs
    ] == ["a", "b", "c"]


def test_a_runs_model_and_a_folder_need_a_name(old, model, table, tmp_path):
    mlflow.sklearn.save_model(model, tmp_path / "saved", input_example=table, **_REQUIREMENTS)
    with pytest.raises(InvalidConfig, match="'a/b'"):
        onnxserve.wrap_model("models:/nobody/1", register="a/b")
    with pytest.raises(InvalidConfig, match="--register NAME"):
        onnxserve.wrap_model(str(tmp_path / "saved"))
    logged = mlflow.MlflowClient().get_model_version("old", "1").source

    assert onnxserve.wrap_model(str(tmp_path / "saved"), "from-folder").version == "1"
    assert onnxserve.wrap_model(logged, "from-logged", data=table).version == "1"


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
                folder, python_model=Doubled(), input_example=table, pip_requirements=[]
            )
        case "code":
            code = folder.with_suffix(".py")
            code.write_text(
                "from mlflow.models import set_model\n"
                "from mlflow.pyfunc import PythonModel\n"
                "\n"
                "class Same(PythonModel):\n"
                "    def predict(self, context, model_input, params=None):\n"
                "        return model_input\n"
                "\n"
                "set_model(Same())\n"
            )
            mlflow.pyfunc.save_model(
                folder, python_model=str(code), input_example=table, pip_requirements=[]
            )
        case "step":
            steps = make_pipeline(FunctionTransformer(add_mean), LogisticRegression()).fit(
                table, table.a > 0
            )
            mlflow.sklearn.save_model(
                steps,
                folder,
                input_example=table,
                serialization_format="cloudpickle",
                **_REQUIREMENTS,
            )
        case "method":
            mlflow.sklearn.save_model(
                model, folder, pyfunc_predict_fn="predict_log_proba", **_REQUIREMENTS
            )
        case "sequence":
            graph = "g (float[N,2] x) => (seq(float[1,2]) s) { s = SplitToSequence<axis = 0>(x) }"
            mlflow.onnx.save_model(parse_graph(graph), folder, pip_requirements=[])
        case "wrapped":
            onnxserve.save_model(model, folder, input_example=table)
        case "bare":
            mlflow.sklearn.save_model(model, folder, **_REQUIREMENTS)
        case "version":
            mlflow.sklearn.save_model(
                model,
                folder,
                input_example=table,
                pip_requirements=["scikit-learn==0.1", "nope==2"],
            )
            (folder / "model.skops").write_bytes(b"of another version")
        case "attribute":
            old = make_pipeline(SimpleImputer(), LogisticRegression()).fit(table, table.a > 0)
            del old[0]._fill_dtype  # scikit-learn 1.4 does not have this attribute.
            mlflow.sklearn.save_model(
                old,
                folder,
                signature=mlflow.models.infer_signature(table),
                serialization_format="cloudpickle",
                pip_requirements=["scikit-learn==1.4.2"],
            )
        case "no model":
            folder.mkdir()
        case "no MLmodel":
            folder.mkdir()
            (folder / "MLmodel").write_text("flavors: [")


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("python", ConversionError, "cannot be converted to ONNX: it is a custom Python class; it"),
        ("code", ConversionError, "cannot be converted to ONNX: it is a custom Python class; it"),
        (
            "step",
            ConversionError,
            r"'functiontransformer' .*: its option func=add_mean .*; \S+ can be served as",
        ),
        (
            "method",
            ConversionError,
            "its pyfunc calls 'predict_log_proba', and an ONNX form supports only",
        ),
        (
            "sequence",
            ConversionError,
            "'s' is a sequence of any length, which cannot be served; .* ConcatFromSequence to",
        ),
        ("wrapped", InvalidConfig, "is wrapped already: it can be served as ONNX"),
        (
            "bare",
            InvalidConfig,
            "has neither an input example nor a signature; pass rows with --data FILE",
        ),
        (
            "version",
            ConversionError,
            (
                r"cannot be loaded by mlflow.sklearn: .*; install the versions it was logged with: "
                r"scikit-learn 0.1 \("
            ),
        ),
        (
            "attribute",
            InvalidConfig,
            r"the model fails for the rows: .*; it was logged with scikit-learn 1.4.2 \(\S+ is ",
        ),
        ("no model", InvalidArtifact, "is not a model: it has no MLmodel file"),
        ("no MLmodel", InvalidArtifact, "is not a model: the MLmodel file cannot be read"),
    ],
)
def test_a_model_that_cannot_be_wrapped_is_refused_in_one_line(
    kind, error, message, model, table, tmp_path
):
    _save(kind, tmp_path / "saved", model, table)
    with pytest.raises(error, match=message) as caught:
        onnxserve.wrap_model(str(tmp_path / "saved"), dry_run=True)
    assert "\n" not in str(caught.value)


def test_a_type_that_no_graph_takes_is_refused_without_an_example_too(model, tmp_path):
    dates = ModelSignature(Schema([ColSpec("datetime", "when")]))
    mlflow.sklearn.save_model(model, tmp_path / "saved", signature=dates, **_REQUIREMENTS)
    refused = (
        r"column 'when' has the type datetime, which an ONNX model cannot read; .*--drop.*; "
        r"\S+ can be served as pyfunc"
    )
    with pytest.raises(ConversionError, match=refused):
        onnxserve.wrap_model(str(tmp_path / "saved"), dry_run=True)


@pytest.fixture(scope="module")
def staff():
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": [f"{number:08x}" for number in range(300)],
            "hired": pd.date_range("2024-01-01", periods=300, freq="h"),
            "salary": random.normal(size=300),
            "team": random.choice(["red", "blue"], 300),
        }
    )


@pytest.mark.parametrize("read", [["salary", "team"], ["salary"]], ids=" and ".join)
@pytest.mark.parametrize("event_time", [None, "hired"])
def test_a_column_that_no_step_reads_is_left_out(event_time, read, tracking, staff):
    steps = [("numbers", SimpleImputer(), ["salary"])]
    if "team" in read:
        steps.append(("texts", OneHotEncoder(), ["team"]))
    model = make_pipeline(ColumnTransformer(steps), LogisticRegression())
    model.fit(staff, staff.salary > 0)
    mlflow.sklearn.log_model(
        model,
        name="staff",
        registered_model_name="staff",
        input_example=staff.head(3),
        serialization_format="cloudpickle",
        **_REQUIREMENTS,
    )
    [latest] = mlflow.MlflowClient().search_model_versions("name='staff'", max_results=1)

    made = onnxserve.wrap_model(latest.source, "staff", data=staff, event_time=event_time)

    uri = f"models:/staff/{made.version}"
    loaded = onnxserve.load_model(uri)
    assert [*loaded.schema.names] == read
    assert [*mlflow.pyfunc.load_model(uri).predict(staff)] == [*(staff.salary > 0)]
    assert loaded.artifact.reference_file is not None
    reference = pd.read_parquet(loaded.artifact.reference_file)
    assert ("_event_time" in reference) == (event_time is not None)
    column = {"datatype": "BYTES", "shape": [1]}
    tensors = [{"name": "salary", "datatype": "FP64", "shape": [1], "data": [1.5]}]
    tensors += [{"name": name, "data": ["red"], **column} for name in read[1:]]
    answers = []
    for unread in ([], [{"name": name, "data": ["2024"], **column} for name in ("id", "hired")]):
        body = json.dumps({"inputs": [*unread, *tensors]}).encode()
        request = v2.decode({}, body, loaded.artifact, loaded.schema)
        answers.append(loaded.run(request.feeds, loaded.artifact.prediction))
    assert answers[0] == answers[1]


def test_named_columns_are_dropped_although_the_signature_has_them(staff, tmp_path):
    model = LogisticRegression().fit(staff[["salary"]], staff.salary > 0)
    signature = ModelSignature(Schema([ColSpec("datetime", "hired"), ColSpec("double", "salary")]))
    mlflow.sklearn.save_model(model, tmp_path / "saved", signature=signature, **_REQUIREMENTS)

    made = onnxserve.wrap_model(str(tmp_path / "saved"), data=staff, drop=["hired"], dry_run=True)

    assert [entry.columns for entry in made.inputs] == [("salary",)]


def test_another_version_of_the_framework_that_loads_is_a_warning(model, table, tmp_path):
    mlflow.sklearn.save_model(
        model,
        tmp_path / "saved",
        input_example=table,
        pip_requirements=["scikit-learn==1.0", "numpy"],
    )
    made = onnxserve.wrap_model(str(tmp_path / "saved"), dry_run=True)
    assert made.report.state == "proven"
    assert made.warnings[0].startswith("it was logged with scikit-learn 1.0 (")


@pytest.mark.parametrize(
    "rows", [None, pd.DataFrame({"review": ["good parcel", "bad parcel"]})], ids=["none", "table"]
)
def test_a_model_of_texts_without_a_name_is_wrapped_with_a_table_or_without_rows(rows, tmp_path):
    texts = ["good parcel", "bad parcel", "good", "bad"]
    words = make_pipeline(CountVectorizer(), LogisticRegression()).fit(
        texts, ["up", "down", "up", "down"]
    )
    signature = ModelSignature(Schema([ColSpec("string")]))
    mlflow.sklearn.save_model(words, tmp_path / "saved", signature=signature, **_REQUIREMENTS)
    made = onnxserve.wrap_model(str(tmp_path / "saved"), data=rows, dry_run=True)
    assert made.report.state == "proven"


def _boosted(table):
    xgboost = pytest.importorskip("xgboost")
    return xgboost.XGBRegressor(n_estimators=2).fit(table, table.a)


@pytest.mark.parametrize(("name", "default"), [("output_margin", True), ("iteration_range", "0")])
def test_params_that_change_a_prediction_are_refused_with_their_name(
    name, default, table, tmp_path
):
    spec = ParamSpec(name, "boolean" if default is True else "string", default)
    signature = ModelSignature(
        mlflow.models.infer_signature(table).inputs, params=ParamSchema([spec])
    )
    mlflow.xgboost.save_model(
        _boosted(table), tmp_path / "saved", signature=signature, pip_requirements=["xgboost"]
    )
    with pytest.raises(
        ConversionError, match=rf"asks it with {name}={default!r}, .*; \S+ can be served as pyfunc"
    ):
        onnxserve.wrap_model(str(tmp_path / "saved"), data=table, dry_run=True)


@pytest.mark.parametrize("flavor", ["sklearn", "xgboost"])
def test_params_that_mlflow_does_not_use_are_left_out_with_a_warning(
    flavor, model, table, tmp_path
):
    specs = [ParamSpec("threshold", "double", 0.9)]
    if flavor == "xgboost":
        specs.append(ParamSpec("output_margin", "boolean", False))
    signature = ModelSignature(
        mlflow.models.infer_signature(table).inputs, params=ParamSchema(specs)
    )
    original = model if flavor == "sklearn" else _boosted(table)
    save = mlflow.sklearn.save_model if flavor == "sklearn" else mlflow.xgboost.save_model
    save(original, tmp_path / "saved", signature=signature, pip_requirements=["scikit-learn"])

    made = onnxserve.wrap_model(str(tmp_path / "saved"), data=table, dry_run=True)

    assert made.report.state == "proven"
    assert any("threshold=0.9" in note for note in made.warnings)


def test_an_mlmodel_with_an_empty_section_for_pyfunc_is_wrapped(table, tmp_path):
    mlflow.xgboost.save_model(_boosted(table), tmp_path / "saved", pip_requirements=["xgboost"])
    _set_pyfunc_section(tmp_path / "saved", None)
    assert (
        onnxserve.wrap_model(str(tmp_path / "saved"), data=table, dry_run=True).report.state
        == "proven"
    )


def test_a_model_config_other_than_a_mapping_is_refused(table, tmp_path):
    mlflow.xgboost.save_model(_boosted(table), tmp_path / "saved", pip_requirements=["xgboost"])
    _set_pyfunc_section(tmp_path / "saved", {"loader_module": "mlflow.xgboost", "config": "fast"})
    with pytest.raises(InvalidArtifact, match="the model_config 'fast' is not a mapping"):
        onnxserve.wrap_model(str(tmp_path / "saved"), data=table, dry_run=True)


def _set_pyfunc_section(folder, section):
    document = yaml.safe_load((folder / "MLmodel").read_text())
    document["flavors"]["python_function"] = section
    (folder / "MLmodel").write_text(yaml.safe_dump(document))


@pytest.mark.long
def test_a_param_of_a_module_is_refused_unless_it_is_the_default(table, tmp_path):
    torch = pytest.importorskip("torch")

    class Scaled(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, rows: Any, factor: float = 1.0) -> Any:
            return rows * factor

    inputs = mlflow.models.infer_signature(table.to_numpy(np.float32)).inputs
    for factor in (1.0, 2.0):
        signature = ModelSignature(
            inputs, params=ParamSchema([ParamSpec("factor", "double", factor)])
        )
        options: dict[str, Any] = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
        mlflow.pytorch.save_model(
            Scaled(), tmp_path / f"times {factor}", signature=signature, **options
        )
    rows = table.to_numpy(np.float32)
    assert (
        onnxserve.wrap_model(str(tmp_path / "times 1.0"), data=rows, dry_run=True).report.state
        == "proven"
    )
    with pytest.raises(ConversionError, match=r"factor=2\.0, which an ONNX form cannot contain"):
        onnxserve.wrap_model(str(tmp_path / "times 2.0"), data=rows, dry_run=True)


@pytest.mark.long
def test_a_param_of_a_traced_module_is_refused_with_its_name(table, tmp_path):
    """A traced module does not tell its parameters."""
    torch = pytest.importorskip("torch")
    rows = table.to_numpy(np.float32)
    params = ParamSchema([ParamSpec("factor", "double", 2.0)])
    signature = ModelSignature(mlflow.models.infer_signature(rows).inputs, params=params)
    traced = torch.jit.trace(torch.nn.ReLU(), torch.from_numpy(rows))
    options: dict[str, Any] = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
    mlflow.pytorch.save_model(traced, tmp_path / "saved", signature=signature, **options)
    with pytest.raises(
        ConversionError, match=r"asks it with factor=2\.0, .*; \S+ can be served as pyfunc"
    ):
        onnxserve.wrap_model(str(tmp_path / "saved"), data=rows, dry_run=True)


@pytest.mark.long
def test_a_param_with_several_numbers_is_refused_unless_it_is_the_default(table, tmp_path):
    torch = pytest.importorskip("torch")

    class Weighted(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(
            self,
            rows: Any,
            weights: Any = np.array([1.0, 2.0]),  # noqa: B008
        ) -> Any:
            return rows * float(weights[1])

    rows = table.to_numpy(np.float32)
    inputs = mlflow.models.infer_signature(rows).inputs
    for weights in ([1.0, 2.0], [1.0, 3.0]):
        signature = ModelSignature(
            inputs, params=ParamSchema([ParamSpec("weights", "double", weights, (-1,))])
        )
        options: dict[str, Any] = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
        mlflow.pytorch.save_model(
            Weighted(), tmp_path / str(weights[1]), signature=signature, **options
        )
    assert (
        onnxserve.wrap_model(str(tmp_path / "2.0"), data=rows, dry_run=True).report.state
        == "proven"
    )
    with pytest.raises(
        ConversionError, match=r"weights=\[1\.0, 3\.0\], which an ONNX form cannot contain"
    ):
        onnxserve.wrap_model(str(tmp_path / "3.0"), data=rows, dry_run=True)
