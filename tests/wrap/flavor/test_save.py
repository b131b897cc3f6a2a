import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import lightgbm
import mlflow
import mlflow.onnx
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import xgboost
from mlflow.models import Model
from mlflow.models.model import ModelInfo
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import (
    ConversionError,
    InvalidConfig,
    ParityError,
    SchemaMismatch,
)
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.wrap.exporter.runner import Model as ExportedModel
from mlflow_deploy_plugin.wrap.flavor.wrap import PredictFunction
from tests.support.models import parse_graph
from tests.support.refusals import mentions


def test_parity_shows_on_run_model_and_version(logged):
    client = mlflow.MlflowClient()
    run = client.get_run(logged.run_id)

    assert run.data.tags["onnxserve.parity"] == "proven"
    assert client.get_logged_model(logged.model_id).tags["onnxserve.parity"] == "proven"
    assert client.get_model_version("updown", "1").tags["onnxserve.parity"] == "proven"
    assert run.data.metrics["onnxserve.parity.rows"] >= 1000
    assert run.data.metrics["onnxserve.parity.label.agreement"] == 1
    assert run.data.metrics["onnxserve.parity.probabilities.max_absolute_error"] < 1e-4


def test_signature_and_example_come_from_the_data(folder):
    model = Model.load(folder)
    example = json.loads((folder / "serving_input_example.json").read_text())

    assert [(spec.name, spec.type.name) for spec in model.signature.inputs.inputs] == [
        ("a", "double"),
        ("b", "double"),
        ("c", "double"),
    ]
    assert example["dataframe_split"]["columns"] == ["a", "b", "c"]
    assert len(example["dataframe_split"]["data"]) == 5


def test_provenance_names_commit_dataset_and_environment(folder, logged):
    provenance = read_artifact(folder).provenance
    dataset = mlflow.get_run(logged.run_id).inputs.dataset_inputs[0].dataset

    assert len(provenance["git_commit"]) == 40
    assert provenance["dataset_digest"] == dataset.digest
    assert provenance["dataset_name"] == "training"
    assert provenance["algorithm"] == "Pipeline(StandardScaler, LogisticRegression)"
    assert (
        f"onnxruntime=={onnxruntime.__version__}"
        in (folder / provenance["environment"]).read_text()
    )


def test_stock_onnx_flavor_loads_the_same_model(logged, model, table):
    proto = mlflow.onnx.load_model(logged.model_uri)

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    labels = session.run(["label"], {"X": table.to_numpy(np.float32)})[0]
    assert labels.tolist() == model.predict(table).tolist()


@pytest.mark.long
def test_mlflow_loads_versions_without_onnxserve(logged, table):
    mixture = GaussianMixture(2, random_state=0).fit(table)
    pyfunc = onnxserve.log_model(
        mixture, name="model", input_example=table, pyfunc_predict_fn="predict_proba"
    )
    program = """
import sys
sys.modules["mlflow_deploy_plugin"] = None  # An import of onnxserve fails.
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
print([output.name for output in mlflow.onnx.load_model(sys.argv[2]).graph.output])
model = mlflow.pyfunc.load_model(sys.argv[3])
print(model.predict(model.input_example).shape)
"""

    command = [sys.executable, "-W", "ignore", "-c", program, mlflow.get_tracking_uri()]
    loaded = subprocess.run(
        [*command, logged.model_uri, pyfunc.model_uri], check=True, capture_output=True, text=True
    )

    assert loaded.stdout.splitlines() == ["['label', 'probabilities']", "(5, 2)"]


def test_load_model_gives_the_ready_model(logged, model, table):
    loaded = onnxserve.load_model("models:/updown/1")

    answers = loaded.run(
        loaded.schema.from_columns({str(name): table[name].to_numpy() for name in table})
    )
    np.testing.assert_allclose(answers["probabilities"], model.predict_proba(table), atol=1e-6)


def test_probabilities_as_prediction(model, table, tmp_path):
    onnxserve.save_model(
        model, tmp_path / "model", input_example=table, pyfunc_predict_fn="predict_proba"
    )

    probabilities = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(table)
    np.testing.assert_allclose(probabilities, model.predict_proba(table), atol=1e-6)


@pytest.fixture(scope="module")
def unfaithful(table):
    """A model that selects the first of several neighbours at equal distance; its graph
    selects another neighbour.
    """
    return KNeighborsClassifier(3).fit(table.round(), (table.a * table.b > 0).astype(int))


def test_unfaithful_model_leaves_nothing_in_mlflow(tracking, unfaithful, table):
    before = len(mlflow.search_logged_models(output_format="list"))

    with mlflow.start_run(), pytest.raises(ParityError, match=r"mlflow\.sklearn\.log_model"):
        onnxserve.log_model(
            unfaithful,
            name="model",
            input_example=table,
            registered_model_name="lossy",
            fallback="error",
        )

    assert len(mlflow.search_logged_models(output_format="list")) == before
    assert mlflow.MlflowClient().search_registered_models("name = 'lossy'") == []


def test_unfaithful_model_is_logged_as_warned_on_request(tracking, unfaithful, table, caplog):
    with mlflow.start_run():
        info = onnxserve.log_model(
            unfaithful,
            name="model",
            input_example=table,
            registered_model_name="lossy",
            parity="warn",
        )

    assert (
        mlflow.MlflowClient().get_model_version("lossy", "1").tags["onnxserve.parity"] == "warned"
    )
    assert onnxserve.load_model(info.model_uri).artifact.parity_state == "warned"


@pytest.mark.long
def test_saved_and_exported_models_refuse_the_rows_that_the_original_refuses(tmp_path):
    random = np.random.default_rng(0)
    carriers = random.choice(["AA", "DL", "UA"], 200)
    hours = random.integers(5, 9, 200)
    rows = pd.DataFrame({"carrier": carriers, "hour": hours, "distance": random.normal(size=200)})
    rows["wind"] = np.where(rows.distance > 1, np.nan, rows.distance)
    columns = [(OneHotEncoder(), ["carrier", "hour"]), (SimpleImputer(), ["wind"])]
    model = make_pipeline(
        make_column_transformer(*columns, remainder="passthrough"), LogisticRegression()
    )
    onnxserve.save_model(model.fit(rows, rows.distance > 0), tmp_path / "model", input_example=rows)
    saved = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    exported = ExportedModel(
        onnxserve.export(str(tmp_path / "model"), "onnx", tmp_path / "m.onnx").path
    )

    np.testing.assert_array_equal(saved.predict(rows), model.predict(rows))
    for change, words in (
        ({"carrier": "XX"}, r"column 'carrier', row 0: 'XX' is not a (known )?category"),
        ({"hour": 23}, r"column 'hour', row 0: 23 is not a (known )?category"),
        ({"distance": np.nan}, r"'distance', row 0: .* the model does not accept missing values"),
        ({"wind": -np.inf}, r"'wind', row 0: .*infinite.* the model accepts only finite numbers"),
    ):
        changed = rows.head(1).assign(**change)
        for refusing, error in (
            (model, ValueError),
            (saved, SchemaMismatch),
            (exported, ValueError),
        ):
            with pytest.raises(error, match="" if refusing is model else words):
                refusing.predict(changed)


def test_without_a_run_the_model_itself_carries_the_parity(tracking, model, table):
    info = onnxserve.log_model(model, name="model", input_example=table)

    assert (
        mlflow.MlflowClient().get_logged_model(info.model_id).tags["onnxserve.parity"] == "proven"
    )


def ranked(numbers):
    return numbers.rank(axis=1)


def with_month(table):
    return table.assign(day=table.day.dt.month)


def test_a_model_without_an_onnx_form_is_logged_by_mlflows_own_flavor_and_says_why(
    tracking, table, caplog
):
    pipeline = make_pipeline(FunctionTransformer(ranked), LinearRegression()).fit(table, table.a)

    with mlflow.start_run() as run:
        info = onnxserve.log_model(
            pipeline,
            name="model",
            registered_model_name="python-only",
            input_example=table.assign(at=pd.Timestamp("2013-01-01")),
            event_time="at",
            tags={"team": "sky"},
            code_paths=[],
            pip_requirements=["scikit-learn"],
        )

    (line,) = [
        record.getMessage()
        for record in caplog.records
        if "instead and is served" in record.getMessage()
    ]
    assert "func=ranked" in line
    assert "\n" not in line
    client = mlflow.MlflowClient()
    version = client.get_model_version("python-only", "1")
    tags = (
        version.tags,
        client.get_run(run.info.run_id).data.tags,
        client.get_logged_model(info.model_id).tags,
    )
    assert all("FunctionTransformer" in entry["onnxserve.fallback"] for entry in tags)
    assert client.get_logged_model(info.model_id).tags["team"] == "sky"
    assert "onnxserve.parity" not in version.tags
    assert info.signature.inputs.input_names() == ["a", "b", "c"]
    np.testing.assert_allclose(predictions_of(info, table), pipeline.predict(table))


def test_a_model_that_answers_otherwise_as_onnx_is_logged_as_it_is(
    tracking, unfaithful, table, caplog, capsys
):
    info = log(unfaithful, table)

    *_, outcome = capsys.readouterr().err.splitlines()
    assert re.search(r"model as pyfunc, not ONNX: [\d,]+ of [\d,]+ rows differ", outcome)
    assert any(
        "instead and is served" in line and "Worst rows" not in line for line in caplog.messages
    )
    assert "does not match the original" in fallback_of(info)
    np.testing.assert_array_equal(predictions_of(info, table), unfaithful.predict(table))


def log(model, example, **options):
    """Log a model without the time that MLflow takes to infer its requirements."""
    return onnxserve.log_model(
        model, name="model", input_example=example, pip_requirements=[], **options
    )


def predictions_of(info: ModelInfo, rows: Any) -> Any:
    return mlflow.pyfunc.load_model(info.model_uri).predict(rows)


def fallback_of(info):
    """Return the reason for which a model has no ONNX form."""
    return mlflow.MlflowClient().get_logged_model(info.model_id).tags["onnxserve.fallback"]


def squared_error(wanted, found):
    return found - wanted, np.ones_like(wanted)


def lgbm(kind, **options):
    options = {"objective": "cross_entropy_lambda", **options}
    return getattr(lightgbm, f"LGBM{kind}")(n_estimators=3, n_jobs=1, verbose=-1, **options)


@pytest.mark.parametrize(
    ("flavor", "booster"),
    [
        ("xgboost", xgboost.XGBRegressor(objective="binary:hinge", n_estimators=3, n_jobs=1)),
        ("lightgbm", lgbm("Regressor", objective=squared_error)),
    ],
)
def test_a_booster_without_an_onnx_form_is_logged_by_its_own_flavor(
    flavor, booster, tracking, table
):
    booster.fit(table, table.a)

    info = log(booster, table)

    assert {flavor, "python_function"} <= {*info.flavors}
    predictions = predictions_of(info, table)
    np.testing.assert_allclose(predictions, booster.predict(table), rtol=1e-6)


@pytest.mark.parametrize("predict_fn", get_args(PredictFunction))
def test_a_model_of_categories_without_an_onnx_form_takes_them_as_texts(
    predict_fn, tracking, table
):
    cities = table.assign(city=pd.Categorical(np.resize(["Łódź", "rome", "oslo"], len(table))))
    booster = lgbm("Classifier").fit(cities, table.a > table.b)

    info = log(booster, cities, pyfunc_predict_fn=predict_fn)

    assert info.signature.inputs.input_dict()["city"].type.name == "string"
    predictions = predictions_of(info, cities.astype({"city": str}))
    np.testing.assert_allclose(predictions, getattr(booster, predict_fn)(cities))


def test_a_category_that_a_model_refuses_is_refused_without_an_onnx_form_too(tracking, table):
    cities = table.assign(city=pd.Categorical(np.resize(["lima", "rome", "oslo"], len(table))))
    options: dict[str, Any] = {
        "objective": "binary:hinge",
        "n_estimators": 3,
        "enable_categorical": True,
    }
    booster = xgboost.XGBRegressor(**options).fit(cities, table.a > table.b)

    info = log(booster, cities)

    texts = cities.astype({"city": object}).head(3)
    texts.loc[2, "city"] = None
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    assert "python_function" in info.flavors
    assert loaded.predict(texts.head(2)).tolist() == booster.predict(cities.head(2)).tolist()
    texts.loc[1, "city"] = "paris"
    with pytest.raises(SchemaMismatch, match=r"'city', row 1:.*'paris'"):
        loaded.predict(texts)


def test_probabilities_stay_probabilities_without_an_onnx_form(tracking, table):
    labels = table.a > table.a.median()
    models: list[Any] = [
        make_pipeline(FunctionTransformer(ranked), LogisticRegression()),
        xgboost.XGBClassifier(objective="binary:hinge", n_estimators=3, n_jobs=1),
    ]

    for model in models:
        model.fit(table, labels)
        info = log(model, table, pyfunc_predict_fn="predict_proba")

        probabilities = predictions_of(info, table)
        np.testing.assert_allclose(probabilities, model.predict_proba(table))
        assert info.signature.outputs.inputs[0].shape == (-1, 2)


def test_a_model_that_reads_dates_is_logged_as_pyfunc(tracking, table):
    dated = table.assign(
        day=pd.Timestamp("2013-01-01") + pd.to_timedelta(np.arange(len(table)), unit="D")
    )
    pipeline = make_pipeline(FunctionTransformer(with_month), LinearRegression()).fit(
        dated, table.a
    )

    info = log(pipeline, dated)

    reason = fallback_of(info)
    assert reason.startswith("column 'day' has the type datetime64")
    np.testing.assert_allclose(predictions_of(info, dated), pipeline.predict(dated))


def test_a_model_with_a_column_that_is_called_as_an_answer_is_logged_as_pyfunc(tracking, table):
    stacked = table.rename(columns={"a": "prediction"})
    pipeline = LinearRegression().fit(stacked, table.a)

    info = log(pipeline, stacked)

    reason = fallback_of(info)
    assert reason.startswith("input_example: the name 'prediction' is reserved")
    np.testing.assert_allclose(predictions_of(info, stacked), pipeline.predict(stacked))


def with_seconds(table):
    return table.assign(took=table.took.dt.total_seconds())


def test_a_model_of_durations_takes_them_as_texts(tracking, table):
    timed = table.assign(took=pd.to_timedelta(np.arange(len(table)), unit="s"))
    pipeline = make_pipeline(FunctionTransformer(with_seconds), LinearRegression()).fit(
        timed, table.a
    )

    info = log(pipeline, timed)

    predictions = predictions_of(info, timed.astype({"took": str}))
    np.testing.assert_allclose(predictions, pipeline.predict(timed))


def test_a_model_whose_example_mlflow_cannot_save_is_logged_without_it(tracking, table, caplog):
    prices: Any = [Fraction(number) for number in range(len(table))]
    fractions = table.assign(price=prices)
    regression = LinearRegression().fit(fractions, table.a)

    info = log(regression, fractions)

    assert mentions(caplog.text, "input_example", "Fraction")
    predictions = predictions_of(info, fractions)
    np.testing.assert_allclose(predictions, regression.predict(fractions))


def test_an_unknown_fallback_and_a_model_without_a_flavor_are_refused(tracking, table):
    with pytest.raises(InvalidConfig, match=r"fallback: 'pickle'.*pyfunc, error"):
        onnxserve.log_model({}, name="model", fallback="pickle")  # type: ignore[arg-type]
    for function in get_args(PredictFunction):
        with pytest.raises(ConversionError, match=r"mlflow\.pyfunc\.log_model\(python_model=…\)"):
            onnxserve.log_model({}, name="model", input_example=table, pyfunc_predict_fn=function)


class Interval:
    """A model of an unknown library."""

    def predict(self, rows: pd.DataFrame, level: float = 0.9) -> pd.Series:  # type: ignore[type-arg]
        return rows.a * level


class Forecaster:
    def predict(self, horizon: int) -> list[int]:
        return list(range(horizon))


class YearAhead:
    def predict(self, future: pd.DataFrame) -> list[float]:
        return [0.0] * 12


def test_a_model_of_an_unknown_library_is_logged_as_pyfunc_if_it_answers_rows(tracking, table):
    info = log(Interval(), table)

    reason = fallback_of(info)
    assert mentions(reason, "Interval", "framework is not supported")
    assert predictions_of(info, table).equals(table.a * 0.9)
    for other in (Forecaster(), YearAhead()):
        with pytest.raises(
            ConversionError, match=r"not supported.* mlflow\.pyfunc\.log_model\(python_"
        ):
            onnxserve.log_model(other, name="model", input_example=table)


class WithoutFit(BaseEstimator):  # type: ignore[misc]
    def predict(self, rows: pd.DataFrame) -> pd.Series:  # type: ignore[type-arg]
        return rows.a * 0.9


class WithoutTags(WithoutFit):
    def __sklearn_tags__(self) -> None:
        raise RuntimeError("no tags")


class WithoutParams(WithoutFit):
    def get_params(self, deep: bool = True) -> dict[str, Any]:
        raise RuntimeError("no parameters")


class WithoutCopies(WithoutFit):
    def __deepcopy__(self, memo: object) -> None:
        raise RuntimeError("no copies")


class Panic(BaseException):
    """An error of a library in Rust, which is not an Exception."""


class Panicking(WithoutFit):
    def __sklearn_is_fitted__(self) -> bool:
        raise Panic("a thread panicked")

    def fit(self, rows: pd.DataFrame) -> None: ...


@pytest.mark.parametrize(
    "model",
    [WithoutFit(), WithoutTags(), WithoutParams(), WithoutCopies(), Panicking()],
    ids=lambda model: type(model).__name__,
)
def test_any_error_of_a_check_is_a_reason_for_pyfunc(model, tracking, table):
    info = log(model, table)

    assert type(model).__name__ in fallback_of(info)
    assert predictions_of(info, table).equals(table.a * 0.9)


@pytest.mark.long
def test_a_model_is_explained_where_it_is_logged(tracking, model, table, caplog):
    with mlflow.start_run() as run:
        onnxserve.log_model(model, name="model", input_example=table, explain=True)
    names = [
        Path(file.path).name
        for file in mlflow.MlflowClient().list_artifacts(run.info.run_id, "explain")
    ]
    assert names == ["bar.png", "beeswarm.png", "contributions.parquet", "explain.json"]
    assert "not explained" not in caplog.text


def test_a_model_that_cannot_be_explained_is_logged_and_says_why(
    tracking, unfaithful, table, caplog
):
    numbers = table.select_dtypes("number").fillna(0).to_numpy(dtype=np.float32)[:, :1]
    pictures = np.repeat(numbers, 8, axis=1).reshape(-1, 1, 2, 4)[:50]
    graph = parse_graph("g (float[N,1,2,4] x) => (float[N,1,2,4] y) { y = Identity(x) }")
    with mlflow.start_run():
        info = onnxserve.log_model(graph, name="model", input_example={"x": pictures}, explain=True)
    assert info.model_id
    assert mentions(caplog.text, "is logged", "not explained", "'x'", "4 dimensions")
    with mlflow.start_run():
        log(unfaithful, table, explain=True)
    assert mentions(caplog.text, "not explained", "no ONNX form")
    with pytest.raises(InvalidConfig, match=r"explain: .*input_example= .*reference_"):
        onnxserve.log_model(graph, name="model", explain=True)


def dataset_inputs(run):
    return [
        (entry.dataset.name, entry.dataset.digest)
        for entry in mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    ]


@pytest.mark.long
def test_the_data_becomes_an_input_of_the_run_once_with_the_digest_of_the_provenance(
    tracking, model, table, capsys
):
    with mlflow.start_run() as run:
        info = onnxserve.log_model(model, name="model", input_example=table)
        onnxserve.log_model(model, name="model", input_example=table)
        assert len(dataset_inputs(run)) == 1
        onnxserve.log_model(
            model, name="model", input_example=table.head(5), reference_data=table.head(200)
        )

    first, second = (name for name, _ in dataset_inputs(run))
    assert first == "reference"
    assert second == "reference"
    assert onnxserve.load_model(info.model_uri).artifact.provenance["dataset_digest"] in {
        digest for _, digest in dataset_inputs(run)
    }
    rows = {
        json.loads(entry.dataset.profile)["num_rows"]
        for entry in mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    }
    assert rows == {300, 200}
    steps = ("Converting Pipeline", "Comparing", "Logging the model", "Logged model")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(steps)]
    assert all(map(str.startswith, lines, steps * 3))
    assert len(lines) == 12
    assert re.search(r"model .*proven on \d,\d{3} rows", lines[3])


def test_data_that_the_run_has_as_an_input_is_not_logged_again(logged):
    inputs = mlflow.get_run(logged.run_id).inputs.dataset_inputs

    assert [entry.dataset.name for entry in inputs] == ["training"]


def test_the_data_of_a_model_without_an_onnx_form_becomes_an_input_too(tracking, table):
    booster = xgboost.XGBClassifier(objective="binary:hinge", n_estimators=3, n_jobs=1).fit(
        table, table.a > 0
    )

    with mlflow.start_run() as run:
        log(booster, table.to_numpy())

    assert [name for name, _ in dataset_inputs(run)] == ["reference"]


@pytest.mark.parametrize("code_paths", [None, [__file__]])
def test_the_notice_of_a_model_that_needs_modules_of_the_user_names_code_paths(
    code_paths, tracking, table, caplog
):
    model = make_pipeline(FunctionTransformer(ranked), LogisticRegression()).fit(table, table.a > 0)

    log(model, table, code_paths=code_paths)

    [notice] = [record.message for record in caplog.records if "served as pyfunc" in record.message]
    assert ("code_paths" in notice) is (code_paths is None)
    assert code_paths or "tests" in notice
