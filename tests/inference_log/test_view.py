"""The rows of a time range as one table."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.inference_log import (
    InferenceLog,
    Label,
    LabelMatches,
    View,
    labels_table,
    match_labels,
    microseconds,
    parse_time_range,
    require_endpoint,
    view_schema,
    view_tables,
)
from tests.support.inference_log import LogWriter

DAY = datetime(2013, 7, 1, tzinfo=UTC)


@pytest.fixture
def written(writer: LogWriter) -> LogWriter:
    writer.write({"_event_time": [DAY, DAY], "_prediction_id": ["p", "p"], "x": [1, 2]}, version="1")
    writer.write(
        {"_event_time": [DAY + timedelta(hours=1)], "_prediction_id": ["q"], "x": [0.5], "y": ["a"]}, version="2"
    )
    writer.label(Label("p", 1, None, "late", microseconds(DAY)))
    return writer


def test_the_columns_are_those_of_every_version_in_the_wider_type(log: InferenceLog, written: LogWriter) -> None:
    schema = view_schema(log, View("flights"))
    assert (schema.names[0], schema.field("x").type, schema.field("y").type) == (
        "_event_time",
        pa.float64(),
        pa.string(),
    )
    assert "_label" in schema.names
    assert "_label" not in view_schema(log, View("flights", labels=False)).names


def test_labels_are_joined_where_they_are_asked_for(log: InferenceLog, written: LogWriter) -> None:
    tables = list(view_tables(log, View("flights"), ["x", "_label"]))
    rows = [row for table in tables for row in table.select(["x", "_label"]).to_pylist()]
    assert sorted(rows, key=str) == [{"x": 0.5, "_label": None}, {"x": 1, "_label": None}, {"x": 2, "_label": "late"}]
    assert all("_label" not in table.column_names for table in view_tables(log, View("flights"), ["x"]))


def test_a_time_range_chooses_the_rows(log: InferenceLog, written: LogWriter) -> None:
    view = View("flights", parse_time_range("2013-07-01/1h", None, DAY))
    assert sum(map(len, view_tables(log, view, ["x"]))) == 2


def test_labels_are_matched_with_rows_of_the_whole_log(log: InferenceLog, written: LogWriter) -> None:
    matches = LabelMatches()
    received = microseconds(DAY)
    matches.add(labels_table([Label("p", 0, None, 1, received), Label("nobody's", None, None, 1, received)]))
    match_labels(log, "flights", matches)
    assert (matches.count, matches.matched) == (2, 1)


def test_an_unknown_endpoint_is_said_with_the_nearest(log: InferenceLog, written: LogWriter) -> None:
    require_endpoint(log, "flights")
    with pytest.raises(NotFound, match=r"has no rows of an endpoint 'flight'.*flights"):
        require_endpoint(log, "flight")
