"""The labelled rows that a retraining learns, and those that are held out to judge it by."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.controller.retraining.plan import RetrainPlan
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log import (
    LABEL,
    LABEL_NUMBER,
    EndpointLabels,
    InferenceLog,
    Sample,
    Window,
    join_labels,
    microseconds_of,
)
from mlflow_deploy_plugin.runtime import COLUMN_TYPES, EVENT_TIME, OUTPUT_PREFIX, PREDICTION, cast_columns
from mlflow_deploy_plugin.store import utc_now

_FILES = ("data.parquet", "held_out.parquet")
MAX_ROWS = 1_000_000
MIN_ROWS = 100
HELD_OUT = 0.2
"""So large a share of the window's labelled rows is held out, the newest: a model has to be right about the future."""


@dataclass(frozen=True)
class TrainingData:
    """The files that were written for a retraining.

    Attributes:
        data: Parquet file of the rows to learn: the model's columns, `_label`, `_label_number`, `_event_time`.
        held_out: a file of the same form with the newest rows of the window; None if they could not judge a model.
        target: the column of `held_out` with the truth, as the model answers it.
        rows / held_out_rows: the number of rows in the two files.
        window: the window of the rows; a full training also learns what came before it.
    """

    data: Path
    held_out: Path | None
    target: str
    rows: int
    held_out_rows: int
    window: Window


def collect_training_data(log: InferenceLog, plan: RetrainPlan, folder: Path, types: Mapping[str, str]) -> TrainingData:
    """Write the labelled rows of the window into the folder, and for a full training also all rows before it.

    Args:
        types: the types of the model's columns, by its signature; the log has whole numbers and booleans as the graph
            takes them, which may be as floats.

    Raises:
        NotFound: nothing was captured.
        InvalidConfig: there are too few labelled rows to learn anything, or their labels are all the same.
    """
    window = plan.asked_window() or log.latest_window(plan.endpoint, plan.every, utc_now())
    rows = _labelled(log, plan, window)
    if rows is None or len(rows) < MIN_ROWS:
        have = len(rows) if rows is not None else 0
        raise InvalidConfig(
            f"{window} has {have} labelled rows, and at least {MIN_ROWS} are wanted: send what really happened by "
            "POST /feedback or `onnxserve feedback`"
        )
    learned, held_out = _hold_out(rows)
    if plan.mode == "full":
        hours = [hour.start for hour in log.hours(plan.endpoint) if hour.start < window.start]
        earlier = _labelled(log, plan, Window(hours[0], window.start)) if hours else None
        if earlier is not None:
            learned = pa.concat_tables([_model_columns(earlier), learned], promote_options="permissive")
    if _distinct_labels(learned) < 2:
        only = learned.column(LABEL)[0].as_py()
        raise InvalidConfig(
            f"all {len(learned):,} labels up to {window.end:%Y-%m-%d} are {only!r}: that teaches nothing"
        )
    answers_texts = PREDICTION in rows.column_names and pa.types.is_string(rows.schema.field(PREDICTION).type)
    folder.mkdir(parents=True, exist_ok=True)
    data, judged_by = (folder / name for name in _FILES)
    pq.write_table(_cast_to_signature(learned, types), data)
    if held_out is not None:
        pq.write_table(held_out, judged_by)  # the gate gives each version its own types
    return TrainingData(
        data=data,
        held_out=judged_by if held_out is not None else None,
        # the label as a text if the model answers texts, or a label is no number
        target=LABEL if answers_texts or rows.column(LABEL_NUMBER).null_count else LABEL_NUMBER,
        rows=len(learned),
        held_out_rows=len(held_out) if held_out is not None else 0,
        window=window,
    )


def remove_training_data(folder: Path) -> None:
    """Remove the rows that were written for a retraining. Its log stays, and MLflow has the held-out rows."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def _labelled(log: InferenceLog, plan: RetrainPlan, window: Window) -> pa.Table | None:
    """Return the window's labelled rows in the order of event time, whichever version answered; None if no rows."""
    sample, is_empty = Sample(MAX_ROWS), True
    for batch in log.batches(plan.endpoint, window):
        rows = batch.filter(pc.equal(batch.column("_model"), plan.model))
        if len(rows):
            sample.add(rows)
            is_empty = False
    if is_empty:
        return None
    table = join_labels(sample.table(), EndpointLabels(log.location, plan.endpoint, log.unreadable))
    table = table.filter(pc.is_valid(table.column(LABEL)))
    return table.sort_by([(EVENT_TIME, "ascending"), ("_segment", "ascending"), ("_offset", "ascending")])


def _hold_out(rows: pa.Table) -> tuple[pa.Table, pa.Table | None]:
    """Split the rows into the older ones and the newest. Rows of the same event time stay together.

    Nothing is held out if it could not judge: too few rows, or of one answer alone, which a constant model gets right.
    """
    times = microseconds_of(rows.column(EVENT_TIME))
    place = int(np.searchsorted(times, times[int(len(times) * (1 - HELD_OUT))]))
    learned, held_out = _model_columns(rows.slice(0, place)), _model_columns(rows.slice(place))
    if len(learned) < MIN_ROWS or len(held_out) < MIN_ROWS or _distinct_labels(held_out) < 2:
        return _model_columns(rows), None
    return learned, held_out


def _distinct_labels(labelled: pa.Table) -> int:
    """Return how many different labels there are."""
    return int(pc.count_distinct(labelled.column(LABEL)).as_py())


def _model_columns(table: pa.Table) -> pa.Table:
    """Return the model's columns, the label and the event time."""
    kept = (EVENT_TIME, LABEL, LABEL_NUMBER)
    names = [
        name
        for name in table.column_names
        if name in kept or not (name.startswith(("_", OUTPUT_PREFIX)) or name == PREDICTION)
    ]
    return table.select(names)


def _cast_to_signature(table: pa.Table, types: Mapping[str, str]) -> pa.Table:
    """Cast numbers to the signature's types, so that the new version's signature is the same.

    A column with gaps stays as it is.
    """
    dtypes = {name: COLUMN_TYPES[kind] for name, kind in types.items() if kind in COLUMN_TYPES}
    columns = {name: table.column(name) for name in table.column_names if name in dtypes}
    values = {name: column.to_numpy() for name, column in columns.items() if not column.null_count}
    for name, typed in cast_columns(dtypes, values).items():
        if typed is not values[name]:
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(typed))
    return table
