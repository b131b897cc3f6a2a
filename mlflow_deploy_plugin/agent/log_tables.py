"""Captured requests and feedback as files of the inference log: the name of each file, and its table.

A table of captured requests has the log's own columns first, then those of the model.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.inference_log import FAILURES, LABELS, Label, concat_tables, labels_table
from mlflow_deploy_plugin.runtime import EVENT_TIME, Array, cast_columns_losslessly, to_log_columns
from mlflow_deploy_plugin.server import CapturedBatch, FeedbackFrame, Utf8Array

_TIME = pa.timestamp("us", tz="UTC")
_MICROSECONDS_A_DAY = 86_400_000_000


def group_by_file(batches: Sequence[CapturedBatch]) -> Collection[list[CapturedBatch]]:
    """Group the batches of one endpoint, hour and set of typed columns. Failed requests have files of their own."""
    groups: dict[tuple[Any, ...], list[CapturedBatch]] = defaultdict(list)
    for batch in batches:
        arrays = [*batch.feeds.items(), *batch.outputs.items(), *batch.masked.items()]
        types = tuple((name, array.dtype, array.ndim) for name, array in arrays)
        groups[batch.endpoint, batch.hour, batch.is_failed, id(batch.model), types].append(batch)
    return groups.values()


def captured_file_name(segment: str, group: Sequence[CapturedBatch]) -> str:
    first = group[0]
    moment = datetime.fromtimestamp(first.hour * 3600, UTC)
    root = f"{FAILURES}/" if first.is_failed else ""
    name = f"{segment}-{first.offsets[0]}-{max(int(batch.offsets[-1]) for batch in group)}"
    return f"{root}endpoint={first.endpoint}/date={moment.date()}/hour={moment:%H}/{name}.parquet"


def captured_table(segment: str, batches: Sequence[CapturedBatch]) -> pa.Table:
    """Return one row for each row of these requests to one model; `_segment`, `_offset` and `_row` identify it.

    A column has the type of the signature, or a wider type if some of its values do not fit there.
    """
    return concat_tables([_batch_table(segment, batch) for batch in batches])


def label_tables(segment: str, frames: Sequence[FeedbackFrame]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the name of each file of labels and its table: one file for each endpoint and day."""
    groups: dict[tuple[str, int], list[FeedbackFrame]] = defaultdict(list)
    for frame in frames:
        groups[frame.endpoint, frame.received_time // _MICROSECONDS_A_DAY].append(frame)
    for (endpoint, day), group in groups.items():
        date = datetime.fromtimestamp(day * 86_400, UTC).date()
        name = f"{LABELS}/endpoint={endpoint}/date={date}/{segment}-{group[0].offset}-{group[-1].offset}.parquet"
        labels = [
            Label(entry.prediction_id, entry.row, entry.key, entry.label, frame.received_time, segment, offset)
            for frame in group
            for offset, entry in enumerate(frame.entries, frame.offset)
        ]
        yield name, labels_table(labels)


def _batch_table(segment: str, batch: CapturedBatch) -> pa.Table:
    requests, rows = len(batch.offsets), batch.rows
    request_of_row = pa.array(np.repeat(np.arange(requests), rows)) if rows != 1 else None

    def per_row(values: pa.Array) -> pa.Array:
        return values if request_of_row is None else values.take(request_of_row)

    columns = {
        EVENT_TIME: per_row(pa.array(batch.event_times).view(_TIME)),
        "_received_time": per_row(pa.array(batch.received_times).view(_TIME)),
        "_prediction_id": per_row(_strings(batch.prediction_ids)),
        "_request_id": per_row(_strings(batch.request_ids)),
        "_variant": pa.repeat(batch.variant, requests * rows),
        "_shadow": pa.repeat(batch.is_shadow, requests * rows),
        "_model": pa.repeat(batch.model.model, requests * rows),
        "_version": pa.repeat(batch.model.version, requests * rows),
        "_latency_us": per_row(pa.array(batch.latencies)),
        "_status": per_row(pa.array(batch.statuses)),
        "_segment": pa.repeat(segment, requests * rows),
        "_offset": per_row(pa.array(batch.offsets)),
        "_row": pa.array(np.tile(np.arange(rows, dtype=np.int32), requests)),
    }
    schema = batch.model.schema
    found = cast_columns_losslessly(
        schema.dtypes, to_log_columns(schema, batch.model.prediction, batch.feeds, batch.outputs)
    )
    found |= batch.masked
    return pa.table(columns | {name: _model_column(array) for name, array in found.items()})


def _strings(texts: Utf8Array) -> pa.Array:
    buffers = [None, pa.py_buffer(texts.bounds), pa.py_buffer(np.ascontiguousarray(texts.content))]
    return pa.Array.from_buffers(pa.string(), len(texts.bounds) - 1, buffers)


def _model_column(array: Array) -> pa.Array:
    """Return an array of shape [N] as it is, one of shape [N, a, b] as nested lists."""
    flat = array.reshape(-1)
    values = pa.array(flat, pa.string()) if flat.dtype == object else pa.array(flat)
    for axis in range(array.ndim - 1, 0, -1):
        length = int(np.prod(array.shape[:axis]))
        offsets = np.arange(length + 1, dtype=np.int32) * array.shape[axis]
        values = pa.ListArray.from_arrays(pa.array(offsets), values)
    return values
