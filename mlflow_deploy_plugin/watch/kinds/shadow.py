"""Shadows: the share of rows on which a shadow variant, whose predictions are not
returned to clients, disagrees with the answers. Shadow rows have the ids of the
answered rows and are compared by `serve/runtime/shadow_compare.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.core.errors import InferenceError, Refused
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.scan import is_answered_by
from mlflow_deploy_plugin.serve.inference_log.tables import (
    captured_outputs,
    combine_hashes,
    concat_tables,
    count_versions,
    describe_answers,
    hash_texts,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.shadow_compare import compare_outputs
from mlflow_deploy_plugin.watch.drift.sketches.columns import OWN_PREFIX
from mlflow_deploy_plugin.watch.history import with_history
from mlflow_deploy_plugin.watch.result import Finding, ModelVersion, MonitorResult, WindowRequest
from mlflow_deploy_plugin.watch.segments import find_segments
from mlflow_deploy_plugin.watch.statistics.intervals import (
    MetricInterval,
    Sampling,
    bonferroni_confidence,
    criterion_finding,
    event_sampling,
    overall_state,
    share_interval,
)
from mlflow_deploy_plugin.watch.statistics.predictions import unreadable_notes, version_artifact

MAX_ROWS = 100_000
_NOT_COMPARED = -1
_SAME = 1
_OTHER = 0


@dataclass(frozen=True, eq=False)
class _ShadowRows:
    """Paired rows of a shadow and the `answered` rows, [N], of the same requests.
    `same`, [N] int8, is 1 for equal, 0 for different, and -1 for incomparable answers.
    `copies` is the number of shadow rows that were read.
    """

    answered: pa.Table
    same: Array
    version: ModelVersion
    failures: tuple[str, ...]
    copies: int

    @property
    def comparable(self) -> Array:
        return self.same >= 0

    def disagreement(self, rows: Array, sampling: Sampling) -> MetricInterval:
        """Return the share of comparable `rows`, [N] bool, on which the shadow gave a
        different answer.
        """
        return share_interval("disagreement", self.same[rows] == _OTHER, sampling.of(rows))

    def figures(self, variant: str, answered: int, sampling: Sampling) -> dict[str, float]:
        count = int(self.comparable.sum())
        figures = {
            f"compared_rows/{variant}": float(count),
            f"copied_share/{variant}": self.copies / answered,
        }
        if count:
            measured = self.disagreement(self.comparable, sampling)
            figures |= {f"{name}/{variant}": value for name, value in measured.figures.items()}
        return figures


def judge(request: WindowRequest) -> MonitorResult:
    """Judge the share of rows on which each shadow variant disagrees with the
    answers.
    """
    spec = request.spec
    answered, shadows, notes = _read(request)
    if answered is None:
        return request.result("not judged", "the window has no rows", notes=notes)
    version = next(iter(count_versions(answered)))
    if not shadows:
        reason = "no shadow has computed a row in the window"
        return request.result("not judged", reason, version, len(answered), notes=notes)
    artifact_of = cache(partial(version_artifact, request))
    compared = {
        variant: _compare(answered, rows, artifact_of, request.capture.mask)
        for variant, rows in shadows.items()
    }
    parts: dict[str, list[tuple[str, Array]]] = {}
    segment_notes: list[str] = []
    for variant, shadow in compared.items():
        segments, left_out = find_segments(
            shadow.answered,
            spec.segment_by,
            spec.min_rows,
            shadow.comparable,
        )
        parts[variant] = [("", np.ones(len(shadow.same), bool)), *segments]
        segment_notes += [note for note in left_out if note not in segment_notes]
    intervals = len(spec.requirements) * sum(len(rows) for rows in parts.values())
    confidence = bonferroni_confidence(request.requirement_rate, intervals)
    findings: list[Finding] = []
    figures: dict[str, float] = {}
    for variant, shadow in compared.items():
        notes += [
            (
                f"shadow {variant}: {shadow.version[0]} version {shadow.version[1]}, "
                f"{int(shadow.comparable.sum()):,} of {len(answered):,} answered rows compared"
            ),
            *shadow.failures,
        ]
        sampling = event_sampling(request, shadow.answered, confidence)
        figures |= shadow.figures(variant, len(answered), sampling)
        findings += _findings(spec, variant, shadow, parts[variant], sampling, len(compared) == 1)
    for requirement in spec.requirements:
        if requirement.argument and requirement.argument not in compared:
            reason = (
                f"shadow {requirement.argument!r} has computed no row in the window; "
                f"the shadows are {', '.join(compared)}"
            )
            findings.append(criterion_finding(requirement, Refused(reason), confidence))
    notes += segment_notes
    findings = with_history(request, findings)
    return request.result(
        *overall_state(findings),
        version,
        len(answered),
        findings=findings,
        figures=figures,
        notes=notes,
    )


def _read(request: WindowRequest) -> tuple[pa.Table | None, dict[str, pa.Table], list[str]]:
    """Return the answered rows, and for each shadow variant its rows of the same
    requests; about `MAX_ROWS` rows each. If there are more rows, the same prediction
    ids are kept for answers and shadows, by the hash of the id.
    """
    limit = 2**64 - 1
    segment_by = request.spec.segment_by
    prefixes = (OWN_PREFIX, PREDICTION, OUTPUT_PREFIX)
    tables: list[pa.Table] = []
    hashes: list[Array] = []
    held = total = 0
    for batch in request.log.batches(request.endpoint, request.window, shadows=True):
        needed = [
            name for name in batch.column_names if name in segment_by or name.startswith(prefixes)
        ]
        batch = batch.select(needed)
        batch_hashes = hash_texts(batch.column("_prediction_id"))
        total += len(batch)
        is_sampled = batch_hashes <= np.uint64(limit)
        tables.append(batch.filter(pa.array(is_sampled)))
        hashes.append(batch_hashes[is_sampled])
        held += int(is_sampled.sum())
        while held > 2 * MAX_ROWS:
            limit //= 2
            for index, numbers in enumerate(hashes):
                is_sampled = numbers <= np.uint64(limit)
                tables[index], hashes[index] = (
                    tables[index].filter(pa.array(is_sampled)),
                    numbers[is_sampled],
                )
            held = sum(map(len, hashes))
    notes = list(unreadable_notes(request.log))
    if limit < 2**64 - 1:
        notes.append(
            f"{held:,} of {total:,} rows, including shadow rows, are compared, sampled by "
            "prediction id",
        )
    if not held:
        return None, {}, notes
    table = concat_tables(tables)
    is_shadow = pc.fill_null(table.column("_shadow"), False)
    answered = table.filter(pc.invert(is_shadow))
    computed = table.filter(is_shadow)
    if not len(answered):
        return None, {}, notes
    variants = sorted(
        name for name in pc.unique(computed.column("_variant")).to_pylist() if name is not None
    )
    return (
        answered,
        {name: computed.filter(pc.equal(computed.column("_variant"), name)) for name in variants},
        notes,
    )


def _compare(
    answered: pa.Table,
    computed: pa.Table,
    artifact_of: Callable[[str, str], Artifact | None],
    masked: Sequence[str],
) -> _ShadowRows:
    """Compare the row pairs of each combination of versions separately, because the
    outputs differ per version.
    """
    keys = _keys(answered)
    shadow_keys = _keys(computed)
    _, ours, theirs = np.intersect1d(keys, shadow_keys, return_indices=True)
    order = np.argsort(ours)
    left = answered.take(pa.array(ours[order]))
    right = computed.take(pa.array(theirs[order]))
    same = np.full(len(left), _NOT_COMPARED, np.int8)
    failures = []
    for answered_version in count_versions(left):
        for shadow_version in count_versions(right):
            rows = np.flatnonzero(
                is_answered_by(left, *answered_version) & is_answered_by(right, *shadow_version),
            )
            if not len(rows):
                continue
            sides = left.take(pa.array(rows)), right.take(pa.array(rows))
            try:
                artifact = describe_answers(artifact_of(*answered_version), sides[0], masked)
                shadow = describe_answers(artifact_of(*shadow_version), sides[1], masked)
                outputs = captured_outputs(artifact, sides[0], masked)
                outcome = compare_outputs(
                    artifact,
                    outputs,
                    shadow,
                    captured_outputs(shadow, sides[1], masked),
                )
                same[rows] = np.where(outcome.same, _SAME, _OTHER)
            except InferenceError as error:
                failures.append(
                    f"{len(rows):,} rows of {answered_version[0]} version {answered_version[1]} "
                    f"and its shadow: {error.message}",
                )
    return _ShadowRows(
        left,
        same,
        next(iter(count_versions(computed))),
        tuple(failures),
        len(computed),
    )


def _keys(table: pa.Table) -> Array:
    """Return a key of each row, [N] uint64: the hash of prediction id and row
    number.
    """
    return combine_hashes(
        hash_texts(table.column("_prediction_id")),
        table.column("_row").to_numpy().astype(np.uint64),
    )


def _findings(
    spec: MonitorSpec,
    variant: str,
    compared: _ShadowRows,
    parts: list[tuple[str, Array]],
    sampling: Sampling,
    is_only: bool,
) -> Iterator[Finding]:
    for requirement in spec.requirements:
        if requirement.argument not in ("", variant):
            continue
        for segment, rows in parts:
            is_compared = rows & compared.comparable
            if (count := int(is_compared.sum())) < spec.min_rows:
                measured: MetricInterval | Refused = Refused(
                    f"{count:,} rows can be compared; min_rows is {spec.min_rows}",
                )
            else:
                measured = compared.disagreement(is_compared, sampling)
            item = criterion_finding(requirement, measured, sampling.confidence, segment)
            yield (
                item
                if is_only or requirement.argument
                else replace(item, subject=f"{item.subject}({variant})")
            )
