"""The precision of a graph, and the casts between 32-bit and 64-bit floats.

| precision                | floats                                                                              |
|--------------------------|-------------------------------------------------------------------------------------|
| `single`                 | 32 bits throughout                                                                  |
| `double_until_last_step` | 64 bits, rounded to 32 right before the predictor, as scikit-learn's trees do it too |
| `double`                 | 64 bits throughout                                                                  |
"""

from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper
from skl2onnx.sklapi import CastTransformer
from sklearn.ensemble import StackingClassifier, StackingRegressor, VotingClassifier, VotingRegressor
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import sub_estimators

Precision = Literal["single", "double_until_last_step", "double"]

_ENSEMBLES = (
    *(VotingClassifier, VotingRegressor, StackingClassifier, StackingRegressor),
    *(MultiOutputClassifier, MultiOutputRegressor),
)
_ALIKE = (
    *("Add", "Sub", "Mul", "Div", "Sum", "Concat", "Max", "Min", "Mean", "MatMul", "Gemm"),
    *("Where", "Pow", "Equal", "Greater", "Less"),
)
"""Operators whose inputs must have one type (for `Where`, all but the first)."""


def round_before_last_step(copy: Any) -> Any:
    """Round to 32 bits right before the predictor, also within ensembles; boosting by histograms does not round."""
    if isinstance(copy, Pipeline):
        name, last = copy.steps[-1]
        rounded = round_before_last_step(last)
        copy.steps[-1:] = rounded.steps if isinstance(rounded, Pipeline) else [(name, rounded)]
    elif isinstance(copy, _ENSEMBLES):
        copy.estimators_ = [round_before_last_step(part) for part in copy.estimators_]
    elif hasattr(copy, "predict") and not any(hasattr(part, "_predictors") for part in sub_estimators(copy)):
        return Pipeline([("onnxserve_round", CastTransformer(dtype=np.float32)), ("model", copy)])
    return copy


def widen(model: Any) -> None:
    """Cast 32-bit inputs to 64 bits if a node takes both, and correct the types that follow.

    skl2onnx assumes that the prediction of an estimator within an ensemble is as wide as the ensemble's input.
    """
    graph = model.graph
    types = {value.name: value.type for value in graph.input}
    types |= {entry.name: helper.make_tensor_type_proto(entry.data_type, entry.dims) for entry in graph.initializer}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type in _ALIKE:
            nodes.extend(_casts(node, types))
        nodes.append(node)
        types |= _outputs(node, types, versions)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for output in graph.output:
        if output.name in types and types[output.name].tensor_type.elem_type:
            output.type.tensor_type.elem_type = types[output.name].tensor_type.elem_type


def _casts(node: Any, types: dict[str, Any]) -> list[Any]:
    """Return a Cast for each 32-bit input of a node that also has 64-bit inputs."""
    first = 1 if node.op_type == "Where" else 0
    kinds = [types[name].tensor_type.elem_type if name in types else 0 for name in node.input]
    if not {TensorProto.FLOAT, TensorProto.DOUBLE} <= set(kinds[first:]):
        return []
    casts = []
    for position in range(first, len(kinds)):
        if kinds[position] == TensorProto.FLOAT:
            wide = f"{node.input[position]}_wide_{node.output[0]}_{position}"
            casts.append(helper.make_node("Cast", [node.input[position]], [wide], name=wide, to=TensorProto.DOUBLE))
            types[wide] = helper.make_tensor_type_proto(TensorProto.DOUBLE, None)
            node.input[position] = wide
    return casts


def _outputs(node: Any, types: dict[str, Any], versions: dict[str, int]) -> dict[str, Any]:
    """Return the types of a node's outputs, as far as ONNX knows its operator."""
    try:
        schema = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
        known = {name: types[name] for name in node.input if name in types}
        found: dict[str, Any] = onnx.shape_inference.infer_node_outputs(schema, node, known)
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, KeyError):
        return {}
    return found
