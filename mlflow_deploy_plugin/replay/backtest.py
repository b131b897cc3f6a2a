"""A back-test: a candidate predicts captured rows, and its predictions are compared with the captured answers. Memory
holds a sample of rows, whose number and size are limited."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.errors import (
    InferenceError,
    InvalidArtifact,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    SchemaMismatch,
)
from mlflow_deploy_plugin.evaluation import LoadedOnnx, MetricName, NamedArrays, downloaded_version, metrics, take_rows
from mlflow_deploy_plugin.evaluation.dataset import own_columns
from mlflow_deploy_plugin.evaluation.model import LoadedModel, ModelPredictions, predictions_of
from mlflow_deploy_plugin.inference_log import InferenceLog, Sample, TimeRange, View, Window, open_log, parse_window
from mlflow_deploy_plugin.inference_log.labels import LABEL, LABEL_NUMBER, join_labels
from mlflow_deploy_plugin.inference_log.reader import require_endpoint, view_tables
from mlflow_deploy_plugin.inference_log.tables import (
    IDENTITY,
    as_array,
    captured_outputs,
    count_versions,
    describe_answers,
)
from mlflow_deploy_plugin.messages import join_names, one_line, without_row_number
from mlflow_deploy_plugin.registry import resolve
from mlflow_deploy_plugin.registry.model_uri import served_version_uri
from mlflow_deploy_plugin.runtime import Artifact, compare_outputs, read_served_artifact
from mlflow_deploy_plugin.runtime.feeds import Array, row_count
from mlflow_deploy_plugin.runtime.log_columns import EVENT_TIME, PREDICTION
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.spec import parse_duration
from mlflow_deploy_plugin.spec.types import is_duration
from mlflow_deploy_plugin.store import Endpoint

MAX_ROWS = 100_000
_MAX_BYTES = 2**29
"""The maximum size of the sample: a row with an image may have 600 kB."""
_CHUNK, _SHOWN, _WIDEST = 2_000, 5, 80
_NEEDED = {*IDENTITY, "_prediction_id", "_model", "_version", "_received_time", "_latency_us"}


@dataclass(frozen=True)
class Traffic:
    """The captured rows of an endpoint. `masked` are the columns with hashes instead of values."""

    log: InferenceLog
    endpoint: str
    masked: frozenset[str] = frozenset()

    def time_range(self, window: str) -> TimeRange:
        """Return the range of `START/END`, or of a duration that ends at the newest captured row. Raises NotFound if
        the endpoint has no rows, and InvalidConfig if the window cannot be parsed."""
        if not is_duration(window):
            parsed = parse_window(window)
            return TimeRange(parsed.start, parsed.end)
        for hour in self.log.walk_hours(self.endpoint, newest_first=True):
            tables = self.log.scan(hour, TimeRange(), [EVENT_TIME])
            if times := [pc.max(table.column(EVENT_TIME)).as_py() for table in tables]:
                end = max(times) + timedelta(microseconds=1)
                return TimeRange(end - parse_duration(window, "window"), end)
        raise self.without_rows(TimeRange())

    def without_rows(self, times: TimeRange) -> NotFound:
        """Return an error that names the nearest hours with rows. Raises NotFound if the log lacks the endpoint."""
        require_endpoint(self.log, self.endpoint)
        hours = self.log.hours(self.endpoint)
        nearest = [hour for hour in hours if hour.start < times.start][-1:]
        nearest += [hour for hour in hours if hour.start >= times.end][:1]
        windows = [str(Window(hour.start, hour.start + timedelta(hours=1))) for hour in nearest or hours[-1:]]
        advice = f"; the nearest hours with rows are {' and '.join(windows)}" if windows else ""
        return NotFound(f"endpoint {self.endpoint!r} has no rows in {times.window or 'the time range'}{advice}")


def open_traffic(name: str, endpoint: Endpoint | None) -> Traffic:
    """Return the traffic of an endpoint; `endpoint` is None if the store does not have it."""
    log_uri = load_settings().inference_log
    if endpoint is None:
        return Traffic(open_log(log_uri), name)
    return Traffic(open_log(log_uri, endpoint.rows_since), name, frozenset(endpoint.spec.capture.mask))


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
        captured_rows, rows: the number of rows in the time range, and of the sampled rows.
        versions: the number of accepted rows by served version.
        disagreement, disagreement_low, disagreement_high: the share of accepted rows with different answers, by the
            definition of `runtime/shadow_compare.py`, with Wilson's 95 % interval for independent rows.
        mean_difference, max_difference: of the largest finite difference of each row's numbers; NaN without numbers.
        refused: one row per reason for which the candidate refuses rows, the most frequent reason first.
        no_number: the share of accepted rows for which the candidate returns NaN or infinity.
        candidate_row_us: microseconds per row in batches, without a server.
        served_p50_us, served_p99_us: microseconds of the server's requests with its queues; NaN if not captured.
        comparison: the metric of the labelled rows; `current` is the metric of the captured answers.
        disagreeing: the rows with the largest differences.
    """

    candidate: str
    endpoint: str
    captured_rows: int
    rows: int
    versions: Mapping[str, int]
    disagreement: float
    disagreement_low: float
    disagreement_high: float
    mean_difference: float
    max_difference: float
    refused_rows: int
    refused: tuple[NotedRow, ...]
    no_number: float
    candidate_row_us: float
    served_p50_us: float
    served_p99_us: float
    labelled_rows: int
    metric: MetricName | None
    comparison: metrics.MetricComparison | None
    disagreeing: tuple[NotedRow, ...]
    notes: tuple[str, ...]

    @property
    def figures(self) -> dict[str, float]:
        """The finite numbers of the report by name, as metrics of a run."""
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int | float)}
        if (found := self.comparison) is not None:
            numbers |= {f"{self.metric}_candidate": found.candidate, f"{self.metric}_current": found.current}
            numbers |= {"difference": found.difference, "difference_low": found.low, "difference_high": found.high}
        return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}

    @property
    def summary(self) -> dict[str, str]:
        """The results as text by subject."""
        shown = f"{self.disagreement:.2%} of {self.rows - self.refused_rows:,} answers"
        shown += f" (95% interval {self.disagreement_low:.2%} to {self.disagreement_high:.2%})"
        if math.isfinite(self.max_difference):
            shown += f"; numbers differ by {self.mean_difference:.3g} on average, at most by {self.max_difference:.3g}"
        latency = f"{self.candidate_row_us:,.1f} µs per row in batches without a server"
        if math.isfinite(self.served_p50_us):
            requests = f"{self.served_p50_us:,.0f} µs (p50; p99 {self.served_p99_us:,.0f} µs)"
            latency += f"; served requests {requests} including queues"
        summary = {"disagreement": shown, "refusals": f"{self.refused_rows:,} of {self.rows:,} rows"}
        summary["latency"] = latency
        if self.no_number:
            summary["no number"] = f"{self.no_number:.2%} of the answers are NaN or infinite"
        if (found := self.comparison) is not None and self.metric:
            unit = "+.1%" if self.metric in metrics.RELATIVE_METRICS else "+.4f"
            summary[self.metric] = (
                f"{found.candidate:.4f} compared with {found.current:.4f} of the captured answers on "
                f"{self.labelled_rows:,} labelled rows (difference {found.low:{unit}} to {found.high:{unit}})"
            )
        return summary


def backtest(
    traffic: Traffic,
    times: TimeRange,
    candidate: LoadedModel,
    shown: str,
    *,
    max_rows: int = MAX_ROWS,
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
        compared.append(_compare(artifact, predicted, part, traffic.masked, version, shown))
        first += rows
    sames, amounts, answers = zip(*compared, strict=True)
    same, differences = np.concatenate(sames), np.concatenate(amounts)
    ours, theirs = predictions_of(artifact, outputs), _joined(answers)
    share, known = 1 - float(same.mean()), differences[np.isfinite(differences)]
    notes = [f"{path} cannot be read: {why}" for path, why in traffic.log.unreadable.items()]
    labels = accepted.column(LABEL if ours.prediction.dtype.kind == "O" else LABEL_NUMBER)
    labelled = np.flatnonzero(np.asarray(pc.is_valid(labels)))
    if unusable := len(accepted) - accepted.column(LABEL).null_count - len(labelled):
        notes.append(f"{unusable:,} labels are not numbers and are ignored")
    comparison = None
    if len(labelled):
        truth, sides = labels.take(pa.array(labelled)).to_numpy(), (ours.take(labelled), theirs.take(labelled))
        metric = metric or metrics.default_metric(truth, ours)
        try:
            left, right = (metrics.weighted_metric(metric, truth, side) for side in sides)
            comparison = metrics.paired_bootstrap(metric, left, right, len(truth), confidence, resamples, seed)
        except InvalidConfig as error:
            notes.append(f"the labelled rows cannot be judged: {error.message}")
    requests = table.filter(pc.equal(table.column("_row"), 0))
    latencies = requests.column("_latency_us").drop_null() if "_latency_us" in table.column_names else ()
    p50, p99 = np.percentile(latencies, (50, 99)) if len(latencies) else (math.nan, math.nan)
    low, high = metrics.wilson_bounds(share, len(accepted), 0.95)
    return BacktestReport(
        candidate=shown,
        endpoint=traffic.endpoint,
        captured_rows=captured,
        rows=len(table),
        versions={f"{model} version {version}": rows for (model, version), rows in versions.items()},
        disagreement=share,
        disagreement_low=low,
        disagreement_high=high,
        mean_difference=float(known.mean()) if len(known) else math.nan,
        max_difference=float(known.max()) if len(known) else math.nan,
        refused_rows=len(table) - len(accepted),
        refused=tuple(sorted(refused.values(), key=lambda noted: -noted.rows)[:_SHOWN]),
        no_number=ours.no_number,
        candidate_row_us=seconds / len(table) * 1e6,
        served_p50_us=float(p50),
        served_p99_us=float(p99),
        labelled_rows=len(labelled),
        metric=metric,
        comparison=comparison,
        disagreeing=tuple(_most_different(accepted, same, differences, ours, theirs)),
        notes=tuple(notes[:_SHOWN]),
    )


def _read_sample(
    traffic: Traffic, times: TimeRange, artifact: Artifact, shown: str, max_rows: int
) -> tuple[pa.Table, int]:
    """Return a sample of the rows with labels and without masked columns, sorted by the version that answered, and the
    number of all rows."""
    view, labels = View(traffic.endpoint, times, labels=False), traffic.log.labels(traffic.endpoint)
    names = [name for name in traffic.log.schema(view).names if name not in traffic.masked and not name.startswith("_")]
    needed = {field.name for field in artifact.columns or artifact.tensors if field.name}
    needed -= {column.name for column in artifact.columns if not column.required}
    sample, rows = None, 0
    for table in view_tables(traffic.log, view, {*_NEEDED, *labels.key_columns, *names}):
        if missing := sorted(needed - ({*table.column_names} - traffic.masked)):
            served = f"{table.column('_model')[0]} version {table.column('_version')[0]}"
            raise InvalidConfig(
                f"{shown} needs {join_names(missing)}, which is missing or masked in rows of endpoint "
                f"{traffic.endpoint!r} that {served} answered (the columns are {join_names(names, missing[0])}): "
                "change capture.drop, capture.mask or capture.keys, and back-test rows that are captured afterwards"
            )
        rows += len(table)
        sample = sample or Sample(min(max_rows, max(_MAX_BYTES * len(table) // max(table.nbytes, 1), 1)))
        sample.add(table)
    if sample is None:
        raise traffic.without_rows(times)
    by_version = [("_model", "ascending"), ("_version", "ascending")]
    return join_labels(sample.table(), labels).sort_by(by_version), rows


def _accepted_parts(
    candidate: LoadedModel, part: pa.Table, refused: dict[str, NotedRow]
) -> Iterator[tuple[pa.Table, NamedArrays]]:
    """Yield the accepted rows with the candidate's outputs, and add the refused rows to `refused` by reason. A refused
    part is halved until its refused rows are known."""
    try:
        rows = _rows_of(candidate.artifact, part)
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


def _rows_of(artifact: Artifact, part: pa.Table) -> NamedArrays:
    """Return the inputs of a version in the types of its signature."""
    names = [field.name for field in artifact.columns or artifact.tensors if field.name]
    rows = {}
    # The log names an unnamed tensor like the input of the graph.
    for name in names or [entry.name for entry in artifact.inputs]:
        if name not in part.column_names:
            continue
        if (array := as_array(part.column(name).combine_chunks())) is None:
            raise SchemaMismatch(f"the lists of column {name!r} have different lengths", column=name)
        rows[name] = array
    return own_columns(artifact, rows)


def _compare(
    artifact: Artifact,
    outputs: NamedArrays,
    part: pa.Table,
    masked: frozenset[str],
    version: tuple[str, str],
    shown: str,
) -> tuple[Array, Array, ModelPredictions]:
    """Compare the candidate's outputs with the captured answers of one version to the same rows.

    Returns which rows agree (bool [N]), their largest differences (float64 [N], NaN without numbers), and the captured
    predictions. Raises InvalidConfig if the answers were not captured or are of another kind.
    """
    name = "{} version {}".format(*version)
    served = describe_answers(_served_artifact(*version), part, masked)
    if not (answers := captured_outputs(served, part, masked)):
        raise InvalidConfig(
            f"the log has no answers of {name} that can be compared: change capture.drop and capture.mask, and "
            "back-test rows that are captured afterwards"
        )
    theirs, compared = predictions_of(served, answers), None
    if (kind := _answer_type(predictions_of(artifact, outputs))) == (other := _answer_type(theirs)):
        with suppress(InferenceError):  # The outputs have other names and roles.
            compared = compare_outputs(served, answers, artifact, outputs)
    if compared is None:
        raise InvalidConfig(
            f"{shown} returns {kind} per row ({', '.join(outputs)}), but {name} returned {other} "
            f"({', '.join(answers)}): back-test a candidate with the same kind of answers"
        )
    differences = compared.differences if len(compared.differences) else np.full(len(part), np.nan)
    return compared.same, differences, theirs


def _most_different(
    accepted: pa.Table, same: Array, differences: Array, ours: ModelPredictions, theirs: ModelPredictions
) -> Iterator[NotedRow]:
    """Yield the rows with the largest differences, among the rows that disagree."""
    sizes = np.where(same, -1.0, np.nan_to_num(differences, nan=np.inf))
    for row in np.argsort(-sizes, kind="stable")[: min(_SHOWN, int((~same).sum()))].tolist():
        served, predicted = (one_line(side.prediction[row], _WIDEST) for side in (theirs, ours))
        yield _noted(accepted, row, f"served {served}, candidate {predicted}")


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
    width = predictions.prediction[:1].size
    return "a number" if width == 1 else f"{width} numbers"


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
