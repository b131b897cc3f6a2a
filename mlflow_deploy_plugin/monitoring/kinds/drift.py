"""Data drift: does the window differ from the reference more than the reference's own windows differ from it?"""

from collections.abc import Iterator

from mlflow_deploy_plugin.errors import InvalidArtifact, NotFound
from mlflow_deploy_plugin.inference_log.reader import WindowRows
from mlflow_deploy_plugin.monitoring.features import align, read_features
from mlflow_deploy_plugin.monitoring.judgement import Evidence, Finding, Judged, Judgement
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.monitoring.reference import load_reference
from mlflow_deploy_plugin.monitoring.verdict import Verdict
from mlflow_deploy_plugin.monitoring.verdict import judge as judge_pairs


def judge(question: Question) -> Judged:
    """Compares every column of the window with the reference of the version that answered most of it.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    spec, window = question.spec, question.window
    rows = question.log.read(question.endpoint, window)
    if rows is None:
        return question.not_judged("the window has no rows")
    notes = _notes(rows)
    try:
        reference = load_reference(question.state_dir, rows.model, rows.version)
    except (InvalidArtifact, NotFound) as error:
        return question.not_judged(
            error.message, model=rows.model, version=rows.version, rows=rows.rows, notes=tuple(notes)
        )
    reference_features, reference_notes = read_features(reference.table)
    pairs, missing_notes = align(reference_features, read_features(rows.table)[0])
    verdict = judge_pairs(
        pairs,
        reference.times,
        window.start_us,
        window.end_us - window.start_us,
        spec.min_rows,
        spec.false_alarm_rate,
    )
    judgement = Judgement(
        endpoint=question.endpoint,
        monitor=question.monitor,
        kind=spec.kind,
        model=rows.model,
        version=rows.version,
        model_id=reference.model_id,
        window=window,
        revision=question.revision,
        state=verdict.state,
        reason=verdict.reason,
        rows=verdict.rows,
        findings=tuple(_findings(verdict)),
        figures=dict(_figures(verdict)),
        notes=(*notes, *reference_notes, *missing_notes),
    )
    return Judged(judgement, Evidence(pairs))


def _notes(rows: WindowRows) -> list[str]:
    notes = [
        f"{count:,} rows of the window were answered by {other} and are left out"
        for other, count in rows.other_versions.items()
    ]
    if rows.is_sampled:
        notes.append(f"the window has about {rows.rows:,} rows, of which {len(rows.table):,} are judged")
    return notes


def _findings(verdict: Verdict) -> Iterator[Finding]:
    for feature in verdict.features:
        yield Finding(
            subject=feature.name,
            check="distribution",
            state="drift" if feature.is_drifted else "no drift",
            value=feature.score,
            threshold=verdict.threshold,
        )


def _figures(verdict: Verdict) -> Iterator[tuple[str, float]]:
    yield "rows", verdict.rows
    yield "reference_rows", verdict.reference_rows
    if verdict.threshold is None or verdict.statistic is None or verdict.p_value is None:
        return
    yield "is_drift", float(verdict.state == "drift")
    yield "share_of_drifted_columns", verdict.share_of_drifted_features
    yield "p_value", verdict.p_value
    yield "statistic", verdict.statistic
    yield "threshold", verdict.threshold
    yield "blocks", verdict.blocks
    yield "compared_rows", verdict.compared_rows
    yield "false_alarm_rate", verdict.false_alarm_rate
    if verdict.measured_false_alarm_rate is not None:
        yield "measured_false_alarm_rate", verdict.measured_false_alarm_rate
    for feature in verdict.features:
        yield f"drift_score/{feature.name}", feature.score
        yield f"drift_distance/{feature.name}", feature.distance
        yield f"missing/{feature.name}", feature.missing
        yield f"reference_missing/{feature.name}", feature.reference_missing
