import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.linear_model import LinearRegression

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.flavor import reference_sample
from mlflow_deploy_plugin.flavor.wrap import wrap


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(400, 2)), columns=["a", "b"])
    return table.assign(when=pd.date_range("2013-01-01", periods=400, freq="h", tz="America/New_York"))


@pytest.fixture(scope="module")
def model(table: pd.DataFrame) -> LinearRegression:
    return LinearRegression().fit(table[["a", "b"]], table.a + table.b)


def test_times_of_a_column_are_kept_in_utc_and_are_no_input(model: LinearRegression, table: pd.DataFrame) -> None:
    wrapped = wrap(model, table, event_time="when")

    assert wrapped.reference.column_names == ["a", "b", "prediction", "_event_time"]
    assert wrapped.reference["_event_time"][0].as_py().isoformat() == "2013-01-01T05:00:00+00:00"


def test_reference_data_of_its_own(model: LinearRegression, table: pd.DataFrame) -> None:
    wrapped = wrap(model, table[["a", "b"]].head(50), reference_data=table, event_time="when")

    assert wrapped.reference.num_rows == 400
    assert len(wrapped.example) == 5


def test_large_data_is_sampled_in_order(
    model: LinearRegression, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_sample, "MAX_ROWS", 100)

    sample = wrap(model, table, event_time="when").reference

    times = sample["_event_time"].to_pylist()
    assert sample.num_rows == 100
    assert times == sorted(times)
    assert times[-1] > table.when.iloc[200]


def test_large_tensors_are_bounded_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_sample, "MAX_VALUES", 160)
    random = np.random.default_rng(0)
    rows = random.normal(size=(50, 4))
    model = LinearRegression().fit(rows, rows[:, 0])

    assert wrap(model, rows).reference.num_rows == 40


def test_missing_column_of_the_reference_is_named(model: LinearRegression, table: pd.DataFrame) -> None:
    with pytest.raises(InvalidConfig, match="reference_data: 'b' is missing; the example has it"):
        wrap(model, table[["a", "b"]], reference_data=table[["a"]])


def test_missing_time_is_refused(model: LinearRegression, table: pd.DataFrame) -> None:
    with pytest.raises(InvalidConfig, match="event_time has missing values"):
        wrap(model, table.assign(when=table.when.where(table.index > 3)), event_time="when")


def test_numbers_are_no_times(model: LinearRegression, table: pd.DataFrame) -> None:
    with pytest.raises(InvalidConfig, match=r"event_time: 1380000000 is a number; .*pandas\.to_datetime"):
        wrap(model, table[["a", "b"]], event_time=1_380_000_000 + np.arange(400))


def test_times_without_rows_are_refused(model: LinearRegression) -> None:
    with pytest.raises(InvalidConfig, match="event_time: there are no rows"):
        wrap(model, event_time=["2013-01-01"])


def test_wide_answers_are_kept_without_a_python_object_for_each_number() -> None:
    column = reference_sample._arrow(np.arange(24, dtype=np.float32).reshape(4, 3, 2))

    assert column.to_pylist()[1] == [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]]
    assert column.type == pa.list_(pa.list_(pa.float32()))
