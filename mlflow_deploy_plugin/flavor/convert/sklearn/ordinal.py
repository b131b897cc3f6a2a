"""OrdinalEncoder for skl2onnx, whose own converter gives a missing text a number of its own instead of NaN."""

from typing import Any

import numpy as np
import pandas as pd
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.preprocessing import OrdinalEncoder

from mlflow_deploy_plugin.flavor.convert.sklearn.inputs import MISSING
from mlflow_deploy_plugin.runtime.schema import Array

_KEYS = {StringTensorType: "keys_strings", Int64TensorType: "keys_int64s", FloatTensorType: "keys_floats"}


def ordinal_shapes(operator: Any) -> None:
    """One 32-bit float a column: the codes, which may be NaN."""
    operator.outputs[0].type = FloatTensorType([None, len(operator.raw_operator.categories_)])


def convert_ordinal(scope: Any, operator: Any, container: Any) -> None:
    """A LabelEncoder for each column.

    Raises:
        NotImplementedError: infrequent categories, or numbers of which one is missing.
    """
    encoder: OrdinalEncoder = operator.raw_operator
    if getattr(encoder, "_infrequent_enabled", False):
        raise NotImplementedError("OrdinalEncoder with infrequent categories")
    columns = [column for entry in operator.inputs for column in _columns(scope, container, entry)]
    codes = []
    for (name, kind), categories in zip(columns, encoder.categories_, strict=True):
        output = scope.get_unique_variable_name("ordinal_code")
        unknown = encoder.unknown_value if encoder.handle_unknown == "use_encoded_value" else -1
        container.add_node(
            "LabelEncoder",
            [name],
            [output],
            op_domain="ai.onnx.ml",
            op_version=2,
            name=scope.get_unique_operator_name("LabelEncoder"),
            values_floats=_codes(encoder, categories),
            default_float=float(unknown),
            **{_KEYS[kind]: _keys(kind, categories)},
        )
        codes.append(output)
    name = scope.get_unique_operator_name("Concat")
    container.add_node("Concat", codes, [operator.outputs[0].full_name], op_version=13, axis=1, name=name)


def _columns(scope: Any, container: Any, entry: Any) -> list[tuple[str, type]]:
    """The columns [N, 1] of one input, and their type."""
    kind, source = type(entry.type), entry.full_name
    if kind is DoubleTensorType:
        single = scope.get_unique_variable_name("ordinal_single")
        name = scope.get_unique_operator_name("Cast")
        container.add_node("Cast", [source], [single], op_version=19, to=TensorProto.FLOAT, name=name)
        kind, source = FloatTensorType, single
    found = []
    for position in range(entry.type.shape[1]):
        index = scope.get_unique_variable_name("ordinal_index")
        column = scope.get_unique_variable_name("ordinal_column")
        container.add_initializer(index, TensorProto.INT64, [1], [position])
        name = scope.get_unique_operator_name("Gather")
        container.add_node("Gather", [source, index], [column], op_version=13, axis=1, name=name)
        found.append((column, kind))
    return found


def _codes(encoder: OrdinalEncoder, categories: Array) -> list[float]:
    gaps = [pd.isna(entry) or entry == MISSING for entry in categories]
    return [float(encoder.encoded_missing_value if gap else code) for code, gap in enumerate(gaps)]


def _keys(kind: type, categories: Array) -> list[Any]:
    if kind is StringTensorType:
        return [str(entry).encode() for entry in categories]
    numbers = np.asarray(categories, dtype=np.float64)
    if np.isnan(numbers).any():
        raise NotImplementedError("OrdinalEncoder of numbers of which one is missing")
    return [int(entry) if kind is Int64TensorType else float(entry) for entry in numbers]


SHAPES = {OrdinalEncoder: ordinal_shapes}
CONVERTERS = {OrdinalEncoder: convert_ordinal}
