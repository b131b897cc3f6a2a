import json
import re
import subprocess
import sys
from fractions import Fraction
from typing import get_args

import lightgbm
import mlflow
import mlflow.onnx
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import xgboost
from mlflow.models import Model
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

import onnxserve
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
from tests.support.refusals import mentions, refused
from tests.wrap.conftest import cases, log


def test_parity_is_tagged_everywhere(logged):
    client = mlflow.MlflowClient()
    run = client.get_run(logged.run_id)

    assert run.data.tags["onnxserve.parity"] == "proven"
    assert client.get_logged_model(logged.model_id).tags["onnxserve.parity"] == "proven"
    assert client.get_model_version("updown", "1").tags["onnxserve.parity"] == "proven"
    assert run.data.metrics["onnxserve.parity.rows"] >= 1000
    assert run.data.metrics["onnxserve.parity.label.agreement"] == 1
    assert "onnxserve.parity.probabilities.max_relative_error" in run.data.metrics
    assert run.data.metrics["onnxserve.parity.probabilities.max_absolute_error"] < 1e-4


def test_signature_and_example_are_saved(folder):
    model = Model.load(folder)
    example = json.loads((folder / "serving_input_example.json").read_text())["dataframe_split"]

    types = {spec.name: spec.type.name for spec in model.signature.inputs.inputs}
    assert types == dict.fromkeys("abc", "double")
    assert example["columns"] == ["a", "b", "c"]
    assert len(example["data"]) == 5


def test_provenance_names_commit_dataset_and_environment(folder, logged):
    provenance = read_artifact(folder).provenance
    [entry] = mlflow.get_run(logged.run_id).inputs.dataset_inputs

    assert len(provenance["git_commit"]) == 40
    assert provenance["dataset_digest"] == entry.dataset.digest
    assert provenance["dataset_name"] == entry.dataset.name == "training"
    assert provenance["algorithm"] == "Pipeline(StandardScaler, LogisticRegression)"
    environment = (folder / provenance["environment"]).read_text()
    assert f"onnxruntime=={onnxruntime.__version__}" in environment


@pytest.mark.long
def test_mlflow_loads_versions_without_onnxserve(logged, table):
    mixture = GaussianMixture(2, random_state=0).fit(table)
    pyfunc = log(mixture, table, pyfunc_predict_fn="predict_proba")
    program = """
import sys
sys.modules["mlflow_deploy_plugin"] = None  # An import of onnxserve fails.
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
print([output.name for output in mlflow.onnx.load_model(sys.argv[2]).graph.output])
model = mlflow.pyfunc.load_model(sys.argv[3])
print(model.predict(model.input_example).shape)
"""

    uris = [mlflow.get_tracking_uri(), logged.model_uri, pyfunc.model_uri]
    command = [sys.executable, "-W", "ignore", "-c", program, *uris]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True)

    assert loaded.stdout.splitlines() == ["['label', 'probabilities']", "(5, 2)"]


@pytest.fixture(scope="module")
def unfaithful(table):
    """A model that selects the first of several neighbours at equal distance; its graph
    selects another neighbour.
    """
    return KNeighborsClassifier(3).fit(table.round(), (table.a * table.b > 0).astype(int))


def test_unfaithful_model_leaves_nothing_in_mlflow(tracking, unfaithful, table):
    before = len(mlflow.search_logged_models(output_format="list"))

    with mlflow.start_run(), refused(ParityError, "mlflow.sklearn.log_model"):
        log(unfaithful, table, registered_model_name="lossy", fallback="error")

    assert len(mlflow.search_logged_models(output_format="list")) == before
    assert mlflow.MlflowClient().search_registered_models("name = 'lossy'") == []


def test_unfaithful_model_is_warned_on_request(tracking, unfaithful, table):
    with mlflow.start_run():
        info = log(unfaithful, table, registered_model_name="lossy", parity="warn")

    version = mlflow.MlflowClient().get_model_version("lossy", "1")
    assert version.tags["onnxserve.parity"] == "warned"
    assert onnxserve.load_model(info.model_uri).artifact.parity_state == "warned"


@pytest.mark.long
def test_exported_model_refuses_the_same_rows(tmp_path):
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
    onnxserve.export(str(tmp_path / "model"), "onnx", tmp_path / "m.onnx")
    exported = ExportedModel(tmp_path / "m.onnx")

    np.testing.assert_array_equal(saved.predict(rows), model.predict(rows))
    for change, words in (
        ({"carrier": "XX"}, r"'carrier', row 0: 'XX' is not a (known )?category"),
        ({"hour": 23}, r"'hour', row 0: 23 is not a (known )?category"),
        ({"distance": np.nan}, r"'distance', row 0: .*missing"),
        ({"wind": -np.inf}, r"'wind', row 0: .*infinite"),
    ):
        changed = rows.head(1).assign(**change)
        with refused(ValueError):
            model.predict(changed)
        with pytest.raises(SchemaMismatch, match=words):
            saved.predict(changed)
        with pytest.raises(ValueError, match=words):
            exported.predict(changed)


def test_parity_is_tagged_without_a_run(tracking, model, table):
    info = log(model, table)

    logged = mlflow.MlflowClient().get_logged_model(info.model_id)
    assert logged.tags["onnxserve.parity"] == "proven"


def ranked(numbers):
    return numbers.rank(axis=1)


def test_fallback_is_logged_with_its_reason(tracking, table, caplog):
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

    [line] = [line for line in caplog.messages if "served as pyfunc" in line]
    assert "func=ranked" in line
    assert "\n" not in line
    client = mlflow.MlflowClient()
    version = client.get_model_version("python-only", "1")
    logged = client.get_logged_model(info.model_id)
    for tags in (version.tags, client.get_run(run.info.run_id).data.tags, logged.tags):
        assert "FunctionTransformer" in tags["onnxserve.fallback"]
    assert logged.tags["team"] == "sky"
    assert "onnxserve.parity" not in version.tags
    assert info.signature.inputs.input_names() == ["a", "b", "c"]
    np.testing.assert_allclose(predictions_of(info, table), pipeline.predict(table))


def test_unfaithful_model_is_logged_as_pyfunc(tracking, unfaithful, table, caplog, capsys):
    info = log(unfaithful, table)

    *_, outcome = capsys.readouterr().err.splitlines()
    assert re.search(r"model as pyfunc, not ONNX: [\d,]+ of [\d,]+ rows differ", outcome)
    assert any(
        "instead and is served" in line and "Worst rows" not in line for line in caplog.messages
    )
    assert "does not match the original" in fallback_of(info)
    np.testing.assert_array_equal(predictions_of(info, table), unfaithful.predict(table))


def predictions_of(info, rows):
    return mlflow.pyfunc.load_model(info.model_uri).predict(rows)


def fallback_of(info):
    """Return the reason for which a model has no ONNX form."""
    return mlflow.MlflowClient().get_logged_model(info.model_id).tags["onnxserve.fallback"]


def squared_error(wanted, found):
    return found - wanted, np.ones_like(wanted)


def lgbm(kind, **options):
    options = {"objective": "cross_entropy_lambda", **options}
    return getattr(lightgbm, f"LGBM{kind}")(n_estimators=3, n_jobs=1, verbose=-1, **options)


def on_days(table):
    return table.assign(day=pd.date_range("2013-01-01", periods=len(table)))


def with_prices(table):
    return table.assign(price=[Fraction(number) for number in range(len(table))])


def with_durations(table):
    return table.assign(took=pd.to_timedelta(np.arange(len(table)), unit="s"))


def read_columns(table):
    if "day" in table:
        return table.assign(day=table.day.dt.month)
    if "took" in table:
        return table.assign(took=table.took.dt.total_seconds())
    return table


def hinge(kind):
    return getattr(xgboost, f"XGB{kind}")(objective="binary:hinge", n_estimators=3, n_jobs=1)


LINE = make_pipeline(FunctionTransformer(read_columns), LinearRegression())
FALLBACKS = {
    "xgboost": (pd.DataFrame, hinge("Regressor"), "xgboost", ("binary:hinge",)),
    "lightgbm": (pd.DataFrame, lgbm("Regressor", objective=squared_error), "lightgbm", ()),
    "dates": (on_days, LINE, "sklearn", ("'day'", "datetime64")),
    "durations": (with_durations, LINE, "python_function", ("'took'",)),
    "a reserved name": (
        lambda table: table.rename(columns={"a": "prediction"}),
        LINE,
        "sklearn",
        ("input_example", "'prediction'"),
    ),
    "an example that MLflow cannot save": (with_prices, LINE, "sklearn", ("'price'",)),
}


@pytest.mark.parametrize(("change", "model", "flavor", "words"), cases(FALLBACKS))
def test_fallback_answers_as_the_original(change, model, flavor, words, tracking, table, caplog):
    example = change(table)
    model.fit(example, table.a)

    info = log(model, example)

    assert {flavor, "python_function"} <= {*info.flavors}
    assert mentions(fallback_of(info), *words)
    assert mentions(caplog.text, "input_example", "Fraction") == ("price" in example)
    sent = example.astype({"took": str}) if "took" in example else example
    np.testing.assert_allclose(predictions_of(info, sent), model.predict(example), rtol=1e-6)


def test_pyfunc_refuses_unknown_categories(tracking, table):
    cities = table.assign(city=pd.Categorical(np.resize(["lima", "rome", "oslo"], len(table))))
    booster = hinge("Regressor").set_params(enable_categorical=True)
    booster.fit(cities, table.a > table.b)

    info = log(booster, cities)

    texts = cities.astype({"city": object}).head(3)
    texts.loc[2, "city"] = None
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    assert "python_function" in info.flavors
    assert loaded.predict(texts.head(2)).tolist() == booster.predict(cities.head(2)).tolist()
    texts.loc[1, "city"] = "paris"
    with refused(SchemaMismatch, "'city'", "row 1", "'paris'"):
        loaded.predict(texts)


@pytest.mark.parametrize(
    "model",
    [make_pipeline(FunctionTransformer(ranked), LogisticRegression()), hinge("Classifier")],
    ids=["sklearn", "xgboost"],
)
def test_pyfunc_keeps_probabilities(model, tracking, table):
    model.fit(table, table.a > table.a.median())

    with mlflow.start_run() as run:
        info = log(model, table, pyfunc_predict_fn="predict_proba")

    np.testing.assert_allclose(predictions_of(info, table), model.predict_proba(table))
    assert info.signature.outputs.inputs[0].shape == (-1, 2)
    assert [name for name, _ in dataset_inputs(run)] == ["reference"]


def test_unknown_fallback_and_object_are_refused(tracking, table):
    with refused(InvalidConfig, "fallback", "'pickle'", "pyfunc", "error"):
        log({}, None, fallback="pickle")
    for function in get_args(PredictFunction):
        with refused(ConversionError, "mlflow.pyfunc.log_model"):
            log({}, table, pyfunc_predict_fn=function)


class Interval:
    """A model of an unknown library."""

    def predict(self, rows, level=0.9):  # type: ignore[type-arg]
        return rows.a * level


class Forecaster:
    def predict(self, horizon):
        return list(range(horizon))


class YearAhead:
    def predict(self, future):
        return [0.0] * 12


def test_unknown_library_is_logged_as_pyfunc(tracking, table):
    info = log(Interval(), table)

    assert mentions(fallback_of(info), "Interval", "framework is not supported")
    assert predictions_of(info, table).equals(table.a * 0.9)
    for other in (Forecaster(), YearAhead()):
        with refused(ConversionError, "not supported", "mlflow.pyfunc.log_model"):
            log(other, table)


class WithoutFit(BaseEstimator):  # type: ignore[misc]
    def predict(self, rows):  # type: ignore[type-arg]
        return rows.a * 0.9


class WithoutTags(WithoutFit):
    def __sklearn_tags__(self):
        raise RuntimeError("no tags")


class WithoutParams(WithoutFit):
    def get_params(self, deep=True):
        raise RuntimeError("no parameters")


class WithoutCopies(WithoutFit):
    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")


class Panic(BaseException):
    """An error of a library in Rust, which is not an Exception."""


class Panicking(WithoutFit):
    def __sklearn_is_fitted__(self):
        raise Panic("a thread panicked")

    def fit(self, rows): ...


@pytest.mark.parametrize(
    "model",
    [WithoutFit(), WithoutTags(), WithoutParams(), WithoutCopies(), Panicking()],
    ids=lambda model: type(model).__name__,
)
def test_failing_check_is_a_fallback(model, tracking, table):
    info = log(model, table)

    assert type(model).__name__ in fallback_of(info)
    assert predictions_of(info, table).equals(table.a * 0.9)


def test_unexplained_model_is_logged(tracking, unfaithful, table, caplog):
    pictures = np.resize(table.to_numpy(np.float32), (50, 1, 2, 4))
    graph = parse_graph("g (float[N,1,2,4] x) => (float[N,1,2,4] y) { y = Identity(x) }")
    with mlflow.start_run():
        info = log(graph, {"x": pictures}, explain=True)
    assert info.model_id
    assert mentions(caplog.text, "is logged", "not explained", "'x'", "4 dimensions")
    with mlflow.start_run():
        log(unfaithful, table, explain=True)
    assert mentions(caplog.text, "not explained", "no ONNX form")
    with refused(InvalidConfig, "explain", "input_example"):
        log(graph, None, explain=True)


def dataset_inputs(run):
    return [
        (entry.dataset.name, entry.dataset.digest)
        for entry in mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    ]


@pytest.mark.long
def test_data_are_logged_once_per_run(tracking, model, table, capsys):
    with mlflow.start_run() as run:
        info = log(model, table)
        log(model, table)
        assert len(dataset_inputs(run)) == 1
        log(model, table.head(5), reference_data=table.head(200))

    names, digests = zip(*dataset_inputs(run), strict=True)
    assert names == ("reference", "reference")
    assert onnxserve.load_model(info.model_uri).artifact.provenance["dataset_digest"] in digests
    profiles = [
        json.loads(entry.dataset.profile)
        for entry in mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    ]
    assert {profile["num_rows"] for profile in profiles} == {300, 200}
    steps = ("Converting Pipeline", "Comparing", "Logging the model", "Logged model")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(steps)]
    assert all(map(str.startswith, lines, steps * 3))
    assert len(lines) == 12
    assert re.search(r"model .*proven on \d,\d{3} rows", lines[3])


@pytest.mark.parametrize("code_paths", [None, [__file__]])
def test_fallback_names_code_paths(code_paths, tracking, table, caplog):
    model = make_pipeline(FunctionTransformer(ranked), LogisticRegression()).fit(table, table.a > 0)

    log(model, table, code_paths=code_paths)

    [notice] = [record.message for record in caplog.records if "served as pyfunc" in record.message]
    assert ("code_paths" in notice) is (code_paths is None)
    assert code_paths or "tests" in notice
