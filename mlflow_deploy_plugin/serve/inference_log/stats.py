"""Statistics of an endpoint's log: the numbers of rows, files and labels, and of
missing rows.

Each agent, which belongs to one state folder, writes a watermark,
LOG/_watermarks/<agent>.json. It contains the time up to which the log is complete, and
row counts since the state folder was created. It is deleted after `GONE_AFTER`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs
from pydantic import AwareDatetime, TypeAdapter, ValidationError

from mlflow_deploy_plugin.core.column_names import EVENT_TIME, SHADOW
from mlflow_deploy_plugin.serve.inference_log.labels import LABEL
from mlflow_deploy_plugin.serve.inference_log.log_reader import (
    InferenceLog,
    View,
    require_endpoint,
    view_tables,
)
from mlflow_deploy_plugin.serve.inference_log.scan import RECEIVED_TIME
from mlflow_deploy_plugin.serve.inference_log.storage import (
    LogLocation,
    wrap_log_errors,
    write_file,
)
from mlflow_deploy_plugin.serve.inference_log.tables import TIME
from mlflow_deploy_plugin.serve.inference_log.windows import TimeRange

WATERMARKS = "_watermarks"
_COUNTED = (EVENT_TIME, "_model", "_version", "_variant", SHADOW, LABEL)
GONE_AFTER = timedelta(days=30)
"""The age at which a watermark is deleted. A running agent writes its watermark every
30 seconds.
"""


@dataclass(frozen=True)
class LabelCounts:
    """Counts of labels: labelled `rows` in the time range, distinct label keys
    (`names`), and keys that match no row in the log (`unmatched`; None if only a part
    of the log was read).
    """

    rows: int = 0
    names: int = 0
    unmatched: int | None = None


@dataclass(frozen=True)
class AgentCounts:
    """The rows that the agents have counted since their first start, from their
    `Watermark`; without shadow rows.
    """

    answered: int
    captured: int
    dropped: int
    shipped: int
    complete_until: datetime

    def gone(self, rows: int) -> int:
        """Return the number of rows that were shipped and are no longer among the
        `rows` in the log.
        """
        return max(0, self.shipped - rows)


@dataclass(frozen=True)
class VersionAnswers:
    """The captured requests that a version answered, and the times of receipt of the
    first and the last one.
    """

    model: str
    version: str
    requests: int
    rows: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class LogStats:
    """The log of one endpoint.

    Attributes:
        rows: the number of distinct rows in the time range, without shadow rows.
        failed_rows: the number of rows of requests without an answer. Only this count
            includes such rows.
        first, last: event times of rows, including shadow rows; None if there are no
            rows.
        by_version, by_variant, by_hour: row counts by "MODEL version N", by variant,
            and by the start of the hour.
        files, size: number of files in the log, and their size in bytes.
        account: None if no agent has written a watermark for the endpoint.
        unreadable: malformed files, which no count includes, with the reasons.
    """

    endpoint: str
    rows: int
    shadow_rows: int
    failed_rows: int
    first: datetime | None
    last: datetime | None
    by_version: Mapping[str, int]
    by_variant: Mapping[str, int]
    by_hour: Mapping[datetime, int]
    files: int
    size: int
    labels: LabelCounts
    account: AgentCounts | None
    unreadable: Mapping[str, str]


def log_stats(log: InferenceLog, endpoint: str, times: TimeRange | None = None) -> LogStats:
    """Count the rows of an endpoint, optionally in a time range. Raises NotFound for an
    unknown endpoint (the message names the known endpoints), and OnnxserveError if the
    log is unreachable.
    """
    account = agent_counts(log, endpoint)
    # An account shows that the endpoint exists.
    if account is None and endpoint not in log.failures.endpoints():
        require_endpoint(log, endpoint)
    files = list(chain.from_iterable(hour.files for hour in log.all_hours(endpoint)))
    labels = log.labels(endpoint)
    view = View(endpoint, times or TimeRange(), shadows=True)
    groups: list[dict[str, Any]] = []
    for table in view_tables(log, view, _COUNTED, labels):
        labels.mark(table)
        groups += _group_rows(table).to_pylist()
    failed_view = View(endpoint, view.times, labels=False)
    answered = [group for group in groups if not group["shadow"]]
    return LogStats(
        endpoint=endpoint,
        rows=sum(group["rows"] for group in answered),
        shadow_rows=sum(group["rows"] for group in groups if group["shadow"]),
        failed_rows=sum(map(len, view_tables(log.failures, failed_view, [EVENT_TIME]))),
        first=min((group["first"] for group in groups), default=None),
        last=max((group["last"] for group in groups), default=None),
        by_version=_rows_by("version", answered),
        by_variant=_rows_by("variant", answered),
        by_hour=_rows_by("hour", answered),
        files=len(files),
        size=sum(file.size for file in files),
        labels=LabelCounts(
            rows=sum(group["labelled"] for group in answered),
            names=labels.count,
            unmatched=labels.count - labels.matched if times is None else None,
        ),
        account=account,
        unreadable=dict(log.unreadable),
    )


def _rows_by(key: str, groups: Iterable[Mapping[str, Any]]) -> dict[Any, int]:
    """Return the number of rows by the key, in ascending order."""
    counter = Counter[Any]()
    for group in groups:
        counter[group[key]] += group["rows"]
    return dict(sorted(counter.items()))


def _group_rows(table: pa.Table) -> pa.Table:
    """Return the number of rows, of labelled rows and the event times of each hour,
    version and variant, with and without the shadow rows.
    """
    times = table.column(EVENT_TIME).cast(TIME, safe=False)
    variants = pa.nulls(len(table), pa.string())
    if "_variant" in table.column_names:
        variants = table.column("_variant")
    versions = table.column("_model"), table.column("_version"), " version "
    rows = {
        "hour": pc.floor_temporal(times, unit="hour"),
        "version": pc.fill_null(pc.binary_join_element_wise(*versions), "None"),
        "variant": pc.fill_null(variants, "None"),
        "shadow": pc.fill_null(table.column(SHADOW), False),
        "rows": pc.is_valid(times).cast(pa.int64()),
        "labelled": pc.is_valid(table.column(LABEL)).cast(pa.int64()),
        "first": times,
        "last": times,
    }
    totals = [("rows", "sum"), ("labelled", "sum"), ("first", "min"), ("last", "max")]
    groups = pa.table(rows).group_by(["hour", "version", "variant", "shadow"])
    return groups.aggregate(totals).rename_columns(list(rows))


def answers_by_version(
    log: InferenceLog,
    endpoint: str,
    times: TimeRange,
) -> list[VersionAnswers]:
    """Return the answers of each version in a time range, without shadow rows, in the
    order of the first answers. Raises OnnxserveError if the log is unreachable.
    """
    columns = (EVENT_TIME, RECEIVED_TIME, "_model", "_version", "_row")
    tables = view_tables(log, View(endpoint, times, labels=False), columns)
    parts = []
    for table in tables:
        # Files may lack the time of receipt.
        name = RECEIVED_TIME if RECEIVED_TIME in table.column_names else EVENT_TIME
        received = table.column(name)
        is_first = pc.equal(table.column("_row"), 0)
        answers = {
            "model": table.column("_model"),
            "version": table.column("_version"),
            "requests": is_first.cast(pa.int64()),
            "rows": pa.repeat(1, len(table)),
            "first": received,
            "last": received,
        }
        parts.append(_answer_totals(pa.table(answers)))
    if not parts:
        return []
    totals = _answer_totals(pa.concat_tables(parts)).sort_by("first")
    return [VersionAnswers(**row) for row in totals.to_pylist()]


def _answer_totals(table: pa.Table) -> pa.Table:
    """Return the totals of each version, with the same columns as the table."""
    totals = [("requests", "sum"), ("rows", "sum"), ("first", "min"), ("last", "max")]
    by_version = table.group_by(["model", "version"]).aggregate(totals)
    return by_version.rename_columns(table.column_names)


def failures_by_code(log: InferenceLog, endpoint: str, times: TimeRange) -> Counter[str]:
    """Return the number of captured requests without an answer by error code. Raises
    OnnxserveError if the log is unreachable.
    """
    counter = Counter[str]()
    view = View(endpoint, times, labels=False)
    for table in view_tables(log.failures, view, ["_error_code"]):
        for entry in pc.value_counts(table.column("_error_code")).to_pylist():
            counter[str(entry["values"])] += entry["counts"]
    return counter


def agent_counts(log: InferenceLog, endpoint: str) -> AgentCounts | None:
    """Return the sums over all agents of the endpoint, or None if no agent has written
    a watermark. The log is complete up to the earliest time of the running agents, or
    else up to the latest time of the ended agents.
    """
    with wrap_log_errors(log.location):
        marks = [mark for mark in read_watermarks(log.location) if endpoint in mark.endpoints]
    if log.since is not None:  # Ignore agents of an earlier endpoint of the same name.
        marks = [mark for mark in marks if not (mark.ended and mark.complete_until < log.since)]
    if not marks:
        return None
    return AgentCounts(
        answered=sum(mark.answered_rows.get(endpoint, 0) for mark in marks),
        captured=sum(mark.captured_rows.get(endpoint, 0) for mark in marks),
        dropped=sum(mark.dropped_rows.get(endpoint, 0) for mark in marks),
        shipped=sum(mark.shipped_rows.get(endpoint, 0) for mark in marks),
        complete_until=min(
            (mark.complete_until for mark in marks if not mark.ended),
            default=max(mark.complete_until for mark in marks),
        ),
    )


@dataclass(frozen=True)
class Watermark:
    """The last watermark of one agent. No count includes shadow rows.

    Attributes:
        agent: the agent's name, which is the same after a restart.
        endpoints: the endpoints that the agent's server serves, or has served.
        complete_until: every row that was answered before this time is in the log,
            unless it was dropped.
        ended: True if the server was shut down and all captured rows are in the log.
        captured_rows: answered rows that are in the log or being shipped. Rows excluded
            by the spec (`capture.fraction`, `capture.max_rows_per_request`) are not
            captured.
        dropped_rows: rows that should have been captured but were not, or that were
            lost before they reached the log.
        is_of_source: True if the rows are read from a source. While it is not read, its
            rows are still to come, and those of a silent server are not.
    """

    agent: str
    endpoints: tuple[str, ...]
    complete_until: AwareDatetime
    written_at: AwareDatetime
    ended: bool = False
    answered_rows: Mapping[str, int] = field(default_factory=dict)
    captured_rows: Mapping[str, int] = field(default_factory=dict)
    dropped_rows: Mapping[str, int] = field(default_factory=dict)
    shipped_rows: Mapping[str, int] = field(default_factory=dict)
    is_of_source: bool = False


_WATERMARK = TypeAdapter(Watermark)


def write_watermark(location: LogLocation, mark: Watermark) -> None:
    """Write the agent's watermark and replace the previous watermark. Raises OSError if
    the log cannot be written.
    """
    write_file(location, f"{WATERMARKS}/{mark.agent}.json", orjson.dumps(mark))


def read_watermarks(location: LogLocation) -> list[Watermark]:
    """Return all watermarks sorted by agent, without malformed files. Raises OSError if
    the log is unreachable.
    """
    marks = []
    for info in _watermark_files(location):
        with suppress(FileNotFoundError):  # Another process may delete the file.
            with location.filesystem.open_input_stream(info.path) as stream:
                content = stream.read()
            with suppress(ValidationError):
                marks.append(_WATERMARK.validate_json(content))
    return marks


def expire_watermarks(location: LogLocation, now: datetime) -> list[str]:
    """Delete watermarks after `GONE_AFTER` and return the agents' names; raise OSError
    if the log is unreachable.
    """
    expired = [
        info
        for info in _watermark_files(location)
        if info.mtime is not None and info.mtime + GONE_AFTER <= now
    ]
    for info in expired:
        with suppress(FileNotFoundError):
            location.filesystem.delete_file(info.path)
    return [PurePosixPath(info.path).stem for info in expired]


def _watermark_files(location: LogLocation) -> Iterator[fs.FileInfo]:
    """Yield the finished watermark files, sorted by path."""
    selector = fs.FileSelector(str(PurePosixPath(location.root, WATERMARKS)), allow_not_found=True)
    for info in sorted(
        location.filesystem.get_file_info(selector),
        key=lambda info: str(info.path),
    ):
        name = PurePosixPath(info.path).name
        if info.type == fs.FileType.File and name.endswith(".json") and not name.startswith("."):
            yield info
