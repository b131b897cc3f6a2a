"""A back-test: a candidate predicts captured rows, and its predictions are compared with the captured answers. Memory
holds the replayed rows."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.errors import (
    InferenceError,
    InvalidArtifact,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    Refused,
)
from mlflow_deploy_plugin.evaluation import LoadedOnnx, MetricName, NamedArrays, downloaded_version, metrics, take_rows
from mlflow_deploy_plugin.evaluation.dataset import own_columns
from mlflow_deploy_plugin.evaluation.model import LoadedModel, ModelPredictions, predictions_of
from mlflow_deploy_plugin.inference_log import Sample, TimeRange, View
from mlflow_deploy_plugin.inference_log.labels import LABEL, LABEL_NUMBER, join_labels
from mlflow_deploy_plugin.inference_log.reader import require_endpoint, view_tables
from mlflow_deploy_plugin.inference_log.tables import IDENTITY, captured_outputs, count_versions, describe_answers
from mlflow_deploy_plugin.messages import one_line, without_row_number
from mlflow_deploy_plugin.registry import resolve
from mlflow_deploy_plugin.registry.model_uri import served_version_uri
from mlflow_deploy_plugin.replay.traffic import Traffic, arrays_of
from mlflow_deploy_plugin.runtime import Artifact, compare_outputs, read_served_artifact
from mlflow_deploy_plugin.runtime.feeds import Array, row_count
from mlflow_deploy_plugin.runtime.log_columns import PREDICTION

_CHUNK, _SHOWN = 2_000, 5
_NEEDED = {*IDENTITY, "_prediction_id", "_model", "_version", "_received_time", "_latency_us"}


@dataclass(frozen=True)
class NotedRow:
    """The first of `rows` captured rows with a text: the reason of a refusal, or two different answers."""

    prediction_id: str
    row: int
    text: str
    rows: int = 1


@dataclass(frozen=True)
class BacktestReport:
    """A candidate's answers to captured rows, compared with the captured answers.

    Attributes:
        captured_rows, rows: the number of rows in the time range, and of the replayed rows.
        versions: the number of accepted rows by served version.
        disagreement: the share of accepted rows with different answers, by `runtime/shadow_compare.py`.
        mean_difference, max_difference: of the largest finite difference of each row's numbers; NaN without numbers.
        refused: one row per reason for which the candidate refuses rows, the most frequent reason first.
        candidate_row_us: microseconds per row in batches, without a server.
        served_request_us: the median of the server's microseconds per request with its queues; NaN if not captured.
        comparison: the metric of the labelled rows; `current` is the metric of the captured answers.
        disagreeing: the rows with the largest differences.
    """

    captured_rows: int
    rows: int
    versions: dict[str, int]
    disagreement: float
    mean_difference: float
    max_difference: float
    refused_rows: int
    refused: list[NotedRow]
    candidate_row_us: float
    served_request_us: float
    labelled_rows: int
    comparison: metrics.MetricComparison | Refused
    disagreeing: list[NotedRow]


def backtest(
    traffic: Traffic,
    times: TimeRange,
    candidate: LoadedModel,
    shown: str,
    max_rows: int = 100_000,
    metric: MetricName | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> BacktestReport:
    """Predict at most `max_rows` captured rows of the time range with the candidate, which messages call `shown`.

    The metric is accuracy for labels and rmse for numbers by default. Raises NotFound without rows, InvalidConfig if
    the log lacks columns of the candidate, if the answers have another type or if no row is accepted, and
    OnnxserveError if the log or MLflow is unavailable.
    """
    table, captured = _read_sample(traffic, times, candidate.artifact, shown, max_rows)
    refused: dict[str, NotedRow] = {}
    parts: list[tuple[pa.Table, NamedArrays]] = []
    begun = time.perf_counter()
    for start in range(0, len(table), _CHUNK):
        parts += _accepted_parts(candidate, table.slice(start, _CHUNK), refused)
        if not parts:
            raise InvalidConfig(
                f"{shown} refuses the first {sum(noted.rows for noted in refused.values()):,} rows of endpoint "
                f"{traffic.endpoint!r}, so its signature may be another one: {next(iter(refused))}"
            )
    seconds = time.perf_counter() - begun
    accepted, outputs = pa.concat_tables([part for part, _ in parts]), _concatenated([arrays for _, arrays in parts])
    artifact = candidate.artifact
    if not isinstance(candidate, LoadedOnnx):  # The files of a pyfunc may name its output differently.
        artifact = describe_answers(None, pa.table({PREDICTION: list(outputs[PREDICTION])}), ())
    versions, first = count_versions(accepted), 0
    compared: list[tuple[Array, Array, ModelPredictions]] = []
    for version, rows in sorted(versions.items()):  # `_read_sample` has sorted the rows by version.
        part, predicted = accepted.slice(first, rows), take_rows(outputs, slice(first, first + rows))
        compared.append(_compare(artifact, predicted, traffic, part, version, shown))
        first += rows
    sames, amounts, answers = zip(*compared, strict=True)
    same, differences = np.concatenate(sames), np.concatenate(amounts)
    sides = predictions_of(artifact, outputs), _joined(answers)
    known = differences[np.isfinite(differences)]
    labels = accepted.column(LABEL if sides[0].prediction.dtype.kind == "O" else LABEL_NUMBER)
    labelled = np.flatnonzero(np.asarray(pc.is_valid(labels)))
    comparison: metrics.MetricComparison | Refused = Refused("no replayed row has a label that fits the answers")
    if len(labelled):
        truth = labels.take(pa.array(labelled)).to_numpy()
        metric = metric or metrics.default_metric(truth, sides[0])
        try:
            left, right = (metrics.weighted_metric(metric, truth, side.take(labelled)) for side in sides)
            comparison = metrics.paired_bootstrap(metric, left, right, len(truth), confidence, resamples, seed)
        except InvalidConfig as error:
            comparison = Refused(error.message)
    latencies = table.filter(pc.equal(table.column("_row"), 0)).column("_latency_us").drop_null()
    sizes = np.where(same, -1.0, np.nan_to_num(differences, nan=np.inf))
    worst = np.argsort(-sizes, kind="stable")[: min(_SHOWN, int((~same).sum()))].tolist()
    texts = [[one_line(side.prediction[row], 80) for side in sides] for row in worst]
    return BacktestReport(
        captured_rows=captured,
        rows=len(table),
        versions={f"{model} version {version}": rows for (model, version), rows in versions.items()},
        disagreement=1 - float(same.mean()),
        mean_difference=float(known.mean()) if len(known) else math.nan,
        max_difference=float(known.max()) if len(known) else math.nan,
        refused_rows=len(table) - len(accepted),
        refused=sorted(refused.values(), key=lambda noted: -noted.rows)[:_SHOWN],
        candidate_row_us=seconds / len(table) * 1e6,
        served_request_us=float(np.median(latencies)) if len(latencies) else math.nan,
        labelled_rows=len(labelled),
        comparison=comparison,
        disagreeing=[
            _noted(accepted, row, f"candidate {ours}, served {theirs}")
            for row, (ours, theirs) in zip(worst, texts, strict=True)
        ],
    )


def _read_sample(
    traffic: Traffic, times: TimeRange, artifact: Artifact, shown: str, max_rows: int
) -> tuple[pa.Table, int]:
    """Return a sample of the rows with labels, sorted by the version that answered, and the number of all rows."""
    log, view = traffic.log, View(traffic.endpoint, times, labels=False)
    labels, sample, rows = log.labels(traffic.endpoint), Sample(max_rows), 0
    names = [name for name in log.schema(view).names if not name.startswith("_")]
    for table in view_tables(log, view, {*_NEEDED, *labels.key_columns, *names}):
        traffic.require(shown, artifact, filter(None, _fields(artifact)), table.column_names)
        rows += len(table)
        sample.add(table)
    if not rows:
        require_endpoint(log, traffic.endpoint)
        raise NotFound(
            f"endpoint {traffic.endpoint!r} has no rows in {times.window or 'the time range'}: choose a window in the "
            f"range that `onnxserve log stats {traffic.endpoint}` shows"
        )
    by_version = [("_model", "ascending"), ("_version", "ascending")]
    return join_labels(sample.table(), labels).sort_by(by_version), rows


def _fields(artifact: Artifact) -> list[str]:
    return [field.name for field in artifact.columns or artifact.tensors]


def _accepted_parts(
    candidate: LoadedModel, part: pa.Table, refused: dict[str, NotedRow]
) -> Iterator[tuple[pa.Table, NamedArrays]]:
    """Yield the accepted rows with the candidate's outputs, and add the refused rows to `refused` by reason. A refused
    part is halved until its refused rows are known."""
    artifact = candidate.artifact
    # The log names an unnamed tensor like the input of the graph.
    names = list(filter(None, _fields(artifact))) or [entry.name for entry in artifact.inputs]
    try:
        rows = own_columns(artifact, arrays_of(part, names))
        if isinstance(candidate, LoadedOnnx):
            outputs = candidate.outputs(rows)
        else:
            outputs = {PREDICTION: candidate.predict(rows).prediction}
        if (count := row_count(outputs)) != len(part):
            raise InferenceError(f"the model returns {count} rows for {len(part)} rows")
        yield part, outputs
    except (InvalidRequest, InferenceError) as error:
        if half := len(part) // 2:
            yield from _accepted_parts(candidate, part.slice(0, half), refused)
            yield from _accepted_parts(candidate, part.slice(half), refused)
            return
        reason = without_row_number(error.message)
        noted = refused.get(reason) or _noted(part, 0, reason, 0)
        refused[reason] = replace(noted, rows=noted.rows + 1)


def _compare(
    artifact: Artifact, outputs: NamedArrays, traffic: Traffic, part: pa.Table, version: tuple[str, str], shown: str
) -> tuple[Array, Array, ModelPredictions]:
    """Compare the candidate's outputs with the captured answers of one version to the same rows.

    Returns which rows agree (bool [N]), their largest differences (float64 [N], NaN without numbers), and the captured
    predictions. Raises InvalidConfig if the answers were not captured or are of another kind.
    """
    name, served = "{} version {}".format(*version), _served_artifact(*version)
    part = traffic.answers(served, part)
    served = describe_answers(served, part, ())
    if not (answers := captured_outputs(served, part, ())):
        raise InvalidConfig(
            f"the log has no answers of {name} that can be compared: change capture.drop and capture.mask, and "
            "back-test rows that are captured afterwards"
        )
    theirs = predictions_of(served, answers)
    try:
        if (kind := _answer_type(predictions_of(artifact, outputs))) != (other := _answer_type(theirs)):
            raise InferenceError(f"the candidate returns {kind}, and the served version returned {other}")
        compared = compare_outputs(served, answers, artifact, outputs)
    except InferenceError as error:
        raise InvalidConfig(f"{shown} has other outputs than {name}: {error.message}") from None
    differences = compared.differences if len(compared.differences) else np.full(len(part), np.nan)
    return compared.same, differences, theirs


def _served_artifact(model: str, version: str) -> Artifact | None:
    """Return the description of a version that answered rows, or None if MLflow no longer has its files."""
    try:
        with downloaded_version(resolve(served_version_uri(model, version))) as folder:
            return read_served_artifact(folder)
    except (InvalidArtifact, InvalidConfig, NotFound):
        return None


def _answer_type(predictions: ModelPredictions) -> str:
    if predictions.is_label:
        return "a text" if predictions.prediction.dtype.kind == "O" else "a numeric label"
    return f"numbers {list(predictions.prediction.shape[1:])}"


def _noted(part: pa.Table, place: int, text: str, rows: int = 1) -> NotedRow:
    return NotedRow(part.column("_prediction_id")[place].as_py(), part.column("_row")[place].as_py(), text, rows)


def _concatenated(parts: Sequence[NamedArrays]) -> NamedArrays:
    """Return the arrays of all parts, without an array whose rows have different shapes."""
    alike = [name for name in parts[0] if len({part[name].shape[1:] for part in parts}) == 1]
    return {name: np.concatenate([part[name] for part in parts]) for name in alike}


def _joined(parts: Sequence[ModelPredictions]) -> ModelPredictions:
    """Return the predictions of all parts, without probabilities if a part has none or has other classes."""
    sides = [part.probabilities for part in parts if part.classes == parts[0].classes]
    known = [side for side in sides if side is not None]
    joined = replace(parts[0], prediction=np.concatenate([part.prediction for part in parts]))
    return replace(joined, probabilities=np.concatenate(known) if len(known) == len(parts) else None)
