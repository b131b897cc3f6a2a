"""Captured requests as a table of the inference log: the log's own columns, then those of the model."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.inference_log.columns import concat_tables
from mlflow_deploy_plugin.inference_log.labels import LABELS, Label, labels_table
from mlflow_deploy_plugin.runtime import EVENT_TIME, Array, cast_columns_losslessly, to_log_columns
from mlflow_deploy_plugin.server.capture.feedback import FeedbackFrame
from mlflow_deploy_plugin.server.capture.reader import CapturedBatch, Texts

_TIME = pa.timestamp("us", tz="UTC")


def captured_table(segment: str, batches: Sequence[CapturedBatch]) -> pa.Table:
    """One row for each row of these requests of one model; `_segment`, `_offset` and `_row` together tell doubles.

    Columns stand in the types of the signature; one of whose values some do not fit there stands in a wider type.
    """
    return concat_tables([_batch_table(segment, batch) for batch in batches])


def _batch_table(segment: str, batch: CapturedBatch) -> pa.Table:
    requests, rows = len(batch.offsets), batch.rows
    each = np.repeat(np.arange(requests), rows) if rows != 1 else None

    def spread(values: pa.Array) -> pa.Array:
        return values if each is None else values.take(pa.array(each))

    columns = {
        EVENT_TIME: spread(pa.array(batch.event_times).view(_TIME)),
        "_received_time": spread(pa.array(batch.received_times).view(_TIME)),
        "_prediction_id": spread(_strings(batch.prediction_ids)),
        "_request_id": spread(_strings(batch.request_ids)),
        "_variant": pa.repeat(batch.variant, requests * rows),
        "_shadow": pa.repeat(batch.is_shadow, requests * rows),
        "_model": pa.repeat(batch.model.model, requests * rows),
        "_version": pa.repeat(batch.model.version, requests * rows),
        "_latency_us": spread(pa.array(batch.latencies)),
        "_status": spread(pa.array(batch.statuses)),
        "_segment": pa.repeat(segment, requests * rows),
        "_offset": spread(pa.array(batch.offsets)),
        "_row": pa.array(np.tile(np.arange(rows, dtype=np.int32), requests)),
    }
    schema = batch.model.schema
    found = cast_columns_losslessly(
        schema.dtypes, to_log_columns(schema, batch.model.prediction, batch.feeds, batch.outputs)
    )
    found |= batch.masked
    return pa.table(columns | {name: _model_column(array) for name, array in found.items()})


def _strings(texts: Texts) -> pa.Array:
    buffers = [None, pa.py_buffer(texts.bounds), pa.py_buffer(np.ascontiguousarray(texts.content))]
    return pa.Array.from_buffers(pa.string(), len(texts.bounds) - 1, buffers)


def _model_column(array: Array) -> pa.Array:
    """[N] as it is, [N, a, b] as nested lists."""
    flat = array.reshape(-1)
    values = pa.array(flat, pa.string()) if flat.dtype == object else pa.array(flat)
    for axis in range(array.ndim - 1, 0, -1):
        length = int(np.prod(array.shape[:axis]))
        offsets = np.arange(length + 1, dtype=np.int32) * array.shape[axis]
        values = pa.ListArray.from_arrays(pa.array(offsets), values)
    return values


_MICROSECONDS_A_DAY = 86_400_000_000


def label_tables(segment: str, frames: Sequence[FeedbackFrame]) -> Iterator[tuple[str, pa.Table]]:
    """Each file's name below the log, and what it holds."""
    groups: dict[tuple[str, int], list[FeedbackFrame]] = defaultdict(list)
    for frame in frames:
        groups[frame.endpoint, frame.received_time // _MICROSECONDS_A_DAY].append(frame)
    for (endpoint, day), group in groups.items():
        date = datetime.fromtimestamp(day * 86_400, UTC).date()
        name = f"{LABELS}/endpoint={endpoint}/date={date}/{segment}-{group[0].offset}-{group[-1].offset}.parquet"
        yield name, labels_table([label for frame in group for label in _labels(segment, frame)])


def _labels(segment: str, frame: FeedbackFrame) -> Iterator[Label]:
    for place, entry in enumerate(frame.entries):
        offset = frame.offset + place
        yield Label(entry.prediction_id, entry.row, entry.key, entry.label, frame.received_time, segment, offset)
