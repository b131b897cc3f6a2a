"""A back-test: a candidate predicts captured rows, and its predictions are compared
with the captured answers. Memory holds the replayed rows.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

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
from mlflow_deploy_plugin.serve.inference_log.labels import LABEL, LABEL_NUMBER
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, require_endpoint, view_tables
from mlflow_deploy_plugin.serve.inference_log.tables import (
    IDENTITY,
    Sample,
    captured_outputs,
    count_versions,
    describe_answers,
)
from mlflow_deploy_plugin.serve.inference_log.windows import TimeRange
from mlflow_deploy_plugin.serve.runtime.agreement import Agreement
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, row_count
from mlflow_deploy_plugin.serve.runtime.log_columns import output_column
from mlflow_deploy_plugin.serve.runtime.shadow_compare import compare_outputs
from mlflow_deploy_plugin.wrap.evaluation import metrics
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays, own_columns, take_rows
from mlflow_deploy_plugin.wrap.evaluation.model import (
    LoadedModel,
    LoadedOnnx,
    ModelPredictions,
    predictions_of,
)

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
        captured_rows: the number of rows in the time range.
        rows: the number of replayed rows.
        versions: the number of accepted rows by served version.
        disagreement: the share of accepted rows with different answers, by
            `serve/runtime/shadow_compare.py`.
        mean_difference: the mean of the largest finite difference of each row's
            numbers; NaN without numbers.
        max_difference: the largest of these differences; NaN without numbers.
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
    table, captured_rows = _read_sample(traffic, times, candidate.artifact, shown, max_rows)
    replayed = _replay(candidate, table, traffic.endpoint, shown)
    accepted = replayed.accepted
    ours = _describe_outputs(candidate, replayed.outputs)
    theirs = _served_answers(traffic, accepted, ours.artifact)
    kind = ours.kind
    served_kind = theirs.kind
    try:
        if kind != served_kind:
            raise InferenceError(
                f"it returns {kind}, and the served versions returned {served_kind}"
            )
        agreement = compare_outputs(theirs.artifact, theirs.outputs, ours.artifact, ours.outputs)
    except InferenceError as error:
        raise InvalidConfig(
            f"{shown} has another signature than the served versions: {error.message}"
        ) from None
    # The labels have the type that the candidate predicts.
    is_text = ours.predictions.prediction.dtype.kind == "O"
    labels = accepted.column(LABEL if is_text else LABEL_NUMBER)
    differences = agreement.differences[np.isfinite(agreement.differences) & agreement.are_numbers]
    latencies = table.filter(pc.equal(table.column("_row"), 0)).column("_latency_us").drop_null()
    return BacktestReport(
        captured_rows=captured_rows,
        rows=len(table),
        versions={
            f"{model} version {version}": rows
            for (model, version), rows in count_versions(accepted).items()
        },
        disagreement=1 - float(agreement.same.mean()),
        mean_difference=float(differences.mean()) if len(differences) else math.nan,
        max_difference=float(differences.max()) if len(differences) else math.nan,
        refused_rows=len(table) - len(accepted),
        refused=sorted(replayed.refused, key=lambda noted: -noted.rows)[:_SHOWN],
        candidate_row_us=replayed.seconds / len(table) * 1e6,
        served_request_us=float(np.median(latencies)) if len(latencies) else math.nan,
        labelled_rows=len(labels) - labels.null_count,
        comparison=_judge_labels(labels, ours, theirs, metric, confidence, resamples, seed),
        disagreeing=_most_different(accepted, agreement, ours, theirs),
    )


@dataclass(frozen=True, eq=False)
class _Replayed:
    """The result of the candidate's predictions.

    Attributes:
        accepted: the captured rows that the candidate accepted.
        outputs: the candidate's outputs for these rows, [N, …] by name.
        refused: one row per reason.
        seconds: the time of all predictions.
    """

    accepted: pa.Table
    outputs: NamedArrays
    refused: list[NotedRow]
    seconds: float


@dataclass(frozen=True, eq=False)
class _Answers:
    """The outputs of the accepted rows, [N, …] by name, with the artifact that
    describes them.
    """

    artifact: Artifact
    outputs: NamedArrays

    @cached_property
    def predictions(self) -> ModelPredictions:
        return predictions_of(self.artifact, self.outputs)

    def predictions_at(self, rows: Array) -> ModelPredictions:
        return predictions_of(self.artifact, take_rows(self.outputs, rows))

    @property
    def kind(self) -> str:
        """Return the type of a row's prediction as a text: `numbers × 3`."""
        prediction = self.predictions.prediction
        kind = {"O": "texts", "f": "numbers"}.get(prediction.dtype.kind, "integers")
        return " × ".join([kind, *map(str, prediction.shape[1:])])


def _replay(
    candidate: LoadedModel,
    table: pa.Table,
    endpoint: str,
    shown: str,
) -> _Replayed:
    """Predict the rows in chunks. Raises InvalidConfig if no row of the first chunk is
    accepted, or if no output can be concatenated.
    """
    refused: dict[str, NotedRow] = {}
    parts: list[tuple[pa.Table, NamedArrays]] = []
    begun = time.perf_counter()
    for start in range(0, len(table), _CHUNK):
        parts += _accepted_parts(candidate, table.slice(start, _CHUNK), refused)
        if not parts:
            raise InvalidConfig(
                f"{shown} refuses the first rows of {endpoint}: {next(iter(refused))}"
            )
    seconds = time.perf_counter() - begun
    # An output whose shape differs between the parts cannot be concatenated.
    outputs = {}
    for name in parts[0][1]:
        arrays = [part[name] for _, part in parts]
        if len({array.shape[1:] for array in arrays}) == 1:
            outputs[name] = np.concatenate(arrays)
    if not outputs:
        raise InvalidConfig(
            f"{shown} returns arrays of different shapes for different rows, which cannot be "
            "compared"
        )
    accepted = pa.concat_tables([part for part, _ in parts])
    return _Replayed(accepted, outputs, list(refused.values()), seconds)


def _describe_outputs(candidate: LoadedModel, outputs: NamedArrays) -> _Answers:
    """Return the candidate's outputs with an artifact that describes them: the
    candidate's or, for a pyfunc, one of the values.
    """
    artifact = candidate.artifact
    # The files of a pyfunc may name its output differently.
    if not isinstance(candidate, LoadedOnnx):
        name = output_column((PREDICTION,), PREDICTION, outputs[PREDICTION])
        table = pa.table({name: list(outputs[PREDICTION])})
        artifact = describe_answers(None, table, ())
    return _Answers(artifact, outputs)


def _served_answers(traffic: Traffic, accepted: pa.Table, candidate: Artifact) -> _Answers:
    """Return the captured answers, which the candidate describes.

    If their outputs have other names, the log's columns describe them. Raises
    InvalidConfig if no output is captured in all rows.
    """
    table = traffic.without_masked(candidate, accepted)
    for artifact in (candidate, describe_answers(None, table, ())):
        if outputs := captured_outputs(artifact, table, ()):
            return _Answers(artifact, outputs)
    raise InvalidConfig(
        f"no answer is captured in all rows of {traffic.endpoint}: change capture.drop "
        "and capture.mask"
    )


def _judge_labels(
    labels: pa.ChunkedArray,
    ours: _Answers,
    theirs: _Answers,
    metric: MetricName | None,
    confidence: float,
    resamples: int,
    seed: int,
) -> metrics.MetricComparison | Refused:
    """Compare the metric of the candidate with the metric of the captured answers in
    the rows with a label.
    """
    rows = np.flatnonzero(np.asarray(pc.is_valid(labels)))
    truth = labels.take(pa.array(rows)).to_numpy()
    if not len(truth):
        return Refused("no replayed row has a label that fits the answers")
    candidate = ours.predictions_at(rows)
    served = theirs.predictions_at(rows)
    metric = metric or metrics.default_metric(truth, candidate)
    try:
        return metrics.paired_bootstrap(
            metric,
            metrics.weighted_metric(metric, truth, candidate),
            metrics.weighted_metric(metric, truth, served),
            len(truth),
            confidence,
            resamples,
            seed,
        )
    except InvalidConfig as error:
        return Refused(error.message)


def _most_different(
    accepted: pa.Table,
    agreement: Agreement,
    ours: _Answers,
    theirs: _Answers,
) -> list[NotedRow]:
    """Return the differing rows with the largest differences."""
    sort_keys = np.where(agreement.same, -1.0, agreement.differences)
    count = min(_SHOWN, agreement.differing_rows)
    noted = []
    for row in np.argsort(-sort_keys, kind="stable")[:count].tolist():
        prediction = one_line(ours.predictions.prediction[row], 80)
        served = one_line(theirs.predictions.prediction[row], 80)
        noted.append(_note_row(accepted, row, f"{prediction} instead of {served}"))
    return noted


def _read_sample(
    traffic: Traffic,
    times: TimeRange,
    artifact: Artifact,
    shown: str,
    max_rows: int,
) -> tuple[pa.Table, int]:
    """Return a sample of at most `max_rows` rows with labels, and the number of all
    rows.

    Raises NotFound without rows, and InvalidConfig if the rows lack columns of the
    version, which messages call `shown`.
    """
    log = traffic.log
    view = View(traffic.endpoint, times, labels=False)
    labels = log.labels(traffic.endpoint)
    sample = Sample(max_rows)
    rows = 0
    names = [name for name in log.schema(view).names if not name.startswith("_")]
    for table in view_tables(log, view, {*_NEEDED, *labels.key_columns, *names}):
        traffic.require(shown, artifact, _columns_read(artifact), table.column_names)
        rows += len(table)
        sample.add(table)
    if not rows:
        require_endpoint(log, traffic.endpoint)
        window = times.window or "the time range"
        raise NotFound(
            f"endpoint {traffic.endpoint!r} has no rows in {window}: "
            f"choose a window in the range that `onnxserve log stats {traffic.endpoint}` shows"
        )
    return labels.join(sample.table()), rows


def _columns_read(artifact: Artifact) -> list[str]:
    """Return the columns that a version reads. The log names an unnamed tensor like the
    input of the graph.
    """
    fields = artifact.columns or artifact.tensors
    names = [field.name for field in fields if field.name]
    return names or [entry.name for entry in artifact.inputs]


def _accepted_parts(
    candidate: LoadedModel,
    part: pa.Table,
    refused: dict[str, NotedRow],
) -> Iterator[tuple[pa.Table, NamedArrays]]:
    """Yield the accepted rows with the candidate's outputs, and add the refused rows to
    `refused` by reason. A refused part is halved until its refused rows are known.
    """
    try:
        captured = arrays_of(part, _columns_read(candidate.artifact))
        rows = own_columns(candidate.artifact, captured)
        if isinstance(candidate, LoadedOnnx):
            outputs = candidate.outputs(rows)
        else:
            outputs = {PREDICTION: candidate.predict(rows).prediction}
        count = row_count(outputs)
        if count != len(part):
            raise InferenceError(f"the model returns {count} rows for {len(part)} rows")
        yield part, outputs
    except (InvalidRequest, InferenceError) as error:
        half = len(part) // 2
        if half:
            yield from _accepted_parts(candidate, part.slice(0, half), refused)
            yield from _accepted_parts(candidate, part.slice(half), refused)
            return
        noted = _note_row(part, 0, without_row_number(error.message))
        if noted.text in refused:
            noted = replace(refused[noted.text], rows=refused[noted.text].rows + 1)
        refused[noted.text] = noted


def _note_row(part: pa.Table, index: int, text: str) -> NotedRow:
    return NotedRow(
        part.column("_prediction_id")[index].as_py(),
        part.column("_row")[index].as_py(),
        text,
    )
