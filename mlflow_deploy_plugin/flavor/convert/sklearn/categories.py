"""Converters for steps whose columns may be texts: encoders of categories, and SimpleImputer.

One LabelEncoder a column maps each category to a code. skl2onnx's own converters of encoders give a missing text a
number of its own (OrdinalEncoder), refuse numbers with fractions, and make graphs that fail on an unseen value if
categories are grouped as infrequent (OneHotEncoder). That of SimpleImputer refuses texts, indicators and 64-bit floats.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from onnx import TensorProto, helper
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import MISSING, marks_nan
from mlflow_deploy_plugin.flavor.convert.sklearn.graph import NodeBuilder, float_columns
from mlflow_deploy_plugin.flavor.convert.sklearn.stand_ins import CategoryTables, GroupedCategories
from mlflow_deploy_plugin.runtime import Array

_KEYS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    StringTensorType: ("keys_strings", lambda key: str(key).encode()),
    Int64TensorType: ("keys_int64s", int),
    FloatTensorType: ("keys_floats", float),
}
"""The attribute of LabelEncoder for the keys of an input type, and their conversion."""
_NO_COLUMN = -1.0
"""The code of a category that is dropped, or unknown: it has no column."""


def convert_codes(scope: Any, operator: Any, container: Any) -> None:
    """Add the number of each row's category in each column, side by side."""
    graph, encoder = NodeBuilder(scope, container), operator.raw_operator
    columns = columns_of(graph, operator)
    parts = [
        encode(graph, columns[position], encoder.categories_[position], codes, unknown)
        for position, codes, unknown in _codes(encoder)
    ]
    graph.node("Concat", parts, operator.outputs[0].full_name, axis=1)


def _codes(encoder: OrdinalEncoder | TargetEncoder) -> Iterator[tuple[int, list[float], float]]:
    """Yield for each output the position of its column, the number of each category, and that of an unknown one.

    The number is a code, which may be NaN, or the mean of the target: for more than two classes, a mean for each class.

    Raises:
        NotImplementedError: infrequent categories.
    """
    if isinstance(encoder, TargetEncoder):
        means = np.atleast_1d(encoder.target_mean_)
        for place, encoding in enumerate(encoder.encodings_):
            yield place // len(means), [float(mean) for mean in encoding], float(means[place % len(means)])
        return
    if getattr(encoder, "_infrequent_enabled", False):
        raise NotImplementedError("OrdinalEncoder with infrequent categories")
    unknown = float(encoder.unknown_value) if encoder.handle_unknown == "use_encoded_value" else _NO_COLUMN
    for position, categories in enumerate(encoder.categories_):
        codes = [float(code) for code in range(len(categories))]
        if position in encoder._missing_indices:  # None is a category like others, and NaN is missing
            codes[encoder._missing_indices[position]] = float(encoder.encoded_missing_value)
        yield position, codes, unknown


def convert_one_hot(scope: Any, operator: Any, container: Any) -> None:
    """Add a column for each category: 1 if the row has it, else 0. A dropped or grouped category has no column."""
    graph = NodeBuilder(scope, container)
    encoder: OneHotEncoder = operator.raw_operator
    parts = []
    columns = columns_of(graph, operator)
    for position, (column, categories) in enumerate(zip(columns, encoder.categories_, strict=True)):
        codes, unknown, width = _one_hot_codes(encoder, position)
        code = encode(graph, column, categories, codes, unknown)
        equal = graph.node("Equal", [code, np.arange(width, dtype=np.float32)[None]])
        parts.append(graph.node("Cast", [equal], to=TensorProto.FLOAT))
    graph.node("Concat", parts, operator.outputs[0].full_name, axis=1)


def _one_hot_codes(encoder: OneHotEncoder, position: int) -> tuple[list[float], float, int]:
    """Return the column of each category, that of an unknown one, and the number of columns; -1 for none."""
    count = len(encoder.categories_[position])
    grouped = encoder._default_to_infrequent_mappings[position] if encoder._infrequent_enabled else None
    codes = np.arange(count) if grouped is None else np.asarray(grouped)
    infrequent = -1 if grouped is None else int(codes.max())
    dropped = None if encoder.drop_idx_ is None else encoder.drop_idx_[position]
    if dropped is not None:
        gone = codes[int(dropped)]
        codes = np.where(codes == gone, -1, codes - (codes > gone))
        infrequent = -1 if infrequent == gone else infrequent - (infrequent > gone)
    takes_unknown = encoder.handle_unknown in ("infrequent_if_exist", "warn")
    return [float(code) for code in codes], float(infrequent) if takes_unknown else _NO_COLUMN, int(codes.max()) + 1


def convert_tables(scope: Any, operator: Any, container: Any) -> None:
    """Add the numbers of each column's category."""
    graph = NodeBuilder(scope, container)
    encoder: CategoryTables = operator.raw_operator
    dtype = np.float64 if isinstance(operator.outputs[0].type, DoubleTensorType) else np.float32
    parts = []
    for column, categories, table in zip(columns_of(graph, operator), encoder.categories_, encoder.tables, strict=True):
        code = encode(graph, column, categories, [*map(float, range(len(categories)))], float(len(categories)))
        place = graph.node("Cast", [graph.node("Reshape", [code, [-1]])], to=TensorProto.INT32)
        parts.append(graph.node("Gather", [table.astype(dtype), place], axis=0))
    graph.node("Concat", parts, operator.outputs[0].full_name, axis=1)


def grouped_shapes(operator: Any) -> None:
    """Set the output type: texts."""
    operator.outputs[0].type = StringTensorType([None, sum(entry.type.shape[1] for entry in operator.inputs)])


def convert_grouped(scope: Any, operator: Any, container: Any) -> None:
    """Add the known categories unchanged, and one text for all others."""
    graph = NodeBuilder(scope, container)
    grouped: GroupedCategories = operator.raw_operator
    known = [text.encode() for text in [*grouped.known, MISSING]]
    attributes = {"keys_strings": known, "values_strings": known, "default_string": grouped.fill_value}
    graph.node("LabelEncoder", [graph.joined(operator.inputs)], operator.outputs[0].full_name, **attributes)


def _numbers(encoder: CategoryTables) -> int:
    return sum(table.shape[1] for table in encoder.tables)


def columns_of(graph: NodeBuilder, operator: Any) -> list[tuple[str, type]]:
    """Return each column [N, 1] of all inputs, and its type."""
    found = []
    for entry in operator.inputs:
        kind, source = type(entry.type), entry.full_name
        for position in range(entry.type.shape[1]):
            found.append((graph.node("Gather", [source, [position]], axis=1), kind))
    return found


def encode(graph: NodeBuilder, column: tuple[str, type], categories: Array, codes: list[float], unknown: float) -> str:
    """Return [N, 1] 32-bit floats, the code of each row's category."""
    source, kind = column
    texts = kind is StringTensorType
    present = [position for position, entry in enumerate(categories) if texts or not is_missing(entry)]
    keys, values = [categories[position] for position in present], [codes[position] for position in present]
    if kind is DoubleTensorType:
        # compared exactly; LabelEncoder takes no 64-bit numbers
        equal = graph.node("Equal", [source, np.array([keys or [np.nan]], float)])
        equal = graph.node("Cast", [equal], to=TensorProto.FLOAT)
        known = graph.node("Cast", [graph.node("ReduceMax", [equal, [1]])], to=TensorProto.BOOL)
        code = graph.node("MatMul", [equal, np.array(values or [0.0], np.float32)[:, None]])
        encoded = graph.node("Where", [known, code, np.array([[unknown]], np.float32)])
    else:
        attribute, convert = _KEYS[kind]
        attributes: dict[str, Any] = {attribute: [convert(key) for key in keys]}
        encoded = graph.node("LabelEncoder", [source], values_floats=values, default_float=unknown, **attributes)
    if len(present) == len(categories) or kind is Int64TensorType:
        return encoded
    gap = next(code for code, entry in zip(codes, categories, strict=True) if is_missing(entry))
    return graph.node("Where", [graph.node("IsNaN", [source]), np.array([[gap]], np.float32), encoded])


def is_missing(entry: Any) -> bool:
    return bool(pd.isna(entry)) or entry == MISSING


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


def _marked(imputer: SimpleImputer) -> list[int]:
    """Return the positions of the columns that `add_indicator` marks."""
    return [int(position) for position in imputer.indicator_.features_] if imputer.add_indicator else []


def _float(kind: Any) -> int:
    return int(TensorProto.DOUBLE if isinstance(kind, DoubleTensorType) else TensorProto.FLOAT)


CONVERTERS = {
    OrdinalEncoder: (float_columns(lambda encoder: len(encoder.categories_)), convert_codes),
    OneHotEncoder: (
        float_columns(lambda encoder: sum(_one_hot_codes(encoder, n)[2] for n in range(len(encoder.categories_)))),
        convert_one_hot,
    ),
    TargetEncoder: (float_columns(lambda encoder: len(encoder.encodings_)), convert_codes),
    CategoryTables: (float_columns(_numbers), convert_tables),
    GroupedCategories: (grouped_shapes, convert_grouped),
    SimpleImputer: (imputer_shapes, convert_imputer),
}
PRECISE = {CategoryTables: (float_columns(_numbers, DoubleTensorType), convert_tables)}
"""Instead of the same in `CONVERTERS`, where everything is computed in 64 bits."""
