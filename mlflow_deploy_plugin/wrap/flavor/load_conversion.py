"""`python -m mlflow_deploy_plugin.wrap.flavor.load_conversion FOLDER TARGET LABEL`:
convert the model of an MLmodel folder, and write the proven ONNX form to the folder
TARGET, and a line about the proof next to it, to TARGET.proof.

The agent starts this process for a version without an ONNX form
(`serve/agent/forms.py`). The form answers callers like the original: its prediction has
the original's names, types and shapes, and other outputs are returned only if a request
names them. LABEL names the model in messages. The exit status is 1 if there is no form;
the last line of the standard error is the reason.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model
from onnx import ModelProto

from mlflow_deploy_plugin.core.errors import ConversionError, OnnxserveError
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.mlmodel import (
    FLAVOR,
    JOBLIB,
    MLMODEL,
    folder_bytes,
    read_mlmodel,
)
from mlflow_deploy_plugin.core.processes.memory import limit_conversion
from mlflow_deploy_plugin.serve.pyfunc.process import error_summary
from mlflow_deploy_plugin.serve.pyfunc.scorer import NotRepresentable, to_outputs
from mlflow_deploy_plugin.serve.runtime.agreement import compare
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.batch import ModelData
from mlflow_deploy_plugin.wrap.convert.converted import ConvertedModel
from mlflow_deploy_plugin.wrap.convert.onnx_file import rename_output
from mlflow_deploy_plugin.wrap.evaluation.agreement import rounding_tolerance
from mlflow_deploy_plugin.wrap.flavor.registered import (
    Original,
    convert_original,
    load_file,
    load_folder,
    proof_rows,
)
from mlflow_deploy_plugin.wrap.flavor.saved_model import WrappedModel, save_model

_NICE = 10
"""The priority of the agent's other work. A lower one would starve on a busy server."""
_ROUNDING = rounding_tolerance(1e-4)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("label")
    parser.add_argument("--made-rows", action="store_true")
    options = parser.parse_args()
    if sys.platform != "win32":
        os.nice(max(0, _NICE - os.nice(0)))
    limit_conversion(folder_bytes(options.folder))
    logging.disable(logging.WARNING)
    try:
        proof = convert_folder(options.folder, options.target, options.label, options.made_rows)
    except OnnxserveError as error:
        reason = error.message
    except Exception as error:  # noqa: BLE001 - the model's code may raise any error
        reason = error_summary(error)
    else:
        options.target.with_suffix(".proof").write_text(proof)
        return 0
    sys.stderr.write(f"\n{one_line(reason, 400)}\n")
    return 1


def convert_folder(folder: Path, target: Path, label: str, makes_rows: bool = False) -> str:
    """Write the ONNX form of a model to `target`, and return the text of its proof.

    Args:
        folder: the folder of an MLmodel file whose model was saved by a flavor of
            MLflow, or is an adopted joblib file.
        target: a folder that does not exist.
        label: the name of the model in messages.
        makes_rows: True if the proof may use rows that are made from the model.

    Raises:
        ConversionError: a part of the model cannot be converted, or callers would
            receive other names, types or shapes.
        ParityError: the ONNX form gives other answers.
        OnnxserveError: the model cannot be loaded, or has no rows.
    """
    original = load_original(folder, label)
    rows = proof_rows(original, None)
    if rows.is_made_up and not makes_rows:
        raise ConversionError("its input example cannot be read")
    wrapped, _ = convert_original(original, rows, "require", (), None)
    answers = original_answers(folder, rows.rows)
    # The reference would have the graph's names, and the agent's folder has no commit.
    own = {name: text for name, text in wrapped.provenance.items() if not name.startswith("git_")}
    named = replace(named_like(wrapped, answers), reference=None, provenance=own)
    mlmodel = Model.load(str(folder))
    identity = Model(run_id=mlmodel.run_id, model_id=mlmodel.model_id)
    save_model(target, named, identity, metadata=mlmodel.metadata)
    identity.flavors[FLAVOR]["default_outputs"] = list(answers)
    identity.save(str(target / MLMODEL))
    _check_answers(OnnxModel.load(target), named, answers)
    kind = "made" if rows.is_made_up else "example"
    return f"proven on {len(next(iter(answers.values())))} {kind} rows"


def original_answers(folder: Path, rows: ModelData) -> dict[str, Array]:
    """Return the answers of a pyfunc to these rows by their names. Raises
    ConversionError for answers that are not arrays.
    """
    prediction = mlflow.pyfunc.load_model(str(folder)).predict(rows)
    if isinstance(prediction, pd.DataFrame):
        raise ConversionError("its answers are tables, and an ONNX form answers with arrays")
    try:
        return to_outputs(prediction)
    except NotRepresentable as error:
        raise ConversionError(f"its answers are not arrays: {error}") from None


def load_original(folder: Path, label: str) -> Original:
    """Load the model of an MLmodel folder like `load_folder`, also an adopted joblib
    file.
    """
    section = read_mlmodel(folder).get("flavors", {}).get("sklearn", {})
    if section.get("serialization_format") != JOBLIB:
        return load_folder(folder, label)
    file = load_file(folder / section["pickled_model"], allow_pickle=True)
    return replace(file, folder=folder, source=label, mlmodel=Model.load(str(folder)))


def output_names(converted: ConvertedModel, answers: Mapping[str, Array]) -> dict[str, str]:
    """Return the names of the original's answers by the names of the graph's outputs:
    first the prediction, then the probabilities. Raises ConversionError if an answer is
    missing, or if another output has the name.
    """
    if len(converted.prediction) != 1 or len(answers) > 2:
        raise ConversionError(f"its answers {join_names(answers)} have no common form in ONNX")
    outputs = [*converted.prediction]
    outputs += [output.name for output in converted.outputs if output.role == "probabilities"]
    if len(answers) > len(outputs):
        raise ConversionError("its ONNX form has no probabilities")
    names = dict(zip(outputs, answers, strict=False))
    others = {output.name for output in converted.outputs} - names.keys()
    if not others.isdisjoint(answers):
        raise ConversionError(f"two of its outputs would have the names {join_names(answers)}")
    return names


def named_like(wrapped: WrappedModel, answers: Mapping[str, Array]) -> WrappedModel:
    """Return the model with the names and types of the original's answers. Raises like
    `output_names`.
    """
    converted = wrapped.converted
    names = output_names(converted, answers)
    proto = ModelProto()
    proto.CopyFrom(converted.proto)
    outputs = []
    for output in converted.outputs:
        if output.name in names:
            want = answers[names[output.name]]
            dtype = str(want.dtype) if want.dtype.kind in "fiub" else output.dtype
            rename_output(proto.graph, output.name, names[output.name], dtype)
            outputs.append(replace(output, name=names[output.name], dtype=dtype))
        else:
            outputs.append(output)
    report = replace(
        wrapped.report,
        outputs=[
            replace(entry, name=names.get(entry.name, entry.name))
            for entry in wrapped.report.outputs
        ],
    )
    changes = {"proto": proto, "outputs": tuple(outputs), "prediction": tuple(answers)}
    return replace(wrapped, converted=replace(converted, **changes), report=report)


def _check_answers(model: OnnxModel, wrapped: WrappedModel, answers: Mapping[str, Array]) -> None:
    """Raise ConversionError if the saved form answers the rows of the proof with other
    types, shapes or values than the pyfunc.
    """
    assert wrapped.data is not None  # A model is only converted on rows.
    outputs = model.run(wrapped.data.feeds(model.schema))
    ties = sum(figures.ties for figures in wrapped.report.outputs)
    for name, want in answers.items():
        got = outputs[name]
        is_text = {want.dtype.kind, got.dtype.kind} <= {*"OUT"}
        if want.shape != got.shape or not (is_text or want.dtype == got.dtype):
            raise ConversionError(
                f"its answer {name!r} is {want.dtype} {list(want.shape)}, and its ONNX form "
                f"answers {got.dtype} {list(got.shape)}"
            )
        differing = compare(want, got, _ROUNDING).differing_rows
        if differing > ties:
            raise ConversionError(f"its pyfunc and its ONNX form differ in {differing} rows")


if __name__ == "__main__":
    sys.exit(main())
