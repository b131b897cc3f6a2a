"""Runs the checks of a policy on one version, beside what is served now."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.errors import CodeRefused, InferenceError, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.gate.checks.artifact import check_parity, check_signature
from mlflow_deploy_plugin.gate.checks.budget import check_budget
from mlflow_deploy_plugin.gate.checks.evaluation import check_evaluation
from mlflow_deploy_plugin.gate.checks.robustness import LabelledMetric, check_robustness
from mlflow_deploy_plugin.gate.dataset import (
    Dataset,
    NamedArrays,
    cast_to_signature,
    count_rows,
    load_dataset,
    reference_rows,
    require_mlflow_artifact,
    sample_positions,
    take_rows,
)
from mlflow_deploy_plugin.gate.measure import MeasuredCost, measure_costs
from mlflow_deploy_plugin.gate.metrics import default_metric, weighted_metric
from mlflow_deploy_plugin.gate.model import LoadedModel, Predictions, downloaded_version, load_version
from mlflow_deploy_plugin.gate.policy import ALL_PERMISSIONS, GatePolicy, Permissions
from mlflow_deploy_plugin.gate.verdict import CheckResult, GateVerdict
from mlflow_deploy_plugin.registry import ResolvedModel
from mlflow_deploy_plugin.runtime import Array, Artifact, numpy_dtype

ProgressCallback = Callable[[str], None]

_NOTHING_SERVED = "nothing is served that it could be compared with"
_NO_ROWS = "there are no rows: the policy names no dataset, and no reference lies beside the model"


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """Labelled rows and what was answered to them, for MLflow's own evaluation."""

    dataset: str
    truth: Array
    candidate: Predictions
    current: Predictions | None


@dataclass(eq=False)
class _Context:
    """What the checks look at; a check that failed to get something leaves it empty for the next."""

    policy: GatePolicy
    progress: ProgressCallback
    folder: Path
    candidate: LoadedModel
    current_folder: Path | None = None
    current: LoadedModel | None = None
    dataset: Dataset | None = None
    answers: Predictions | None = None
    evaluated: EvaluationData | None = None
    notes: list[str] = field(default_factory=list)


def judge(
    candidate: ResolvedModel,
    current: ResolvedModel | None,
    policy: GatePolicy,
    policy_from: str,
    progress: ProgressCallback = lambda line: None,
    allowed: Permissions = ALL_PERMISSIONS,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> tuple[GateVerdict, EvaluationData | None]:
    """The verdict on a version; whatever is wrong with the version or with the policy's dataset is a failed check.

    Args:
        current: what is served now; None: nothing.
        allowed: what may be done here for it.

    Raises:
        CodeRefused: one has no ONNX form, and its code may not run.
        InvalidConfig: the dataset of the policy may not be read.
        NotFound: the files of the version are gone.
        RegistryUnavailable: MLflow does not answer.
    """
    if not allowed.files and "evaluation" not in policy.skip:
        require_mlflow_artifact(policy.evaluation.dataset)
    with ExitStack() as folders:
        progress(f"fetching version {candidate.version}{f' and version {current.version}' if current else ''}")
        folder = folders.enter_context(downloaded_version(candidate))
        checks: tuple[CheckResult, ...]
        evaluated = None
        try:
            bench = _Context(policy, progress, folder, load_version(folder, allowed.code))
        except (RegistryUnavailable, CodeRefused):
            raise
        except OnnxserveError as error:
            checks = (CheckResult("load", "failed", error.message),)
        else:
            _bring(bench, current, folders, allowed)
            checks = tuple(_run(bench))
            evaluated = bench.evaluated
    return (
        GateVerdict(
            model=candidate.name,
            version=candidate.version,
            against=current.source if current else "",
            at=clock(),
            checks=checks,
            policy=policy.model_dump(mode="json"),
            policy_digest=policy.digest,
            policy_from=policy_from,
        ),
        evaluated,
    )


def _bring(bench: _Context, current: ResolvedModel | None, folders: ExitStack, allowed: Permissions) -> None:
    """Loads what is served; where that is broken, the new version is judged without."""
    if current is None:
        return
    try:
        bench.current_folder = folders.enter_context(downloaded_version(current))
        bench.current = load_version(bench.current_folder, allowed.code)
    except (RegistryUnavailable, CodeRefused):
        raise
    except OnnxserveError as error:
        bench.current_folder = None
        bench.notes.append(f"version {current.version}, which is served, cannot be loaded: {error.message}")


def _run(bench: _Context) -> Iterator[CheckResult]:
    yield check_parity(bench.candidate.artifact, bench.policy)
    steps = {"signature": _signature, "evaluation": _evaluation, "robustness": _robustness, "budget": _budget}
    for name, step in steps.items():
        if name in bench.policy.skip:
            yield CheckResult(name, "skipped", "the policy skips it")
            continue
        bench.progress(f"checking {name}")
        try:
            result = step(bench)
        except RegistryUnavailable:
            raise
        except OnnxserveError as error:
            result = CheckResult(name, "failed", error.message)
        if bench.notes:
            result = CheckResult(
                result.name, result.state, result.reason, result.figures, (*bench.notes, *result.notes), result.table
            )
            bench.notes.clear()
        yield result


def _signature(bench: _Context) -> CheckResult:
    if bench.current is None:
        return CheckResult("signature", "skipped", _NOTHING_SERVED)
    return check_signature(bench.candidate.artifact, bench.current.artifact)


def _evaluation(bench: _Context) -> CheckResult:
    policy = bench.policy.evaluation
    if not policy.dataset:
        return CheckResult("evaluation", "skipped", "the policy names no dataset")
    dataset = load_dataset(policy, bench.candidate.artifact, bench.policy.seed)
    assert dataset.truth is not None
    answers = bench.candidate.predict(dataset.rows)
    bench.dataset, bench.answers = dataset, answers
    current = None
    if bench.current is not None:
        try:
            current = bench.current.predict(cast_to_signature(bench.current.artifact, dataset.rows))
        except OnnxserveError as error:
            reason = f"what is served cannot answer the dataset's rows: {error.message}"
            return CheckResult("evaluation", "failed", reason)
    bench.evaluated = EvaluationData(dataset.name, dataset.truth, answers, current)
    return check_evaluation(dataset.truth, answers, current, policy, bench.policy.seed)


def _robustness(bench: _Context) -> CheckResult:
    policy, seed = bench.policy.robustness, bench.policy.seed
    dataset = _rows(bench, policy.max_rows)
    if dataset is None:
        return CheckResult("robustness", "skipped", _NO_ROWS)
    picked = sample_positions(count_rows(dataset.rows), policy.max_rows, seed)
    labelled = None
    if dataset.truth is not None and bench.answers is not None:
        truth = dataset.truth[picked]
        metric = bench.policy.evaluation.metric or default_metric(dataset.truth, bench.answers)
        labelled = LabelledMetric(metric, lambda answers: weighted_metric(metric, truth, answers))
    rows, served = take_rows(dataset.rows, picked), None
    if bench.current is not None:
        served = bench.current, _own_columns(bench.current.artifact, rows)
    return check_robustness(
        bench.candidate, _own_columns(bench.candidate.artifact, rows), policy, seed, labelled, served
    )


def _budget(bench: _Context) -> CheckResult:
    policy = bench.policy.budget
    dataset = _rows(bench, policy.batch)
    rows = dataset.rows if dataset is not None else _blank(bench.candidate.artifact)
    if not rows:
        return CheckResult("budget", "skipped", _NO_ROWS)
    current: MeasuredCost | None = None
    if bench.current_folder is not None:
        try:
            candidate, current = measure_costs([bench.folder, bench.current_folder], rows, policy.batch)
            return check_budget(candidate, current, policy)
        except InferenceError as error:
            bench.notes.append(f"not measured beside what is served: {error.message}")
    (candidate,) = measure_costs([bench.folder], rows, policy.batch)
    return check_budget(candidate, None, policy)


def _rows(bench: _Context, most: int) -> Dataset | None:
    """The labelled rows, else the reference of the new version, else that of what is served."""
    if bench.dataset is not None:
        return bench.dataset
    found = reference_rows(bench.candidate.artifact, most, bench.policy.seed)
    if found is None and bench.current is not None:
        found = reference_rows(bench.current.artifact, most, bench.policy.seed)
    return found


def _own_columns(artifact: Artifact, rows: NamedArrays) -> NamedArrays:
    """The columns or tensors that the model takes, of those that are there, in its types, whose ends no disturbance may
    leave; all where its signature names none."""
    names = {field.name for field in artifact.columns or artifact.tensors}
    own = {name: values for name, values in rows.items() if name in names or not any(names)}
    return cast_to_signature(artifact, own)


def _blank(artifact: Artifact) -> NamedArrays:
    """A row of zeros and empty texts: enough to measure what it costs, where no real one is known."""
    rows: NamedArrays = {}
    for entry in artifact.inputs:
        dtype = numpy_dtype(entry.dtype)
        blank = "" if dtype.kind == "O" else 0
        if entry.columns:
            rows |= {name: np.full(1, blank, dtype=dtype) for name in entry.columns}
        else:
            rows[entry.name] = np.full((1, *(max(size, 1) for size in entry.shape[1:])), blank, dtype=dtype)
    return rows
