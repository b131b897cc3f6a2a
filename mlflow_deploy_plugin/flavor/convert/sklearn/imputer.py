"""SimpleImputer for skl2onnx: texts and 64-bit floats too, which its own converter (and ONNX's Imputer) refuse."""

from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType
from skl2onnx.operator_converters.common import concatenate_variables
from sklearn.impute import SimpleImputer

from mlflow_deploy_plugin.flavor.convert.sklearn.inputs import MISSING


def imputer_shapes(operator: Any) -> None:
    """The output has the type of the input, and as many columns."""
    kind = type(operator.inputs[0].type)
    width = len(operator.raw_operator.statistics_)
    operator.outputs[0].type = kind([None, width])


def convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """IsNaN (for texts: equal to `MISSING`) and Where.

    Raises:
        NotImplementedError: an option that changes the number of columns, or marks something else as missing.
    """
    imputer: SimpleImputer = operator.raw_operator
    kind = operator.inputs[0].type
    marks_nan = isinstance(imputer.missing_values, float) and np.isnan(imputer.missing_values)
    if imputer.add_indicator or not (marks_nan or isinstance(kind, StringTensorType)):
        raise NotImplementedError("SimpleImputer with add_indicator, or missing_values other than NaN")
    source = concatenate_variables(scope, operator.inputs, container)
    source = source if isinstance(source, str) else source[0]
    result = operator.outputs[0].full_name
    if isinstance(kind, Int64TensorType):
        container.add_node("Identity", [source], [result], name=scope.get_unique_operator_name("Identity"))
        return
    fill = scope.get_unique_variable_name("imputer_fill")
    gaps = scope.get_unique_variable_name("imputer_gaps")
    if isinstance(kind, StringTensorType):
        mark = scope.get_unique_variable_name("imputer_mark")
        container.add_initializer(mark, TensorProto.STRING, [1], [MISSING.encode()])
        container.add_initializer(fill, TensorProto.STRING, [1, len(imputer.statistics_)], _texts(imputer))
        container.add_node("Equal", [source, mark], [gaps], op_version=19, name=scope.get_unique_operator_name("Equal"))
    else:
        values = np.asarray(imputer.statistics_, dtype=np.float64)
        if np.isnan(values).any():
            raise NotImplementedError("SimpleImputer that dropped a column without any value")
        proto = TensorProto.DOUBLE if isinstance(kind, DoubleTensorType) else TensorProto.FLOAT
        container.add_initializer(fill, proto, [1, len(values)], values.tolist())
        container.add_node("IsNaN", [source], [gaps], op_version=20, name=scope.get_unique_operator_name("IsNaN"))
    container.add_node(
        "Where", [gaps, fill, source], [result], op_version=16, name=scope.get_unique_operator_name("Where")
    )


def _texts(imputer: SimpleImputer) -> list[bytes]:
    return [str(value).encode() for value in imputer.statistics_]


SHAPES = {SimpleImputer: imputer_shapes}
CONVERTERS = {SimpleImputer: convert_imputer}
