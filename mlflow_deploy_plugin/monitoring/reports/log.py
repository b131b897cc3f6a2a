"""A judgement in MLflow: one run with the report, tags on the model version that lead to it."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.monitoring.judgement import Finding, Judgement
from mlflow_deploy_plugin.registry.runs import LoggedRun, experiment_named, log_figures, log_run
from mlflow_deploy_plugin.registry.tags import LONGEST_TAG, tag_version

VERDICT_TAG = "onnxserve.drift.{monitor}"
RUN_TAG = "onnxserve.drift.{monitor}.run"
_LONGEST_NAME = 200


def log_judgement(judgement: Judgement, files: Mapping[str, str | bytes]) -> LoggedRun:
    """Logs the run and tags the registered version with the verdict and the run.

    It is the run of the MLflow project that this process belongs to (`mlflow run . -e drift`), else one in the
    experiment `onnxserve/ENDPOINT`.

    Args:
        files: artifacts by name.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """

    def log_content(client: MlflowClient, run_id: str) -> None:
        log_figures(client, run_id, judgement.model_id, _metrics(judgement))
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content.encode() if isinstance(content, str) else content)
            client.log_artifacts(run_id, folder)

    run = log_run(
        "the experiment of the monitor's run",
        f"{judgement.monitor} {judgement.window}",
        _tags(judgement),
        lambda client: experiment_named(client, f"onnxserve/{judgement.endpoint}"),
        log_content,
    )
    _tag_version(judgement, run.url or run.run_id)
    return run


def _tags(judgement: Judgement) -> dict[str, str]:
    tags = {
        "onnxserve.endpoint": judgement.endpoint,
        "onnxserve.monitor": judgement.monitor,
        "onnxserve.kind": judgement.kind,
        "onnxserve.model": judgement.model,
        "onnxserve.version": judgement.version,
        "onnxserve.window.start": judgement.window.start.isoformat(),
        "onnxserve.window.end": judgement.window.end.isoformat(),
        "onnxserve.window.revision": str(judgement.revision),
        "onnxserve.verdict": judgement.state,
    }
    if judgement.reason:
        tags["onnxserve.reason"] = judgement.reason[:LONGEST_TAG]
    return tags


def _metrics(judgement: Judgement) -> Iterator[tuple[str, float]]:
    """Names and values: the figures, and of each finding what it was judged on."""
    taken: set[str] = set()
    named: list[tuple[str, Any]] = [("rows", judgement.rows), ("is_alarm", float(judgement.is_alarm))]
    named += judgement.figures.items()
    named += [(_finding_name(finding), finding.value) for finding in judgement.findings]
    for name, value in named:
        if value is not None and math.isfinite(value) and (unique := _metric_name(name)) not in taken:
            taken.add(unique)
            yield unique, float(value)


def _finding_name(finding: Finding) -> str:
    subject = f"{finding.subject}/{finding.segment}" if finding.segment else finding.subject
    return f"{finding.check}/{subject}"


def _metric_name(name: str) -> str:
    """The name as MLflow takes it: it refuses most punctuation, and what looks like a path."""
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    parts = [re.sub(r"^\.+|\.+$|\.\.+", "_", part).strip() or "_" for part in parts]
    return "/".join(parts)[:_LONGEST_NAME]


def _tag_version(judgement: Judgement, run: str) -> None:
    """Where the version is registered; what was served from a folder or a run has no page to be found from."""
    if not judgement.version.isdigit():
        return
    try:
        for tag, value in ((VERDICT_TAG, judgement.state), (RUN_TAG, run)):
            tag_version(judgement.model, judgement.version, tag.format(monitor=judgement.monitor), value)
    except NotFound:
        return  # deleted since it answered: the run stands
