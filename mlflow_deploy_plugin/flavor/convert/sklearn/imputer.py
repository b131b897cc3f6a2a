"""SimpleImputer for skl2onnx: texts and 64-bit floats too, which its own converter (and ONNX's Imputer) refuse."""

from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType
from skl2onnx.operator_converters.common import concatenate_variables
from sklearn.impute import SimpleImputer

from mlflow_deploy_plugin.flavor.convert.sklearn.inputs import MISSING


def imputer_shapes(operator: Any) -> None:
    """The output has the type of the input, as many columns, and one more for each that is marked as missing."""
    imputer = operator.raw_operator
    width = len(imputer.statistics_) + len(_marked(imputer))
    operator.outputs[0].type = type(operator.inputs[0].type)([None, width])


def convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """IsNaN (for texts: equal to `MISSING`) and Where.

    Raises:
        NotImplementedError: an option that drops columns, or marks something else as missing.
    """
    imputer: SimpleImputer = operator.raw_operator
    kind = operator.inputs[0].type
    texts = isinstance(kind, StringTensorType)
    marks_nan = isinstance(imputer.missing_values, float) and np.isnan(imputer.missing_values)
    if not (marks_nan or texts) or (texts and _marked(imputer)):
        raise NotImplementedError("SimpleImputer with missing_values other than NaN, or add_indicator on texts")
    node = partial(_add_node, scope, container)
    joined = concatenate_variables(scope, operator.inputs, container)
    source = joined if isinstance(joined, str) else joined[0]
    result = operator.outputs[0].full_name
    if isinstance(kind, Int64TensorType):
        container.add_node("Identity", [source], [result], name=scope.get_unique_operator_name("Identity"))
        return
    fill = scope.get_unique_variable_name("imputer_fill")
    if texts:
        mark = scope.get_unique_variable_name("imputer_mark")
        container.add_initializer(mark, TensorProto.STRING, [1], [MISSING.encode()])
        container.add_initializer(fill, TensorProto.STRING, [1, len(imputer.statistics_)], _texts(imputer))
        gaps = node("Equal", [source, mark], version=19)
    else:
        container.add_initializer(fill, _float(kind), [1, len(imputer.statistics_)], _numbers(imputer))
        gaps = node("IsNaN", [source], version=20)
    filled = node("Where", [gaps, fill, source], version=16)
    if marked := _marked(imputer):
        chosen = scope.get_unique_variable_name("imputer_marked")
        container.add_initializer(chosen, TensorProto.INT64, [len(marked)], marked)
        numbers = node("Cast", [node("Gather", [gaps, chosen], version=13, axis=1)], version=19, to=_float(kind))
        filled = node("Concat", [filled, numbers], version=13, axis=1)
    container.add_node("Identity", [filled], [result], name=scope.get_unique_operator_name("Identity"))


def _add_node(scope: Any, container: Any, operator: str, inputs: list[str], version: int, **attributes: Any) -> str:
    output = str(scope.get_unique_variable_name(f"imputer_{operator.lower()}"))
    name = scope.get_unique_operator_name(operator)
    container.add_node(operator, inputs, [output], op_version=version, name=name, **attributes)
    return output


def _marked(imputer: SimpleImputer) -> list[int]:
    """Positions of the columns that `add_indicator` marks."""
    return [int(position) for position in imputer.indicator_.features_] if imputer.add_indicator else []


def _float(kind: Any) -> int:
    return int(TensorProto.DOUBLE if isinstance(kind, DoubleTensorType) else TensorProto.FLOAT)


def _numbers(imputer: SimpleImputer) -> list[float]:
    values = np.asarray(imputer.statistics_, dtype=np.float64)
    if np.isnan(values).any():
        raise NotImplementedError("SimpleImputer that dropped a column without any value")
    return [float(value) for value in values]


def _texts(imputer: SimpleImputer) -> list[bytes]:
    return [str(value).encode() for value in imputer.statistics_]


SHAPES = {SimpleImputer: imputer_shapes}
CONVERTERS = {SimpleImputer: convert_imputer}
