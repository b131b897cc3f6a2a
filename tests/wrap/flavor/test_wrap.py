import json
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, SplineTransformer
from sklearn.tree import DecisionTreeClassifier

import onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.inference_log.tables import nested_lists
from mlflow_deploy_plugin.wrap.flavor import saved_model
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap
from tests.support.refusals import refused
from tests.wrap.conftest import proven


def test_arrow_table_is_read_as_pandas(line, timed):
    """A table with the same conversion method as polars."""
    table = pa.Table.from_pandas(timed)
    options = WrapOptions(event_time="when")

    assert wrap(line, table, options).signature == wrap(line, timed, options).signature


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"parity": "maybe"}, ("parity", "'maybe'", "require, warn")),
        (
            {"pyfunc_predict_fn": "transform"},
            ("pyfunc_predict_fn", "'transform'", "predict, predict_proba"),
        ),
        ({"event_time": "when"}, ("event_time", "'when'")),
        ({"event_time": ["2013-01-01"]}, ("event_time", "1 values", "300 rows")),
        ({"event_time": ["x"] * 300}, ("event_time",)),
        ({"event_time": 1_380_000_000 + np.arange(300)}, ("event_time", "pandas.to_datetime")),
        ({"event_time": [None] * 300}, ("event_time", "missing values")),
        ({"reference_data": pd.DataFrame({"a": [1.0], "b": [1.0]})}, ("reference_data", "'c'")),
    ],
)
def test_wrong_argument_is_named(arguments, words, model, table, tmp_path):
    with refused(InvalidConfig, *words):
        onnxserve.save_model(model, tmp_path / "model", input_example=table, **arguments)


@pytest.fixture(scope="module")
def timed():
    random = np.random.default_rng(0)
    timed = pd.DataFrame(random.normal(size=(400, 2)), columns=["a", "b"])
    return timed.assign(
        when=pd.date_range("2013-01-01", periods=400, freq="h", tz="America/New_York")
    )


@pytest.fixture(scope="module")
def line(timed):
    return LinearRegression().fit(timed[["a", "b"]], timed.a + timed.b)


def test_event_times_are_kept_in_utc(line, timed):
    wrapped = wrap(line, timed, WrapOptions(event_time="when"))

    assert wrapped.reference is not None
    assert wrapped.reference.column_names == ["a", "b", "prediction", "_event_time"]
    assert wrapped.reference["_event_time"][0].as_py().isoformat() == "2013-01-01T05:00:00+00:00"


def test_ranges_of_training_rows_are_saved(line, timed):
    columns = {
        "carrier": pd.Categorical(["UA", "AA"] * 100),
        "note": [f"note {number}" for number in range(200)],
        "hour": np.arange(200) % 24,
        "wind": [1.5, np.nan, 2.5, np.nan] * 50,
    }
    rows = pd.DataFrame(columns)
    texts = ("encode", OneHotEncoder(handle_unknown="ignore"), ["carrier", "note"])
    steps = ColumnTransformer([texts], remainder="passthrough", sparse_threshold=0)
    model = make_pipeline(steps, DecisionTreeClassifier(max_depth=2)).fit(rows, rows.hour > 9)

    ranges = json.loads(wrap(model, rows).converted.files["ranges.json"])

    saved = {"carrier": ["AA", "UA"], "hour": [0, 23], "wind": [1.5, 2.5]}
    assert ranges == {"columns": saved, "complete": ["carrier", "note", "hour"]}
    assert "ranges.json" not in wrap(line, timed[["a", "b"]].head(99)).converted.files


def test_reference_data_may_be_other_rows(line, timed):
    wrapped = wrap(
        line, timed[["a", "b"]].head(50), WrapOptions(reference_data=timed, event_time="when")
    )

    assert wrapped.reference is not None
    assert wrapped.reference.num_rows == 400
    assert len(wrapped.example) == 5


def test_large_reference_is_sampled_in_order(line, timed, monkeypatch):
    monkeypatch.setattr(saved_model, "MAX_REFERENCE_ROWS", 100)

    sample = wrap(line, timed, WrapOptions(event_time="when")).reference

    assert sample is not None
    times = sample["_event_time"].to_pylist()
    assert sample.num_rows == 100
    assert times == sorted(times)
    assert times[-1] > timed.when.iloc[200]


def test_reference_is_bounded_by_values(monkeypatch):
    monkeypatch.setattr(saved_model, "MAX_REFERENCE_VALUES", 160)
    random = np.random.default_rng(0)
    rows = random.normal(size=(50, 4))
    line = LinearRegression().fit(rows, rows[:, 0])

    sample = wrap(line, rows).reference

    assert sample is not None
    assert sample.num_rows == 40


def test_times_without_rows_are_refused(line):
    with refused(InvalidConfig, "event_time", "no rows"):
        wrap(line, None, WrapOptions(event_time=["2013-01-01"]))


def test_wide_answers_become_nested_lists():
    column = nested_lists(pa.array(np.arange(24, dtype=np.float32)), (4, 3, 2))

    assert column.to_pylist()[1] == [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]]
    assert column.type == pa.list_(pa.list_(pa.float32()))


@pytest.mark.parametrize(
    "example",
    [{"a": 1.0, "b": 2.0}, [{"a": 1.0, "b": 2.0}], pd.DataFrame({"a": [1.0], "b": [2.0]})],
)
def test_single_row_is_an_example(example, line):
    wrapped = proven(line, example)
    assert list(wrapped.example) == ["a", "b"]


@pytest.mark.parametrize("steps", [[1, 2], [("first", 1)], "ab"])
def test_steps_outside_a_pipeline_are_ignored(steps, line):
    class Stepwise(LinearRegression):  # type: ignore[misc]
        pass

    model = Stepwise()
    model.__dict__ |= line.__dict__
    model.steps = steps

    wrapped = wrap(model, pd.DataFrame({"a": [1.5, 2.5], "b": [2.5, 1.5]}))

    assert wrapped.provenance["algorithm"] == "Stepwise"


@pytest.mark.long
def test_original_is_asked_once(monkeypatch):
    table = pd.DataFrame(np.random.default_rng(0).lognormal(size=(300, 2)), columns=["a", "b"])
    model = make_pipeline(
        SplineTransformer(extrapolation="error"), RandomForestClassifier(5, random_state=0)
    )
    model.fit(table, table.a + table.b > 2)
    failures = Counter()
    predict = Pipeline.predict

    def counted(pipeline, rows):
        try:
            return predict(pipeline, rows)
        except ValueError:
            failures[rows.to_numpy().tobytes()] += 1
            raise

    monkeypatch.setattr(Pipeline, "predict", counted)
    wrapped = wrap(model, table)

    assert wrapped.report.repair  # The first form was not equal.
    assert len(failures) > 100
    assert failures.total() < 1.1 * len(failures)
