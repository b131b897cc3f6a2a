"""Wrap: convert, prove, sample. Everything that can fail does so here, before MLflow has heard of the model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from mlflow.models import Model, ModelSignature

from mlflow_deploy_plugin.errors import ConversionError, InvalidArtifact, InvalidConfig, ModelError
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor import provenance, reference
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.convert import converter_for
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel
from mlflow_deploy_plugin.flavor.generate import parity_rows
from mlflow_deploy_plugin.flavor.parity import prove
from mlflow_deploy_plugin.flavor.report import ParityReport, refusal
from mlflow_deploy_plugin.flavor.section import write_section
from mlflow_deploy_plugin.flavor.signature import (
    align,
    conform,
    graph_signature,
    input_schema,
    output_schema,
    signature_of,
)
from mlflow_deploy_plugin.runtime.model import OnnxModel
from mlflow_deploy_plugin.runtime.schema import Array
from mlflow_deploy_plugin.runtime.session import available_cores

_logger = logging.getLogger("mlflow_deploy_plugin.flavor")

ParityPolicy = Literal["require", "warn"]
PredictFunction = Literal["predict", "predict_proba"]
_EXAMPLE_ROWS = 5
_HEAD = slice(0, 3)


@dataclass(frozen=True)
class Wrapped:
    """A model that is ready to be saved.

    Attributes:
        example: the first rows of the user's example in the form that MLflow saves; None where none was given.
        reference: the reference sample, or None where there is no data.
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
) -> Wrapped:
    """Converts `model`, proves the result and samples the reference.

    Raises:
        ConversionError: the model has no ONNX form.
        ParityError: its ONNX form answers otherwise, and `parity` is "require".
        InvalidConfig: an argument is not what it should be; the message names it.
    """
    _check_choice("pyfunc_predict_fn", predict_fn, PredictFunction)
    _check_choice("parity", parity, ParityPolicy)
    data = _Data.read(model, input_example, signature, parity_data, reference_data, event_time)
    with TemporaryDirectory(prefix="onnxserve-") as folder:
        form = _best_form(Path(folder), model, data, signature, predict_fn)
        _judge(form.report, parity)
        judged = data.reference if data.reference is not None else data.example
        sample = None if judged is None else reference.reference_sample(form.runnable, judged, data.times)
    lock = provenance.environment_lock()
    return Wrapped(
        converted=form.converted,
        signature=form.signature,
        report=form.report,
        example=None if data.example is None else _saved_example(data.example),
        reference=sample,
        provenance=provenance.provenance(judged, lock),
        lock=lock,
    )


def _judge(report: ParityReport, parity: ParityPolicy) -> None:
    if report.state == "warned":
        error = refusal(report)
        if parity == "require":
            raise error
        _logger.warning("%s", error.message)
    if report.repair:
        _logger.info("%s", report.repair)
    _logger.info("parity %s on %d rows", report.state, report.rows)


@dataclass(frozen=True)
class _Data:
    """The user's data as batches of the model."""

    example: Batch | None
    parity: Batch | None
    reference: Batch | None
    times: Array | None

    @classmethod
    def read(
        cls, model: Any, input_example: Any, signature: Any, parity_data: Any, reference_data: Any, event_time: Any
    ) -> "_Data":
        converter = converter_for(model)
        times, judged = reference.event_times(
            event_time, reference_data if reference_data is not None else input_example
        )
        if reference_data is None:
            input_example = judged
        elif isinstance(event_time, str) and event_time in getattr(input_example, "columns", ()):
            input_example = input_example.drop(columns=[event_time])

        first = input_example if input_example is not None else parity_data
        example = None if first is None else conform(converter.read_batch(model, first), signature)

        def read(data: Any, argument: str) -> Batch | None:
            return None if data is None else align(converter.read_batch(model, data), example, argument)

        further = None if reference_data is None else judged
        return cls(example, read(parity_data, "parity_data"), read(further, "reference_data"), times)


@dataclass(frozen=True)
class _Form:
    """One ONNX form, saved as a draft, loaded again and compared with the original."""

    converted: ConvertedModel
    runnable: OnnxModel
    signature: ModelSignature
    report: ParityReport


def _best_form(
    folder: Path, model: Any, data: _Data, signature: ModelSignature | None, predict_fn: PredictFunction
) -> _Form:
    """The first form that answers as the original, else the one that comes closest."""
    best: _Form | None = None
    failure: ModelError | None = None
    for position, make in enumerate(converter_for(model).forms(model, data.example, predict_fn)):
        try:
            draft = folder / str(position)
            draft.mkdir()
            form = _try(draft, make(), data, signature, predict_fn)
        except (ConversionError, InvalidArtifact) as error:
            failure = failure or error
            continue
        _logger.debug("form %d: %s", position, form.report.as_dict())
        if best is None or form.report.doubts < best.report.doubts:
            best = form
        if not any(form.report.doubts):
            break
    if best is None:
        raise ConversionError(failure.message if failure else f"{type(model).__name__} has no ONNX form")
    return best


def _try(
    draft: Path,
    converted: ConvertedModel,
    data: _Data,
    signature: ModelSignature | None,
    predict_fn: PredictFunction,
) -> _Form:
    given = signature or _signature(converted, data.example)
    write_section(draft, Model(signature=given), converted, predict_fn, {})
    runnable = OnnxModel.load(draft, intra_op_num_threads=available_cores())
    if data.example is None:
        return _Form(converted, runnable, given, ParityReport("no-original"))
    rows = parity_rows(data.example, data.parity, converted.thresholds)
    return _Form(converted, runnable, given, prove(runnable, converted, rows))


def _signature(converted: ConvertedModel, example: Batch | None) -> ModelSignature:
    """Inputs as the example has them, outputs as the original answers them; without those as the graph says."""
    if example is None:
        return graph_signature(converted.inputs, converted.outputs)
    if converted.original is None:
        return ModelSignature(inputs=input_schema(example), outputs=output_schema(converted.outputs))
    answers = converted.original(batches.take(example, _HEAD))
    names = converted.prediction
    return signature_of(example, answers[names[0]] if len(names) == 1 else {name: answers[name] for name in names})


def _saved_example(example: Batch) -> Any:
    """The first rows, in the form that MLflow saves: a DataFrame, an array or a mapping of arrays."""
    first = batches.take(example, slice(0, _EXAMPLE_ROWS))
    return first[""] if isinstance(first, dict) and set(first) == {""} else first


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise InvalidConfig(f"{name}: {value!r} is not one of {', '.join(get_args(choices))}")
