"""A reading of a source: its new rows are written to the inference log, each exactly
once, and the position after them is stored.

The rows of a group are in the log before its position is stored, so a reading can end
at any time, and the next one continues. Rows that are in the log already are found by
their ids: within the same hour always, and otherwise if their times are within
`_REMEMBERED` of each other.
"""

import base64
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotReady, OnnxserveError
from mlflow_deploy_plugin.core.extensions import SOURCES, find_entry
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.parts import PUSH
from mlflow_deploy_plugin.core.spec.types import EPOCH, parse_time
from mlflow_deploy_plugin.core.store import inbox
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper, held_lease
from mlflow_deploy_plugin.core.store.store import Endpoint, Store
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from mlflow_deploy_plugin.serve.inference_log.scan import microseconds_of
from mlflow_deploy_plugin.serve.inference_log.source_state import (
    Problem,
    SourceState,
    read_source_state,
    source_agent,
    write_source_state,
)
from mlflow_deploy_plugin.serve.inference_log.stats import Watermark, write_watermark
from mlflow_deploy_plugin.serve.inference_log.storage import (
    encode_parquet,
    hour_folder,
    wrap_log_errors,
    write_file,
)
from mlflow_deploy_plugin.serve.inference_log.tables import TIME, combine_hashes, concat_tables
from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US, Window
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.spool.captured_model import MASK_KEY, ColumnMask
from mlflow_deploy_plugin.watch.drift.references.rows import signature_types
from mlflow_deploy_plugin.watch.observed.source_rows import (
    DIGEST,
    ID,
    RowContext,
    RowFault,
    changed_columns,
    log_rows,
    model_columns,
)
from mlflow_deploy_plugin.watch.observed.sources import Piece, SourceReader

Progress = Callable[[str], None]
_GROUP_ROWS = 1_000_000
_GROUP_BYTES = 128 * 2**20
_GROUP_CELLS = _GROUP_BYTES // 8
_REMEMBERED = timedelta(days=31)
_WRITERS = 8
_LONGEST = 1000
"""The length of a text from a source in the state, which `onnxserve list` shows."""
_PLACED = {"source", "format", "query", "position", "since"}
"""The fields of the spec that a position refers to."""
_MOST_COLUMNS = 5_000
"""The limit of columns of a source, whose names may come from the callers of a model.
Further new columns are reported and left out.
"""
_TAKEN_OVER_SECONDS = 20.0
_COUNTED = 10_000
"""The number of the last faults that are remembered, so that none is counted twice."""


def read_source(
    settings: Settings, endpoint: Endpoint, progress: Progress = lambda line: None
) -> SourceState:
    """Read the new rows of an endpoint's source, and return the state after it. The
    reason why a reading was not completed is in the state.

    The caller has the lease of `reading_lease`. Raises OnnxserveError if the inference
    log cannot be read or written.
    """
    started = datetime.now(UTC)
    with closing(open_store(settings.store_url)) as store:
        reading = _Reading(settings, endpoint, progress)
        try:
            for piece in reading.open(store, started).pieces(reading.state.position):
                reading.add(piece)
            reading.state = replace(reading.state, complete_until=started, error="")
        except (OnnxserveError, pa.ArrowException, ArithmeticError, ValueError, TypeError) as error:
            reading.state = replace(reading.state, error=one_line(error, _LONGEST))
        reading.write()  # also the rows before a failure
    state = reading.state
    rows = {endpoint.name: state.rows}
    mark = Watermark(
        agent=source_agent(endpoint.name),
        endpoints=(endpoint.name,),
        complete_until=state.complete_until or EPOCH,
        written_at=datetime.now(UTC),
        is_of_source=True,
        answered_rows=rows,
        captured_rows=rows,
        shipped_rows=rows,
    )
    with wrap_log_errors(reading.log.location):
        write_watermark(reading.log.location, mark)
    return state


def reading_lease(store: Store, endpoint: str) -> AbstractContextManager[LeaseKeeper]:
    """Hold the lease of an endpoint's readings during the `with`. Raises NotReady if
    another process reads its source for longer than a killed one may hold the lease.
    """
    begun = time.monotonic()

    def wait(holder: str) -> None:
        if time.monotonic() > begun + _TAKEN_OVER_SECONDS:
            raise NotReady(f"{endpoint}: {holder} is reading its source; repeat the command later")

    return held_lease(store, f"observe/{endpoint}", wait)


def empty_inbox(settings: Settings, store: Store, endpoint: Endpoint) -> str:
    """Wait for the end of a reading, and read the pushed events into the log. An
    event without its other half has no row yet, and is deleted. Return the reason if
    events are left. Raises like `reading_lease`.
    """
    observe = endpoint.spec.observe
    with reading_lease(store, endpoint.name):
        if observe is None or observe.source != PUSH:
            return ""
        # The server's clock may be ahead of this machine's clock.
        inbox.take_unanswered(store, endpoint.name, store.now() + timedelta(1))
        return read_source(settings, endpoint).error


def read_again(settings: Settings, endpoint: Endpoint) -> None:
    """Let the next reading begin at the start of the source. Rows that are in the log
    are left out.
    """
    location = open_log(settings.inference_log).location
    state = read_source_state(location, endpoint.name)
    write_source_state(location, endpoint.name, replace(state, source=""))


class _Reading:
    """The rows of a source that are not written yet, and the state after them."""

    def __init__(self, settings: Settings, endpoint: Endpoint, progress: Progress) -> None:
        spec = endpoint.spec.observe
        assert spec is not None
        self.log = open_log(settings.inference_log, endpoint.rows_since)
        state = read_source_state(self.log.location, endpoint.name)
        # A reading may end after its endpoint was deleted and made again.
        placed = spec.model_dump_json(include=_PLACED)
        source = f"{endpoint.created_at} {placed} {spec.is_database and spec.time}"
        if state.source != source:
            state = replace(state, position="", problems={}, counted="", source=source)
        self.state = state
        self._settings = settings
        self._endpoint = endpoint
        self._spec = spec
        self._progress = progress
        self._since = pa.scalar(parse_time(spec.since or "1970-01-01"), TIME)
        self._clear()

    def open(self, store: Store, now: datetime) -> SourceReader:
        """Return the reader of the source. Raises the errors of `resolve`,
        `find_entry` and `require_one_observed`.
        """
        self._endpoint.spec.require_one_observed()
        spec = self._spec
        name = self._endpoint.name
        folder = self._settings.state_dir(name)
        model = name
        version = "unknown"
        types: dict[str, pa.DataType] = {}
        for variant in self._endpoint.spec.variants.values():
            resolved = resolve(variant.model)
            model = resolved.name
            version = resolved.version or version
            types = signature_types(folder, model, version)
        capture = self._endpoint.spec.capture
        mask = ColumnMask(folder / MASK_KEY)
        if capture.mask:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            mask.ensure_key()
        self._context = RowContext(name, model, version, capture, mask, now)
        read_exchange = None
        if spec.format != "columns":
            read_exchange = find_entry(SOURCES, spec.format, "format", ["columns"])
        return SourceReader(store, name, spec, read_exchange, tuple(types), types)

    def add(self, piece: Piece) -> None:
        """Add rows, and write the group if it is large enough."""
        self._faults += piece.faults
        if piece.table.num_rows:
            rows, refused = log_rows(piece.table, self._context, piece.place)
            columns = self.state.columns
            self._faults += [*refused, *changed_columns(columns, rows, piece.place)]
            new = model_columns(rows).difference(columns)
            if len(columns) + len(new) > _MOST_COLUMNS:
                if not columns:
                    raise InvalidConfig(
                        f"{piece.place} has {len(new):,} columns, more than {_MOST_COLUMNS:,}: "
                        "leave some out with capture.drop"
                    )
                rows = rows.drop_columns(sorted(new))
            else:
                self.state = replace(self.state, columns=tuple(sorted({*columns, *new})))
            rows = rows.filter(pc.greater_equal(rows.column(EVENT_TIME), self._since))
            names = self._names.union(rows.column_names)
            # Columns that other rows lack are null there, which takes memory too.
            if self._rows and (self._rows + len(rows)) * len(names) > _GROUP_CELLS:
                self.write()
            self._names.update(rows.column_names)
            self._group.append(rows)
            self._rows += len(rows)
            self._bytes += rows.nbytes
        self.state = replace(self.state, position=piece.position or self.state.position)
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES or piece.ends_group:
            self.write()

    def write(self) -> None:
        """Write the new rows of the group to the log, and then the state. Raises
        OnnxserveError if the log cannot be read or written.
        """
        name = self._endpoint.name
        if self._rows:
            rows, repeated = _new_rows(self.log, name, concat_tables(self._group))
            self._faults += repeated
            self.state = _with_rows(self.log, name, rows, self.state)
            self._progress(f"{name}: {self.state.rows:,} rows, until {self.state.newest}")
        self.state = _with_faults(self.state, self._faults)
        write_source_state(self.log.location, name, self.state)
        self._clear()

    def _clear(self) -> None:
        self._group: list[pa.Table] = []
        self._names: set[str] = set()
        self._faults: list[RowFault] = []
        self._rows = 0
        self._bytes = 0


def _with_faults(state: SourceState, faults: Sequence[RowFault]) -> SourceState:
    """Return the state with the faults that it has not counted yet: files that grow,
    and the last rows of a database, are read several times.
    """
    counted = np.frombuffer(base64.b64decode(state.counted), np.uint64)
    problems = dict(state.problems)
    for fault in faults:
        new = np.setdiff1d(fault.marks, counted)
        if len(new):
            before = problems.get(fault.kind)
            count = len(new) + (before.count if before else 0)
            problems[fault.kind] = Problem(count, one_line(fault.last, _LONGEST))
            counted = np.append(counted, new)[-_COUNTED:]
    text = base64.b64encode(counted.tobytes()).decode()
    return replace(state, problems=problems, counted=text)


def _new_rows(log: InferenceLog, endpoint: str, rows: pa.Table) -> tuple[pa.Table, list[RowFault]]:
    """Return the rows that are not in the log, each id and position once, and a fault
    for a row whose values differ from those of the row that is kept.
    """
    keys = _keys(rows)
    digests = rows.column(DIGEST).to_numpy()
    distinct, first, number = np.unique(keys, return_index=True, return_inverse=True)
    kept_digests = digests[first].copy()
    is_known = np.zeros(len(distinct), bool)
    times = rows.column(EVENT_TIME)
    window = Window(pc.min(times).as_py() - _REMEMBERED, pc.max(times).as_py() + _REMEMBERED)
    for known in log.batches(endpoint, window, ["_offset", "_row", DIGEST], left_out=()):
        known_keys = _keys(known)
        at = np.minimum(np.searchsorted(distinct, known_keys), len(distinct) - 1)
        is_found = distinct[at] == known_keys
        is_known[at[is_found]] = True
        if DIGEST in known.column_names:
            found = known.column(DIGEST).to_numpy()[is_found]
            kept_digests[at[is_found]] = found
    conflicts = np.flatnonzero(digests != kept_digests[number])
    faults = []
    if len(conflicts):
        last = str(rows.column(ID)[int(conflicts[-1])])
        marks = combine_hashes(keys[conflicts], digests[conflicts].view(np.uint64))
        faults.append(RowFault("conflict", f"id {last}", marks))
    return rows.take(pa.array(np.sort(first[~is_known]))), faults


def _keys(rows: pa.Table) -> Array:
    """Return hashes of the ids and positions of rows, [N] uint64."""
    ids = rows.column("_offset").to_numpy().view(np.uint64)
    return combine_hashes(ids, rows.column("_row").to_numpy().astype(np.uint64))


def _with_rows(log: InferenceLog, endpoint: str, rows: pa.Table, state: SourceState) -> SourceState:
    """Write the rows to a file per hour, and return the state with them. Raises
    OnnxserveError if the log cannot be written.
    """
    if not len(rows):
        return state
    times = microseconds_of(rows.column(EVENT_TIME))
    order = np.argsort(times, kind="stable")
    rows = rows.take(pa.array(order))
    hours = times[order] // HOUR_US
    starts = np.flatnonzero(np.append(True, hours[1:] != hours[:-1])).tolist()

    def write(start: int, end: int) -> None:
        moment = EPOCH + timedelta(hours=int(hours[start]))
        name = f"{hour_folder(endpoint, moment)}/observed-{uuid4().hex}.parquet"
        write_file(log.location, name, encode_parquet(rows.slice(start, end - start)))

    with wrap_log_errors(log.location), ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(write, starts, [*starts[1:], len(rows)]):
            pass
    newest = pc.max(rows.column(EVENT_TIME)).as_py()
    return replace(
        state,
        rows=state.rows + len(rows),
        newest=max(newest, state.newest or newest),
    )
