"""Labels: the true values of predictions, known later than the prediction.

    LOG/_labels/endpoint=NAME/date=YYYY-MM-DD/<name>.parquet

A label names its prediction by id (and row, if the request had several), or by the values of key columns, such as a
flight's number and day. Labels are only ever added. Of several for one row the last one wins, by the time it was
received, then by segment and offset, so that the order of the files does not matter and a label that was written twice
is the same label. A label without a value takes an earlier one back.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.columns import conform
from mlflow_deploy_plugin.inference_log.scan import FileVanished, prefetch, read_file
from mlflow_deploy_plugin.inference_log.storage import (
    DAY,
    LogLocation,
    encode_parquet,
    list_days,
    list_files,
    wrap_log_errors,
    write_file,
)
from mlflow_deploy_plugin.runtime import as_key, as_text

LABELS = "_labels"
"""The folder below the log's root."""
LABEL, LABEL_NUMBER = "_label", "_label_number"
TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("_prediction_id", pa.string()),
        ("_row", pa.int32()),
        ("_key", pa.string()),
        (LABEL, pa.string()),
        (LABEL_NUMBER, pa.float64()),
        ("_received_time", TIME),
        ("_segment", pa.string()),
        ("_offset", pa.int64()),
    ]
)
"""A label has either `_prediction_id` or `_key`; without `_row` it is of every row of the request."""
MOST_KEPT_BYTES = 64 * 2**20
"""An endpoint with more bytes of labels has them read anew each time."""
_TRUTH: Mapping[Any, float] = {"true": 1.0, "false": 0.0}  # as a CSV file has them


@dataclass(frozen=True)
class Label:
    """The true value of one row, or of all rows of a request.

    Attributes:
        prediction_id: `X-Prediction-Id` of the answer; None if `key` names the row.
        row: of the request, from 0; None for all of them.
        key: values of the row's columns by their names, or the same as a JSON object.
        label: a text, number or boolean; None takes an earlier label back.
        received_us: when it came in, in microseconds since 1970.
        segment, offset: where it came from, which finds duplicates. Of labels of one frame, the offset is the frame's
            plus the label's place in it.
    """

    prediction_id: str | None
    row: int | None
    key: Mapping[str, Any] | str | None
    label: str | float | bool | None
    received_us: int
    segment: str = ""
    offset: int = 0


def labels_table(entries: Sequence[Label]) -> pa.Table:
    """Return the labels as a table of `SCHEMA`, one row each."""
    keys = [json.loads(entry.key) if isinstance(entry.key, str) else entry.key for entry in entries]
    columns: list[Sequence[Any]] = [
        [entry.prediction_id for entry in entries],
        [entry.row for entry in entries],
        [None if key is None else canonical_key(key) for key in keys],
        [as_text(entry.label) for entry in entries],
        [as_number(entry.label) for entry in entries],
        pa.array([entry.received_us for entry in entries], pa.int64()).view(TIME),
        [entry.segment for entry in entries],
        [entry.offset for entry in entries],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def canonical_key(values: Mapping[str, Any]) -> str:
    """Return the key as the log holds it: JSON, names in order, every value as text.

    Values are texts whatever their type was, since 7, 7.0 (a model may take numbers as floats) and the 7 of a CSV file
    mean the same row, and so do true, True and 1.
    """
    texts = {str(name): as_key(value) for name, value in values.items()}
    return json.dumps(texts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def as_number(value: Any) -> float | None:
    """Return a label's value as a number, 1 and 0 for true and false, or None if it is none."""
    if value is None:
        return None
    try:
        number = float(_TRUTH.get(value, value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def labels_folder(location: LogLocation, endpoint: str) -> str:
    return f"{location.root}/{LABELS}/endpoint={endpoint}"


def write_labels(location: LogLocation, endpoint: str, day: str, labels: pa.Table) -> None:
    """Put labels into the log without a server.

    Args:
        day: of their receipt, as 2013-07-01.

    Raises:
        OnnxserveError: the log does not take them.
    """
    name = f"{LABELS}/endpoint={endpoint}/date={day}/file-{uuid4().hex}.parquet"
    with wrap_log_errors(location):
        write_file(location, name, encode_parquet(labels))


def read_labels(
    location: LogLocation, endpoint: str, unreadable: dict[str, str], since: datetime | None = None
) -> Iterator[pa.Table]:
    """Yield the labels of an endpoint as tables of `SCHEMA`; some may come twice.

    Args:
        since: earlier labels that name a prediction by its id may be left out.
    """
    for day, folder in list_days(location, labels_folder(location, endpoint)):
        is_early = since is not None and day + DAY <= since
        done: set[str] = set()
        while files := [file for file in list_files(location, folder) if file.path not in done]:
            done.update(file.path for file in files)
            for file, content in prefetch(location, files):
                try:
                    for table in read_file(location, file.path, lambda names: None, unreadable, SCHEMA.names, content):
                        table = conform(table, SCHEMA)
                        yield table.filter(pc.is_valid(table.column("_key"))) if is_early else table
                except FileVanished:
                    continue
                except (pa.ArrowException, TypeError, ValueError) as error:
                    unreadable[file.path] = " ".join(str(error).split())


class EndpointLabels:
    """The labels of an endpoint, to be read again and again: few are kept in memory, many are read anew."""

    def __init__(self, location: LogLocation, endpoint: str, unreadable: dict[str, str]) -> None:
        self._source = location, endpoint, unreadable
        self._kept: list[pa.Table] | None = None
        self._is_large = False

    def batches(self, since: datetime | None = None) -> Iterator[pa.Table]:
        """Yield the labels as `read_labels` does."""
        if self._kept is None and not self._is_large:
            kept, size = [], 0
            for labels in read_labels(*self._source):
                kept.append(labels)
                size += labels.nbytes
                if size > MOST_KEPT_BYTES:
                    self._is_large = True
                    break
            else:
                self._kept = kept
        yield from read_labels(*self._source, since) if self._kept is None else self._kept
