"""Files of an inference log in the agent's format."""

import itertools
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.serve.inference_log.labels import LABELS, labels_table
from mlflow_deploy_plugin.serve.runtime.log_columns import to_log_columns
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel

ENDPOINT = "flights"
MODEL = "flight-delay"
_segments = itertools.count(1)


def rows_of(tables):
    """Return the rows of the tables, one after another."""
    return list(itertools.chain.from_iterable(table.to_pylist() for table in tables))


def event_table(columns):
    """Return a table whose `_event_time` has the log's type."""
    arrays = {name: pa.array(values) for name, values in columns.items() if name != "_event_time"}
    arrays["_event_time"] = pa.array(columns["_event_time"], type=pa.timestamp("us", tz="UTC"))
    return pa.table(arrays)


@dataclass(frozen=True)
class LogWriter:
    """A writer of Parquet files in the agent's format."""

    root: Path

    def write(
        self,
        columns,
        version="1",
        segment=None,
        offset=0,
        endpoint=ENDPOINT,
        suffix="",
    ):
        """Write one request with these rows, one file per hour,
        and return its segment.
        """
        # The segment must not be random, because it determines the rows that are
        # compared.
        segment = segment or f"segment-{next(_segments)}"
        table = event_table(columns)
        rows = len(table)
        metadata = {
            "_received_time": table.column("_event_time"),
            "_prediction_id": [uuid.uuid4().hex] * rows,
            "_request_id": ["same"] * rows,
            "_variant": [endpoint] * rows,
            "_model": [MODEL] * rows,
            "_version": [version] * rows,
            "_segment": [segment] * rows,
            "_offset": pa.array([offset] * rows, pa.int64()),
            "_row": pa.array(np.arange(rows), pa.int32()),
        }
        for name, values in metadata.items():
            if name in table.column_names:
                continue
            table = table.append_column(
                name, values if isinstance(values, pa.ChunkedArray) else pa.array(values)
            )
        hours = table.column("_event_time").cast(pa.int64()).to_numpy() // 3_600_000_000
        for hour in np.unique(hours):
            moment = datetime.fromtimestamp(int(hour) * 3600, UTC)
            folder = self.root / f"endpoint={endpoint}" / moment.strftime("date=%Y-%m-%d/hour=%H")
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(
                table.filter(pa.array(hours == hour)),
                folder / f"{segment}-{offset}{suffix}.parquet",
            )
        return segment

    def label(
        self,
        *labels,
        day="2013-07-02",
        name="labels",
        endpoint=ENDPOINT,
    ):
        """Write a file of labels that arrived on a day."""
        folder = self.root / LABELS / f"endpoint={endpoint}" / f"date={day}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(labels_table(labels), folder / f"{name}.parquet")


def write_answers(writer, folder, columns, start, version="1"):
    """Write the rows with the answers of the version in `folder`, one row per second,
    as if a server had answered. The prediction ids are `VERSION-0`, `VERSION-1`, …
    """
    model = OnnxModel.load(folder)
    feeds = model.schema.from_columns(columns)
    rows = to_log_columns(model.schema, model.artifact.prediction, feeds, model.run(feeds))
    count = len(next(iter(rows.values())))
    captured = {name: array.tolist() if array.ndim > 1 else array for name, array in rows.items()}
    writer.write(
        {
            "_event_time": [start + timedelta(seconds=row) for row in range(count)],
            "_prediction_id": [f"{version}-{row}" for row in range(count)],
            "_row": np.zeros(count, np.int32),
            "_offset": np.arange(count),
            "_latency_us": np.full(count, 900),
            **captured,
        },
        version,
    )
