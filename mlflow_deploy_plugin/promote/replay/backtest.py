"""A back-test: a candidate predicts captured rows, and its predictions are compared
with the captured answers. Memory holds the replayed rows.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import PREDICTION
from mlflow_deploy_plugin.core.errors import (
    InferenceError,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    Refused,
)
from mlflow_deploy_plugin.core.messages import one_line, without_row_number
from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName
from mlflow_deploy_plugin.promote.replay.traffic import Traffic, arrays_of
from mlflow_deploy_plugin.serve.inference_log.labels import LABEL, LABEL_NUMBER, join_labels
from mlflow_deploy_plugin.serve.inference_log.reader import View, require_endpoint, view_tables
from mlflow_deploy_plugin.serve.inference_log.tables import (
    IDENTITY,
    Sample,
    captured_outputs,
    count_versions,
    describe_answers,
)
from mlflow_deploy_plugin.serve.inference_log.windows import TimeRange
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import row_count
from mlflow_deploy_plugin.serve.runtime.log_columns import output_column
from mlflow_deploy_plugin.serve.runtime.shadow_compare import compare_outputs
from mlflow_deploy_plugin.wrap.evaluation import metrics
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays, own_columns, take_rows
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedModel, LoadedOnnx, predictions_of

_CHUNK = 2_000
_SHOWN = 5
_NEEDED = {*IDENTITY, "_prediction_id", "_model", "_version", "_received_time", "_latency_us"}


@dataclass(frozen=True)
class NotedRow:
    """The first of `rows` captured rows with a text: the reason of a refusal, or two
    different answers.
    """

    prediction_id: str
    row: int
    text: str
    rows: int = 1


@dataclass(frozen=True)
class BacktestReport:
    """A candidate's answers to captured rows, compared with the captured answers.

    Attributes:
        captured_rows, rows: the number of rows in the time range, and of the replayed
            rows.
        versions: the number of accepted rows by served version.
        disagreement: the share of accepted rows with different answers, by
            `serve/runtime/shadow_compare.py`.
        mean_difference, max_difference: of the largest finite difference of each row's
            numbers; NaN without numbers.
        refused: one row per reason for which the candidate refuses rows, the most
            frequent reason first.
        candidate_row_us: microseconds per row in batches, without a server.
        served_request_us: the median of the server's microseconds per request with its
            queues; NaN if not captured.
        comparison: the metric of the labelled rows; `current` is the metric of the
            captured answers.
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
    """Predict at most `max_rows` captured rows of the time range with the candidate,
    which messages call `shown`.

    The metric is accuracy for labels and rmse for numbers by default. Raises NotFound
    without rows, InvalidConfig if the log lacks columns of the candidate, if the
    answers have another type or if no row is accepted, and OnnxserveError if the log or
    MLflow is unavailable.
    """
    table, captured = _read_sample(traffic, times, candidate.artifact, shown, max_rows)
    refused: dict[str, NotedRow] = {}
    parts: list[tuple[pa.Table, NamedArrays]] = []
    begun = time.perf_counter()
    for start in range(0, len(table), _CHUNK):
        parts += _accepted_parts(candidate, table.slice(start, _CHUNK), refused)
        if not parts:
            raise InvalidConfig(
                f"{shown} refuses the first rows of {traffic.endpoint}: {next(iter(refused))}",
            )
    seconds = time.perf_counter() - begun
    accepted = pa.concat_tables([part for part, _ in parts])
    # An output is ignored if its shape differs between the parts.
    names = [
        name for name in parts[0][1] if len({arrays[name].shape[1:] for _, arrays in parts}) == 1
    ]
    if not names:
        raise InvalidConfig(
            f"{shown} returns arrays of different shapes for different rows, which cannot be "
            "compared",
        )
    outputs = {name: np.concatenate([arrays[name] for _, arrays in parts]) for name in names}
    artifact = candidate.artifact
    if not isinstance(
        candidate,
        LoadedOnnx,
    ):  # The files of a pyfunc may name its output differently.
        name = output_column((PREDICTION,), PREDICTION, outputs[PREDICTION])
        artifact = describe_answers(None, pa.table({name: list(outputs[PREDICTION])}), ())
    served = artifact
    answered = traffic.answers(artifact, accepted)
    # The candidate describes the captured answers. If their outputs have other names,
    # the log's columns describe them.
    if not (answers := captured_outputs(served, answered, ())):
        served = describe_answers(None, answered, ())
        if not (answers := captured_outputs(served, answered, ())):
            raise InvalidConfig(
                f"no answer is captured in all rows of {traffic.endpoint}: change capture.drop "
                "and capture.mask",
            )
    sides = predictions_of(artifact, outputs), predictions_of(served, answers)
    kinds = []
    for prediction in (side.prediction for side in sides):
        kind = {"O": "texts", "f": "numbers"}.get(prediction.dtype.kind, "integers")
        kinds.append(" × ".join([kind, *map(str, prediction.shape[1:])]))
    try:
        if kinds[0] != kinds[1]:
            raise InferenceError(
                f"it returns {kinds[0]}, and the served versions returned {kinds[1]}",
            )
        compared = compare_outputs(served, answers, artifact, outputs)
    except InferenceError as error:
        raise InvalidConfig(
            f"{shown} has another signature than the served versions: {error.message}",
        ) from None
    finite = compared.differences[np.isfinite(compared.differences) & compared.are_numbers]
    labels = accepted.column(LABEL if kinds[0].startswith("text") else LABEL_NUMBER)
    labelled = np.flatnonzero(np.asarray(pc.is_valid(labels)))
    comparison: metrics.MetricComparison | Refused = Refused(
        "no replayed row has a label that fits the answers",
    )
    if len(labelled):
        truth = labels.take(pa.array(labelled)).to_numpy()
        pairs = (artifact, outputs), (served, answers)
        ours, theirs = (predictions_of(by, take_rows(arrays, labelled)) for by, arrays in pairs)
        metric = metric or metrics.default_metric(truth, ours)
        try:
            left, right = (metrics.weighted_metric(metric, truth, side) for side in (ours, theirs))
            comparison = metrics.paired_bootstrap(
                metric,
                left,
                right,
                len(truth),
                confidence,
                resamples,
                seed,
            )
        except InvalidConfig as error:
            comparison = Refused(error.message)
    latencies = table.filter(pc.equal(table.column("_row"), 0)).column("_latency_us").drop_null()
    sizes = np.where(compared.same, -1.0, compared.differences)
    worst = np.argsort(-sizes, kind="stable")[: min(_SHOWN, compared.differing_rows)].tolist()
    texts = [
        " instead of ".join(one_line(side.prediction[row], 80) for side in sides) for row in worst
    ]
    return BacktestReport(
        captured_rows=captured,
        rows=len(table),
        versions={
            f"{model} version {version}": rows
            for (model, version), rows in count_versions(accepted).items()
        },
        disagreement=1 - float(compared.same.mean()),
        mean_difference=float(finite.mean()) if len(finite) else math.nan,
        max_difference=float(finite.max()) if len(finite) else math.nan,
        refused_rows=len(table) - len(accepted),
        refused=sorted(refused.values(), key=lambda noted: -noted.rows)[:_SHOWN],
        candidate_row_us=seconds / len(table) * 1e6,
        served_request_us=float(np.median(latencies)) if len(latencies) else math.nan,
        labelled_rows=len(labelled),
        comparison=comparison,
        disagreeing=[_noted(accepted, row, text) for row, text in zip(worst, texts, strict=True)],
    )


def _read_sample(
    traffic: Traffic,
    times: TimeRange,
    artifact: Artifact,
    shown: str,
    max_rows: int,
) -> tuple[pa.Table, int]:
    """Return a sample of the rows with labels, and the number of all rows."""
    log = traffic.log
    view = View(traffic.endpoint, times, labels=False)
    labels = log.labels(traffic.endpoint)
    sample = Sample(max_rows)
    rows = 0
    names = [name for name in log.schema(view).names if not name.startswith("_")]
    for table in view_tables(log, view, {*_NEEDED, *labels.key_columns, *names}):
        traffic.require(shown, artifact, _columns(artifact), table.column_names)
        rows += len(table)
        sample.add(table)
    if not rows:
        require_endpoint(log, traffic.endpoint)
        raise NotFound(
            f"endpoint {traffic.endpoint!r} has no rows in {times.window or 'the time range'}: "
            f"choose a window in the range that `onnxserve log stats {traffic.endpoint}` shows",
        )
    return join_labels(sample.table(), labels), rows


def _columns(artifact: Artifact) -> list[str]:
    """Return the columns that a version reads. The log names an unnamed tensor like the
    input of the graph.
    """
    fields = artifact.columns or artifact.tensors
    return [field.name for field in fields if field.name] or [
        entry.name for entry in artifact.inputs
    ]


def _accepted_parts(
    candidate: LoadedModel,
    part: pa.Table,
    refused: dict[str, NotedRow],
) -> Iterator[tuple[pa.Table, NamedArrays]]:
    """Yield the accepted rows with the candidate's outputs, and add the refused rows to
    `refused` by reason. A refused part is halved until its refused rows are known.
    """
    try:
        rows = own_columns(candidate.artifact, arrays_of(part, _columns(candidate.artifact)))
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


def _noted(part: pa.Table, place: int, text: str, rows: int = 1) -> NotedRow:
    return NotedRow(
        part.column("_prediction_id")[place].as_py(),
        part.column("_row")[place].as_py(),
        text,
        rows,
    )
