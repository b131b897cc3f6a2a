"""The report of a verdict: JSON, an HTML page, the MLflow run that holds both, and the tags of the version."""

import html
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.gate.judge import EvaluationData
from mlflow_deploy_plugin.gate.verdict import CheckResult, GateVerdict, ReportTable
from mlflow_deploy_plugin.registry import (
    GATE_AGAINST_TAG,
    GATE_AT_TAG,
    GATE_POLICY_DIGEST_TAG,
    GATE_REASON_TAG,
    GATE_REPORT_TAG,
    GATE_TAG,
    MAX_TAG_LENGTH,
    LoggedRun,
    ResolvedModel,
    get_or_create_experiment,
    log_metrics,
    log_run,
    tag_version,
)

HTML, JSON = "gate_report.html", "gate.json"
_MAX_FIGURE = 1e300  # MLflow stores infinity as the largest number there is, which looks like a figure
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #666; --ok: #1a7f37; --bad: #cf222e; --skip: #8a6d00 }
@media (prefers-color-scheme: dark) { :root { --soft: #aaa; --ok: #3fb950; --bad: #ff7b72; --skip: #d29922 } }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1rem 1.25rem; max-width: 60rem }
h1 { font-size: 1.25rem; margin: 0 0 .25rem } p { margin: .25rem 0 .75rem }
.passed { color: var(--ok) } .failed { color: var(--bad) } .skipped { color: var(--skip) }
b.passed, b.failed, b.skipped { white-space: nowrap }
table { border-collapse: collapse; width: 100%; margin: .25rem 0 .5rem }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td:last-child { overflow-wrap: anywhere } td.n { font-variant-numeric: tabular-nums }
details { margin: .25rem 0 } summary { cursor: pointer } small, .note { color: var(--soft) }
pre { white-space: pre-wrap; font-size: 12px } svg { display: block; max-width: 100%; margin: .5rem 0 }
svg text { font: 11px system-ui, sans-serif; fill: currentColor }
"""


def verdict_as_json(verdict: GateVerdict) -> dict[str, Any]:
    """Return the verdict as a JSON document."""
    document = asdict(verdict)
    document["at"] = verdict.at.isoformat(timespec="seconds")
    return {"state": verdict.state, "reason": verdict.reason, **document}


def verdict_as_html(verdict: GateVerdict) -> str:
    """Return the verdict as a page that loads nothing from elsewhere: MLflow shows it in a sandboxed frame."""
    against = f"compared with {verdict.against}" if verdict.against else "nothing was served to compare it with"
    title = f"{verdict.model} version {verdict.version}"
    body = [
        f"<h1>{_text(title)}: <span class='{verdict.state}'>{verdict.state}</span></h1>",
        f"<p>{_text(against)}, {verdict.at.isoformat(timespec='seconds')}<br>"
        f"<small>policy: {_text(verdict.policy_from)} ({verdict.policy_digest})</small></p>",
        "<table><tr><th>check<th>verdict<th>why</tr>",
        *(
            f"<tr><td>{_text(check.name)}<td><b class='{check.state}'>{check.state}</b><td>{_text(check.reason)}</tr>"
            for check in verdict.checks
        ),
        "</table>",
        *(_section(check) for check in verdict.checks if check.figures or check.table or check.notes),
        f"<details><summary>Policy</summary><pre>{_text(_lines(verdict.policy))}</pre></details>",
    ]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{_text(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>"
    )


def _section(check: CheckResult) -> str:
    inner = [f"<p class='note'>{_text(note)}</p>" for note in check.notes]
    if {"difference", "margin"} <= check.figures.keys():
        inner.append(_interval(check.figures))
    if check.table is not None and check.table.lines:
        inner.append(_table(check.table))
    if check.figures:
        lines = tuple((name.replace("_", " "), f"{value:.6g}") for name, value in check.figures.items())
        inner.append(_table(ReportTable(("figure", "value"), lines)))
    opened = " open" if check.state == "failed" else ""
    return f"<details{opened}><summary>{_text(check.name.capitalize())}</summary>{''.join(inner)}</details>"


def _table(table: ReportTable) -> str:
    head = "".join(f"<th>{_text(name)}" for name in table.names)
    rows = "".join(f"<tr>{''.join(f'<td class=n>{_text(cell)}' for cell in line)}</tr>" for line in table.lines)
    return f"<table><tr>{head}</tr>{rows}</table>"


def _interval(figures: Mapping[str, float]) -> str:
    """Draw the difference with its bounds and the margin, a dashed line: right of it is good enough."""
    low, middle, high, margin = (
        figures[name] for name in ("difference_low", "difference", "difference_high", "margin")
    )
    values = [low, middle, high, -margin, 0.0]
    if not all(-1e300 < value < 1e300 for value in values):
        return ""
    span = (max(values) - min(values)) or 1.0
    start = min(values) - span * 0.1

    def x(value: float) -> float:
        return round(20 + (value - start) / (span * 1.2) * 560, 1)

    state = "passed" if low >= -margin else "failed"
    return (
        "<svg viewBox='0 0 600 62' width='600' role='img' aria-label='difference with its interval and the margin'>"
        f"<line x1='{x(0)}' x2='{x(0)}' y1='8' y2='42' stroke='currentColor' opacity='.4'/>"
        f"<text x='{x(0)}' y='56' text-anchor='middle'>as served</text>"
        f"<line x1='{x(-margin)}' x2='{x(-margin)}' y1='8' y2='42' stroke='currentColor' stroke-dasharray='4 3'/>"
        f"<text x='{x(-margin)}' y='8' text-anchor='middle'>margin</text>"
        f"<g class='{state}' stroke='currentColor' stroke-width='3'>"
        f"<line x1='{x(low)}' x2='{x(high)}' y1='26' y2='26'/>"
        f"<circle cx='{x(middle)}' cy='26' r='4' fill='currentColor'/></g></svg>"
    )


def _lines(policy: Mapping[str, Any], indent: str = "") -> str:
    lines: list[str] = []
    for name, value in policy.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", _lines(value, indent + "  ")]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
            lines.append(f"{indent}{name}: {'' if shown is None else shown}")
    return "\n".join(lines)


def _text(value: object) -> str:
    return html.escape(str(value))


def log_verdict(verdict: GateVerdict, candidate: ResolvedModel, evaluation: EvaluationData | None) -> LoggedRun:
    """Log to the run of the MLflow project that this process belongs to, else to a new one beside the model's run.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """

    def log_content(client: MlflowClient, run_id: str) -> None:
        log_metrics(client, run_id, candidate.aspects.get("model_id", ""), _metrics(verdict))
        client.log_text(run_id, verdict_as_html(verdict), HTML)
        client.log_dict(run_id, verdict_as_json(verdict), JSON)
        if evaluation is not None:
            _log_evaluation(run_id, evaluation)

    name = f"gate {verdict.model} v{verdict.version}"
    tags = {
        "onnxserve.model": verdict.model,
        "onnxserve.version": verdict.version,
        GATE_TAG: verdict.state,
        GATE_REASON_TAG: verdict.reason[:MAX_TAG_LENGTH],
        GATE_AGAINST_TAG: verdict.against,
        GATE_POLICY_DIGEST_TAG: verdict.policy_digest,
    }
    return log_run("the run of the gate", name, tags, partial(_experiment_id, candidate), log_content)


def report_location(run: LoggedRun) -> str:
    """Return the address of the report's page in MLflow, or of the artifact if the server has no pages."""
    return f"{run.url}/artifacts/{HTML}" if run.url else f"{run.run_id}/{HTML}"


def tag_verdict(verdict: GateVerdict, report: str) -> None:
    """Write the verdict on the version. The state is last: a reader who sees it finds the other tags.

    Raises:
        NotFound: the version is gone.
        RegistryUnavailable: MLflow does not answer.
    """
    tags = {
        GATE_REASON_TAG: verdict.reason,
        GATE_REPORT_TAG: report,
        GATE_AGAINST_TAG: verdict.against,
        GATE_AT_TAG: verdict.at.isoformat(timespec="seconds"),
        GATE_POLICY_DIGEST_TAG: verdict.policy_digest,
        GATE_TAG: verdict.state,
    }
    for key, value in tags.items():
        tag_version(verdict.model, verdict.version, key, value)


def _experiment_id(candidate: ResolvedModel, client: MlflowClient) -> str:
    """Return the experiment of the model's run if this tracking server has it, else one of the model's own."""
    try:
        if run_id := candidate.aspects.get("run_id"):
            return str(client.get_run(run_id).info.experiment_id)
        if model_id := candidate.aspects.get("model_id"):
            return str(client.get_logged_model(model_id).experiment_id)
    except MlflowException:
        pass  # the model comes from another tracking server, or its run was deleted
    return get_or_create_experiment(client, f"onnxserve/{candidate.name}")


def _metrics(verdict: GateVerdict) -> Iterator[tuple[str, float]]:
    yield "gate_passed", float(verdict.passed)
    for check in verdict.checks:
        for name, value in check.figures.items():
            if abs(value) < _MAX_FIGURE:  # nor NaN
                yield f"{check.name}/{name}", value


def _log_evaluation(run_id: str, evaluation: EvaluationData) -> None:
    """Log MLflow's own evaluation of both versions' predictions, with its metrics and plots.

    It decides nothing: it knows no margin, no interval and no pair of models. The run does without it if MLflow cannot
    take the predictions.
    """
    sides = {"candidate": evaluation.candidate, "current": evaluation.current}
    logger = logging.getLogger("mlflow.models.evaluation")
    level = logger.level
    with mlflow.start_run(run_id=run_id, nested=mlflow.active_run() is not None):
        for side, predictions in sides.items():
            if predictions is None or predictions.prediction.ndim > 1:
                continue
            kind = "classifier" if predictions.is_label else "regressor"
            table = pd.DataFrame({"target": evaluation.truth, "prediction": predictions.prediction})
            logger.setLevel(logging.ERROR)  # its steps would stand between the lines of a command
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about the types of a schema that is not used
                    mlflow.models.evaluate(
                        data=mlflow.data.from_pandas(
                            table, name=evaluation.dataset[-200:], targets="target", predictions="prediction"
                        ),
                        model_type=kind,
                        evaluators=kind,
                        evaluator_config={"metric_prefix": f"mlflow_{side}_", "log_model_explainability": False},
                    )
            except Exception as error:  # noqa: BLE001 - scikit-learn, matplotlib and pandas each have their own
                mlflow.set_tag(f"onnxserve.gate.evaluate.{side}", f"mlflow.models.evaluate: {error}"[:MAX_TAG_LENGTH])
            finally:
                logger.setLevel(level)
