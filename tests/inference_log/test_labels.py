"""Labels as a table of the log, and reading them back."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.inference_log import EndpointLabels, InferenceLog, Label, labels_table, write_labels
from mlflow_deploy_plugin.inference_log.labels import SCHEMA, as_number, canonical_key
from tests.support.inference_log import LogWriter

RECEIVED = 1_372_636_800_000_000


def test_a_key_is_written_in_one_way() -> None:
    assert canonical_key({"b": 1.0, "a": np.float32(0.1)}) == canonical_key({"a": "0.1", "b": 1})
    assert canonical_key({"a": float("nan")}) == canonical_key({"a": None}) == '{"a":null}'


@pytest.mark.parametrize(
    ("label", "number"),
    [(1, 1.0), ("1.5", 1.5), (True, 1.0), ("false", 0.0), ("late", None), (None, None), ("inf", None), ([1], None)],
)
def test_a_label_is_a_number_where_it_can_be_one(label: Any, number: float | None) -> None:
    assert as_number(label) == number


def test_a_label_names_a_prediction_or_a_key() -> None:
    table = labels_table(
        [Label("p", 3, None, True, RECEIVED, "s", 7), Label(None, None, '{"flight": 7, "day": "mon"}', None, RECEIVED)]
    )
    assert table.schema == SCHEMA
    first, second = table.to_pylist()
    assert (first["_prediction_id"], first["_row"], first["_label"], first["_label_number"]) == ("p", 3, "true", 1.0)
    assert (second["_key"], second["_label"]) == ('{"day":"mon","flight":"7"}', None)
    assert first["_received_time"] == datetime(2013, 7, 1, tzinfo=UTC)


def test_labels_that_are_written_without_a_server_are_read_back(log: InferenceLog) -> None:
    table = labels_table([Label("p", None, None, 1, RECEIVED)])
    write_labels(log.location, "flights", "2013-07-01", table)
    assert pa.concat_tables(EndpointLabels(log.location, "flights", {}).batches()).equals(table)


def test_few_labels_are_read_once_and_many_each_time(
    log: InferenceLog, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.label(Label("p", None, None, 1, RECEIVED), name="one")
    kept, many = (EndpointLabels(log.location, "flights", {}) for _ in range(2))
    assert sum(map(len, kept.batches())) == 1
    monkeypatch.setattr("mlflow_deploy_plugin.inference_log.labels.MOST_KEPT_BYTES", 0)
    assert sum(map(len, many.batches())) == 1
    writer.label(Label("q", None, None, 1, RECEIVED), name="two")
    assert (sum(map(len, kept.batches())), sum(map(len, many.batches()))) == (1, 2)
