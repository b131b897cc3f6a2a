"""What stands in the log of an endpoint, and whether anything is missing from it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.label_join import LABEL, EndpointLabels
from mlflow_deploy_plugin.inference_log.matching import LabelMatches
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.scan import SHADOW, microseconds_of
from mlflow_deploy_plugin.inference_log.span import TimeRange
from mlflow_deploy_plugin.inference_log.storage import wrap_log_errors
from mlflow_deploy_plugin.inference_log.view import View, require_endpoint, view_tables
from mlflow_deploy_plugin.inference_log.watermarks import read_watermarks
from mlflow_deploy_plugin.inference_log.windows import EPOCH, HOUR_US
from mlflow_deploy_plugin.runtime import EVENT_TIME


@dataclass(frozen=True)
class LabelCounts:
    """Labels that are in.

    Attributes:
        rows: rows of the span that have one.
        names: what labels call their rows: prediction ids, rows of them, keys; each once, however often corrected.
        unmatched: those of them that no row of the whole log has; None where a part of it was looked at.
    """

    rows: int = 0
    names: int = 0
    unmatched: int | None = None


@dataclass(frozen=True)
class AgentCounts:
    """Rows by what the agents say of all their time (`watermarks.py`); those of shadows are in none of them."""

    answered: int
    captured: int
    dropped: int
    shipped: int
    complete_until: datetime

    def gone(self, rows: int) -> int:
        """Rows that were shipped and are not among the `rows` of the log now: they have expired, or somebody has
        deleted them."""
        return max(0, self.shipped - rows)


@dataclass(frozen=True)
class LogStats:
    """The log of one endpoint.

    Attributes:
        rows: of the span, each once, without those of shadows.
        failed_rows: of requests that got no answer, which are in none of the other counts.
        first, last: event times of rows, those of shadows too; None where there are none.
        by_version: rows by "MODEL version N"; by_variant likewise; by_hour by the hour's start.
        files, size: of the whole log, size in bytes.
        account: None where no agent has said anything of the endpoint.
        unreadable: files that make no sense and are in none of the counts, and why.
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


def log_stats(log: InferenceLog, endpoint: str, span: TimeRange | None = None) -> LogStats:
    """Counts the rows of an endpoint; with a span, those of it.

    Raises:
        NotFound: nothing is known of the endpoint; the message names those that have rows.
        OnnxserveError: the log is down.
    """
    account = _agent_counts(log, endpoint)
    if account is None and endpoint not in log.failures.endpoints():  # of which all rows may be lost
        require_endpoint(log, endpoint)
    files = [file for files in log.all_files(endpoint).values() for file in files]
    labels = EndpointLabels(log.location, endpoint, log.unreadable)
    names = LabelMatches()
    for batch in labels.batches():
        names.add(batch)
    tally = _RowCounts(names)
    view = View(endpoint, span or TimeRange(), shadows=True)
    for table in view_tables(log, view, [EVENT_TIME, "_model", "_version", "_variant", SHADOW, LABEL], labels):
        tally.add(table)
    return LogStats(
        endpoint=endpoint,
        rows=sum(tally.by_version.values()),
        shadow_rows=tally.shadow_rows,
        failed_rows=_failed_rows(log, endpoint, view.span),
        first=tally.first,
        last=tally.last,
        by_version=dict(sorted(tally.by_version.items())),
        by_variant=dict(sorted(tally.by_variant.items())),
        by_hour=dict(sorted(tally.by_hour.items())),
        files=len(files),
        size=sum(file.size for file in files),
        labels=LabelCounts(tally.labelled, names.count, names.count - names.matched if span is None else None),
        account=account,
        unreadable=dict(log.unreadable),
    )


@dataclass
class _RowCounts:
    """Counts that grow."""

    names: LabelMatches
    by_version: Counter[str] = field(default_factory=Counter)
    by_variant: Counter[str] = field(default_factory=Counter)
    by_hour: Counter[datetime] = field(default_factory=Counter)
    shadow_rows: int = 0
    labelled: int = 0
    first: datetime | None = None
    last: datetime | None = None

    def add(self, table: pa.Table) -> None:
        self.names.mark(table)
        times = microseconds_of(table.column(EVENT_TIME))
        if len(times):
            first, last = (EPOCH + timedelta(microseconds=int(time)) for time in (times.min(), times.max()))
            self.first = min(self.first or first, first)
            self.last = max(self.last or last, last)
        is_shadow = np.asarray(pc.fill_null(table.column(SHADOW), False))
        self.shadow_rows += int(is_shadow.sum())
        answered = table.filter(pa.array(~is_shadow))
        self.labelled += len(answered) - answered.column(LABEL).null_count
        hours, counts = np.unique(times[~is_shadow] // HOUR_US, return_counts=True)
        for hour, count in zip(hours.tolist(), counts.tolist(), strict=True):
            self.by_hour[EPOCH + timedelta(hours=hour)] += count
        versions = pc.binary_join_element_wise(answered.column("_model"), answered.column("_version"), " version ")
        for counter, column in ((self.by_version, versions), (self.by_variant, _column(answered, "_variant"))):
            for entry in pc.value_counts(column).to_pylist():
                counter[str(entry["values"])] += entry["counts"]


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table.column(name) if name in table.column_names else pa.chunked_array([pa.nulls(len(table), pa.string())])


def _failed_rows(log: InferenceLog, endpoint: str, span: TimeRange) -> int:
    return sum(map(len, view_tables(log.failures, View(endpoint, span, labels=False), [EVENT_TIME])))


def _agent_counts(log: InferenceLog, endpoint: str) -> AgentCounts | None:
    with wrap_log_errors(log.location):
        marks = [mark for mark in read_watermarks(log.location) if endpoint in mark.endpoints]
    if log.since is not None:  # the agents of an earlier endpoint of the name had ended by then
        marks = [mark for mark in marks if not (mark.ended and mark.complete_until < log.since)]
    if not marks:
        return None
    return AgentCounts(
        answered=sum(mark.answered_rows.get(endpoint, 0) for mark in marks),
        captured=sum(mark.captured_rows.get(endpoint, 0) for mark in marks),
        dropped=sum(mark.dropped_rows.get(endpoint, 0) for mark in marks),
        shipped=sum(mark.shipped_rows.get(endpoint, 0) for mark in marks),
        complete_until=min(
            (mark.complete_until for mark in marks if not mark.ended), default=max(m.complete_until for m in marks)
        ),
    )
