"""Shadows: the share of rows on which a shadow variant, whose predictions are not
returned to clients, disagrees with the answers. Shadow rows have the ids of the
answered rows and are compared by `serve/runtime/shadow_compare.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain, product
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION, TRIED
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
_LARGEST_HASH = 2**64 - 1
_NOT_COMPARED = -1
_OTHER = 0


@dataclass(frozen=True, eq=False)
class _ShadowRows:
    """Paired rows of a shadow variant and of the answers to the same requests.

    Attributes:
        answered: the answered rows, [N].
        same: [N] int8, 1 for equal, 0 for different, and -1 for incomparable answers.
        failures: a note for each combination of versions that cannot be compared.
        copies: the number of shadow rows that were read.
        segments: all rows (segment "") and the segments, with a mask of their rows,
            [N] bool.
    """

    variant: str
    version: ModelVersion
    answered: pa.Table
    same: Array
    failures: Sequence[str]
    copies: int
    segments: Sequence[tuple[str, Array]]
    segment_notes: Sequence[str]

    @property
    def comparable(self) -> Array:
        return self.same >= 0

    def disagreement(self, rows: Array, sampling: Sampling) -> MetricInterval:
        """Return the share of comparable `rows`, [N] bool, on which the shadow gave a
        different answer.
        """
        return share_interval("disagreement", self.same[rows] == _OTHER, sampling.of(rows))

    def figures(self, answered: int, sampling: Sampling) -> dict[str, float]:
        """Return the number of compared rows, the copied share of the `answered` rows,
        and the disagreement if any rows were compared.
        """
        count = int(self.comparable.sum())
        figures = {
            f"compared_rows/{self.variant}": float(count),
            f"copied_share/{self.variant}": self.copies / answered,
        }
        if count:
            measured = self.disagreement(self.comparable, sampling)
            for name, value in measured.figures.items():
                figures[f"{name}/{self.variant}"] = value
        return figures

    def describe(self, answered: int) -> str:
        model, version = self.version
        return (
            f"shadow {self.variant}: {model} version {version}, {int(self.comparable.sum()):,} of "
            f"{answered:,} answered rows compared"
        )


def judge(request: WindowRequest) -> MonitorResult:
    """Judge the share of rows on which each shadow variant disagrees with the
    answers.
    """
    captured = _read_captured(request)
    answered = captured.answered
    notes = captured.notes
    if answered is None:
        return request.result("not judged", "the window has no rows", notes=notes)
    if not captured.by_variant:
        version = next(iter(count_versions(answered)))
        reason = "no shadow has computed a row in the window"
        return request.result("not judged", reason, version, len(answered), notes=notes)
    artifact_of = cache(partial(version_artifact, request))
    compared = [
        _compare(request, answered, variant, rows, artifact_of)
        for variant, rows in captured.by_variant.items()
    ]
    return _judge_variants(request, answered, compared, notes)


def _judge_variants(
    request: WindowRequest,
    answered: pa.Table,
    compared: Sequence[_ShadowRows],
    notes: Sequence[str],
) -> MonitorResult:
    """Return the result of the window: the findings, figures and notes of all variants
    together. The confidence of the intervals is shared by all requirements, variants
    and segments.
    """
    parts = sum(len(shadow.segments) for shadow in compared)
    confidence = bonferroni_confidence(
        request.requirement_rate,
        len(request.spec.requirements) * parts,
    )
    findings: list[Finding] = []
    figures: dict[str, float] = {}
    all_notes = [*notes]
    is_only = len(compared) == 1
    for shadow in compared:
        all_notes += [shadow.describe(len(answered)), *shadow.failures]
        sampling = event_sampling(request, shadow.answered, confidence)
        figures |= shadow.figures(len(answered), sampling)
        findings += _judge_variant(request.spec, shadow, sampling, is_only)
    variants = [shadow.variant for shadow in compared]
    for requirement in request.spec.requirements:
        if requirement.argument not in ("", *variants):
            absent = Refused(
                f"shadow {requirement.argument!r} has computed no row in the window; the shadows "
                f"are {', '.join(variants)}",
            )
            findings.append(criterion_finding(requirement, absent, confidence))
    all_notes += dict.fromkeys(chain.from_iterable(shadow.segment_notes for shadow in compared))
    findings = with_history(request, findings)
    return request.result(
        *overall_state(findings),
        next(iter(count_versions(answered))),
        len(answered),
        findings=findings,
        figures=figures,
        notes=all_notes,
    )


@dataclass
class _SampledRows:
    """About `MAX_ROWS` rows: those whose prediction id has a hash of at most `limit`.

    Attributes:
        parts: the sampled rows with the hashes of their prediction ids, [N] uint64.
        count: the number of sampled rows.
        total: the number of rows among which the sample selects.
    """

    parts: list[tuple[pa.Table, Array]] = field(default_factory=list)
    limit: int = _LARGEST_HASH
    count: int = 0
    total: int = 0

    def add(self, rows: pa.Table) -> None:
        """Add the sampled ones of these rows. While there are too many, halve the
        sample.
        """
        part = self._select(rows, hash_texts(rows.column("_prediction_id")))
        self.parts.append(part)
        self.count += len(part[0])
        self.total += len(rows)
        while self.count > 2 * MAX_ROWS:
            self.limit //= 2
            for index, part in enumerate(self.parts):
                self.parts[index] = self._select(*part)
            self.count = sum(len(sampled) for sampled, _ in self.parts)

    def _select(
        self,
        rows: pa.Table,
        hashes: Array,
    ) -> tuple[pa.Table, Array]:
        """Return the rows with a hash of at most `limit`, and their hashes."""
        is_sampled = hashes <= np.uint64(self.limit)
        return rows.filter(pa.array(is_sampled)), hashes[is_sampled]


class _CapturedRows(NamedTuple):
    """The sampled rows of a window.

    Attributes:
        answered: the answered rows; None if the window has no answered row.
        by_variant: the rows of each shadow variant.
    """

    answered: pa.Table | None
    by_variant: dict[str, pa.Table]
    notes: list[str]


def _read_captured(request: WindowRequest) -> _CapturedRows:
    """Return the answered rows, and for each shadow variant its rows of the same
    requests; about `MAX_ROWS` rows each. If there are more rows, the same prediction
    ids are kept for answers and shadows, by the hash of the id.
    """
    # The sample has the columns that the comparison and the segments need.
    sample = _SampledRows()
    for batch in request.log.batches(request.endpoint, request.window, left_out=[TRIED]):
        sample.add(
            batch.select(
                [
                    name
                    for name in batch.column_names
                    if name in request.spec.segment_by
                    or name.startswith((OWN_PREFIX, PREDICTION, OUTPUT_PREFIX))
                ]
            )
        )
    notes = list(unreadable_notes(request.log))
    if sample.limit < _LARGEST_HASH:
        notes.append(
            f"{sample.count:,} of {sample.total:,} rows, including shadow rows, are compared, "
            "sampled by prediction id",
        )
    if not sample.count:
        return _CapturedRows(None, {}, notes)
    table = concat_tables([rows for rows, _ in sample.parts])
    is_shadow = pc.fill_null(table.column("_shadow"), False)
    answered = table.filter(pc.invert(is_shadow))
    if not len(answered):
        return _CapturedRows(None, {}, notes)
    computed = table.filter(is_shadow)
    variants = computed.column("_variant")
    by_variant = {
        name: computed.filter(pc.equal(variants, name))
        for name in sorted(pc.unique(variants.drop_null()).to_pylist())
    }
    return _CapturedRows(answered, by_variant, notes)


def _compare(
    request: WindowRequest,
    answered: pa.Table,
    variant: str,
    computed: pa.Table,
    artifact_of: Callable[[str, str], Artifact | None],
) -> _ShadowRows:
    """Compare the row pairs of each combination of versions separately, because the
    outputs differ per version.

    Args:
        computed: the rows of the shadow variant.
        artifact_of: returns the artifact of a model and version; None if it cannot be
            read.
    """
    # The rows of a pair have the same key. They are in the order of the answers.
    _, ours, theirs = np.intersect1d(_keys(answered), _keys(computed), return_indices=True)
    order = np.argsort(ours)
    left = answered.take(pa.array(ours[order]))
    right = computed.take(pa.array(theirs[order]))
    same = np.full(len(left), _NOT_COMPARED, np.int8)
    failures = []
    for version, shadow_version in product(count_versions(left), count_versions(right)):
        rows = np.flatnonzero(
            is_answered_by(left, *version) & is_answered_by(right, *shadow_version),
        )
        if not len(rows):
            continue
        pair = left.take(pa.array(rows)), right.take(pa.array(rows))
        artifacts = artifact_of(*version), artifact_of(*shadow_version)
        try:
            same[rows] = _are_same(pair, artifacts, request.capture.mask)
        except InferenceError as error:
            shadowed = " version ".join(version)
            failures.append(f"{len(rows):,} rows of {shadowed} and its shadow: {error.message}")
    segments, segment_notes = find_segments(left, request.spec, same != _NOT_COMPARED)
    return _ShadowRows(
        variant=variant,
        version=next(iter(count_versions(computed))),
        answered=left,
        same=same,
        failures=failures,
        copies=len(computed),
        segments=[
            ("", np.ones(len(same), bool)),
            *segments,
        ],
        segment_notes=segment_notes,
    )


def _are_same(
    pair: Sequence[pa.Table],
    artifacts: Sequence[Artifact | None],
    masked: Sequence[str],
) -> Array:
    """Return a mask, [N] bool: True if the answer and the shadow's answer are equal."""
    described = [
        describe_answers(artifact, rows, masked)
        for artifact, rows in zip(artifacts, pair, strict=True)
    ]
    ours, theirs = (
        captured_outputs(artifact, rows, masked)
        for artifact, rows in zip(described, pair, strict=True)
    )
    return compare_outputs(described[0], ours, described[1], theirs).same


def _keys(table: pa.Table) -> Array:
    """Return a key of each row, [N] uint64: the hash of prediction id and row
    number.
    """
    return combine_hashes(
        hash_texts(table.column("_prediction_id")),
        table.column("_row").to_numpy().astype(np.uint64),
    )


def _judge_variant(
    spec: MonitorSpec,
    shadow: _ShadowRows,
    sampling: Sampling,
    is_only: bool,
) -> Iterator[Finding]:
    """Yield a finding for each requirement on the variant and each segment. The subject
    contains the variant, unless it is the only one or the requirement specifies it.
    """
    for requirement in spec.requirements:
        if requirement.argument not in ("", shadow.variant):
            continue
        for segment, rows in shadow.segments:
            is_compared = rows & shadow.comparable
            count = int(is_compared.sum())
            if count < spec.min_rows:
                measured: MetricInterval | Refused = Refused(
                    f"{count:,} rows can be compared; min_rows is {spec.min_rows}",
                )
            else:
                measured = shadow.disagreement(is_compared, sampling)
            item = criterion_finding(requirement, measured, sampling.confidence, segment)
            if not (is_only or requirement.argument):
                item = replace(item, subject=f"{item.subject}({shadow.variant})")
            yield item
