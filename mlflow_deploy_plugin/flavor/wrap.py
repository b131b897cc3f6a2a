"""Wrapping a model: convert, prove, sample. All that can fail fails here, before MLflow gets the model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from mlflow.models import ModelSignature

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig, ParityError
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor import mlmodel, reference_sample
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.convert import converter_for
from mlflow_deploy_plugin.flavor.convert.conversion_errors import pyfunc_alternative
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel
from mlflow_deploy_plugin.flavor.parity_report import ParityReport, parity_error
from mlflow_deploy_plugin.flavor.select_form import PredictFunction, select_form
from mlflow_deploy_plugin.flavor.signature import align_columns, cast_to_signature, check_example
from mlflow_deploy_plugin.runtime import Array, no_batch_dimension_reason

_logger = logging.getLogger("mlflow_deploy_plugin.flavor")

ParityPolicy = Literal["require", "warn"]
_EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class WrappedModel:
    """A model that is ready to be saved.

    Attributes:
        example: the first rows of the user's example in the form that MLflow saves; None if there is none.
        reference: the reference sample; None if there is no data.
        provenance: git commit, dataset digest, environment.
        lock: text of requirements.lock.
    """

    converted: ConvertedModel
    signature: ModelSignature
    report: ParityReport
    example: Any
    reference: Any
    provenance: Mapping[str, Any]
    lock: str


def wrap(
    model: Any,
    input_example: Any = None,
    *,
    signature: ModelSignature | None = None,
    predict_fn: PredictFunction = "predict",
    parity: ParityPolicy = "require",
    parity_data: Any = None,
    reference_data: Any = None,
    event_time: Any = None,
) -> WrappedModel:
    """Convert `model`, prove the result and sample the reference.

    Raises:
        ConversionError: the model has no ONNX form.
        ParityError: its ONNX form cannot answer, or answers otherwise and `parity` is "require".
        InvalidConfig: an argument is not valid; the message names it.
    """
    _check_choice("pyfunc_predict_fn", predict_fn, PredictFunction)
    _check_choice("parity", parity, ParityPolicy)
    try:
        data = _UserData.read(model, input_example, signature, parity_data, reference_data, event_time)
        with TemporaryDirectory(prefix="onnxserve-") as folder:
            form = select_form(Path(folder), model, data.example, data.parity, signature, predict_fn)
            _check_parity(form.report, parity)
            has_rows = form.runnable.schema.has_rows
            if not has_rows and (data.reference is not None or data.times is not None):
                raise InvalidConfig(
                    f"{'event_time' if data.reference is None else 'reference_data'}: this graph has no batch "
                    f"dimension, so that there are no rows: {no_batch_dimension_reason(form.runnable.artifact)}"
                )
            judged = data.reference if data.reference is not None else data.example
            sample = None
            if judged is not None and has_rows:
                sample = reference_sample.sample_reference(form.runnable, judged, data.times)
    except (ConversionError, ParityError) as error:
        cause = error.__cause__ or error
        if alternative := pyfunc_alternative(model):
            raise type(error)(f"{error.message.removesuffix('.')}. {alternative}.") from cause
        raise error from cause
    lock = mlmodel.environment_lock()
    return WrappedModel(
        converted=form.converted,
        signature=form.signature,
        report=form.report,
        example=None if data.example is None else _example_to_save(data.example, has_rows),
        reference=sample,
        provenance=mlmodel.provenance_section(judged, lock),
        lock=lock,
    )


def _check_parity(report: ParityReport, parity: ParityPolicy) -> None:
    """Raise a ParityError, or log a warning if the user accepts a model that answers otherwise."""
    if report.state == "warned":
        error = parity_error(report)
        if parity == "require" or not report.rows:  # not even the example can be answered
            raise error
        _logger.warning("%s", error.message)
    if report.repair:
        _logger.info("%s", report.repair)
    _logger.info("parity %s on %d rows", report.state, report.rows)


@dataclass(frozen=True)
class _UserData:
    """The user's data, as batches of the model."""

    example: Batch | None
    parity: Batch | None
    reference: Batch | None
    times: Array | None

    @classmethod
    def read(
        cls, model: Any, input_example: Any, signature: Any, parity_data: Any, reference_data: Any, event_time: Any
    ) -> "_UserData":
        converter = converter_for(model)
        times, judged = reference_sample.split_event_times(
            event_time, reference_data if reference_data is not None else input_example
        )
        if reference_data is None:
            input_example = judged
        elif isinstance(event_time, str) and event_time in getattr(input_example, "columns", ()):
            input_example = input_example.drop(columns=[event_time])

        first = input_example if input_example is not None else parity_data
        example = None if first is None else cast_to_signature(converter.read_batch(model, first), signature)
        if example is not None:
            check_example(example)

        def read(data: Any, argument: str) -> Batch | None:
            return None if data is None else align_columns(converter.read_batch(model, data), example, argument)

        further = None if reference_data is None else judged
        return cls(example, read(parity_data, "parity_data"), read(further, "reference_data"), times)


def _example_to_save(example: Batch, has_rows: bool) -> Any:
    """Return the first rows in a form that MLflow saves: a DataFrame, an array or a mapping of arrays."""
    first = batches.take_rows(example, slice(0, _EXAMPLE_ROWS)) if has_rows else example
    return first[""] if isinstance(first, dict) and set(first) == {""} else first


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise InvalidConfig(f"{name}: {value!r} is not one of {', '.join(get_args(choices))}")
