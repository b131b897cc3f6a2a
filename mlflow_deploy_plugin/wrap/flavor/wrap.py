"""Wrap a model before it is logged: convert it, compare it with the original, and
sample the reference.
"""

import json
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema
from pandas.api.types import is_numeric_dtype

from mlflow_deploy_plugin.core.errors import (
    ConversionError,
    InvalidArtifact,
    InvalidConfig,
    ModelError,
    OnnxserveError,
    ParityError,
    pass_exit,
)
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.serve.runtime.agreement import compare
from mlflow_deploy_plugin.serve.runtime.feeds import Array, no_batch_dimension_reason
from mlflow_deploy_plugin.serve.runtime.guard import RANGES_FILE
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import available_cores
from mlflow_deploy_plugin.wrap.convert.batch import (
    Batch,
    ModelData,
    ModelInput,
    as_pandas,
    check_outputs,
)
from mlflow_deploy_plugin.wrap.convert.conversion_errors import explain_failure
from mlflow_deploy_plugin.wrap.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    TrainedModel,
    call_original,
)
from mlflow_deploy_plugin.wrap.convert.converters import FrameworkConverter, converter_for, is_onnx
from mlflow_deploy_plugin.wrap.flavor import saved_model
from mlflow_deploy_plugin.wrap.flavor.additive_form import with_additive_files
from mlflow_deploy_plugin.wrap.flavor.parity import (
    Answers,
    ParityReport,
    RowGroup,
    ask_original,
    parity_error,
    prove_parity,
)
from mlflow_deploy_plugin.wrap.flavor.parity_rows import (
    MIN_PARITY_ROWS,
    parity_rows,
    symbolic_sizes,
)
from mlflow_deploy_plugin.wrap.flavor.saved_model import EXAMPLE_ROWS, WrappedModel

_logger = logging.getLogger("mlflow_deploy_plugin.wrap")

ParityPolicy = Literal["require", "warn"]
PredictFunction = Literal["predict", "predict_proba"]
EventTimes: TypeAlias = str | Sequence[object] | Array | pd.Series | pd.DatetimeIndex | None
"""The times of rows: the name of a column, or one time per row."""
_HEAD = slice(0, 3)
_MIN_RANGE_ROWS = 100
"""The minimum number of rows whose ranges are saved. A new row is outside of n rows by
chance with a probability of 2 / (n + 1) per column.
"""
_MAX_CATEGORIES = 1_000


@dataclass(frozen=True, eq=False)
class WrapOptions:
    """The options with which a model is wrapped. They are described in `log_model`.

    Attributes:
        drop: columns that the model does not read.
        progress: a function that receives a line before each long step.
    """

    signature: ModelSignature | None = None
    predict_fn: PredictFunction = "predict"
    parity: ParityPolicy = "require"
    parity_data: ModelData = None
    reference_data: ModelData = None
    event_time: EventTimes = None
    drop: Collection[str] = ()
    progress: ProgressCallback = _logger.debug


_DEFAULTS = WrapOptions()


def wrap(
    model: TrainedModel, input_example: ModelData = None, options: WrapOptions = _DEFAULTS
) -> WrappedModel:
    """Convert `model`, check the result, and sample the reference. The errors are those
    of `save_model`.
    """
    predict_fn = options.predict_fn
    check_choice("pyfunc_predict_fn", predict_fn, PredictFunction)
    check_choice("parity", options.parity, ParityPolicy)
    try:
        converter = converter_for(model)
        rows = _read_rows(converter, model, input_example, options)
        with temporary_folder("onnxserve-wrap-") as folder:
            trials = _FormTrials(converter, model, rows, predict_fn, options.progress)
            form = trials.select(folder)
            _check_report(form, rows.example, options.parity)
            reference = rows.sample(form.runnable)
            explained = with_additive_files(form.converted, form.runnable, rows.sampled)
        lock = saved_model.environment_lock()
        provenance = saved_model.provenance_section(rows.sampled, lock)
        files = {**explained.files, **rows.ranges(form.runnable)}
        return WrappedModel(
            converted=replace(explained, files=files),
            signature=form.signature,
            predict_fn=predict_fn,
            report=form.report,
            example=rows.first_rows(form.runnable),
            data=rows.sampled,
            reference=reference,
            provenance=provenance | {"algorithm": _algorithm(model)},
            lock=lock,
        )
    except OnnxserveError:
        raise
    except BaseException as error:
        # The code of the model or of a library may raise any error, also a panic.
        pass_exit(error)
        raise ConversionError(explain_failure(error, model)) from error


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows that the user passes, as the converter reads them.

    Attributes:
        example: the input example, or else `parity_data`; None without both.
        parity_data: additional rows for the proof.
        reference: the reference data.
        times: the event times in UTC of `sampled`, [N].
        signature: the user's signature, or None if it is inferred.
        unread: the columns that were left out, because the model does not read them.
    """

    example: Batch | None
    parity_data: Batch | None
    reference: Batch | None
    times: Array | None
    signature: ModelSignature | None
    unread: tuple[str, ...] = ()

    @property
    def sampled(self) -> Batch | None:
        """The rows from which the reference sample is drawn: the reference data,
        otherwise the example; None without both.
        """
        return self.example if self.reference is None else self.reference

    def free_axes(self) -> DynamicAxes:
        """Return the axes of each tensor whose sizes differ between the data; empty
        without an example.
        """
        if self.example is None:
            return {}
        tensors = [data.tensors for data in (self.parity_data, self.reference) if data is not None]
        return self.example.free_axes(tensors, "parity_data, reference_data", self.signature)

    def sample(self, model: OnnxModel) -> pa.Table | None:
        """Return the reference sample, or None without data or if the graph has no
        rows. Raises InvalidConfig for data that need rows if the graph has none.
        """
        if model.schema.has_rows:
            if self.sampled is None:
                return None
            return saved_model.sample_reference(model, self.sampled, self.times)
        if self.reference is not None or self.times is not None:
            argument = "event_time" if self.reference is None else "reference_data"
            raise InvalidConfig(
                f"{argument}: this graph has no batch dimension and therefore no rows: "
                f"{no_batch_dimension_reason(model.artifact)}"
            )
        return None

    def ranges(self, model: OnnxModel) -> dict[str, str]:
        """Return the file of the ranges by its name; empty for tensors or too few rows.

        The texts of a column are saved if they are few and most of them are repeated.
        """
        rows = self.sampled
        schema = model.schema
        if rows is None or not schema.columns or len(rows) < _MIN_RANGE_ROWS:
            return {}
        columns = {}
        complete = []
        for name, values in schema.to_columns(rows.feeds(schema)).items():
            present = values[pd.notna(values)].tolist()
            if len(present) == len(values):
                complete.append(name)
            if values.dtype != object:
                columns[name] = [min(present, default=None), max(present, default=None)]
            elif len(texts := {*present}) <= min(_MAX_CATEGORIES, len(values) // 2):
                columns[name] = sorted(texts)
        return {RANGES_FILE: json.dumps({"columns": columns, "complete": complete})}

    def first_rows(self, model: OnnxModel) -> ModelData:
        """Return the rows that MLflow saves as the input example, or None without an
        example.
        """
        if self.example is None:
            return None
        if model.schema.has_rows:
            return self.example.take(slice(0, EXAMPLE_ROWS)).unnamed
        return self.example.unnamed


def _algorithm(model: TrainedModel) -> str:
    """Return the class of the model, with the classes of the steps of a scikit-learn
    pipeline.
    """
    name = type(model).__name__
    is_pipeline = any(
        kind.__module__ == "sklearn.pipeline" and kind.__name__ == "Pipeline"
        for kind in type(model).__mro__
    )
    if not is_pipeline:
        return name  # The attribute `steps` of other models has other values.
    steps = ", ".join(_algorithm(step) for _, step in model.steps)
    return f"{name}({steps})"


def _check_report(form: "OnnxForm", example: Batch | None, parity: ParityPolicy) -> None:
    """Raise ParityError if the model is not proven and `parity` requires a proof, or if
    no row could be compared; otherwise log the error. Raises ConversionError if the
    original's predictions are random.
    """
    report = form.report
    original = form.converted.original
    if report.beyond_tolerance and original is not None and example is not None:
        # Two calls with the same rows must be equal.
        rows = example.take(_HEAD).data
        first = original(rows)
        again = original(rows)
        if not all(compare(first[name], again[name]).is_same for name in first):
            raise ConversionError(
                "the model's predictions are random: two calls with the same rows differ"
            )
    if report.state == "warned":
        error = parity_error(report)
        if form.converted.cause:
            brief = error.brief
            error = ParityError(f"{form.converted.cause}. Therefore {error.message}")
            error.brief = brief
        if parity == "require" or not report.rows:
            raise error
        _logger.warning("%s", error.message)
    if report.repair:
        _logger.info("%s", report.repair)


def _read_rows(
    converter: FrameworkConverter,
    model: TrainedModel,
    input_example: ModelData,
    options: WrapOptions,
) -> _Rows:
    """Read the rows with the converter. Raises InvalidConfig or ConversionError for
    invalid rows.
    """
    signature = options.signature
    event_time = options.event_time
    example_data = as_pandas(input_example)
    parity_rows = as_pandas(options.parity_data)
    reference_rows = as_pandas(options.reference_data)
    if reference_rows is None:
        times, example_data = _split_event_times(event_time, example_data)
    else:
        times, reference_rows = _split_event_times(event_time, reference_rows)
        example_data = without_times(example_data, event_time)

    unread = set(options.drop)
    if isinstance(event_time, str):
        unread.add(event_time)
    if isinstance(example_data, pd.DataFrame) and hasattr(converter, "unread_columns"):
        unread |= converter.unread_columns(model, example_data)
    example_data = without_columns(example_data, unread)
    if signature is not None and signature.inputs is not None:
        specs = [spec for spec in signature.inputs.inputs if spec.name not in unread]
        signature = ModelSignature(Schema(specs), signature.outputs, signature.params)

    first = example_data if example_data is not None else parity_rows
    example = None
    if first is not None:
        first = without_columns(first, unread)
        example = Batch(converter.read_batch(model, first))
        signature = example.nameless_signature(first, signature)
        example = example.cast_to_signature(signature)
        example.check_as_example()

    def read(data: ModelData, argument: str) -> Batch | None:
        if data is None:
            return None
        return Batch(converter.read_batch(model, data)).aligned(example, argument)

    return _Rows(
        example=example,
        parity_data=read(parity_rows, "parity_data"),
        reference=read(reference_rows, "reference_data"),
        times=times,
        signature=signature,
        unread=tuple(sorted(unread)),
    )


def without_times(data: ModelData, event_time: EventTimes) -> ModelData:
    """Return the data without the column of event times, if `event_time` names one."""
    return without_columns(data, [event_time] if isinstance(event_time, str) else [])


def without_columns(data: ModelData, names: Collection[str]) -> ModelData:
    """Return the data without the named columns of a table."""
    if names and isinstance(data, pd.DataFrame):
        return data.drop(columns=list(names), errors="ignore")
    return data


def _split_event_times(event_time: EventTimes, data: ModelData) -> tuple[Array | None, ModelData]:
    """Return the event times in UTC, [N], and the data without them. Times without a
    time zone are read as UTC; without `event_time`, the times are None.

    Raises InvalidConfig without data, without the named column, and unless each row has
    a time.
    """
    if event_time is None:
        return None, data
    if data is None:
        raise InvalidConfig(
            "event_time: there are no rows for the times; pass input_example or reference_data"
        )
    values = event_time
    if isinstance(event_time, str):
        if not isinstance(data, pd.DataFrame) or event_time not in data.columns:
            raise InvalidConfig(f"event_time: the reference data has no column {event_time!r}")
        values = data[event_time]
    try:
        series = values
        if not isinstance(series, pd.Series):
            series = pd.Series(np.asarray(series))
        if is_numeric_dtype(series.dtype) and len(series):
            raise InvalidConfig(
                f"event_time: {series.iloc[0]} is a number; convert it with pandas.to_datetime(…, "
                "unit='s')"
            )
        times = pd.to_datetime(series, utc=True)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"event_time: {error}") from None
    if len(times) != len(data):
        raise InvalidConfig(
            f"event_time has {len(times)} values, but the reference data has {len(data)} rows"
        )
    if times.isna().any():
        raise InvalidConfig("event_time has missing values; each row of the reference needs a time")
    return times.dt.tz_localize(None).to_numpy(), without_times(data, event_time)


def check_choice(name: str, value: object, choices: object) -> None:
    if value not in get_args(choices):
        raise InvalidConfig(f"{name}: {value!r} is not one of {', '.join(get_args(choices))}")


@dataclass(frozen=True)
class OnnxForm:
    """An ONNX form, loaded from its draft folder, and its comparison with the
    original.
    """

    converted: ConvertedModel
    runnable: OnnxModel
    signature: ModelSignature
    report: ParityReport


@dataclass
class _FormTrials:
    """The comparison of all ONNX forms of a model on the same rows. For a table, the
    original is run only once.
    """

    converter: FrameworkConverter
    model: TrainedModel
    rows: _Rows
    predict_fn: PredictFunction
    progress: ProgressCallback
    answered: Iterable[tuple[RowGroup, Answers | None]] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def select(self, folder: Path) -> OnnxForm:
        """Return the first form without `doubts`, otherwise the best form. Raises
        ConversionError if all forms fail.
        """
        self.progress(f"Converting {type(self.model).__name__} to ONNX.")
        best: OnnxForm | None = None
        first_failure: ModelError | None = None
        axes = self.rows.free_axes()
        example: ModelInput | None = None
        inputs = None
        if self.rows.signature is not None and is_onnx(self.model):
            inputs = self.rows.signature.inputs
        if self.rows.example is not None:
            example = self.rows.example.data
        # The signature may name the columns of an ONNX model without an example.
        elif inputs is not None and not inputs.is_tensor_spec() and inputs.has_input_names():
            example = pd.DataFrame(columns=inputs.input_names())
        makers = self.converter.forms(self.model, example, self.predict_fn, axes)
        for position, make in enumerate(makers):
            form = self._try(folder / str(position), make)
            if isinstance(form, ModelError):
                first_failure = first_failure or form
                continue
            _logger.debug("form %d: %s", position, form.report.as_dict())
            if best is None or form.report.doubts < best.report.doubts:
                best = form
            if not any(form.report.doubts):
                break
        if best is not None:
            return best
        if first_failure is None:
            raise ConversionError(f"{type(self.model).__name__} has no ONNX form")
        raise ConversionError(first_failure.message)

    def _try(self, draft: Path, make: Callable[[], ConvertedModel]) -> OnnxForm | ModelError:
        """Return the form, or the reason why it cannot be made or loaded. `draft` is
        the new folder of the form.
        """
        try:
            draft.mkdir()
            return self.run(draft, replace(make(), unread=self.rows.unread))
        except ConversionError as error:
            return error
        except InvalidArtifact as error:
            if is_onnx(self.model):
                return error
            return ConversionError(explain_failure(error, self.model))
        except OnnxserveError:
            raise
        except BaseException as error:  # noqa: BLE001 - libraries raise any error, also a panic.
            pass_exit(error)
            return ConversionError(explain_failure(error, self.model))

    def run(self, draft: Path, converted: ConvertedModel) -> OnnxForm:
        """Save the form to the draft folder, load it, and compare it with the original
        if there is an original.
        """
        example = self.rows.example
        signature = self.rows.signature
        if example is None or converted.original is None:
            batch = example if example is not None else Batch.declared(converted.inputs)
            signature = signature or batch.graph_signature(converted.inputs, converted.outputs)
        else:
            answers = call_original(converted.original, example.take(_HEAD).data)
            prediction: Array | dict[str, Array] = {
                name: answers[name] for name in converted.prediction
            }
            if len(converted.prediction) == 1:
                prediction = answers[converted.prediction[0]]
            inferred = example.signature(prediction, converted.inputs, converted.outputs)
            check_outputs(signature, inferred)
            declared = signature or inferred
            signature = ModelSignature(
                declared.inputs, declared.outputs or inferred.outputs, declared.params
            )
        saved_model.write_mlmodel(draft, Model(signature=signature), converted, self.predict_fn, {})
        runnable = OnnxModel.load(draft, intra_op_num_threads=available_cores())
        return OnnxForm(converted, runnable, signature, self._prove(runnable, converted))

    def _prove(self, runnable: OnnxModel, converted: ConvertedModel) -> ParityReport:
        """Return the comparison with the original. The original's predictions for a
        table are kept for the next form.
        """
        example = self.rows.example
        original = converted.original
        if example is None or original is None:
            return ParityReport("no-original")
        self.progress("Comparing the predictions of the ONNX form with those of the original.")
        boundary = converted.boundary_values
        sizes = symbolic_sizes(converted.proto)
        self.left_out.update(boundary.left_out)
        answered = self.answered
        if not answered:
            groups = parity_rows(example, self.rows.parity_data, boundary, sizes, self.left_out)
            answered = ask_original(original, groups)
        if example.is_table:  # Predictions for tensors may be too large to keep.
            answered = list(answered)
            self.answered = answered
        report = prove_parity(runnable, converted, original, answered, MIN_PARITY_ROWS)
        limit = ""
        if np.isfinite(boundary.farthest):
            limit = (
                f"proven for numbers up to {boundary.farthest:,.0f}: farther away, distances or "
                "sums are equal up to rounding errors, which decide the prediction"
            )
        return replace(report, left_out=self.left_out, limit=limit)
