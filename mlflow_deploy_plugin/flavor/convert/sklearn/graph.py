"""The conversion itself: skl2onnx with everything said explicitly."""

import warnings
from typing import Any

from onnx import helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.base import is_classifier

from mlflow_deploy_plugin.errors import ConversionError
from mlflow_deploy_plugin.flavor.convert.obstacle import explained
from mlflow_deploy_plugin.flavor.convert.sklearn import categories, elementwise, imputer, texts, trees
from mlflow_deploy_plugin.flavor.convert.sklearn.inputs import readable_copy
from mlflow_deploy_plugin.flavor.convert.sklearn.precision import Precision, round_before_last_step, widen
from mlflow_deploy_plugin.flavor.convert.sklearn.steps import last_step
from mlflow_deploy_plugin.runtime.artifact import Input

_OWN = (categories, elementwise, imputer, texts, trees)
"""Modules with converters that skl2onnx lacks, or has wrong."""

# Said explicitly: with the defaults IsolationForest is not converted, and newer opsets need a newer runtime.
_OPSET = {"": 21, "ai.onnx.ml": 3}
_TYPES = {"float32": FloatTensorType, "float64": DoubleTensorType, "int64": Int64TensorType, "str": StringTensorType}


def to_onnx(fitted: Any, inputs: tuple[Input, ...], precision: Precision) -> Any:
    """The ModelProto of a fitted estimator.

    Raises:
        ConversionError: a step has no converter; the message names it.
    """
    copy = readable_copy(fitted)
    if precision == "double_until_last_step":
        copy = round_before_last_step(copy)
    last = last_step(copy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # skl2onnx's own use of onnx and of scikit-learn
            proto = convert_sklearn(
                copy,
                initial_types=[(entry.name, _TYPES[entry.dtype]([None, *entry.shape[1:]])) for entry in inputs],
                # probabilities as a matrix, not as a list of mappings, which are the default without an entry
                options={id(last): {"zipmap": False} if is_classifier(last) and hasattr(last, "predict_proba") else {}},
                custom_conversion_functions=_merged("CONVERTERS"),
                custom_shape_calculators=_merged("SHAPES"),
                target_opset=_OPSET,
            )
    except Exception as error:
        raise ConversionError(explained(error, fitted)) from error
    if precision != "single":
        widen(proto)
    trees.restore_missing_directions(proto.graph, fitted)
    _set_locale(proto.graph)
    return proto


def _merged(table: str) -> dict[type, Any]:
    return {kind: entry for module in _OWN for kind, entry in getattr(module, table).items()}


def _set_locale(graph: Any) -> None:
    """Without en_US on the machine a graph that wants it (the default) does not load; C.UTF-8 is everywhere."""
    for node in graph.node:
        if node.op_type == "StringNormalizer":
            others = [attribute for attribute in node.attribute if attribute.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*others, helper.make_attribute("locale", "C.UTF-8")])
