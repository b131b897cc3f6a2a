"""The reference sample: inputs and predictions against which drift is judged, saved as Parquet beside the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.runtime import EVENT_TIME, Array, OnnxModel, to_log_columns

REFERENCE_FILE = "reference.parquet"
MAX_ROWS = 100_000
MAX_VALUES = 20_000_000
"""Numbers that a sample of tensors may hold: images are large, and drift needs few of them."""

_CHUNK = 10_000


def sample_reference(model: OnnxModel, data: Batch, times: Array | None, seed: int = 0) -> pa.Table:
    """Return a uniform sample of at most `MAX_ROWS` rows (`MAX_VALUES` numbers), with the saved model's predictions.

    Args:
        times: [N] event times (datetime64, UTC), kept as the column `_event_time`; None if there are none.
    """
    count = batches.row_count(data)
    most = MAX_ROWS
    if not isinstance(data, pd.DataFrame):
        width = sum(array[:1].size for array in data.values())
        most = min(MAX_ROWS, max(MAX_VALUES // max(width, 1), 1))
    if count > most:
        chosen = np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
        data, times = batches.take_rows(data, chosen), None if times is None else times[chosen]
    parts: list[dict[str, Array]] = []
    for part in batches.chunks(data, _CHUNK):
        feeds = batches.to_feeds(model.schema, part)
        parts.append(to_log_columns(model.schema, model.artifact.prediction, feeds, model.run(feeds)))
    columns = {name: _arrow(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    if times is not None:
        columns[EVENT_TIME] = pa.array(times.astype("datetime64[us]"), type=pa.timestamp("us")).cast(
            pa.timestamp("us", tz="UTC")
        )
    return pa.table(columns)


def write_reference(table: pa.Table, folder: Path) -> None:
    pq.write_table(table, folder / REFERENCE_FILE, compression="zstd")


def split_event_times(event_time: Any, data: Any) -> tuple[Array | None, Any]:
    """Return the event times in UTC, and the data without them.

    Args:
        event_time: None, the name of a column of `data`, or N times; times without a zone are UTC.

    Raises:
        InvalidConfig: no such column, not times, or of another length than the data.
    """
    if event_time is None:
        return None, data
    if data is None:
        raise InvalidConfig("event_time: there are no rows whose times these could be (input_example, reference_data)")
    if isinstance(event_time, str):
        if not isinstance(data, pd.DataFrame) or event_time not in data.columns:
            raise InvalidConfig(f"event_time: the reference data has no column {event_time!r}")
        event_time, data = data[event_time], data.drop(columns=[event_time])
    try:
        given = event_time if isinstance(event_time, pd.Series) else pd.Series(np.asarray(event_time))
        if pd.api.types.is_numeric_dtype(given.dtype) and len(given):
            raise InvalidConfig(
                f"event_time: {given.iloc[0]} is a number; give times (pandas.to_datetime(…, unit='s') makes them)"
            )
        times = pd.to_datetime(given, utc=True)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"event_time: {error}") from None
    if len(times) != len(data):
        raise InvalidConfig(f"event_time has {len(times)} values, the reference data {len(data)} rows")
    if times.isna().any():
        raise InvalidConfig("event_time has missing values; every row of the reference needs its time")
    return times.dt.tz_localize(None).to_numpy(), data


def _arrow(array: Array) -> pa.Array:
    """Return [N] as a column, [N, …] as a column of (nested) lists."""
    if array.ndim == 1:
        return pa.array(array)
    starts = np.arange(len(array) + 1, dtype=np.int32) * array.shape[1]
    return pa.ListArray.from_arrays(starts, _arrow(array.reshape(-1, *array.shape[2:])))
