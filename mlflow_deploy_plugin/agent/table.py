"""Captured requests as a table of the inference log: the log's own columns, then those of the model."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.inference_log.schemas import stack
from mlflow_deploy_plugin.runtime.rows import EVENT_TIME, as_rows, in_signature_types
from mlflow_deploy_plugin.runtime.schema import Array
from mlflow_deploy_plugin.server.captured import CapturedBatch, Texts

_TIME = pa.timestamp("us", tz="UTC")


def table_of(segment: str, batches: Sequence[CapturedBatch]) -> pa.Table:
    """One row for each row of these requests of one model; `_segment`, `_offset` and `_row` together tell doubles.

    Columns stand in the types of the signature; one of whose values some do not fit there stands in a wider type.
    """
    return stack([_table(segment, batch) for batch in batches])


def _table(segment: str, batch: CapturedBatch) -> pa.Table:
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
    found = in_signature_types(schema.dtypes, as_rows(schema, batch.model.prediction, batch.feeds, batch.outputs))
    found |= batch.masked
    return pa.table(columns | {name: _column(array) for name, array in found.items()})


def _strings(texts: Texts) -> pa.Array:
    buffers = [None, pa.py_buffer(texts.bounds), pa.py_buffer(np.ascontiguousarray(texts.content))]
    return pa.Array.from_buffers(pa.string(), len(texts.bounds) - 1, buffers)


def _column(array: Array) -> pa.Array:
    """[N] as it is, [N, a, b] as nested lists."""
    flat = array.reshape(-1)
    values = pa.array(flat, pa.string()) if flat.dtype == object else pa.array(flat)
    for axis in range(array.ndim - 1, 0, -1):
        length = int(np.prod(array.shape[:axis]))
        offsets = np.arange(length + 1, dtype=np.int32) * array.shape[axis]
        values = pa.ListArray.from_arrays(pa.array(offsets), values)
    return values
