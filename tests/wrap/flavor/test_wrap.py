from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import SplineTransformer

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.inference_log.tables import nested_lists
from mlflow_deploy_plugin.wrap.flavor import saved_model
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap


def test_a_table_of_arrow_is_read_as_one_of_pandas(line, timed):
    """A table with the same conversion method as polars."""
    table: Any = pa.Table.from_pandas(timed)

    assert (
        wrap(line, table, WrapOptions(event_time="when")).signature
        == wrap(line, timed, WrapOptions(event_time="when")).signature
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parity": "maybe"}, "parity: 'maybe' is not one of require, warn"),
        (
            {"pyfunc_predict_fn": "transform"},
            "pyfunc_predict_fn: 'transform' is not one of predict, predict_proba",
        ),
        ({"event_time": "when"}, "event_time: the reference data has no column 'when'"),
        (
            {"event_time": ["2013-01-01"]},
            "event_time has 1 values, but the reference data has 300 rows",
        ),
        ({"event_time": ["x"] * 300}, "event_time: "),
    ],
)
def test_wrong_argument_is_named(arguments, message, model, table, tmp_path):
    with pytest.raises(InvalidConfig, match=message):
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


def test_times_of_a_column_are_kept_in_utc_and_are_no_input(line, timed):
    wrapped = wrap(line, timed, WrapOptions(event_time="when"))

    assert wrapped.reference is not None
    assert wrapped.reference.column_names == ["a", "b", "prediction", "_event_time"]
    assert wrapped.reference["_event_time"][0].as_py().isoformat() == "2013-01-01T05:00:00+00:00"


def test_reference_data_of_its_own(line, timed):
    wrapped = wrap(
        line, timed[["a", "b"]].head(50), WrapOptions(reference_data=timed, event_time="when")
    )

    assert wrapped.reference is not None
    assert wrapped.reference.num_rows == 400
    assert len(wrapped.example) == 5


def test_large_data_is_sampled_in_order(line, timed, monkeypatch):
    monkeypatch.setattr(saved_model, "MAX_REFERENCE_ROWS", 100)

    sample = wrap(line, timed, WrapOptions(event_time="when")).reference

    assert sample is not None
    times = sample["_event_time"].to_pylist()
    assert sample.num_rows == 100
    assert times == sorted(times)
    assert times[-1] > timed.when.iloc[200]


def test_large_tensors_are_bounded_by_their_numbers(monkeypatch):
    monkeypatch.setattr(saved_model, "MAX_REFERENCE_VALUES", 160)
    random = np.random.default_rng(0)
    rows = random.normal(size=(50, 4))
    line = LinearRegression().fit(rows, rows[:, 0])

    sample = wrap(line, rows).reference

    assert sample is not None
    assert sample.num_rows == 40


def test_missing_time_is_refused(line, timed):
    with pytest.raises(InvalidConfig, match=r"event_time .*missing values"):
        wrap(
            line,
            timed.assign(when=timed.when.where(timed.index > 3)),
            WrapOptions(event_time="when"),
        )


def test_numbers_are_no_times(line, timed):
    with pytest.raises(InvalidConfig, match=r"event_time: 1380000000 .*pandas\.to_datetime"):
        wrap(line, timed[["a", "b"]], WrapOptions(event_time=1_380_000_000 + np.arange(400)))


def test_times_without_rows_are_refused(line):
    with pytest.raises(InvalidConfig, match=r"event_time: .*no rows"):
        wrap(line, None, WrapOptions(event_time=["2013-01-01"]))


def test_wide_answers_are_kept_without_a_python_object_for_each_number():
    column = nested_lists(pa.array(np.arange(24, dtype=np.float32)), (4, 3, 2))

    assert column.to_pylist()[1] == [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]]
    assert column.type == pa.list_(pa.list_(pa.float32()))


@pytest.mark.parametrize(
    "example",
    [{"a": 1.0, "b": 2.0}, [{"a": 1.0, "b": 2.0}], pd.DataFrame({"a": [1.0], "b": [2.0]})],
)
def test_one_row_is_an_example(example, line):
    wrapped = wrap(line, example)
    assert wrapped.report.state == "proven"
    assert list(wrapped.example) == ["a", "b"]


@pytest.mark.parametrize("steps", [[1, 2], [("first", 1)], "ab"])
def test_a_steps_attribute_outside_a_pipeline_is_ignored(steps, line):
    class Stepwise(LinearRegression):  # type: ignore[misc]
        pass

    model = Stepwise()
    model.__dict__ |= line.__dict__
    model.steps = steps

    wrapped = wrap(model, pd.DataFrame({"a": [1.5, 2.5], "b": [2.5, 1.5]}))

    assert wrapped.provenance["algorithm"] == "Stepwise"


@pytest.mark.long
def test_the_original_is_asked_once_however_many_forms_are_tried(monkeypatch):
    table = pd.DataFrame(np.random.default_rng(0).lognormal(size=(300, 2)), columns=["a", "b"])
    model = make_pipeline(
        SplineTransformer(extrapolation="error"), RandomForestClassifier(5, random_state=0)
    )
    model.fit(table, table.a + table.b > 2)
    refused: Counter[bytes] = Counter()
    predict = Pipeline.predict

    def counted(pipeline, rows):
        try:
            return predict(pipeline, rows)
        except ValueError:
            refused[rows.to_numpy().tobytes()] += 1
            raise

    monkeypatch.setattr(Pipeline, "predict", counted)
    wrapped = wrap(model, table)

    assert wrapped.report.repair  # The first form was not equal.
    assert len(refused) > 100
    assert refused.total() < 1.1 * len(refused)
