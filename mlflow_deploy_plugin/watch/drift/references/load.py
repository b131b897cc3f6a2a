"""The reference of a monitor: load the reference that the spec names, and divide it
into bins, windows and steps.

Training rows and datasets are counted once for all windows (4 s for a million rows),
and the counts remain in memory. References from the log use stored profiles.

`window:START/END` selects a fixed part of the log without drift. `rolling:7d` compares
a window with the window a week before. Earlier pairs with the same lag show the normal
variation; their figures contain no daily or weekly cycle and no slow trend. This is
seasonal differencing of distributions (Box & Jenkins, Time Series Analysis, 1970,
chapter 9).

For a reference in the log, bins are frozen on a bounded sample of rows. For `rolling:`,
the bins are renewed after four times the span, so that stored profiles serve many
windows.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.spec.types import EPOCH, bin_period, length_of, rolling_span
from mlflow_deploy_plugin.serve.inference_log.log_reader import MAX_ROWS, InferenceLog, View
from mlflow_deploy_plugin.serve.inference_log.scan import is_answered_by, microseconds_of
from mlflow_deploy_plugin.serve.inference_log.storage import SKETCHES, endpoint_folder
from mlflow_deploy_plugin.serve.inference_log.tables import Sample, summarise_lists
from mlflow_deploy_plugin.serve.inference_log.windows import (
    HOUR_US,
    TimeRange,
    Window,
    microseconds,
    parse_window,
)
from mlflow_deploy_plugin.serve.runtime.feeds import sample_positions
from mlflow_deploy_plugin.watch.drift.references.rows import (
    SEED,
    ReferenceRows,
    event_times,
    load_datasets,
    load_training_rows,
    signature_types,
)
from mlflow_deploy_plugin.watch.drift.references.windows import (
    DriftReference,
    ReferencePieces,
    assemble_pieces,
    correct_for_rest,
    cut_pieces,
    sketch_pieces,
    window_grid,
)
from mlflow_deploy_plugin.watch.drift.sketches import hourly
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, bins_digest, freeze_bins
from mlflow_deploy_plugin.watch.drift.sketches.columns import read_columns, select_columns
from mlflow_deploy_plugin.watch.drift.sketches.relations import freeze_relations
from mlflow_deploy_plugin.watch.drift.sketches.sketch import coalesce_batches, encode_columns
from mlflow_deploy_plugin.watch.result import WindowRequest
from mlflow_deploy_plugin.watch.segments import is_segment

CACHE = "references"
_MAX_CELLS = 1_500_000
"""The maximum number of values that freeze the projections (`relations.py`): 50,000
rows of 30 columns.
"""
_MOST_VALUES = 20_000_000
"""The maximum number of values of a sample: 100,000 rows of 200 columns."""
_last_frozen: dict[bytes, tuple[Mapping[str, Bins], Sequence[str]]] = {}
"""The bins and notes of the last reference, by a digest of its rows and columns."""
_last_cut: dict[tuple[bytes, int, int], ReferencePieces] = {}
"""The pieces of the last reference that was computed from rows in memory, by that
digest, and the length and phase of the windows.
"""


@dataclass(frozen=True)
class LogReference:
    """A part of the log that is used as a reference.

    Attributes:
        span: the part that is divided into windows.
        sampled: the part whose rows are used to freeze the bins.
        model, version: the version that answered the rows; empty for all versions.
        lag: the time between a window and the earlier window that it is compared with;
            None to compare with all others.
    """

    log: InferenceLog
    endpoint: str
    model: str
    version: str
    span: Window
    sampled: Window
    lag: timedelta | None = None

    def sample(self) -> pa.Table:
        """Return at most `MAX_ROWS` rows and `_MOST_VALUES` values to freeze bins on.
        They are stored next to the log and change only with it. Raises NotFound if
        there are no rows.
        """
        versions = hourly.window_versions(self.log, self.endpoint, self.sampled)
        if self.version:
            rows = versions.get((self.model, self.version), 0)
        else:
            rows = sum(versions.values())
        key = f"projected {self.sampled} {self.model} {self.version} {rows}"
        if self.log.since is not None:
            key += f" {self.log.since.isoformat()}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        folder = f"{SKETCHES}/samples/{endpoint_folder(self.endpoint)}"
        name = f"{folder}/date={self.sampled.start:%Y-%m-%d}/{digest}.parquet"
        stored = hourly.read_beside_log(self.log.location, name)
        if stored is not None:
            return stored
        sample: Sample | None = None
        for table in map(summarise_lists, self.rows(self.sampled)):
            sample = sample or Sample(min(MAX_ROWS, _MOST_VALUES // table.num_columns))
            sample.add(table)
        if not rows or sample is None:
            raise NotFound(
                f"the reference is empty: no rows of {self.endpoint!r} were captured in "
                f"{self.sampled}",
            )
        table = sample.table()
        hourly.write_beside_log(self.log.location, name, table)
        return table

    def rows(self, window: Window) -> Iterator[pa.Table]:
        for table in self.log.batches(self.endpoint, window):
            if self.version:
                table = table.filter(pa.array(is_answered_by(table, self.model, self.version)))
            yield table

    def pieces(
        self,
        bins: Mapping[str, Bins],
        bins_key: str,
        sample: pa.Table,
        window: Window,
        segment: tuple[str, str] | None = None,
    ) -> ReferencePieces:
        """Return the pieces of the span with the length and phase of `window`, from
        hourly profiles if pieces are whole hours. The bins were frozen on `sample`.
        Only rows of the `segment` (column, value) are used.
        """
        length_us = window.end_us - window.start_us
        lag_windows = self.lag // window.length if self.lag else 0
        grid = window_grid(
            bins,
            window.start_us,
            length_us,
            self.span.start_us,
            self.span.end_us - 1,
            lag_windows,
        )
        if any(
            time % HOUR_US
            for time in (grid.start_us, length_us, self.span.start_us, self.span.end_us)
        ):
            tables = coalesce_batches(self.rows(self.span))
            if segment:
                tables = (table.filter(is_segment(table, *segment)) for table in tables)
            pieces = sketch_pieces(
                bins,
                (
                    (table, microseconds_of(table.column(EVENT_TIME)))
                    for table in tables
                    if len(table)
                ),
                grid,
            )
        else:
            sketches = hourly.SketchStore(self.log, self.endpoint, bins, bins_key, segment=segment)
            hours = hourly.hour_profiles(sketches, self.model, self.version, self.span)
            pieces = assemble_pieces(grid, ((microseconds(start), part) for start, part in hours))
        if not len(sample):
            return pieces
        pieces = replace(
            pieces,
            windows=correct_for_rest(
                bins, pieces.windows, pieces.window_starts_us, length_us, sample
            ),
        )
        if pieces.lagged is None:
            return pieces
        (lagged,) = pieces.windows_at([window.start_us - lag_windows * length_us])
        return replace(pieces, lagged=lagged)


def pinned_window(
    request: WindowRequest,
    model: str,
    version: str,
) -> tuple[LogReference, list[str]]:
    """Return the part of the log for `window:START/END`, and notes; raise NotFound if
    this part has no rows.
    """
    span = parse_window(request.spec.reference_value)
    past, notes = _find_past(request, model, version, span, span)
    if span.start < request.window.end and request.window.start < span.end:
        notes.append(
            f"the window overlaps the reference {span}, so a change in the window is also in the "
            "reference",
        )
    return past, notes


def rolling_windows(
    request: WindowRequest,
    model: str,
    version: str,
) -> tuple[LogReference, list[str]]:
    """Return the windows before the judged window, each compared with the window one
    `rolling:` period before, and notes. Raises InvalidConfig if the period is not a
    multiple of the window, and NotFound if there are no rows.
    """
    text = request.spec.reference_value
    lag = length_of(text)
    length = request.window.length
    start = request.window.start
    if lag < length:
        raise InvalidConfig(
            f"reference rolling:{text} is shorter than the window, which is {length} long",
        )
    if lag % length:
        raise InvalidConfig(
            f"reference rolling:{text} must be a multiple of the window: no window of {length} "
            f"begins {text} before another",
        )
    span = rolling_span(lag, length, request.spec.window_rate)
    oldest = next(
        request.log.walk_hours(request.endpoint, Window(EPOCH, start)),
        None,
    )
    if oldest is None:
        raise NotFound(
            f"the reference is empty: no rows of {request.endpoint!r} were captured before "
            f"{start:%F %R}",
        )
    first = max(oldest.start, start - span)
    sampled = Window(*bin_period(oldest.start, start, span))
    if next(request.log.walk_hours(request.endpoint, sampled), None) is None:
        sampled = Window(first, start)
    past, notes = _find_past(request, model, version, Window(first, start), sampled)
    same = Window(start - lag, start - lag + length)
    return replace(past, lag=lag), [f"compared with the window {text} before, {same}", *notes]


def _find_past(
    request: WindowRequest,
    model: str,
    version: str,
    span: Window,
    sampled: Window,
) -> tuple[LogReference, list[str]]:
    """Return the version's rows in the span, whose bins are frozen on the rows in
    `sampled`. If the version has no rows, use those of all versions, and return a note.

    Raises NotFound if the span has no rows.
    """
    versions = hourly.window_versions(request.log, request.endpoint, span)
    if not versions:
        raise NotFound(
            f"the reference is empty: no rows of {request.endpoint!r} were captured in {span}",
        )
    sampled_versions = versions
    if span != sampled:
        sampled_versions = hourly.window_versions(request.log, request.endpoint, sampled)
    if (model, version) in versions and (model, version) in sampled_versions:
        return LogReference(request.log, request.endpoint, model, version, span, sampled), []
    sources = ", ".join(f"{other_model} version {number}" for other_model, number in versions)
    note = (
        f"{model} version {version} has no rows in the reference {span}; rows of {sources} are "
        "used instead"
    )
    if not sampled_versions:
        sampled = span
    return LogReference(
        request.log,
        request.endpoint,
        model="",
        version="",
        span=span,
        sampled=sampled,
    ), [note]


_LOG_REFERENCES: Mapping[
    str,
    Callable[[WindowRequest, str, str], tuple[LogReference, list[str]]],
] = {
    "window": pinned_window,
    "rolling": rolling_windows,
}


def load_reference(request: WindowRequest, model: str, version: str) -> DriftReference:
    """Return the monitor's reference, divided into windows with the length and phase of
    the judged window.

    A reference without event times has only a total, and no windows. Notes report
    missing event times and columns. Columns that `capture` or `exclude` leaves out get
    no bins.

    Args:
        model, version: the version that answered the window's rows.

    Raises NotFound if the version, the dataset or its rows do not exist,
    InvalidArtifact without a readable reference, InvalidConfig if the dataset cannot be
    read or the reference has none of the columns, and RegistryUnavailable.
    """
    kind = request.spec.reference_kind
    log_reference = None
    if kind in _LOG_REFERENCES:
        log_reference, log_notes = _LOG_REFERENCES[kind](request, model, version)
        shown = f"the captured rows of {log_reference.span}"
        rows = ReferenceRows(
            log_reference.sample(),
            times=None,
            model_id="",
            shown=shown,
            notes=tuple(log_notes),
        )
    elif kind == "dataset":
        (rows,) = load_datasets(
            [request.spec.reference_value],
            lambda: column_types(request, model, version),
            request.exclude,
        )
    else:
        state_dir = request.settings.state_dir(request.endpoint)
        rows = load_training_rows(state_dir, model, version, request.settings.cache_path / CACHE)
    capture = request.capture
    # Otherwise, probabilities that another server does not log would be a drift.
    absent = [
        name
        for name in (rows.table.column_names if request.source_columns else ())
        if not (name.startswith("_") or name in request.source_columns)
    ]
    rows = replace(rows, table=rows.table.drop_columns(absent))
    left_out = (*capture.drop, *capture.mask, *capture.keys, *request.exclude)
    frozen_from, bins, notes = _freeze(rows, request.spec.columns, left_out)
    if absent:
        absent_note = f"the source has no column {join_names(absent)}, which is not judged"
        notes = [*notes, absent_note]
    key = bins_digest(bins)
    window = request.window
    if log_reference:
        pieces = log_reference.pieces(bins, key, rows.table, window)
    else:
        length_us = window.end_us - window.start_us
        cut_from = frozen_from, length_us, window.start_us % length_us
        if cut_from not in _last_cut:
            pieces = cut_pieces(bins, rows.table, rows.times, window.start_us, length_us)
            _last_cut.clear()
            _last_cut[cut_from] = pieces
        pieces = _last_cut[cut_from]
    return DriftReference(
        bins,
        key,
        pieces,
        rows.table,
        rows.model_id,
        (*rows.notes, *notes),
    )


def column_types(
    request: WindowRequest,
    model: str,
    version: str,
) -> dict[str, pa.DataType]:
    """Return the column types from the window's rows and the model's signature; the
    signature has precedence.
    """
    window = View(
        request.endpoint,
        TimeRange(request.window.start, request.window.end),
    )
    logged = {column.name: column.type for column in request.log.schema(window)}
    return logged | signature_types(request.settings.state_dir(request.endpoint), model, version)


def load_segment_references(
    request: WindowRequest,
    model: str,
    version: str,
    whole: DriftReference,
    column: str,
    values: Sequence[str],
) -> list[DriftReference]:
    """Return a part of the reference for each value of a column (as text), with the
    bins of the whole reference. All rows of a log are used, and only the sample of
    other references. Raises the errors of `load_reference`.
    """
    kind = request.spec.reference_kind
    if kind in _LOG_REFERENCES:
        log_reference = _LOG_REFERENCES[kind](request, model, version)[0]
    else:
        log_reference = None
    times = event_times(whole.sample)
    window = request.window
    parts = []
    for value in values:
        rows = is_segment(whole.sample, column, value)
        sample = whole.sample.filter(rows)
        if log_reference is None:
            segment_times = None if times is None else times[np.asarray(rows)]
            pieces = cut_pieces(
                whole.bins,
                sample,
                segment_times,
                window.start_us,
                window.end_us - window.start_us,
            )
        else:
            pieces = log_reference.pieces(
                whole.bins,
                whole.bins_key,
                sample,
                window,
                (column, value),
            )
        parts.append(replace(whole, pieces=pieces, sample=sample, notes=()))
    return parts


def freeze_table(
    table: pa.Table,
    columns: Sequence[str],
    shown: str,
    left_out: Sequence[str] = (),
) -> tuple[dict[str, Bins], list[str]]:
    """Return the bins of a table's columns and of their projections, and a note for
    each column without bins. Only `columns` get bins (empty: all), without the columns
    in `left_out`. Raises InvalidConfig if the table has none of `columns`.
    """
    bins: dict[str, Bins] = {}
    names: list[str] = []
    notes: list[str] = []
    for column in table.column_names:  # Copy only one column at a time.
        features, skipped = read_columns(table.select([column]))
        names += features
        notes += skipped
        for name in select_columns(features, columns):
            if left_out and select_columns([name], left_out):
                continue
            # A list's component, a double, has no type in the table.
            arrow_type = str(table.schema.field(name).type) if name == column else "double"
            bins[name] = freeze_bins(features[name], arrow_type)
    missing = [name for name in columns if not select_columns(names, [name])]
    if columns and len(missing) == len(columns):
        raise InvalidConfig(
            f"{shown} has no column {missing[0]!r} to judge; it has {', '.join(names) or 'none'}",
        )
    notes += [f"{name}: {shown} has no such column" for name in missing]
    sample = table.take(
        sample_positions(
            len(table),
            _MAX_CELLS // max(len(bins), 1),
            SEED,
        )
    )
    return {**bins, **freeze_relations(bins, encode_columns(bins, sample))}, notes


def _freeze(
    rows: ReferenceRows, columns: Sequence[str], left_out: Sequence[str]
) -> tuple[bytes, Mapping[str, Bins], Sequence[str]]:
    """Return a digest of the arguments, and the result of `freeze_table`. The last
    result is reused for the same digest.
    """
    head = (rows.shown, *columns, None, *left_out)
    digest = hashlib.sha256(f"{head} {rows.table.schema}".encode())
    for column in rows.table.columns:
        # Slices share a buffer.
        digest.update(repr([(chunk.offset, len(chunk)) for chunk in column.chunks]).encode())
        buffers = chain.from_iterable(chunk.buffers() for chunk in column.chunks)
        for buffer in {buffer.address: buffer for buffer in buffers if buffer}.values():
            digest.update(buffer)
    key = digest.digest()
    if key not in _last_frozen:
        frozen = freeze_table(rows.table, columns, rows.shown, left_out)
        _last_frozen.clear()
        _last_frozen[key] = frozen
    return key, *_last_frozen[key]
