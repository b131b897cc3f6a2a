"""Lays a window beside the reference of the version that answered it: what drift and data quality are judged from.

The verdict is of all rows of the window, from sketches; rows themselves are read only for the report, and no more than
a bounded sample of them, chosen by their hashes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.errors import InvalidArtifact, InvalidConfig, NotFound
from mlflow_deploy_plugin.inference_log.columns import concat_tables
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.drift.references import DriftReference, load_reference
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import ColumnValues, pair_columns, read_columns
from mlflow_deploy_plugin.monitoring.drift.sketches.hourly import (
    SketchStore,
    window_profile,
    window_versions,
)
from mlflow_deploy_plugin.monitoring.drift.sketches.parquet import profile_to_parquet
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.monitoring.drift.sketches.spark import spark_session, spark_window_profile
from mlflow_deploy_plugin.monitoring.drift.verdict import DriftVerdict, SegmentProfiles, judge_profile
from mlflow_deploy_plugin.monitoring.kinds.notes import unreadable_notes
from mlflow_deploy_plugin.monitoring.kinds.segment_sketches import segment_profiles
from mlflow_deploy_plugin.monitoring.kinds.versions import ModelVersion
from mlflow_deploy_plugin.monitoring.kinds.withheld import (
    excluded_columns,
    profile_without,
    reference_without,
)
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.result import Finding, Judged, ReportData, State

SKETCHES = "sketches.parquet"
_CACHE = "nulls"
_SHOWN_ROWS = 5_000
READ_ROWS = 100_000
"""Of a window with more rows, the report shows those of some hours."""
_SEED = 0


@dataclass(frozen=True, eq=False)
class WindowComparison:
    """A window and what it is compared with.

    Attributes:
        reference: None where there is none that can be had; `why_none` says why.
        profile: of all rows that the version answered in the window.
        parts: of the segments, by their names.
        withheld: columns that are on neither side, since the log does not hold them as they were; and why.
    """

    request: WindowRequest
    version: ModelVersion
    reference: DriftReference | None
    missing_reason: str
    profile: Profile
    parts: Mapping[str, SegmentProfiles]
    notes: tuple[str, ...]
    withheld: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Every column of either side."""
        known = {*self.profile.columns, *self.withheld}
        if self.reference is not None:
            known |= {*self.reference.bins, *self.reference.pieces.total.columns}
        return sorted(known)

    def judge(self, columns: tuple[str, ...]) -> DriftVerdict:
        """The verdict on some columns; empty: on all. Without a reference it is not judged."""
        request = self.request
        if self.reference is None:
            rate = request.spec.false_alarm_rate
            return DriftVerdict(
                "not judged", self.profile.rows, 0, rate, self.missing_reason, findings=self._without(columns)
            )
        request.progress(f"comparing {self.profile.rows:,} rows with the reference's own windows")
        verdict = judge_profile(
            self.reference,
            self.profile,
            request.window.start_us,
            request.spec.model_copy(update={"columns": columns}),
            request.settings.cache_path / _CACHE,
            self.parts,
        )
        return replace(verdict, findings=(*verdict.findings, *self._of_withheld(columns)))

    def judged(self, state: State, reason: str, verdict: DriftVerdict, findings: tuple[Finding, ...]) -> Judged:
        """The judgement with the evidence for its report."""
        request, (model, version) = self.request, self.version
        notes = (*self.notes, *(self.reference.notes if self.reference else ()), *verdict.notes)
        result = request.result(
            state,
            reason,
            model=model,
            version=version,
            model_id=self.reference.model_id if self.reference else "",
            rows=self.profile.rows,
            findings=findings,
            figures=verdict.figures,
            notes=tuple(dict.fromkeys((*notes, *unreadable_notes(request.log)))),
        )
        subjects = {finding.subject for finding in findings}
        artifacts = {SKETCHES: profile_to_parquet(self.profile)}
        return Judged(result, ReportData(self._pairs(subjects) if state != "not judged" else (), artifacts))

    def _without(self, columns: tuple[str, ...]) -> tuple[Finding, ...]:
        return tuple(
            Finding(name, "distribution", "not judged", self.missing_reason)
            for name in self.names
            if not columns or name in columns
        )

    def _of_withheld(self, columns: tuple[str, ...]) -> tuple[Finding, ...]:
        return tuple(
            Finding(name, "distribution", "not judged", reason)
            for name, reason in self.withheld.items()
            if not columns or name in columns
        )

    def _pairs(self, subjects: set[str]) -> list[tuple[ColumnValues, ColumnValues]]:
        """Rows for the report: of the version, in the columns that were judged."""
        rows = list(self._shown_rows())
        if not rows or self.reference is None:
            return []
        ours = read_columns(_some(self.reference.sample))[0]
        theirs = read_columns(concat_tables(rows))[0]
        return [pair for pair in pair_columns(ours, theirs)[0] if pair[0].name in subjects]

    def _shown_rows(self) -> Iterator[pa.Table]:
        """At most about `_SHOWN_ROWS`: of a large window those of some of its hours, so that it need not be read."""
        request = self.request
        parts = _some_hours(request, self.profile.rows) if self.profile.rows > READ_ROWS else [request.window]
        for part in parts:
            rows = request.log.read(request.endpoint, part, math.ceil(_SHOWN_ROWS / len(parts)))
            if rows is not None and (rows.model, rows.version) == self.version:
                yield rows.table


def _some_hours(request: WindowRequest, rows: int) -> list[Window]:
    """So many of the window's hours that they have about `READ_ROWS` rows; always the same ones."""
    window = request.window
    hours = request.log.hours(request.endpoint, window)
    count = math.ceil(len(hours) * READ_ROWS / rows)
    chosen = np.sort(np.random.default_rng(_SEED).choice(len(hours), min(count, len(hours)), replace=False))
    picked = [hours[place] for place in chosen]
    return [Window(max(hour.start, window.start), min(hour.end, window.end)) for hour in picked]


def compare_window(request: WindowRequest) -> WindowComparison | Judged:
    """The comparison, or why there is nothing to compare.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    log, window = request.log, request.window
    versions = window_versions(log, request.endpoint, window)
    if not versions:
        return request.not_judged("the window has no rows", notes=tuple(unreadable_notes(log)))
    version, *others = versions
    notes = [
        f"{versions[other]:,} rows of the window were answered by {other[0]} version {other[1]} and are left out"
        for other in others
    ]
    reference, why_none = None, ""
    request.progress(f"reading the reference, {request.spec.reference}")
    try:
        reference = load_reference(request, *version)
    except (InvalidArtifact, InvalidConfig, NotFound) as error:
        why_none = error.message
    bins, key = (reference.bins, reference.bins_key) if reference else ({}, "none")
    request.progress(f"reading {versions[version]:,} rows of the window")
    profile = _profile(request, *version, bins, key)
    hidden = excluded_columns(
        request.capture, {*bins, *profile.columns, *(reference.pieces.total.columns if reference else ())}
    )
    profile = profile_without(profile, hidden)
    if reference is not None:
        reference = reference_without(reference, hidden)
    parts: Mapping[str, SegmentProfiles] = {}
    if reference is not None and request.spec.segment_by:
        parts, part_notes = segment_profiles(request, version, reference)
        notes += part_notes
    return WindowComparison(request, version, reference, why_none, profile, parts, tuple(notes), hidden)


def _profile(request: WindowRequest, model: str, version: str, bins: Mapping[str, Bins], key: str) -> Profile:
    """Of the window's rows, by the engine that was asked for."""
    sketches = SketchStore(request.log, request.endpoint, bins, key)
    if request.engine == "spark":
        return spark_window_profile(spark_session(), sketches, model, version, request.window)
    return window_profile(sketches, model, version, request.window)


def _some(table: pa.Table) -> pa.Table:
    """At most `_SHOWN_ROWS` of its rows, in their order."""
    if len(table) <= _SHOWN_ROWS:
        return table
    chosen = np.random.default_rng(_SEED).choice(len(table), _SHOWN_ROWS, replace=False)
    return table.take(pa.array(np.sort(chosen)))
