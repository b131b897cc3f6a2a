"""Service level: latencies and failures of requests, compared with an objective and its
error budget.

A requirement on a quantile is judged by a share: p99<=0.2 is met if at most 1 % of the
requests took longer than 0.2 s, by Wilson's interval of that share. The remaining error
budget is 1 - share / permitted share.

`flagged` is the share of the answered rows that a guard has flagged. Latencies are
measured for answered requests. Errors are 5xx responses; 4xx responses are counted
separately. Failed requests are in a log without model columns
(`InferenceLog.failures`), so they belong to no segment.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import GUARD
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import Requirement
from mlflow_deploy_plugin.serve.inference_log.tables import count_versions, most_first
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.columns import OWN_PREFIX
from mlflow_deploy_plugin.watch.history import with_history
from mlflow_deploy_plugin.watch.result import Finding, ModelVersion, MonitorResult, WindowRequest
from mlflow_deploy_plugin.watch.segments import largest_values, segment_name, texts_of
from mlflow_deploy_plugin.watch.statistics.intervals import (
    MetricInterval,
    bonferroni_confidence,
    criterion_finding,
    criterion_state,
    overall_state,
    wilson_interval,
)
from mlflow_deploy_plugin.watch.statistics.predictions import as_numbers, unreadable_notes

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_COLUMNS = ("_latency_us", "_status", "_row", "_model", "_version", GUARD)
_SERVER_ERROR = 500
_GROWTH = math.log(1.005)
_BUCKETS = 5_000
"""The number of latency buckets of 0.5 % width, from a microsecond to 18 hours."""
_MAX_VALUES = 1_000


@dataclass
class _RequestCounts:
    """Counts of requests in bounded memory.

    Attributes:
        limits_us: the longest permitted latency of each requirement, [R]; infinity for
            any other requirement.
        has_failures: True if failed requests are included in the counts.
        guarded: the number of answered rows that a guard has checked; it has flagged
            `flagged` of these rows.
        slow: the number of answers that took longer than each limit, [R].
    """

    limits_us: Array
    has_failures: bool = True
    requests: int = 0
    timed: int = 0
    errors: int = 0
    refused: int = 0
    guarded: int = 0
    flagged: int = 0
    buckets: Array = field(default_factory=lambda: np.zeros(_BUCKETS, np.int64))
    slow: Array = field(init=False)

    def __post_init__(self) -> None:
        self.slow = np.zeros(len(self.limits_us), np.int64)

    def add_answers(self, latencies: Array) -> None:
        """Count answered requests. `latencies` is [N] float64 in microseconds, NaN if
        unknown.
        """
        timed = latencies[~np.isnan(latencies)]
        self.requests += len(latencies)
        self.timed += len(timed)
        buckets = np.round(np.log(np.maximum(timed, 1.0)) / _GROWTH).astype(np.int64)
        self.buckets += np.bincount(
            np.minimum(buckets, _BUCKETS - 1),
            minlength=_BUCKETS,
        )
        self.slow += (timed[:, None] > self.limits_us).sum(axis=0)

    def add_failures(self, statuses: Array) -> None:
        """Count failed requests by HTTP status, [N] float64."""
        self.requests += len(statuses)
        self.errors += int((statuses >= _SERVER_ERROR).sum())
        self.refused += int((statuses < _SERVER_ERROR).sum())

    def quantile(self, share: float) -> float:
        """Return the quantile in seconds, accurate to 0.25 %. At least one request must
        have a latency.
        """
        rank = math.ceil(share * self.timed)
        bucket = int(np.searchsorted(np.cumsum(self.buckets), rank))
        return math.exp(bucket * _GROWTH) / 1e6

    def figures(self, requirements: tuple[Requirement, ...]) -> Iterator[tuple[str, float]]:
        """Yield the name and the value of each figure: the rates of failed requests,
        the latencies, and for each requirement the share of permitted slow or failed
        requests that is left. Without a latency, no figure about latencies is returned.
        """
        error_rate = self.errors / self.requests
        yield "error_rate", error_rate
        yield "refused_rate", self.refused / self.requests
        if self.timed:
            for name, share in QUANTILES.items():
                yield name, self.quantile(share)
        for requirement, slow_answers in zip(requirements, self.slow.tolist(), strict=True):
            figure = f"budget_left/{requirement.name}"
            if requirement.name in QUANTILES:
                if self.timed:
                    permitted = 1 - QUANTILES[requirement.name]
                    yield figure, 1 - slow_answers / self.timed / permitted
            elif requirement.name == "error_rate" and requirement.value:
                yield figure, 1 - error_rate / requirement.value


def judge(request: WindowRequest) -> MonitorResult:
    """Judge all requests of the endpoint whose rows are in the log, for all versions
    together.
    """
    spec = request.spec
    counted = _count_requests(request)
    total = counted.total
    notes = [*unreadable_notes(request.log)]
    if not total.requests:
        return request.result("not judged", "the window has no rows", notes=notes)
    notes += counted.notes(spec.segment_by)
    version = next(iter(most_first(counted.versions)))
    if total.requests < spec.min_rows:
        reason = f"the window has {total.requests} requests; min_rows is {spec.min_rows}"
        return request.result("not judged", reason, version, total.requests, notes=notes)
    parts, segment_notes = counted.largest(spec.min_rows)
    confidence = bonferroni_confidence(
        request.requirement_rate,
        len(spec.requirements) * len(parts),
    )
    findings: list[Finding] = []
    for segment, counts in parts.items():
        findings += _judge_requirements(spec.requirements, counts, confidence, segment)
    findings = with_history(request, findings)
    return request.result(
        *overall_state(findings),
        version,
        total.requests,
        findings=findings,
        figures=dict(total.figures(spec.requirements)),
        notes=(*notes, *segment_notes),
    )


@dataclass
class _CountedRequests:
    """Counts of all requests, of the segments by column and value, and the number of
    answers per version.
    """

    total: _RequestCounts
    by_column: dict[str, dict[str, _RequestCounts]] = field(default_factory=dict)
    versions: dict[ModelVersion, int] = field(default_factory=dict)
    is_full: bool = False

    def add_answers(self, requests: pa.Table, columns: Sequence[str]) -> None:
        """Count answered requests, also in the segments of the `columns`."""
        for version, count in count_versions(requests).items():
            self.versions[version] = self.versions.get(version, 0) + count
        latencies = as_numbers(requests, "_latency_us")
        for counts, rows in self.parts(requests, columns):
            counts.add_answers(latencies[rows])

    def add_failures(self, requests: pa.Table, columns: Sequence[str]) -> None:
        """Count failed requests, also in the segments of the `columns`. They are not
        answers of a version.
        """
        for version in count_versions(requests):
            self.versions.setdefault(version, 0)
        statuses = as_numbers(requests, "_status")
        for counts, rows in self.parts(requests, columns):
            counts.add_failures(statuses[rows])

    def parts(
        self,
        requests: pa.Table,
        columns: Sequence[str],
    ) -> Iterator[tuple[_RequestCounts, Array]]:
        """Yield all counts to which some of the requests belong, each with the indices
        of these requests.
        """
        yield self.total, np.arange(len(requests))
        for column in columns:
            texts = texts_of(requests, column)
            if texts is None:
                continue
            by_value = self.by_column.setdefault(column, {})
            encoded = texts.dictionary_encode()
            codes = np.asarray(pc.fill_null(encoded.indices, -1))
            order = np.argsort(codes, kind="stable")
            bounds = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
            # The first part has the missing values, which are left out.
            parts = np.split(order, bounds)
            for value, rows in zip(encoded.dictionary.to_pylist(), parts[1:], strict=False):
                if value not in by_value and len(by_value) >= _MAX_VALUES:
                    self.is_full = True
                    continue
                new_counts = _RequestCounts(
                    self.total.limits_us,
                    has_failures=column.startswith(OWN_PREFIX),
                )
                yield by_value.setdefault(value, new_counts), rows

    def notes(self, segment_by: Collection[str]) -> Iterator[str]:
        """Yield notes on missing columns, on values that were not counted, and on
        several versions.
        """
        for column in sorted({*segment_by} - {*self.by_column}):
            yield f"segments: the rows have no column {column!r}"
        if self.is_full:
            yield f"segments: only the first {_MAX_VALUES:,} values of a column were counted"
        if len(self.versions) > 1:
            yield f"{len(self.versions)} versions answered in the window and are judged together"

    def largest(self, min_rows: int) -> tuple[dict[str, _RequestCounts], list[str]]:
        """Return all requests (segment "") and the largest segments with enough
        requests, and notes on skipped values.
        """
        segments = {"": self.total}
        notes: list[str] = []
        for column, by_value in self.by_column.items():
            counts = {value: value_counts.requests for value, value_counts in by_value.items()}
            values, left_out = largest_values(counts, column, min_rows)
            notes += left_out
            segments |= {segment_name(column, value): by_value[value] for value in values}
        return segments, notes


def _count_requests(request: WindowRequest) -> _CountedRequests:
    """Count the answered and the failed requests in the window, in total and per
    segment.
    """
    # Any other requirement permits any latency.
    limits = [
        requirement.value * 1e6 if requirement.name in QUANTILES else math.inf
        for requirement in request.spec.requirements
    ]
    counted = _CountedRequests(_RequestCounts(np.array(limits)))
    columns = request.spec.segment_by
    needed = (*_COLUMNS, *columns)
    for batch in request.log.batches(request.endpoint, request.window, needed):
        if GUARD in batch.column_names:
            lengths = pc.utf8_length(batch.column(GUARD)).fill_null(-1).to_numpy()
            for counts, rows in counted.parts(batch, columns):
                counts.guarded += int(np.count_nonzero(lengths[rows] >= 0))
                counts.flagged += int(np.count_nonzero(lengths[rows] > 0))
        # All rows of a request have the same latency.
        counted.add_answers(
            batch.filter(pc.equal(batch.column("_row"), 0)),
            columns,
        )
    own_columns = [name for name in columns if name.startswith(OWN_PREFIX)]
    for batch in request.log.failures.batches(request.endpoint, request.window, needed):
        counted.add_failures(batch, own_columns)
    return counted


def _judge_requirements(
    requirements: tuple[Requirement, ...],
    counts: _RequestCounts,
    confidence: float,
    segment: str,
) -> Iterator[Finding]:
    """Yield a finding for each requirement."""
    for requirement, slow_answers in zip(requirements, counts.slow.tolist(), strict=True):
        if requirement.name == "flagged":
            flagged: MetricInterval | Refused = _NO_GUARD
            if counts.guarded:
                flagged = wilson_interval("flagged", counts.flagged, counts.guarded, confidence)
            yield criterion_finding(requirement, flagged, confidence, segment)
        elif requirement.name not in QUANTILES:
            measured = wilson_interval("error_rate", counts.errors, counts.requests, confidence)
            metric = measured if counts.has_failures else _NO_COLUMNS
            yield criterion_finding(requirement, metric, confidence, segment)
        elif not counts.timed:
            yield criterion_finding(requirement, _NO_ANSWER, confidence, segment)
        else:
            quantile = QUANTILES[requirement.name]
            permitted = 1 - quantile
            share = wilson_interval(requirement.name, slow_answers, counts.timed, confidence)
            reason = (
                f"{share.value:.2%} of {counts.timed:,} answers took longer than "
                f"{requirement.value:g} s, {share.low:.2%} to {share.high:.2%} ({share.method}, "
                f"confidence {confidence:.4g}); the limit is {permitted:.2%}"
            )
            yield Finding(
                requirement.name,
                check="criterion",
                state=criterion_state(share.low <= permitted, share.high <= permitted),
                reason=reason,
                value=counts.quantile(quantile),
                threshold=requirement.value,
                segment=segment,
                unit="s",
            )


_NO_GUARD = Refused("no answered row was checked by a guard of its version")
_NO_ANSWER = Refused("no answered request has a latency")
_NO_COLUMNS = Refused(
    "failed requests do not have the model's columns, so they cannot be assigned to segments",
)
