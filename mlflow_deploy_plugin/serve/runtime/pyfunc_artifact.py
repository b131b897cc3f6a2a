"""The MLmodel folder of a model without an ONNX form: the part of its signature that
can be expressed as named arrays.

If an input is an object, a map, a nested array or defined by type hints, only
`/invocations` serves the model (`Artifact.undescribed`), and the log contains JSON
texts. Dates (ISO 8601) and bytes (base64) are strings.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.mlmodel import (
    COLUMN_TYPES,
    FLAVOR,
    JOBLIB,
    MALFORMED,
    PYTHON_FUNCTION,
    read_mlmodel,
)
from mlflow_deploy_plugin.serve.runtime import artifact
from mlflow_deploy_plugin.serve.runtime.artifact import (
    Artifact,
    Column,
    Input,
    Output,
    row_symbols,
)

UNNAMED_OUTPUT = "prediction"
"""The name of the only output of a model if the signature does not specify a name."""

_DATA_CLASSES = {
    "mlflow.xgboost": (
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBClassifier",
        "xgboost.sklearn.XGBRegressor",
        "xgboost.sklearn.XGBRanker",
        "xgboost.sklearn.XGBRFClassifier",
        "xgboost.sklearn.XGBRFRegressor",
    ),
    "mlflow.lightgbm": ("lightgbm.basic.Booster",),
    "mlflow.catboost": ("CatBoost", "CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker"),
}
"""The classes that MLflow loads from a file of data, by its loader. MLflow imports
XGBoost's class by name, and pickles LightGBM's other classes.
"""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]*")
"""The names of files that MLflow reads in the folder itself."""
_AS_STRINGS = {"datetime", "binary"}
_AS_JSON = {"object", "array", "map", "any"}
_ONLY_INPUT = "input"


def read_served_artifact(folder: Path) -> Artifact:
    """Return the content of an ONNX or pyfunc folder. Raises InvalidArtifact if the
    model cannot be served.
    """
    document = read_mlmodel(folder)
    try:
        flavors: Any = document.get("flavors") or ()
        if PYTHON_FUNCTION in flavors and not {FLAVOR, "onnx"} & set(flavors):
            signature = document.get("signature") or {}
            columns, tensors, undescribed = _read_inputs(
                signature, bool(document.get("is_signature_from_type_hint"))
            )
            # The columns of an undescribed pyfunc are only logged.
            logged_columns: tuple[Column, ...] = ()
            if undescribed:
                logged_columns = columns
                columns = ()
            tensor_inputs = [
                Input(
                    tensor.name or _ONLY_INPUT,
                    tensor.dtype,
                    tensor.shape,
                    (),
                    None,
                    row_symbols(tensor.shape),
                )
                for tensor in tensors
            ]
            # Without outputs in the signature, the first answer shows the outputs.
            fields = json.loads(signature.get("outputs") or "[]")
            if len(fields) == 1:
                fields[0]["name"] = fields[0].get("name") or UNNAMED_OUTPUT
            outputs = tuple(map(_read_output, fields))
            return Artifact(
                folder=folder,
                onnx_file=folder,
                flavor=PYTHON_FUNCTION,
                **artifact.read_origin(document),
                columns=columns,
                tensors=tensors,
                inputs=(*column_inputs(columns), *tensor_inputs),
                outputs=outputs,
                prediction=tuple(output.name for output in outputs),
                framework=str(flavors[PYTHON_FUNCTION].get("loader_module", "")).removeprefix(
                    "mlflow."
                ),
                undescribed=undescribed,
                is_streamable=flavors[PYTHON_FUNCTION].get("streamable") is True,
                logged_columns=logged_columns,
                runs_code=runs_code(document, folder),
            )
    except MALFORMED as error:
        raise InvalidArtifact(
            f"the MLmodel file cannot be understood: {type(error).__name__}: {error}"
        ) from None
    return artifact.read_artifact(folder)


def runs_code(document: Mapping[str, Any], folder: Path | None = None) -> bool:
    """Return True unless the model of an MLmodel file is a file in the format of a
    booster's library, which contains only data, without code of its author beside it.

    In a `folder`, the file must exist: MLflow reads the MLmodel file of a folder in its
    place, which may name another class and a pickle. Without a folder (None), the
    answer is that of the document.
    """
    flavors = document.get("flavors", {})
    pyfunc = flavors.get(PYTHON_FUNCTION, {})
    loader = str(pyfunc.get("loader_module"))
    section = flavors.get(loader.removeprefix("mlflow."), {})
    model_class = section.get("model_class", section.get("model_type", ""))
    names = [named["data"] for named in (section, pyfunc) if "data" in named]
    is_data = all(isinstance(name, str) and _FILE_NAME.fullmatch(name) for name in names)
    if folder is not None:
        is_data = is_data and all((folder / name).is_file() for name in names)
    has_code = not {"code", "model_code_path"}.isdisjoint({*section, *pyfunc})
    return has_code or not is_data or model_class not in _DATA_CLASSES.get(loader, ())


def proof_rows(document: Mapping[str, Any]) -> Literal["", "example", "made"]:
    """Return the rows on which the model of an MLmodel file could be converted: its
    input example, or rows made from the model; empty for an ONNX model, and for a model
    that is not saved by an MLflow flavor of a library.
    """
    sections = document.get("flavors", {})
    flavors = [name for name in sections if name != PYTHON_FUNCTION]
    if not flavors or not {FLAVOR, "onnx"}.isdisjoint(flavors):
        return ""
    loader = str(sections.get(PYTHON_FUNCTION, {}).get("loader_module"))
    is_joblib = sections.get("sklearn", {}).get("serialization_format") == JOBLIB
    if not (is_joblib or loader.startswith(f"mlflow.{flavors[0]}")):
        return ""
    return "example" if document.get("saved_input_example_info") else "made"


def column_inputs(columns: Sequence[Column]) -> tuple[Input, ...]:
    return tuple(
        Input(column.name, COLUMN_TYPES[column.type], (-1,), (column.name,)) for column in columns
    )


def _read_output(entry: Mapping[str, Any]) -> Output:
    """Return an output of a signature. The values of an unknown type are texts."""
    name = str(entry["name"])
    if entry.get("type") != "tensor":
        return Output(name, COLUMN_TYPES.get(entry.get("type", ""), "str"), (-1,))
    spec = entry["tensor-spec"]
    dtype = artifact.TENSOR_DTYPES.get(spec["dtype"], "object")
    return Output(name, dtype, tuple(spec["shape"]))


def _read_inputs(
    signature: Mapping[str, Any], takes_objects: bool
) -> tuple[tuple[Column, ...], tuple[artifact.Tensor, ...], str]:
    """Return the columns and the tensors of a signature, and the reason why they are
    incomplete; empty if they are complete. `takes_objects` is True if the signature was
    made of type hints.
    """
    fields = json.loads(signature.get("inputs") or "[]")
    remedy = "; send requests to /invocations, as JSON or CSV"
    if not fields:
        return (), (), f"the model's signature does not name its inputs{remedy}"
    if takes_objects:
        return (), (), f"this model takes Python objects{remedy}"
    columns = []
    tensors = []
    undescribed = ""
    for position, entry in enumerate(fields):
        name = artifact.checked_name(entry.get("name", str(position)))
        if entry.get("type") == "tensor":
            dtype = entry["tensor-spec"]["dtype"]
            if dtype not in artifact.TENSOR_DTYPES:
                return (), (), f"the tensor {name!r} is {dtype}{remedy}"
            tensors.append(artifact.read_tensor(entry))
            continue
        kind: Any = entry.get("type")
        if kind not in COLUMN_TYPES and kind not in _AS_STRINGS:
            undescribed = f"the column {name!r} has the type {kind}{remedy}"
            if kind not in _AS_JSON:
                return (), (), undescribed
        column = Column(
            name,
            kind if kind in COLUMN_TYPES else "string",
            entry.get("required", True),
            is_binary=kind == "binary",
            is_date=kind == "datetime",
        )
        columns.append(column)
    return tuple(columns), tuple(tensors), undescribed
