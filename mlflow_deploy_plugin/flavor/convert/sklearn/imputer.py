"""SimpleImputer for skl2onnx: texts, indicators and 64-bit floats too, which its own converter refuses."""

from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType
from skl2onnx.operator_converters.common import concatenate_variables
from sklearn.impute import SimpleImputer

from mlflow_deploy_plugin.flavor.convert.sklearn.inputs import MISSING
from mlflow_deploy_plugin.flavor.convert.sklearn.nodes import add_constant, add_node


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
    joined = concatenate_variables(scope, operator.inputs, container)
    source = joined if isinstance(joined, str) else joined[0]
    result = operator.outputs[0].full_name
    shape = [1, len(imputer.statistics_)]
    if isinstance(kind, Int64TensorType):  # integers have no gaps
        add_node(scope, container, "Identity", [source], 16, result)
        return
    if texts:
        mark = add_constant(scope, container, TensorProto.STRING, [1], [MISSING.encode()])
        filler = add_constant(scope, container, TensorProto.STRING, shape, _texts(imputer))
        gaps = add_node(scope, container, "Equal", [source, mark], 19)
    else:
        filler = add_constant(scope, container, _float(kind), shape, _numbers(imputer))
        gaps = add_node(scope, container, "IsNaN", [source], 20)
    filled = add_node(scope, container, "Where", [gaps, filler, source], 16)
    if marked := _marked(imputer):
        chosen = add_constant(scope, container, TensorProto.INT64, [len(marked)], marked)
        flags = add_node(scope, container, "Gather", [gaps, chosen], 13, axis=1)
        numbers = add_node(scope, container, "Cast", [flags], 19, to=_float(kind))
        filled = add_node(scope, container, "Concat", [filled, numbers], 13, axis=1)
    add_node(scope, container, "Identity", [filled], 16, result)


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
