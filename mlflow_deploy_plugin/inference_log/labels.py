"""Labels: what turned out to be true, known later than the prediction.

    LOG/_labels/endpoint=NAME/date=YYYY-MM-DD/<name>.parquet

A label names its prediction by id (and row, where the request had several), or by the values of key columns, as a
flight's number and day. Labels are only ever added: of several for one row the last one wins, by the time it was
received, then by segment and offset, so that the order of the files does not matter and a label that was written twice
is the same label. A label without a value takes an earlier one back.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mlflow_deploy_plugin.runtime import as_key
from mlflow_deploy_plugin.runtime import as_text as as_text

_TRUTH: Mapping[Any, float] = {"true": 1.0, "false": 0.0}  # as a CSV file says them

LABELS = "_labels"
"""The folder below the log's root."""

TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("_prediction_id", pa.string()),
        ("_row", pa.int32()),
        ("_key", pa.string()),
        ("_label", pa.string()),
        ("_label_number", pa.float64()),
        ("_received_time", TIME),
        ("_segment", pa.string()),
        ("_offset", pa.int64()),
    ]
)
"""Either `_prediction_id` or `_key` is there; without `_row` every row of the request is meant."""


@dataclass(frozen=True)
class Label:
    """What turned out to be true of one row, or of all rows of a request.

    Attributes:
        prediction_id: what the answer said in `X-Prediction-Id`; None where `key` says which row is meant.
        row: of the request, from 0; None for all of them.
        key: values of the row's columns by their names, or the same as a JSON object.
        label: a text, number or boolean; None takes an earlier label back.
        received_us: when it came in, in microseconds since 1970.
        segment, offset: where it came from, which tells doubles; of labels of one frame, the frame's offset plus the
            label's place in it.
    """

    prediction_id: str | None
    row: int | None
    key: Mapping[str, Any] | str | None
    label: str | float | bool | None
    received_us: int
    segment: str = ""
    offset: int = 0


def labels_table(entries: Sequence[Label]) -> pa.Table:
    """The labels as a table of `SCHEMA`, one row each."""
    columns: list[Sequence[Any]] = [
        [entry.prediction_id for entry in entries],
        [entry.row for entry in entries],
        [_key_of(entry.key) for entry in entries],
        [as_text(entry.label) for entry in entries],
        [as_number(entry.label) for entry in entries],
        pa.array([entry.received_us for entry in entries], pa.int64()).view(TIME),
        [entry.segment for entry in entries],
        [entry.offset for entry in entries],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def canonical_key(values: Mapping[str, Any]) -> str:
    """The key as the log holds it: JSON, names in order, every value as text.

    Values are texts whatever their type was, since 7, 7.0 (a model may take numbers as floats) and the 7 of a CSV file
    mean the same row, and so do true, True and 1.
    """
    texts = {str(name): as_key(value) for name, value in values.items()}
    return json.dumps(texts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def as_number(value: Any) -> float | None:
    """A label's value as a number, 1 and 0 for true and false; None where it is none."""
    if value is None:
        return None
    try:
        number = float(_TRUTH.get(value, value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _key_of(key: Mapping[str, Any] | str | None) -> str | None:
    if key is None:
        return None
    values: Mapping[str, Any] = json.loads(key) if isinstance(key, str) else key
    return canonical_key(values)
