"""Rows of a source as rows of the log: their columns, times, identities and faults.

A row is identified by its id (in the log: `_prediction_id`) and its position in its
request. `_offset` is a hash of the id, so readers of the log drop repeats, and
`_digest` is a hash of the values, which reveals two rows with one id.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import EVENT_TIME, PREDICTION, SHADOW, is_prediction
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec, ObserveSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.scan import RECEIVED_TIME
from mlflow_deploy_plugin.serve.inference_log.source_state import ProblemKind
from mlflow_deploy_plugin.serve.inference_log.tables import (
    TIME,
    combine_hashes,
    concat_tables,
    hash_texts,
    is_list,
)
from mlflow_deploy_plugin.serve.inference_log.windows import CLOCK_SKEW
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.spool.captured_model import ColumnMask
from mlflow_deploy_plugin.watch.observed.exchange import Exchange

ID = "_prediction_id"
DIGEST = "_digest"
SEGMENT = "observed"
_MOST_INPUTS = 2_000
_ROLES = {"id": ID, "time": EVENT_TIME, "version": "_version", "prediction": PREDICTION}
_NAMED = (ID, EVENT_TIME, "_version", "_row")
"""The columns of the log that a source provides."""
_UNITS = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))
"""The microseconds of a unit, by the first number that is too large for the unit: 1e11
seconds and 1e14 milliseconds are in the year 5138.
"""


@dataclass(frozen=True)
class RowFault:
    """Rows that are not written to the log, or a column that has changed.

    Attributes:
        last: the id of the last row, or its place in the source.
        marks: a hash of each row or column, [N] uint64, by which it is counted once.
    """

    kind: ProblemKind
    last: str
    marks: Array


def row_fault(kind: ProblemKind, *whats: str, place: str = "") -> RowFault:
    """Return the fault of rows or columns, which are counted once in all places."""
    marks = hash_texts(pa.chunked_array([[f"{kind} {what}" for what in whats]]))
    return RowFault(kind, whats[-1] + place, marks)


def named_columns(table: pa.Table, spec: ObserveSpec, place: str) -> pa.Table:
    """Return the rows of a source with the names of the log: `_prediction_id` (if a
    column has this role), `_event_time`, `_version` (null if it is unknown), `_row`,
    `prediction`, and the inputs. Other columns whose names the log reserves are left
    out.

    Raises InvalidConfig if a column with a role is missing or repeated.
    """
    roles = {role: getattr(spec, role) for role in _ROLES if getattr(spec, role)}
    counts = Counter(table.column_names)
    for role, column in roles.items():
        if column not in counts:
            raise InvalidConfig(
                f"{place} has no column {column!r}, the {role} of a row; it has "
                f"{join_names(table.column_names, column)}: correct the source, or observe.{role}"
            )
    if doubled := [name for name, count in counts.items() if count > 1]:
        raise InvalidConfig(f"{place} has two columns {doubled[0]!r}: rename one of them")
    columns = {
        "_version": pa.nulls(len(table), pa.string()),
        "_row": pa.repeat(pa.scalar(0, pa.int32()), len(table)),
        **{_ROLES[role]: table.column(column) for role, column in roles.items()},
    }
    for name in table.column_names:
        if not (name in roles.values() or name.startswith("_") or name == PREDICTION):
            columns[name] = table.column(name)
    return pa.table(columns)


def to_array(values: Sequence[Any]) -> pa.Array:
    """Return values as an array: UUIDs and values of several types as texts."""
    with suppress(pa.ArrowException, ArithmeticError, ValueError, TypeError):
        array = pa.array(values)
        if array.type != pa.uuid():
            return array
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def exchange_rows(exchanges: Sequence[Exchange]) -> pa.Table:
    """Return the rows of exchanges with the names of the log. Callers of the model
    choose the names of inputs, so only the most frequent ones are read, without those
    that the log reserves.
    """
    counts = Counter(chain.from_iterable(exchange.inputs for exchange in exchanges))
    names = {
        name
        for name, _ in counts.most_common(_MOST_INPUTS)
        if not (name.startswith("_") or is_prediction(name))
    }
    tables = []
    for exchange in exchanges:
        inputs = {name: exchange.inputs[name] for name in names & exchange.inputs.keys()}
        columns = {**inputs, **exchange.predictions}
        rows = max(map(len, columns.values()), default=0)
        named = {
            ID: [exchange.id] * rows,
            EVENT_TIME: [exchange.time] * rows,
            "_row": pa.array(range(rows), pa.int32()),
            "_version": pa.array([exchange.version or None] * rows, pa.string()),
        }
        arrays = {name: to_array(values) for name, values in columns.items()}
        tables.append(pa.table({**named, **arrays}))
    # A chunk takes some hundred bytes, and each exchange has one per column.
    return concat_tables(tables).combine_chunks()


def parse_times(column: pa.ChunkedArray) -> pa.Array:
    """Return times in UTC, null where a value is not a time. Times without a zone are
    UTC. Numbers are seconds, milliseconds or microseconds since 1970, by their size.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return pc.cast(column.combine_chunks(), TIME, safe=False)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers = column.cast(pa.float64(), safe=False).to_numpy()
        microseconds_since = np.full(len(numbers), np.nan)
        for limit, unit in reversed(_UNITS):
            is_of_unit = (numbers > 0) & (numbers < limit)
            microseconds_since[is_of_unit] = numbers[is_of_unit] * unit
        is_missing = np.isnan(microseconds_since)
        whole = np.where(is_missing, 0, microseconds_since).astype(np.int64)
        return pa.array(whole, pa.int64(), mask=is_missing).cast(TIME)
    times = pd.to_datetime(_texts(column).to_pandas(), utc=True, errors="coerce", format="ISO8601")
    return pa.array(times, TIME, from_pandas=True, safe=False)


@dataclass(frozen=True)
class RowContext:
    """The values that all rows of a reading share.

    Attributes:
        variant, model: of the endpoint.
        version: the version of rows that do not name one.
        mask: hashes the columns of `capture.mask`.
    """

    variant: str
    model: str
    version: str
    capture: CaptureSpec
    mask: ColumnMask
    now: datetime


def log_rows(table: pa.Table, context: RowContext, place: str) -> tuple[pa.Table, list[RowFault]]:
    """Return the valid rows with all columns of the log, and the faults of the others.
    `table` has the names of the log.
    """
    count = len(table)
    ids = _texts(table.column(ID))
    times = parse_times(table.column(EVENT_TIME))
    is_valid, faults = _find_faults(table, ids, times, context.now, place)
    columns = {
        EVENT_TIME: times,
        RECEIVED_TIME: pa.repeat(pa.scalar(context.now, TIME), count),
        ID: ids,
        "_variant": pa.repeat(context.variant, count),
        SHADOW: pa.repeat(False, count),
        "_model": pa.repeat(context.model, count),
        "_version": pc.fill_null(_texts(table.column("_version")), context.version),
        "_segment": pa.repeat(SEGMENT, count),
        "_offset": pa.array(hash_texts(pa.chunked_array([ids])).view(np.int64)),
        "_row": table.column("_row"),
    }
    for name in table.column_names:
        if name in _NAMED or name in context.capture.drop:
            continue
        values = _as_logged(table.column(name))
        if values is None:
            continue
        if name in context.capture.mask:
            values = pa.array(context.mask.hash_column(np.array(values.to_pylist(), object)))
        columns[name] = values
    rows = pa.table(columns).filter(is_valid)
    digest = _digests(rows.drop_columns([RECEIVED_TIME]))
    return rows.append_column(DIGEST, pa.array(digest.view(np.int64))), faults


def _find_faults(
    table: pa.Table, ids: pa.Array, times: pa.Array, now: datetime, place: str
) -> tuple[pa.Array, list[RowFault]]:
    """Return True for each valid row, [N] bool, and the faults of the others, each row
    with its first fault.
    """
    latest = pa.scalar(now + CLOCK_SKEW, TIME)
    kinds: Mapping[ProblemKind, pa.Array] = {
        "no_id": pc.fill_null(pc.equal(pc.utf8_trim_whitespace(ids), ""), True),
        "no_time": pc.fill_null(pc.less(times, pa.scalar(EPOCH, TIME)), True),
        "future": pc.fill_null(pc.greater(times, latest), False),
    }
    is_valid = pa.repeat(True, len(table))
    faults = []
    for kind, has_fault in kinds.items():
        is_faulty = pc.and_(is_valid, has_fault)
        is_valid = pc.and_not(is_valid, is_faulty)
        if pc.any(is_faulty).as_py():
            last = ids.filter(is_faulty)[-1].as_py()
            marks = _digests(table.filter(is_faulty))
            faults.append(RowFault(kind, f"id {last} in {place}" if last else place, marks))
    return is_valid, faults


def model_columns(rows: pa.Table) -> set[str]:
    return {name for name in rows.column_names if not name.startswith("_")}


def changed_columns(before: Sequence[str], rows: pa.Table, place: str) -> list[RowFault]:
    """Return a fault for each column of the first rows that these rows lack, and for
    each that the first rows lacked.
    """
    names = model_columns(rows)
    if not before:
        return []
    where = f" in {place}"
    new = [row_fault("new_column", name, place=where) for name in sorted(names.difference(before))]
    lost = [row_fault("lost_column", name, place=where) for name in before if name not in names]
    return new + lost


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """Return the values as texts; null for values without a text, such as lists."""
    if pa.types.is_floating(column.type):  # An id with missing values is a float in pandas.
        column = pc.if_else(pc.is_finite(column), column, None)
        with suppress(pa.ArrowException):
            column = column.cast(pa.int64())
    try:
        return column.cast(pa.string()).combine_chunks()
    except pa.ArrowException:
        return pa.nulls(len(column), pa.string())


def _as_logged(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column with a type that the log has for columns of models: numbers,
    truth values, texts and lists of them; None for other nested values and for bytes.
    """
    types = pa.types
    kind = column.type
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if types.is_decimal(kind):
        return column.cast(pa.float64())
    if types.is_temporal(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return column.cast(pa.string())
    while is_list(kind):
        kind = kind.value_type
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if is_number or types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        return column
    return None


def _digests(rows: pa.Table) -> Array:
    """Return a hash of each row's values, [N] uint64. A missing value counts like a
    missing column, because a file that grows may get further columns.
    """
    digests = np.zeros(len(rows), np.uint64)
    for name in sorted(rows.column_names):
        column = _as_logged(rows.column(name))
        if column is None:
            continue
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            numbers = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
            values = (numbers + 0.0).view(np.uint64)  # -0.0 equals 0.0
        else:
            if is_list(kind):
                column = pa.chunked_array([pa.array(map(repr, column.to_pylist()), pa.string())])
            values = hash_texts(column.cast(pa.string()))
        named = combine_hashes(values, hash_texts(pa.chunked_array([[name]])))
        is_missing = pc.is_null(column, nan_is_null=True).to_numpy()
        digests = np.where(is_missing, digests, combine_hashes(digests, named))
    return digests
