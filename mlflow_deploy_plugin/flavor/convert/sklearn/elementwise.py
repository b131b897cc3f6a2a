"""Converters for SimpleImputer and FunctionTransformer, whose columns may be texts.

skl2onnx's own converter of SimpleImputer refuses texts, indicators and 64-bit floats.
"""

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import FunctionTransformer

from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import MISSING, marks_nan
from mlflow_deploy_plugin.flavor.convert.sklearn.formulas.rows import Rows
from mlflow_deploy_plugin.flavor.convert.sklearn.formulas.tracing import Traced
from mlflow_deploy_plugin.flavor.convert.sklearn.graph import NodeBuilder


def imputer_shapes(operator: Any) -> None:
    """Set the output type: that of the input, with as many columns and one more for each that is marked as missing."""
    imputer = operator.raw_operator
    width = len(imputer.statistics_) + len(_marked(imputer))
    operator.outputs[0].type = type(operator.inputs[0].type)([None, width])


def convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """Add IsNaN (for texts: equal to `MISSING`) and Where.

    Raises:
        NotImplementedError: an option that drops columns, or marks something else as missing.
    """
    graph = NodeBuilder(scope, container)
    imputer: SimpleImputer = operator.raw_operator
    kind = operator.inputs[0].type
    texts = isinstance(kind, StringTensorType)
    if not (marks_nan(imputer) or texts) or (texts and _marked(imputer)):
        raise NotImplementedError("SimpleImputer with missing_values other than NaN, or add_indicator on texts")
    source = graph.joined(operator.inputs)
    result = operator.outputs[0].full_name
    if isinstance(kind, Int64TensorType):  # integers have no gaps
        graph.node("Identity", [source], result)
        return
    if texts:
        filler = imputer.statistics_.astype(object)
        gaps = graph.node("Equal", [source, np.array([MISSING], object)])
    else:
        filler = np.asarray(imputer.statistics_, helper.tensor_dtype_to_np_dtype(_float(kind)))
        if np.isnan(filler).any():
            raise NotImplementedError("SimpleImputer that dropped a column without any value")
        gaps = graph.node("IsNaN", [source])
    filled = graph.node("Where", [gaps, filler[None], source])
    if marked := _marked(imputer):
        flags = graph.node("Gather", [gaps, marked], axis=1)
        numbers = graph.node("Cast", [flags], to=_float(kind))
        filled = graph.node("Concat", [filled, numbers], axis=1)
    graph.node("Identity", [filled], result)


def function_shapes(operator: Any) -> None:
    """Set the output type: that of the input without a function, else floats of its width and the function's shape."""
    function: FunctionTransformer = operator.raw_operator
    if function.func is None:
        width = sum(entry.type.shape[1] for entry in operator.inputs)
        operator.outputs[0].type = type(operator.inputs[0].type)([None, width])
    else:
        operator.outputs[0].type = _kind(operator)([None, _called(function, Rows.of(None, operator)).shape[1]])


def convert_function(scope: Any, operator: Any, container: Any) -> None:
    """Add the operations of a function that is made of numpy functions, in 64 bits.

    Raises:
        NotImplementedError: the function has no form in a graph; the message names the operation at which it stopped.
    """
    graph = NodeBuilder(scope, container)
    result = operator.outputs[0].full_name
    if operator.raw_operator.func is None:
        graph.node("Identity", [graph.joined(operator.inputs)], result)
        return
    called = _called(operator.raw_operator, Rows.of(graph, operator))
    own = TensorProto.DOUBLE if _kind(operator) is DoubleTensorType else TensorProto.FLOAT
    graph.node("Cast", [called.name], result, to=own)


def _called(function: FunctionTransformer, rows: Rows) -> Traced:
    name = getattr(function.func, "__name__", repr(function.func))
    try:
        called = function.func(rows.matrix, **(function.kw_args or {}))
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        raise NotImplementedError(f"its option func={name} is a Python function with {error}") from None
    if not isinstance(called, Traced) or called.ndim != 2:
        raise NotImplementedError(f"its option func={name} is a Python function that makes no columns of its own")
    return called


def _kind(operator: Any) -> Any:
    doubles = any(isinstance(entry.type, DoubleTensorType) for entry in operator.inputs)
    return DoubleTensorType if doubles else FloatTensorType


def _marked(imputer: SimpleImputer) -> list[int]:
    """Return the positions of the columns that `add_indicator` marks."""
    return [int(position) for position in imputer.indicator_.features_] if imputer.add_indicator else []


def _float(kind: Any) -> int:
    return int(TensorProto.DOUBLE if isinstance(kind, DoubleTensorType) else TensorProto.FLOAT)


CONVERTERS = {
    SimpleImputer: (imputer_shapes, convert_imputer),
    FunctionTransformer: (function_shapes, convert_function),
}
