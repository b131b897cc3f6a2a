"""A back-test: a candidate predicts the captured rows of a time range, and its predictions are compared with the
captured answers. Memory holds only the sample of rows, whose size is limited."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from mlflow_deploy_plugin.inference_log import InferenceLog, Sample, TimeRange, View, Window, answers, parse_window
from mlflow_deploy_plugin.inference_log.labels import LABEL, LABEL_NUMBER, join_labels
from mlflow_deploy_plugin.inference_log.reader import require_endpoint, view_tables
from mlflow_deploy_plugin.inference_log.scan import is_answered_by
from mlflow_deploy_plugin.inference_log.tables import IDENTITY
from mlflow_deploy_plugin.messages import join_names, without_row_number
from mlflow_deploy_plugin.registry import resolve
from mlflow_deploy_plugin.registry.model_uri import served_version_uri
from mlflow_deploy_plugin.runtime import Artifact, Output, compare_outputs, read_served_artifact
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.log_columns import EVENT_TIME, OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.spec import parse_duration
from mlflow_deploy_plugin.spec.types import is_duration
from mlflow_deploy_plugin.store import Endpoint

MAX_ROWS = 100_000
_MAX_BYTES = 2**29
"""The maximum size of the sample. A row with an image may have 600 kB."""
_CHUNK, _SINGLES, _SHOWN = 5_000, 200, 5
_GIVE_UP = 1_000
"""The number of refused rows after which the back-test ends if the candidate has not accepted any row."""
_NEEDED = {*IDENTITY, "_prediction_id", "_model", "_version", "_received_time", "_latency_us"}


@dataclass(frozen=True)
class Traffic:
    """The captured rows of an endpoint. `masked` are the columns that contain hashes."""

    log: InferenceLog
    endpoint: str
    masked: frozenset[str] = frozenset()

    @classmethod
    def of(cls, log: InferenceLog, name: str, endpoint: Endpoint | None) -> "Traffic":
        """Return the traffic of an endpoint; `endpoint` is None if it was deleted."""
        if endpoint is None:
            return cls(log, name)
        return cls(replace(log, since=endpoint.rows_since), name, frozenset(endpoint.spec.capture.mask))

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
        """Return an error that names the nearest hours with rows."""
        hours, since = self.log.hours(self.endpoint), self.log.since
        if not hours and since is None:
            require_endpoint(self.log, self.endpoint)
        nearest = [hour for hour in hours if hour.start < times.start][-1:]
        nearest += [hour for hour in hours if hour.start >= times.end][:1]
        windows = [str(Window(hour.start, hour.start + timedelta(hours=1))) for hour in nearest or hours[-1:]]
        advice = f"; the nearest hours with rows are {' and '.join(windows)}" if windows else ""
        if since is not None:
            advice += f"; rows received before {since:%Y-%m-%dT%H:%M:%SZ} belong to a deleted endpoint of this name"
        shown = times.window or "the range of receipt times"
        return NotFound(f"endpoint {self.endpoint!r} has no captured rows in {shown}{advice}")


@dataclass(frozen=True)
class NotedRow:
    """A captured row. `text` is the reason of a refusal, or the two predictions. `rows` is the number of such rows."""

    prediction_id: str
    row: int
    text: str
    rows: int = 1


@dataclass(frozen=True)
class BacktestReport:
    """A candidate's predictions for captured rows, compared with the captured answers.

    Attributes:
        captured_rows, rows: the number of rows in the time range, and in the sample that the candidate received.
        versions: the number of accepted rows by served version.
        disagreement, disagreement_low, disagreement_high: the share of accepted rows with different predictions, by the
            definition of `runtime/shadow_compare.py`, with Wilson's 95 % interval for independent rows.
        mean_difference, max_difference: of a row's largest numeric difference; NaN without finite differences.
        refused: the first refused row for each of the most frequent reasons.
        no_number: the share of accepted rows for which the candidate predicts NaN or infinity.
        latency_us: microseconds: `candidate_batch_row` is the time per row in batches. `candidate_p50` and `_p99` are
            predictions of a row without a server; `served_p50` and `_p99` are the server's requests with its queues.
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
    latency_us: Mapping[str, float]
    labelled_rows: int
    metric: str
    comparison: metrics.MetricComparison | None
    disagreeing: tuple[NotedRow, ...]
    notes: tuple[str, ...]


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

    The metric is accuracy for labels and rmse for numbers by default. `confidence`, `resamples` and `seed` belong to
    its paired bootstrap. Raises NotFound if the range has no rows, InvalidConfig if the log lacks columns that the
    candidate needs, if the answers have another type or if all rows are refused, and OnnxserveError if the log or
    MLflow is unavailable.
    """
    view, run = View(traffic.endpoint, times, labels=False), _Run(traffic, candidate, shown)
    table, captured = run.read_sample(view, max_rows)
    for start in range(0, len(table), _CHUNK):
        run.predict(table.slice(start, _CHUNK))
    if not run.accepted:
        raise run.refuses_all()
    accepted, outputs = pa.concat_tables(run.accepted), _concatenated(run.outputs)
    versions = answers.count_versions(accepted)
    for model, version in versions:
        picked = np.flatnonzero(is_answered_by(accepted, model, version))
        run.compare(accepted.take(pa.array(picked)), take_rows(outputs, picked), model, version)
    share, differences = 1 - float(np.concatenate(run.same).mean()), np.concatenate(run.differences)
    low, high = metrics.wilson_bounds(share, len(accepted), 0.95)
    finite = differences[np.isfinite(differences)]
    labelled, used, comparison = run.compare_metric(metric, confidence, resamples, seed)
    unreadable = list(traffic.log.unreadable.items())[:_SHOWN]
    return BacktestReport(
        candidate=shown,
        endpoint=traffic.endpoint,
        captured_rows=captured,
        rows=len(table),
        versions={f"{model} version {version}": count for (model, version), count in versions.items()},
        disagreement=share,
        disagreement_low=low,
        disagreement_high=high,
        mean_difference=float(finite.mean()) if len(finite) else float("nan"),
        max_difference=float(finite.max()) if len(finite) else float("nan"),
        refused_rows=len(table) - len(accepted),
        refused=tuple(sorted(run.refused.values(), key=lambda refused: -refused.rows)[:_SHOWN]),
        no_number=predictions_of(run.artifact, outputs).no_number,
        latency_us=run.latencies(table),
        labelled_rows=labelled,
        metric=used,
        comparison=comparison,
        disagreeing=tuple(noted for _, noted in run.disagreeing),
        notes=(*run.notes, *(f"{path} cannot be read and is skipped: {why}" for path, why in unreadable)),
    )


@dataclass(eq=False)
class _Run:
    """The state of a back-test: the accepted rows with the candidate's outputs, and the results of comparisons."""

    traffic: Traffic
    candidate: LoadedModel
    shown: str
    inputs: list[str] = field(default_factory=list)
    accepted: list[pa.Table] = field(default_factory=list)
    outputs: list[NamedArrays] = field(default_factory=list)
    refused: dict[str, NotedRow] = field(default_factory=dict)
    same: list[Array] = field(default_factory=list)
    differences: list[Array] = field(default_factory=list)
    labelled: list[tuple[Array, ModelPredictions, ModelPredictions]] = field(default_factory=list)
    disagreeing: list[tuple[float, NotedRow]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def artifact(self) -> Artifact:
        """The description of `outputs`. A pyfunc has a single output."""
        artifact = self.candidate.artifact
        if isinstance(self.candidate, LoadedOnnx):
            return artifact
        is_label = self.outputs[0][PREDICTION].dtype.kind in "OUib"
        output = Output(PREDICTION, "", (), "label" if is_label else "values")
        return replace(artifact, flavor="onnxserve", outputs=(output,), prediction=(PREDICTION,))

    def read_sample(self, view: View, max_rows: int) -> tuple[pa.Table, int]:
        """Return a sample of the rows with labels, and the number of all rows."""
        log, artifact, where = self.traffic.log, self.candidate.artifact, f"endpoint {view.endpoint!r}"
        labels, names = log.labels(view.endpoint), log.schema(view).names
        outputs = {name for name in names if name == PREDICTION or name.startswith(OUTPUT_PREFIX)}
        captured = [name for name in names if name not in outputs and not name.startswith("_")]
        self.inputs = [entry.name for entry in artifact.columns or artifact.tensors if entry.name]
        # The log names a single unnamed tensor like the input of the graph.
        self.inputs = self.inputs or [entry.name for entry in artifact.inputs if entry.name in captured] or captured
        if hashed := sorted(self.traffic.masked & {*self.inputs}):
            raise InvalidConfig(
                f"{self.shown} needs {join_names(hashed)}, which capture.mask of {where} replaces with hashes: change "
                "capture.mask, and back-test rows that are captured afterwards"
            )
        required = {*self.inputs} - {column.name for column in artifact.columns if not column.required}
        sample, rows = None, 0
        for table in view_tables(log, view, {*_NEEDED, *labels.key_columns, *self.inputs, *outputs}):
            if missing := sorted(required - {*table.column_names}):
                served = f"{table.column('_model')[0]} version {table.column('_version')[0]}"
                raise InvalidConfig(
                    f"{self.shown} needs {join_names(missing)}, which the log lacks in rows of {where} that {served} "
                    f"answered (the columns are {join_names(captured, missing[0])}): capture the column, and back-test "
                    "rows that are captured afterwards"
                )
            rows += len(table)
            sample = sample or Sample(min(max_rows, max(_MAX_BYTES * len(table) // max(table.nbytes, 1), 1)))
            sample.add(table)
        if sample is None:
            raise self.traffic.without_rows(view.times)
        return join_labels(sample.table(), labels), rows

    def predict(self, part: pa.Table) -> None:
        """Predict the rows. A refused part is halved until the refused rows are known."""
        try:
            rows, start = self.rows_of(part), time.perf_counter()
            if isinstance(self.candidate, LoadedOnnx):
                outputs = self.candidate.outputs(rows)
            else:
                outputs = {PREDICTION: self.candidate.predict(rows).prediction}
            self.seconds += time.perf_counter() - start
        except (InvalidRequest, InferenceError) as error:
            if half := len(part) // 2:
                self.predict(part.slice(0, half))
                self.predict(part.slice(half))
                return
            reason = without_row_number(error.message)
            noted = self.refused.get(reason) or _noted(part, 0, reason, rows=0)
            self.refused[reason] = replace(noted, rows=noted.rows + 1)
            if not self.accepted and sum(noted.rows for noted in self.refused.values()) >= _GIVE_UP:
                raise self.refuses_all() from None
            return
        self.accepted.append(part)
        self.outputs.append(outputs)

    def rows_of(self, part: pa.Table) -> NamedArrays:
        """Return the inputs of the candidate. Raises SchemaMismatch if lists have different lengths."""
        rows = {}
        for name in (name for name in self.inputs if name in part.column_names):
            if (array := answers.as_array(part.column(name).combine_chunks())) is None:
                raise SchemaMismatch(f"the lists of column {name!r} have different lengths", column=name)
            rows[name] = array
        return own_columns(self.candidate.artifact, rows)

    def refuses_all(self) -> InvalidConfig:
        rows, reason = sum(noted.rows for noted in self.refused.values()), next(iter(self.refused))
        return InvalidConfig(
            f"{self.shown} refuses each of the first {rows:,} rows of endpoint {self.traffic.endpoint!r}: {reason}; "
            "back-test a candidate that takes the captured columns"
        )

    def compare(self, part: pa.Table, outputs: NamedArrays, model: str, version: str) -> None:
        """Compare the outputs of the candidate with the captured answers of rows that one version answered."""
        served = _served_artifact(model, version)
        hidden = answers.with_both_names(self.traffic.masked, served) & {*part.column_names}
        part = part.drop_columns(sorted(hidden))
        served = answers.describe_answers(served, part, ())
        if not (captured := answers.captured_outputs(served, part, ())):
            raise InvalidConfig(
                f"the log has no answers of {model} version {version} that can be compared: change capture.drop and "
                "capture.mask, and back-test rows that are captured afterwards"
            )
        ours, theirs = predictions_of(self.artifact, outputs), predictions_of(served, captured)
        if (kind := _answer_type(ours)) != (other := _answer_type(theirs)):
            raise InvalidConfig(
                f"{self.shown} returns {kind} per row, but {model} version {version} returned {other}: back-test a "
                "candidate with the same kind of answers"
            )
        compared = compare_outputs(served, captured, self.artifact, outputs)
        differences = compared.differences if len(compared.differences) else np.full(len(part), np.nan)
        self.same.append(compared.same)
        self.differences.append(differences)
        sizes = np.where(compared.same, -1.0, np.nan_to_num(differences, nan=np.inf))
        for position in np.argsort(-sizes, kind="stable")[: min(_SHOWN, int((~compared.same).sum()))].tolist():
            text = f"served {_text(theirs, position)}, candidate {_text(ours, position)}"
            self.disagreeing.append((sizes[position], _noted(part, position, text)))
        self.disagreeing = sorted(self.disagreeing, key=lambda pair: -pair[0])[:_SHOWN]
        column = part.column(LABEL if theirs.prediction.dtype.kind == "O" else LABEL_NUMBER)
        known = np.flatnonzero(np.asarray(pc.is_valid(column)))
        if unusable := len(part) - part.column(LABEL).null_count - len(known):
            self.notes.append(f"{unusable:,} labels of rows of {model} version {version} are not numbers")
        if len(known):
            sides = (
                predictions_of(self.artifact, take_rows(outputs, known)),
                predictions_of(served, take_rows(captured, known)),
            )
            self.labelled.append((column.take(pa.array(known)).to_numpy(), *sides))

    def compare_metric(
        self, metric: MetricName | None, confidence: float, resamples: int, seed: int
    ) -> tuple[int, str, metrics.MetricComparison | None]:
        """Return the number of labelled rows, the metric, and its comparison; None if the metric does not fit."""
        if not self.labelled:
            return 0, "", None
        truths, *sides = zip(*self.labelled, strict=True)
        truth, (ours, theirs) = np.concatenate(truths), (_joined(side) for side in sides)
        metric = metric or metrics.default_metric(truth, ours)
        try:
            pair = [metrics.weighted_metric(metric, truth, side) for side in (ours, theirs)]
            return len(truth), metric, metrics.paired_bootstrap(metric, *pair, len(truth), confidence, resamples, seed)
        except InvalidConfig as error:
            self.notes.append(f"the labelled rows cannot be judged: {error.message}")
            return len(truth), metric, None

    def latencies(self, table: pa.Table) -> dict[str, float]:
        rows = take_rows(self.rows_of(self.accepted[0].slice(0, _SINGLES)), slice(None))
        times = []
        for position in range(min(_SINGLES, len(self.accepted[0]))):
            row, start = take_rows(rows, slice(position, position + 1)), time.perf_counter()
            self.candidate.predict(row)
            times.append((time.perf_counter() - start) * 1e6)
        figures = {"candidate_batch_row": self.seconds / sum(map(len, self.accepted)) * 1e6}
        requests = table.filter(pc.equal(table.column("_row"), 0))
        served = requests.column("_latency_us").drop_null() if "_latency_us" in table.column_names else ()
        for name, values in (("candidate", times), ("served", served)):
            for rank in (50, 99) if len(values) else ():
                figures[f"{name}_p{rank}"] = float(np.percentile(values, rank))
        return figures


def _served_artifact(model: str, version: str) -> Artifact | None:
    """Return the description of a version that answered rows, or None if MLflow no longer has its files."""
    try:
        with downloaded_version(resolve(served_version_uri(model, version))) as folder:
            return read_served_artifact(folder)
    except (InvalidArtifact, InvalidConfig, NotFound):
        return None


def _answer_type(predictions: ModelPredictions) -> str:
    width = predictions.prediction[:1].size
    if predictions.is_label:
        return "a text" if predictions.prediction.dtype.kind == "O" else "a numeric label"
    return "a number" if width == 1 else f"{width} numbers"


def _text(predictions: ModelPredictions, position: int) -> str:
    value = predictions.prediction[position]
    return str(value.tolist() if isinstance(value, np.generic | np.ndarray) else value)


def _noted(part: pa.Table, position: int, text: str, rows: int = 1) -> NotedRow:
    prediction_id, row = (part.column(name)[position].as_py() for name in ("_prediction_id", "_row"))
    return NotedRow(prediction_id, row, text, rows)


def _concatenated(parts: Sequence[NamedArrays]) -> NamedArrays:
    """Return the arrays of all parts, without an array whose rows have different shapes."""
    alike = [name for name in parts[0] if len({part[name].shape[1:] for part in parts}) == 1]
    return {name: np.concatenate([part[name] for part in parts]) for name in alike}


def _joined(parts: Sequence[ModelPredictions]) -> ModelPredictions:
    """Return the predictions of all parts, without probabilities if a part has none or has other classes."""
    probabilities = [part.probabilities for part in parts if part.classes == parts[0].classes]
    known = [side for side in probabilities if side is not None]
    prediction = np.concatenate([part.prediction for part in parts])
    return replace(
        parts[0], prediction=prediction, probabilities=np.concatenate(known) if len(known) == len(parts) else None
    )
