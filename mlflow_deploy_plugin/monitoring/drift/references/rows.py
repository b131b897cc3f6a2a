"""The rows of a reference that are at hand, and their event times."""

from dataclasses import dataclass, field

import pyarrow as pa

from mlflow_deploy_plugin.inference_log import microseconds_of
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.runtime import EVENT_TIME


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """Rows to compare with.

    Attributes:
        times: [N] int64, microseconds since 1970; None if they are not known.
        model_id: the logged model, for links in MLflow; empty if the model was never logged.
        shown: what they are, for messages.
        notes: lines for the reader.
    """

    table: pa.Table
    times: Array | None
    model_id: str = ""
    shown: str = "the reference"
    notes: tuple[str, ...] = field(default=())


def event_times(table: pa.Table, column: str = EVENT_TIME) -> Array | None:
    """Return [N] int64, microseconds since 1970, or None if there is no such column; times without a zone are UTC.

    Raises:
        pa.ArrowException: these are no times, or some are missing.
    """
    if column not in table.column_names:
        return None
    values = table.column(column)
    if values.null_count:
        raise pa.ArrowInvalid(f"{values.null_count} rows have no {column}")
    if pa.types.is_timestamp(values.type) and values.type.tz is None:
        values = values.cast(pa.timestamp("us"))
    return microseconds_of(values)
