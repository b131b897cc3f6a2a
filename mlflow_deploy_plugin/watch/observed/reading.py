"""A reading of a source: its new rows are written to the inference log, each exactly
once, and the position after them is stored.

The rows of a group are in the log before its position is stored, so a reading can end
at any time, and the next one continues. Rows that are in the log already are found by
their ids: within the same hour always, and otherwise if their times are within
`_REMEMBERED` of each other.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import NotReady, OnnxserveError
from mlflow_deploy_plugin.core.extensions import SOURCES, find_entry
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.types import EPOCH, parse_time
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
    endpoint_folder,
    wrap_log_errors,
    write_file,
)
from mlflow_deploy_plugin.serve.inference_log.tables import TIME, combine_hashes, concat_tables
from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US, Window
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.spool.captured_model import MASK_KEY, ColumnMask
from mlflow_deploy_plugin.watch.drift.references.rows import signature_types
from mlflow_deploy_plugin.watch.observed.rows import (
    DIGEST,
    ID,
    Fault,
    RowContext,
    changed_columns,
    log_rows,
    model_columns,
)
from mlflow_deploy_plugin.watch.observed.sources import Piece, SourceReader

Progress = Callable[[str], None]
_GROUP_ROWS = 1_000_000
_GROUP_BYTES = 128 * 2**20
_REMEMBERED = timedelta(days=31)
_WRITERS = 8
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
    log = open_log(settings.inference_log, endpoint.rows_since)
    state = read_source_state(log.location, endpoint.name)
    started = datetime.now(UTC)
    error = ""
    store = open_store(settings.store_url)
    try:
        context, reader = _open_source(settings, store, endpoint, started)
        pieces = reader.pieces(state.position)
        for written in _write_groups(log, endpoint, pieces, context, state):
            state = written
            write_source_state(log.location, endpoint.name, state)
            if state.newest is not None:
                until = f"{state.newest:%Y-%m-%d %H:%M} UTC"
                progress(f"{endpoint.name}: {state.rows:,} rows, until {until}")
        state = replace(state, complete_until=started)
    except OnnxserveError as failure:
        error = failure.message
    finally:
        store.close()
    state = replace(state, error=error)
    write_source_state(log.location, endpoint.name, state)
    rows = {endpoint.name: state.rows}
    mark = Watermark(
        agent=source_agent(endpoint.name),
        endpoints=(endpoint.name,),
        complete_until=state.complete_until or EPOCH,
        written_at=datetime.now(UTC),
        answered_rows=rows,
        captured_rows=rows,
        shipped_rows=rows,
    )
    with wrap_log_errors(log.location):
        write_watermark(log.location, mark)
    return state


def reading_lease(store: Store, endpoint: str) -> AbstractContextManager[LeaseKeeper]:
    """Hold the lease of an endpoint's readings during the `with`. Raises NotReady if
    another process reads its source.
    """

    def refuse(holder: str) -> None:
        raise NotReady(f"{endpoint}: {holder} is reading its source; repeat the command later")

    return held_lease(store, f"observe/{endpoint}", refuse)


def read_again(settings: Settings, endpoint: Endpoint) -> None:
    """Let the next reading begin at the start of the source. Rows that are in the log
    are left out.
    """
    location = open_log(settings.inference_log).location
    state = read_source_state(location, endpoint.name)
    write_source_state(
        location, endpoint.name, replace(state, position="", problems={}, counted="")
    )


def _open_source(
    settings: Settings, store: Store, endpoint: Endpoint, now: datetime
) -> tuple[RowContext, SourceReader]:
    """Return what all rows of a reading share, and the reader of the source. Raises the
    errors of `resolve` and `find_entry`.
    """
    spec = endpoint.spec.observe
    assert spec is not None
    folder = settings.state_dir(endpoint.name)
    model = endpoint.name
    version = "unknown"
    types: dict[str, pa.DataType] = {}
    for variant in endpoint.spec.variants.values():
        resolved = resolve(variant.model)
        model = resolved.name
        version = resolved.version or version
        types = signature_types(folder, model, version)
    mask = ColumnMask(folder / MASK_KEY)
    if endpoint.spec.capture.mask:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mask.ensure_key()
    read_exchange = None
    if spec.format != "columns":
        read_exchange = find_entry(SOURCES, spec.format, "format", ["columns"])
    context = RowContext(endpoint.name, model, version, endpoint.spec.capture, mask, now)
    return context, SourceReader(store, endpoint.name, spec, read_exchange, tuple(types), types)


def _write_groups(
    log: InferenceLog,
    endpoint: Endpoint,
    pieces: Iterator[Piece],
    context: RowContext,
    state: SourceState,
) -> Iterator[SourceState]:
    """Write the rows of the pieces in groups, and yield the state after each group."""
    since = None
    if endpoint.spec.observe is not None and endpoint.spec.observe.since is not None:
        since = pa.scalar(parse_time(endpoint.spec.observe.since), TIME)
    group: list[pa.Table] = []
    faults: list[Fault] = []
    failure: OnnxserveError | None = None
    piece: Piece | None = None
    is_over = False
    while not is_over:
        try:
            piece = next(pieces, None)
            if piece is not None:
                faults += piece.faults
                if piece.table.num_rows:
                    rows, refused = log_rows(piece.table, context, piece.place)
                    faults += [*refused, *changed_columns(state.columns, rows, piece.place)]
                    if since is not None:
                        rows = rows.filter(pc.greater_equal(rows.column(EVENT_TIME), since))
                    group.append(rows)
                state = replace(state, position=piece.position or state.position)
        except OnnxserveError as error:  # The rows before it are written.
            failure = error
        except (pa.ArrowException, ArithmeticError, ValueError, TypeError) as error:
            failure = OnnxserveError(f"rows of the source cannot be read: {one_line(error)}")
        is_over = piece is None or failure is not None
        is_full = (
            (piece is not None and piece.ends_group)
            or sum(map(len, group)) >= _GROUP_ROWS
            or sum(table.nbytes for table in group) >= _GROUP_BYTES
        )
        if not (is_full or is_over):
            continue
        if any(map(len, group)):
            rows, repeated = _new_rows(log, endpoint.name, concat_tables(group))
            faults += repeated
            state = _with_rows(log, endpoint.name, rows, state)
        state = _with_faults(state, faults)
        yield state
        group = []
        faults = []
    if failure is not None:
        raise failure


def _with_faults(state: SourceState, faults: Sequence[Fault]) -> SourceState:
    """Return the state with the faults that it has not counted yet: files that grow,
    and the last rows of a database, are read several times.
    """
    counted = np.frombuffer(base64.b64decode(state.counted), np.uint64)
    problems = dict(state.problems)
    for fault in faults:
        new = np.setdiff1d(fault.marks, counted)
        if len(new):
            before = problems.get(fault.kind)
            problems[fault.kind] = Problem(len(new) + (before.count if before else 0), fault.last)
            counted = np.append(counted, new)[-_COUNTED:]
    text = base64.b64encode(counted.tobytes()).decode()
    return replace(state, problems=problems, counted=text)


def _new_rows(log: InferenceLog, endpoint: str, rows: pa.Table) -> tuple[pa.Table, list[Fault]]:
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
        faults.append(Fault("conflict", f"id {last}", marks))
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
        folder = f"{endpoint_folder(endpoint)}/date={moment:%Y-%m-%d}/hour={moment:%H}"
        content = encode_parquet(rows.slice(start, end - start))
        write_file(log.location, f"{folder}/observed-{uuid4().hex}.parquet", content)

    with wrap_log_errors(log.location), ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(write, starts, [*starts[1:], len(rows)]):
            pass
    newest = pc.max(rows.column(EVENT_TIME)).as_py()
    return replace(
        state,
        rows=state.rows + len(rows),
        newest=max(newest, state.newest or newest),
        columns=tuple(sorted({*state.columns, *model_columns(rows)})),
    )
