"""Shipping: the workers' spool → the inference log, Parquet partitioned by endpoint and by the hour of event time.

    LOG/endpoint=NAME/date=YYYY-MM-DD/hour=HH/<segment>-<offset>.parquet

At least once: how far a segment is shipped is written down (`<segment>.shipped`) after its rows are in the log, and the
segment is deleted after its worker let go of it and all of it is shipped. After a crash in between, the same rows come
again under the same file name; readers drop what is still double by (`_segment`, `_offset`, `_row`).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.agent.sink import Sink, open_sink
from mlflow_deploy_plugin.runtime.rows import EVENT_TIME, as_rows
from mlflow_deploy_plugin.runtime.schema import Array
from mlflow_deploy_plugin.server.capture import (
    SHIPPED,
    SUFFIX,
    CapturedRequest,
    is_released,
    read_segment,
    segments,
    shipped_bytes,
)
from mlflow_deploy_plugin.server.state import write_atomically

_log = logging.getLogger(__name__)

_BROKEN = ".broken"
_TIME = pa.timestamp("us", tz="UTC")
_MICROSECONDS_AN_HOUR = 3600 * 1_000_000


class Shipper:
    """Ships the segments in `spool` to the log at `log_uri`.

    Raises:
        InvalidConfig: the log's URI is of a kind that cannot be written.
    """

    def __init__(self, spool: Path, log_uri: str) -> None:
        self._spool = spool
        self._sink: Sink = open_sink(log_uri)
        self._error = ""

    def ship(self) -> int:
        """Ships what is new in every segment and gives the number of rows; a log that fails is tried again."""
        rows = 0
        error = ""
        for segment in segments(self._spool):
            try:
                rows += self._ship_segment(segment)
            except OSError as failure:
                error = f"the inference log {self._sink.location.shown} cannot be written: {failure}"
            except (ValueError, KeyError, TypeError):
                _log.exception("segment %s cannot be understood and is set aside", segment.name)
                segment.rename(segment.with_suffix(_BROKEN))
        if error != self._error:
            _log.log(logging.ERROR if error else logging.INFO, "%s", error or "the inference log is written again")
            self._error = error
        for left_over in self._spool.glob(f"*{SHIPPED}"):
            if not left_over.with_suffix(SUFFIX).exists():
                left_over.unlink(missing_ok=True)
        return rows

    def _ship_segment(self, segment: Path) -> int:
        is_final = is_released(segment)  # asked before reading: what is released does not grow
        start = shipped_bytes(segment)
        requests: list[CapturedRequest] = []
        end = start
        if segment.stat().st_size > start:
            requests, end = read_segment(segment, start)
        rows = sum(self._write(group) for group in _by_file(requests))
        if is_final:
            segment.unlink()
            segment.with_suffix(SHIPPED).unlink(missing_ok=True)
        elif end > start:
            write_atomically(segment.with_suffix(SHIPPED), str(end).encode())
        return rows

    def _write(self, group: Sequence[CapturedRequest]) -> int:
        """Writes one file. Rows that have no form in it are left out, so that they do not take the others with them."""
        try:
            table = _table(group)
            self._sink.write(_file_name(group[0]), table)
        except OSError:
            raise
        except Exception:  # noqa: BLE001 - the boundary of one file: arrow raises a dozen unrelated classes
            _log.exception("%d requests of %s have no form in the log, and are left out", len(group), group[0].segment)
            return 0
        return len(table)


def _by_file(requests: Iterable[CapturedRequest]) -> Iterable[list[CapturedRequest]]:
    """Requests of one endpoint, hour and set of columns."""
    groups: dict[tuple[Any, ...], list[CapturedRequest]] = defaultdict(list)
    for request in requests:
        hour = request.record.event_time // _MICROSECONDS_AN_HOUR
        groups[request.record.endpoint, hour, id(request.model), *request.outputs].append(request)
    return groups.values()


def _file_name(first: CapturedRequest) -> str:
    moment = datetime.fromtimestamp(first.record.event_time // 1_000_000, UTC)
    return (
        f"endpoint={first.record.endpoint}/date={moment.date()}/hour={moment:%H}/{first.segment}-{first.offset}.parquet"
    )


def _table(requests: Sequence[CapturedRequest]) -> pa.Table:
    """The rows of these requests; arrays of one shape are joined before they are converted."""
    alike: dict[tuple[Any, ...], list[CapturedRequest]] = defaultdict(list)
    for request in requests:
        arrays = (*request.feeds.values(), *request.outputs.values())
        alike[tuple(array.shape[1:] for array in arrays)].append(request)
    return pa.concat_tables(_table_of_alike(group) for group in alike.values())


def _table_of_alike(requests: Sequence[CapturedRequest]) -> pa.Table:
    first, counts = requests[0], [_rows(request) for request in requests]
    feeds = {name: np.concatenate([request.feeds[name] for request in requests]) for name in first.feeds}
    outputs = {name: np.concatenate([request.outputs[name] for request in requests]) for name in first.outputs}

    def spread(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(np.repeat(np.array(values), counts), kind)

    records = [request.record for request in requests]
    columns = {
        EVENT_TIME: spread([record.event_time for record in records], pa.int64()).cast(_TIME),
        "_received_time": spread([record.received_time for record in records], pa.int64()).cast(_TIME),
        "_prediction_id": spread([record.prediction_id for record in records], pa.string()),
        "_request_id": spread([record.request_id for record in records], pa.string()),
        "_variant": spread([record.variant for record in records], pa.string()),
        "_model": pa.repeat(first.model.model, sum(counts)),
        "_version": pa.repeat(first.model.version, sum(counts)),
        "_segment": pa.repeat(first.segment, sum(counts)),
        "_offset": spread([request.offset for request in requests], pa.int64()),
        "_row": pa.array(np.concatenate([np.arange(count, dtype=np.int32) for count in counts])),
    }
    rows = as_rows(first.model.schema, first.model.prediction, feeds, outputs)
    return pa.table(columns | {name: _column(array) for name, array in rows.items()})


def _column(array: Array) -> pa.Array:
    """[N] as it is, [N, a, b] as nested lists."""
    flat = array.reshape(-1)
    values = pa.array(flat.tolist(), pa.string()) if flat.dtype == object else pa.array(flat)
    for axis in range(array.ndim - 1, 0, -1):
        length = int(np.prod(array.shape[:axis]))
        offsets = np.arange(length + 1, dtype=np.int32) * array.shape[axis]
        values = pa.ListArray.from_arrays(pa.array(offsets), values)
    return values


def _rows(request: CapturedRequest) -> int:
    return next((len(array) for array in request.feeds.values()), 0)
