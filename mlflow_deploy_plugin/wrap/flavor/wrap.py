"""Wrap a model before it is logged: convert it, compare it with the original, and
sample the reference.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature

from mlflow_deploy_plugin.core.errors import (
    ConversionError,
    InvalidArtifact,
    InvalidConfig,
    ModelError,
    ParityError,
    pass_exit,
)
from mlflow_deploy_plugin.serve.runtime.agreement import compare
from mlflow_deploy_plugin.serve.runtime.feeds import Array, no_batch_dimension_reason
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import available_cores
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData, as_pandas, check_outputs
from mlflow_deploy_plugin.wrap.convert.conversion_errors import explain_failure
from mlflow_deploy_plugin.wrap.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    TrainedModel,
    call_original,
)
from mlflow_deploy_plugin.wrap.convert.converters import FrameworkConverter, converter_for, is_onnx
from mlflow_deploy_plugin.wrap.flavor import saved_model
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


def wrap(
    model: TrainedModel,
    input_example: ModelData = None,
    *,
    signature: ModelSignature | None = None,
    predict_fn: PredictFunction = "predict",
    parity: ParityPolicy = "require",
    parity_data: ModelData = None,
    reference_data: ModelData = None,
    event_time: EventTimes = None,
) -> WrappedModel:
    """Convert `model`, check the result, and sample the reference. Arguments and errors
    are those of `save_model`.
    """
    check_choice("pyfunc_predict_fn", predict_fn, PredictFunction)
    check_choice("parity", parity, ParityPolicy)
    converter = converter_for(model)
    example, proof, reference, times, signature = _read_data(
        converter,
        model,
        input_example,
        signature,
        parity_data,
        reference_data,
        event_time,
    )
    tensors = [data.tensors for data in (proof, reference) if data is not None]
    axes = (
        {}
        if example is None
        else example.free_axes(tensors, "parity_data, reference_data", signature)
    )
    judged = reference if reference is not None else example
    sample = None
    with TemporaryDirectory(prefix="onnxserve-") as folder:
        form = _FormTrials(converter, model, example, proof, signature, predict_fn, axes).select(
            Path(folder),
        )
        _check_report(form, example, parity)
        has_rows = form.runnable.schema.has_rows
        if not has_rows and (reference is not None or times is not None):
            raise InvalidConfig(
                f"{'event_time' if reference is None else 'reference_data'}: this graph has no "
                "batch dimension and therefore no rows: "
                f"{no_batch_dimension_reason(form.runnable.artifact)}",
            )
        if judged is not None and has_rows:
            sample = saved_model.sample_reference(form.runnable, judged, times)
    first = example.take(slice(0, EXAMPLE_ROWS)) if example is not None and has_rows else example
    lock = saved_model.environment_lock()
    return WrappedModel(
        converted=form.converted,
        signature=form.signature,
        predict_fn=predict_fn,
        report=form.report,
        example=None if first is None else first.unnamed,
        data=judged,
        reference=sample,
        provenance={**saved_model.provenance_section(judged, lock), "algorithm": _algorithm(model)},
        lock=lock,
    )


def _algorithm(model: TrainedModel) -> str:
    """Return the class of the model, with the classes of the steps of a scikit-learn
    pipeline.
    """
    name = type(model).__name__
    if not any(
        kind.__module__ == "sklearn.pipeline" and kind.__name__ == "Pipeline"
        for kind in type(model).__mro__
    ):
        return name  # The attribute `steps` of other models has other values.
    return f"{name}({', '.join(_algorithm(step) for _, step in model.steps)})"


def _check_report(form: "OnnxForm", example: Batch | None, parity: ParityPolicy) -> None:
    """Check the parity report. Raises ParityError, or ConversionError if the original's
    predictions are random.
    """
    report = form.report
    original = form.converted.original
    if report.beyond_tolerance and original is not None and example is not None:
        rows = example.take(_HEAD).data
        first = original(rows)
        again = original(rows)
        if not all(compare(first[name], again[name]).is_same for name in first):
            raise ConversionError(
                "the model's predictions are random: two calls with the same rows differ",
            )
    if report.state == "warned":
        error = parity_error(report)
        if form.converted.cause:
            error = ParityError(f"{form.converted.cause}. Therefore {error.message}")
        if parity == "require" or not report.rows:
            raise error
        _logger.warning("%s", error.message)
    if report.repair:
        _logger.info("%s", report.repair)


def _read_data(
    converter: FrameworkConverter,
    model: TrainedModel,
    input_example: ModelData,
    signature: ModelSignature | None,
    parity_data: ModelData,
    reference_data: ModelData,
    event_time: EventTimes,
) -> tuple[Batch | None, Batch | None, Batch | None, Array | None, ModelSignature | None]:
    """Return the example, `parity_data` and `reference_data` as batches, the event
    times, and the signature.
    """
    input_example, parity_data, reference_data = map(
        as_pandas,
        (input_example, parity_data, reference_data),
    )
    times, judged = _split_event_times(
        event_time,
        reference_data if reference_data is not None else input_example,
    )
    if reference_data is None:
        input_example = judged
    elif isinstance(event_time, str) and event_time in getattr(input_example, "columns", ()):
        input_example = input_example.drop(columns=[event_time])

    first = input_example if input_example is not None else parity_data
    example = None
    if first is not None:
        example = Batch(converter.read_batch(model, first))
        signature = example.nameless_signature(first, signature)
        example = example.cast_to_signature(signature)
        example.check_as_example()

    def read(data: ModelData, argument: str) -> Batch | None:
        if data is None:
            return None
        return Batch(converter.read_batch(model, data)).aligned(example, argument)

    reference = None if reference_data is None else judged
    return (
        example,
        read(parity_data, "parity_data"),
        read(reference, "reference_data"),
        times,
        signature,
    )


def _split_event_times(event_time: EventTimes, data: ModelData) -> tuple[Array | None, ModelData]:
    """Return the event times in UTC and the data without them. Times without a time
    zone are read as UTC.
    """
    if event_time is None:
        return None, data
    if data is None:
        raise InvalidConfig(
            "event_time: there are no rows for the times; pass input_example or reference_data",
        )
    if isinstance(event_time, str):
        if not isinstance(data, pd.DataFrame) or event_time not in data.columns:
            raise InvalidConfig(f"event_time: the reference data has no column {event_time!r}")
        column = data[event_time]
        data = data.drop(columns=[event_time])
        event_time = column
    try:
        series = (
            event_time if isinstance(event_time, pd.Series) else pd.Series(np.asarray(event_time))
        )
        if pd.api.types.is_numeric_dtype(series.dtype) and len(series):
            raise InvalidConfig(
                f"event_time: {series.iloc[0]} is a number; convert it with pandas.to_datetime(…, "
                "unit='s')",
            )
        times = pd.to_datetime(series, utc=True)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"event_time: {error}") from None
    if len(times) != len(data):
        raise InvalidConfig(
            f"event_time has {len(times)} values, but the reference data has {len(data)} rows",
        )
    if times.isna().any():
        raise InvalidConfig("event_time has missing values; each row of the reference needs a time")
    return times.dt.tz_localize(None).to_numpy(), data


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
    example: Batch | None
    parity_data: Batch | None
    signature: ModelSignature | None
    predict_fn: PredictFunction
    dynamic_axes: DynamicAxes
    answered: Iterable[tuple[RowGroup, Answers | None]] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def select(self, folder: Path) -> OnnxForm:
        """Return the first form without `doubts`, otherwise the best form. Raises
        ConversionError if all forms fail.
        """
        best: OnnxForm | None = None
        failure: ModelError | None = None
        model = self.model
        example = None if self.example is None else self.example.data
        inputs = self.signature.inputs if self.signature is not None else None
        if example is None and is_onnx(model) and inputs is not None and inputs.has_input_names():
            example = (
                None if inputs.is_tensor_spec() else pd.DataFrame(columns=inputs.input_names())
            )
        makers = self.converter.forms(model, example, self.predict_fn, self.dynamic_axes)
        for position, make in enumerate(makers):
            try:
                draft = folder / str(position)
                draft.mkdir()
                form = self.run(draft, make())
            except ConversionError as error:
                failure = failure or error
                continue
            except InvalidArtifact as error:
                failure = failure or (
                    error if is_onnx(model) else ConversionError(explain_failure(error, model))
                )
                continue
            except Exception:
                raise
            except BaseException as error:  # noqa: BLE001 - a panic, such as a tokenizer's
                pass_exit(error)
                failure = failure or ConversionError(explain_failure(error, model))
                continue
            _logger.debug("form %d: %s", position, form.report.as_dict())
            if best is None or form.report.doubts < best.report.doubts:
                best = form
            if not any(form.report.doubts):
                break
        if best is None:
            raise ConversionError(
                failure.message if failure else f"{type(model).__name__} has no ONNX form",
            )
        return best

    def run(self, draft: Path, converted: ConvertedModel) -> OnnxForm:
        """Save the form to the draft folder, load it, and compare it with the original
        if there is an original.
        """
        example = self.example
        original = converted.original
        signature = self.signature
        if example is None or original is None:
            batch = example if example is not None else Batch.declared(converted.inputs)
            signature = signature or batch.graph_signature(converted.inputs, converted.outputs)
        else:  # The signature has the example's inputs and the original's outputs.
            answers = call_original(original, example.take(_HEAD).data)
            predicted = {name: answers[name] for name in converted.prediction}
            only = next(iter(predicted.values())) if len(predicted) == 1 else predicted
            inferred = example.signature(only, converted.inputs, converted.outputs)
            check_outputs(signature, inferred)
            declared = signature or inferred
            signature = ModelSignature(
                declared.inputs,
                declared.outputs or inferred.outputs,
                declared.params,
            )
        saved_model.write_mlmodel(draft, Model(signature=signature), converted, self.predict_fn, {})
        runnable = OnnxModel.load(draft, intra_op_num_threads=available_cores())
        if example is None or original is None:
            return OnnxForm(converted, runnable, signature, ParityReport("no-original"))
        boundary = converted.boundary_values
        sizes = symbolic_sizes(converted.proto)
        self.left_out.update(boundary.left_out)
        answered = self.answered or ask_original(
            original,
            parity_rows(example, self.parity_data, boundary, sizes, self.left_out),
        )
        if example.is_table:  # Predictions for tensors may be too large to keep.
            answered = self.answered = list(answered)
        report = prove_parity(runnable, converted, original, answered, MIN_PARITY_ROWS)
        return OnnxForm(converted, runnable, signature, replace(report, left_out=self.left_out))
