"""Labels of earlier predictions. They are sent to the endpoint's server or, without a
server, masked and logged.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from uuid import uuid4

import orjson
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidConfig, InvalidRequest, NotReady
from mlflow_deploy_plugin.serve.inference_log.label_files import BadRow, LabelEntry
from mlflow_deploy_plugin.serve.inference_log.labels import (
    EndpointLabels,
    Label,
    labels_table,
    write_labels,
)
from mlflow_deploy_plugin.serve.inference_log.log_reader import (
    InferenceLog,
    View,
    match_labels,
    view_schema,
    view_tables,
)
from mlflow_deploy_plugin.serve.inference_log.windows import TimeRange
from mlflow_deploy_plugin.serve.protocols import feedback as feedback_protocol
from mlflow_deploy_plugin.serve.spool.captured_model import MASK_KEY, ColumnMask
from mlflow_deploy_plugin.ship.deployments.endpoints import left_specs
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_client import ServerSession, post

_TRIES = 8
_TIMEOUT_SECONDS = 30.0
_BATCH_ROWS = 2000
_NUMBER_TYPES = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
_MASKED = re.compile(r"[0-9a-f]{32}")
_NO_KEY = "is masked in the log, and the key of the mask is not on this machine"


@dataclass(frozen=True)
class LabelMasking:
    """The masking of labels.

    Attributes:
        columns: the key columns that are hashed in the log.
        key: the file with the hash key.
        refusal: the reason why the hash key is missing.
    """

    columns: frozenset[str] = frozenset()
    key: Path | None = None
    refusal: str = _NO_KEY

    def table(self, entries: Iterable[LabelEntry], received_us: int, segment: str) -> pa.Table:
        """Return the labels in the format of the log. Raises InvalidConfig if the key
        of a masked column is missing.
        """
        mask = ColumnMask(self.key) if self.key else None
        labels = []
        for entry in entries:
            label = entry.feedback
            if label.key and (masked := self.columns & label.key.keys()):
                if mask is None:
                    raise InvalidConfig(f"{', '.join(sorted(masked))} {self.refusal}")
                label = label._replace(key=mask.hash_values(label.key, self.columns))
            labels.append(Label(*label, received_us, segment, entry.number))
        return labels_table(labels)


@dataclass
class LabelSink:
    """The destination of an endpoint's labels: its server, or the inference log if the
    server does not answer.

    Attributes:
        url: the URL of the server; empty if it is not running.
        keys: the key columns of the endpoint's spec, which rows may contain.
        only_server: True if labels must not be written to the log when the server does
            not answer.
        destinations: a dict whose keys are the destinations used so far (the server's
            URL, the log), in order.
    """

    log: InferenceLog
    endpoint: str
    url: str
    masking: LabelMasking
    keys: tuple[str, ...] = ()
    only_server: bool = False
    segment: str = field(default_factory=lambda: f"file-{uuid4().hex}")
    destinations: dict[str, None] = field(default_factory=dict)

    def store(self, session: ServerSession, entries: Sequence[LabelEntry]) -> list[BadRow]:
        """Store labels, and return the labels that the server refuses. Raises the
        errors of `import_labels`.
        """
        if self.url:
            try:
                url = f"{self.url.rstrip('/')}/endpoints/{self.endpoint}/feedback"
                refused = _post_labels(session, url, entries)
                self.destinations[self.url] = None
                return refused
            except NotReady:
                if self.only_server:
                    raise
                self.url = ""
        now = datetime.now(UTC)
        table = self.masking.table(entries, int(now.timestamp() * 1_000_000), self.segment)
        write_labels(self.log.location, self.endpoint, now.strftime("%Y-%m-%d"), table)
        self.destinations[self.log.location.shown] = None
        return []


@dataclass(frozen=True)
class LabelImport:
    accepted: int
    bad: int
    destinations: tuple[str, ...]
    matches: EndpointLabels | None


def label_sink(deployments: Deployments, log: InferenceLog, endpoint: str) -> LabelSink:
    """Return the destination of an endpoint's labels. An endpoint outside the store has
    no URL, so its labels are written to the log.
    """
    stored = deployments.store.endpoint(endpoint)
    if stored is not None:
        key = deployments.settings.state_dir(endpoint) / MASK_KEY
        return LabelSink(
            log,
            endpoint,
            url=deployments.get_endpoint(endpoint).observation.url,
            masking=LabelMasking(
                frozenset(stored.spec.capture.mask), key if key.exists() else None
            ),
            keys=stored.spec.capture.keys,
        )
    # The specs of servers on this machine show which columns are masked. If there are
    # no specs, a column is masked if its logged values look like masks.
    specs = left_specs(endpoint, deployments.settings)
    columns = frozenset(chain.from_iterable(spec.capture.mask for _, spec in specs))
    key_files = [folder / MASK_KEY for folder, _ in specs]
    keys = {key.read_bytes(): key for key in key_files if key.exists()}
    masking = LabelMasking(columns, next(iter(keys.values()), None))
    if not specs:
        refusal = (
            f"looks masked in the log, and no spec of {endpoint} is on this machine: send these "
            "labels through its server (--url), or by prediction id"
        )
        masking = LabelMasking(_columns_that_look_masked(log, endpoint), None, refusal)
    elif len(keys) > 1:
        files = " and ".join(sorted(map(str, keys.values())))
        refusal = f"is masked in the log, and several keys are possible: {files}"
        masking = LabelMasking(columns, None, refusal)
    return LabelSink(log, endpoint, url="", masking=masking)


def import_labels(
    sink: LabelSink,
    rows: Iterable[LabelEntry | BadRow],
    report_bad: Callable[[BadRow], None],
    match: bool,
) -> LabelImport:
    """Store the labels of a file in batches. With `match`, count the labels whose row
    is in the log.

    Raises NotReady if the server does not answer and the log may not be used, and
    OnnxserveError if the log is unavailable. After an error, the labels stored so far
    remain, and the file can be imported again.
    """
    # DuckDB, which matches the labels, is not in the base installation.
    matches = EndpointLabels() if match and find_spec("duckdb") else None
    readable = sink.masking if sink.masking.key else LabelMasking()
    accepted = 0
    bad = 0
    remaining = iter(rows)
    with ServerSession() as session:
        while batch := list(islice(remaining, _BATCH_ROWS)):
            entries = [row for row in batch if isinstance(row, LabelEntry)]
            refused = sink.store(session, entries) if entries else []
            places = {row.place for row in refused}
            stored = [row for row in entries if row.place not in places]
            if matches is not None and stored:
                matches.add([readable.table(stored, 0, "")])
            accepted += len(stored)
            bad += len(batch) - len(stored)
            for row in (*batch, *refused):
                if isinstance(row, BadRow):
                    report_bad(row)
    if matches is not None:
        match_labels(sink.log, sink.endpoint, matches)
    return LabelImport(accepted, bad, tuple(sink.destinations), matches)


def check_key_columns(
    log: InferenceLog, endpoint: str, key: Sequence[str], keys: Collection[str]
) -> frozenset[str]:
    """Return the columns of the key that contain numbers or booleans in the log.

    A key column may be missing in the log if the log has no rows yet, or if the column
    is in `keys` (the endpoint's `capture.keys`). Any other missing column raises
    InvalidConfig with the nearest name.
    """
    hours = log.hours(endpoint)
    if not key or not hours:
        return frozenset()
    newest_hour = TimeRange(hours[-1].start, hours[-1].end)
    schema = view_schema(log, View(endpoint, newest_hour, labels=False))
    if not set(key) <= set(schema.names):
        schema = view_schema(log, View(endpoint, labels=False))
    columns = schema.names
    for name in key:
        if name not in columns and name not in keys:
            raise InvalidConfig(
                f"--key: {feedback_protocol.unknown_column(name, columns, endpoint)}"
            )
    numbers = set()
    for name in key:
        if name in columns:
            kind = schema.field(name).type
            if any(is_type(kind) for is_type in _NUMBER_TYPES):
                numbers.add(name)
    return frozenset(numbers)


def _columns_that_look_masked(log: InferenceLog, endpoint: str) -> frozenset[str]:
    """Return the model's columns in whose newest logged rows a value looks like a hash
    of a masked column.
    """
    hours = log.hours(endpoint)
    if not hours:
        return frozenset()
    newest_hour = TimeRange(hours[-1].start, hours[-1].end)
    view = View(endpoint, newest_hour, labels=False, shadows=True)
    schema = view_schema(log, view)
    texts = {
        field.name
        for field in schema
        if field.type == pa.string() and not field.name.startswith("_")
    }
    rows = next(iter(view_tables(log, view, texts)), None)
    if rows is None:
        return frozenset()
    masked = set()
    for name in texts & set(rows.column_names):
        values = rows.column(name).to_pylist()
        if any(text is not None and _MASKED.fullmatch(text) for text in values):
            masked.add(name)
    return frozenset(masked)


def _post_labels(session: ServerSession, url: str, entries: Sequence[LabelEntry]) -> list[BadRow]:
    """Post labels to a server, with retries while the server is overloaded. Return the
    refused labels.

    Raises NotReady if the server does not answer, and another OnnxserveError if it
    refuses all labels.
    """
    body = orjson.dumps({"feedback": [_feedback_document(entry) for entry in entries]})
    try:
        post(session, url, body, "application/json", _TIMEOUT_SECONDS, _TRIES)
    except (InvalidRequest, BodyTooLarge) as error:
        if len(entries) == 1:
            document = _feedback_document(entries[0])
            return [BadRow(entries[0].place, error.message, document)]
        middle = len(entries) // 2
        refused = _post_labels(session, url, entries[:middle])
        return refused + _post_labels(session, url, entries[middle:])
    return []


def _feedback_document(entry: LabelEntry) -> dict[str, object]:
    """Return a label in the format of the server's route `/feedback`."""
    feedback = entry.feedback
    if feedback.key is not None:
        return {"key": feedback.key, "label": feedback.label}
    row = {} if feedback.row is None else {"row": feedback.row}
    return {"prediction_id": feedback.prediction_id, **row, "label": feedback.label}
