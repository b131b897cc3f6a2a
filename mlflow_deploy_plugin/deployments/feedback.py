"""Bringing labels to an endpoint: by its server where one runs, else straight into the inference log."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import orjson
import pyarrow as pa

from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.deployments.server_client import ServerSession, post
from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidConfig, InvalidRequest, NotReady, TooManyRequests
from mlflow_deploy_plugin.inference_log.label_files import BadRow, LabelEntry
from mlflow_deploy_plugin.inference_log.labels import Label, labels_table
from mlflow_deploy_plugin.inference_log.matching import LabelMatches, match_log, write_labels
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.span import TimeRange
from mlflow_deploy_plugin.inference_log.view import View, view_schema, view_tables
from mlflow_deploy_plugin.nearest import did_you_mean
from mlflow_deploy_plugin.server.capture.masking import MASK_KEY, ColumnMask
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import EndpointSpec, load_specs
from mlflow_deploy_plugin.statedir import SPEC

_MASKED = re.compile(r"[0-9a-f]{32}")
_NO_KEY = "is masked in the log, and the key of the mask is not on this machine"


@dataclass(frozen=True)
class LabelMasking:
    """Which key columns stand in the log as hashes, and the key for it; `refusal` says why there is none."""

    columns: frozenset[str] = frozenset()
    key: Path | None = None
    refusal: str = _NO_KEY

    def table(self, entries: Iterable[LabelEntry], received_us: int, segment: str) -> pa.Table:
        """The labels as they stand in the log.

        Raises:
            InvalidConfig: a key column is masked, and its key is not here.
        """
        mask = ColumnMask(self.key) if self.key else None
        labels = []
        for entry in entries:
            said, key = entry.feedback, entry.feedback.key
            if key and self.columns & key.keys():
                if mask is None:
                    raise InvalidConfig(f"{', '.join(sorted(self.columns & key.keys()))} {self.refusal}")
                key = mask.hash_values(key, self.columns)
            labels.append(Label(said.prediction_id, said.row, key, said.label, received_us, segment, entry.number))
        return labels_table(labels)


def label_masking(deployments: Deployments, log: InferenceLog, endpoint: str) -> LabelMasking:
    """As the endpoint's spec says it: that of the store, else those that servers of this machine have left.

    Without any, a column whose logged values look like masks is one.

    Raises:
        OnnxserveError: the log is down.
    """
    settings = deployments.settings
    stored = deployments.store.endpoint(endpoint)
    if stored is not None:
        key = settings.deployments_path / endpoint / MASK_KEY
        return LabelMasking(frozenset(stored.spec.capture.mask), key if key.exists() else None)
    left = list(_left_by_servers(settings, endpoint))
    if not left:
        refusal = (
            f"looks masked in the log, and no spec of {endpoint} is on this machine: bring these labels by its server "
            "(--url), or by prediction id"
        )
        return LabelMasking(_looks_masked(log, endpoint), None, refusal)
    columns = frozenset(name for _, spec in left for name in spec.capture.mask)
    keys = {key.read_bytes(): key for folder, _ in left if (key := folder / MASK_KEY).exists()}
    if len(keys) > 1:
        shown = " and ".join(sorted(map(str, keys.values())))
        return LabelMasking(columns, None, f"is masked in the log, and which key it is by is not known: {shown}")
    return LabelMasking(columns, next(iter(keys.values()), None))


def _left_by_servers(settings: Settings, endpoint: str) -> Iterator[tuple[Path, EndpointSpec]]:
    """State folders of this machine whose spec has the endpoint, which nobody may have deployed."""
    folders = [settings.deployments_path / endpoint, *sorted((settings.home_path / "serve").glob("*"))]
    for folder in folders:
        with suppress(OSError, UnicodeDecodeError, InvalidConfig):  # there is none, or none that could be served
            for spec in load_specs((folder / SPEC).read_text()):
                if spec.name == endpoint:
                    yield folder, spec


def _looks_masked(log: InferenceLog, endpoint: str) -> frozenset[str]:
    """The model's columns whose last logged values include one like those of `server.mask`."""
    hours = log.hours(endpoint)
    if not hours:
        return frozenset()
    view = View(endpoint, TimeRange(hours[-1].start, hours[-1].end), labels=False, shadows=True)
    schema = view_schema(log, view)
    texts = {field.name for field in schema if field.type == pa.string() and not field.name.startswith("_")}
    rows = next(iter(view_tables(log, view, texts)), None)
    if rows is None:
        return frozenset()
    values = {name: rows.column(name).to_pylist() for name in texts & set(rows.column_names)}
    return frozenset(
        name for name, said in values.items() if any(value is not None and _MASKED.fullmatch(value) for value in said)
    )


_TRIES = 8
_LONGEST_PAUSE_SECONDS = 10
_TIMEOUT_SECONDS = 30.0
_BATCH_ROWS = 2000

LabelSink = Callable[[Sequence[LabelEntry]], list[BadRow]]
"""Brings labels, in this order, and gives those that were refused."""


@dataclass(frozen=True)
class LabelTarget:
    """What is known of an endpoint here.

    Attributes:
        url: of its server; empty where none runs.
    """

    url: str = ""
    masking: LabelMasking = field(default_factory=LabelMasking)


def label_target(deployments: Deployments, log: InferenceLog, endpoint: str) -> LabelTarget:
    """Where the endpoint's labels go."""
    masking = label_masking(deployments, log, endpoint)
    if deployments.store.endpoint(endpoint) is None:
        return LabelTarget("", masking)
    return LabelTarget(deployments.get_endpoint(endpoint).observation.url or "", masking)


@dataclass(frozen=True)
class LabelImport:
    """What became of the rows of a file.

    Attributes:
        accepted: labels that are kept.
        bad: rows that are none.
        went: where to: the server's URL, the log, or both.
        names: what they call their rows, each once; None where rows were not looked for.
    """

    accepted: int
    bad: int
    went: tuple[str, ...]
    names: LabelMatches | None


def import_labels(
    log: InferenceLog,
    endpoint: str,
    place: LabelTarget,
    rows: Iterable[LabelEntry | BadRow],
    tell: Callable[[BadRow], None],
    only_server: bool = False,
    match: bool = True,
) -> LabelImport:
    """Brings the labels of a file, batch by batch, and then looks how many of them have their row in the log.

    Args:
        tell: is told each bad row.
        only_server: they do not go into the log where the server does not answer.

    Raises:
        NotReady: the server does not answer, and they go nowhere else.
        OnnxserveError: the log is down. Labels that were brought before stay; bringing them again does no harm.
    """
    names = LabelMatches() if match else None
    accepted = bad = 0
    went: list[str] = []
    direct = log_sink(log, endpoint, place.masking)
    with ServerSession() as session:
        ask = server_sink(session, place.url, endpoint) if place.url else None
        for entries, unfit in in_batches(rows, _BATCH_ROWS):
            if entries:
                try:
                    refused = (ask or direct)(entries)
                except NotReady:
                    if only_server or ask is None:
                        raise
                    ask, refused = None, direct(entries)
                where = place.url if ask else log.shown
                if where not in went:
                    went.append(where)
                if names is not None:
                    left_out = {one.place for one in refused}
                    names.add(_named(place.masking, [entry for entry in entries if entry.place not in left_out]))
                accepted += len(entries) - len(refused)
                unfit = unfit + refused
            for one in unfit:
                tell(one)
            bad += len(unfit)
    if names is not None:
        match_log(log, endpoint, names)
    return LabelImport(accepted, bad, tuple(went), names)


def _named(masking: LabelMasking, entries: Sequence[LabelEntry]) -> pa.Table:
    """The labels for the sake of what they call their rows."""
    readable = masking if masking.key else LabelMasking()
    return readable.table(entries, 0, "")


def server_sink(session: ServerSession, url: str, endpoint: str) -> LabelSink:
    """Labels go to `POST /endpoints/NAME/feedback`; a server that is overloaded is asked a few times.

    Raises (when it is called):
        NotReady: it does not answer.
        OnnxserveError: another refusal of the server, in its words.
    """

    def bring(entries: Sequence[LabelEntry]) -> list[BadRow]:
        body = orjson.dumps({"feedback": [_feedback_document(entry) for entry in entries]})
        try:
            _post(session, f"{url.rstrip('/')}/endpoints/{endpoint}/feedback", body)
        except (InvalidRequest, BodyTooLarge) as error:
            if len(entries) == 1:
                return [BadRow(entries[0].place, error.message, _feedback_document(entries[0]))]
            middle = len(entries) // 2
            return bring(entries[:middle]) + bring(entries[middle:])
        return []

    return bring


def log_sink(log: InferenceLog, endpoint: str, masking: LabelMasking) -> LabelSink:
    """Labels become a file of the log."""
    segment = f"file-{uuid4().hex}"

    def bring(entries: Sequence[LabelEntry]) -> list[BadRow]:
        now = datetime.now(UTC)
        received_us = int(now.timestamp() * 1_000_000)
        write_labels(log, endpoint, now.strftime("%Y-%m-%d"), masking.table(entries, received_us, segment))
        return []

    return bring


def check_key_columns(log: InferenceLog, endpoint: str, key: Sequence[str]) -> frozenset[str]:
    """Which columns of the key hold numbers, or booleans, in the log. Refuses a key of columns that no row of the
    endpoint has; without any row nothing is known.

    Raises:
        InvalidConfig: a column is not there; the message names the nearest one.
    """
    hours = log.hours(endpoint)
    if not key or not hours:
        return frozenset()
    schema = view_schema(log, View(endpoint, TimeRange(hours[-1].start, hours[-1].end), labels=False))
    if not set(key) <= set(schema.names):
        schema = view_schema(log, View(endpoint, labels=False))
    columns = schema.names
    for name in key:
        if name not in columns:
            own = [column for column in columns if not column.startswith("_")]
            hint = did_you_mean(name, columns, f"they have {', '.join(own[:30])}")
            raise InvalidConfig(f"--key names {name!r}, which no logged row of {endpoint} has{hint}")
    types = {name: schema.field(name).type for name in key}
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return frozenset(name for name, kind in types.items() if any(one(kind) for one in is_number))


def in_batches(rows: Iterable[LabelEntry | BadRow], size: int) -> Iterator[tuple[list[LabelEntry], list[BadRow]]]:
    """The labels and the bad rows, `size` together."""
    good: list[LabelEntry] = []
    bad: list[BadRow] = []
    for row in rows:
        if isinstance(row, LabelEntry):
            good.append(row)
        else:
            bad.append(row)
        if len(good) + len(bad) >= size:
            yield good, bad
            good, bad = [], []
    if good or bad:
        yield good, bad


def _post(session: ServerSession, url: str, body: bytes) -> None:
    for attempt in range(_TRIES):
        try:
            post(session, url, body, "application/json", _TIMEOUT_SECONDS)
            return
        except (TooManyRequests, NotReady) as error:
            if attempt == _TRIES - 1:
                raise
            time.sleep(min(error.retry_after or 2**attempt / 10, _LONGEST_PAUSE_SECONDS))


def _feedback_document(entry: LabelEntry) -> dict[str, object]:
    said = entry.feedback
    if said.key is not None:
        return {"key": said.key, "label": said.label}
    row = {} if said.row is None else {"row": said.row}
    return {"prediction_id": said.prediction_id, **row, "label": said.label}
