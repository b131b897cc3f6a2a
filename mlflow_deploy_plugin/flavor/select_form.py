"""Selecting a model's ONNX form: each is saved as a draft, loaded and compared, until one answers as the original."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from mlflow.models import Model, ModelSignature

from mlflow_deploy_plugin.errors import ConversionError, InvalidArtifact, ModelError
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.convert import converter_for
from mlflow_deploy_plugin.flavor.convert.conversion_errors import explain_failure, is_onnx
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, OriginalModel
from mlflow_deploy_plugin.flavor.mlmodel import write_mlmodel
from mlflow_deploy_plugin.flavor.parity import RowGroup, prove_parity
from mlflow_deploy_plugin.flavor.parity_report import ParityReport
from mlflow_deploy_plugin.flavor.parity_rows import MIN_PARITY_ROWS, parity_rows
from mlflow_deploy_plugin.flavor.signature import declared_schema, graph_signature, output_schema, signature_of
from mlflow_deploy_plugin.runtime import Array, OnnxModel, available_cores

_logger = logging.getLogger("mlflow_deploy_plugin.flavor")

PredictFunction = Literal["predict", "predict_proba"]
_HEAD = slice(0, 3)


@dataclass(frozen=True)
class OnnxForm:
    """One ONNX form, loaded from its draft, and its comparison with the original."""

    converted: ConvertedModel
    runnable: OnnxModel
    signature: ModelSignature
    report: ParityReport


def select_form(
    folder: Path,
    model: Any,
    example: Batch | None,
    parity_data: Batch | None,
    signature: ModelSignature | None,
    predict_fn: PredictFunction,
) -> OnnxForm:
    """Return the first form without doubts, else the one that comes closest to the original.

    Args:
        folder: an empty folder for the drafts.

    Raises:
        ConversionError: no form can be made, or run.
    """
    best: OnnxForm | None = None
    failure: ModelError | None = None
    trials = _FormTrials(example, parity_data, signature, predict_fn)
    for position, make in enumerate(converter_for(model).forms(model, example, predict_fn)):
        try:
            draft = folder / str(position)
            draft.mkdir()
            form = trials.run(draft, make())
        except ConversionError as error:
            failure = failure or error
            continue
        except InvalidArtifact as error:
            failure = failure or (error if is_onnx(model) else ConversionError(explain_failure(error, model)))
            continue
        _logger.debug("form %d: %s", position, form.report.as_dict())
        if best is None or form.report.doubts < best.report.doubts:
            best = form
        if not any(form.report.doubts):
            break
    if best is None:
        raise ConversionError(failure.message if failure else f"{type(model).__name__} has no ONNX form")
    return best


class _FormTrials:
    """Compares all forms of a model on the same rows, for which the original is called once."""

    def __init__(
        self,
        example: Batch | None,
        parity_data: Batch | None,
        signature: ModelSignature | None,
        predict_fn: PredictFunction,
    ) -> None:
        self._example, self._parity_data = example, parity_data
        self._signature, self._predict_fn = signature, predict_fn
        self._rows: list[RowGroup] = []
        self._answers: dict[int, dict[str, Array]] = {}

    def run(self, draft: Path, converted: ConvertedModel) -> OnnxForm:
        given = self._signature or _signature(converted, self._example)
        write_mlmodel(draft, Model(signature=given), converted, self._predict_fn, {})
        runnable = OnnxModel.load(draft, intra_op_num_threads=available_cores())
        if self._example is None or converted.original is None:
            return OnnxForm(converted, runnable, given, ParityReport("no-original"))
        remembering = replace(converted, original=self._remembering(converted.original))
        report = prove_parity(runnable, remembering, self._rows_for(self._example, converted), MIN_PARITY_ROWS)
        return OnnxForm(converted, runnable, given, report)

    def _rows_for(self, example: Batch, converted: ConvertedModel) -> Iterable[RowGroup]:
        if not isinstance(example, pd.DataFrame):  # tensors may be large, and have one form: they are not kept
            return parity_rows(example, self._parity_data, converted.boundary_values)
        self._rows = self._rows or list(parity_rows(example, self._parity_data, converted.boundary_values))
        return self._rows

    def _remembering(self, original: OriginalModel) -> OriginalModel:
        """Return the original with its answers for the kept rows stored."""

        def call(batch: Batch) -> dict[str, Array]:
            if not any(batch is group.batch for group in self._rows):
                return original(batch)
            if id(batch) not in self._answers:  # the row groups live as long as this object, and so do their ids
                self._answers[id(batch)] = original(batch)
            return self._answers[id(batch)]

        return call


def _signature(converted: ConvertedModel, example: Batch | None) -> ModelSignature:
    """Return the signature: inputs as in the example, outputs as the original returns them, else as in the graph."""
    if example is None:
        return graph_signature(converted.inputs, converted.outputs)
    if converted.original is None:
        return ModelSignature(
            inputs=declared_schema(example, converted.inputs), outputs=output_schema(converted.outputs)
        )
    answers = converted.original(batches.take_rows(example, _HEAD))
    names = converted.prediction
    return signature_of(example, answers[names[0]] if len(names) == 1 else {name: answers[name] for name in names})
