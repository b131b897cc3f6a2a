"""The conversion itself: skl2onnx with everything said explicitly."""

import re
import warnings
from typing import Any, Literal

import numpy as np
from onnx import helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from skl2onnx.sklapi import CastTransformer
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.errors import ConversionError
from mlflow_deploy_plugin.flavor.convert.sklearn import categories, imputer, trees
from mlflow_deploy_plugin.flavor.convert.sklearn.inputs import readable_copy
from mlflow_deploy_plugin.flavor.convert.sklearn.steps import last_step, parts
from mlflow_deploy_plugin.runtime.artifact import Input

Precision = Literal["single", "double_until_last_step", "double"]

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
        copy = _round_before_last_step(copy)
    last = last_step(copy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # skl2onnx's own use of onnx and of scikit-learn
            proto = convert_sklearn(
                copy,
                initial_types=[(entry.name, _TYPES[entry.dtype]([None, *entry.shape[1:]])) for entry in inputs],
                # probabilities as a matrix, not as a list of mappings, which are the default without an entry
                options={id(last): {"zipmap": False} if hasattr(last, "predict_proba") else {}},
                custom_conversion_functions=imputer.CONVERTERS | categories.CONVERTERS | trees.CONVERTERS,
                custom_shape_calculators=imputer.SHAPES | categories.SHAPES,
                target_opset=_OPSET,
            )
    except Exception as error:
        raise ConversionError(f"{_culprit(error, copy)} cannot be converted to ONNX: {_first_line(error)}") from error
    trees.restore_missing_directions(proto.graph, fitted)
    _set_locale(proto.graph)
    return proto


def _round_before_last_step(copy: Any) -> Any:
    """Rounds to 32 bits where the estimator itself does it: right before its last step (of every pipeline in it)."""
    if not isinstance(copy, Pipeline):
        copy = Pipeline([("model", copy)])
    for part in list(parts(copy)):
        if isinstance(part, Pipeline) and hasattr(part.steps[-1][1], "predict"):
            part.steps.insert(len(part.steps) - 1, ("onnxserve_round", CastTransformer(dtype=np.float32)))
    return copy


def _culprit(error: Exception, copy: Any) -> str:
    """The name of the step that the error speaks of, else of the last one."""
    words = set(re.findall(r"\w+", str(error)))
    named = [name for name in (type(part).__name__ for part in parts(copy)) if name in words]
    return next((name for name in named if name != "Pipeline"), type(last_step(copy)).__name__)


def _first_line(error: Exception) -> str:
    """The first line of the reason: of its cause where skl2onnx wraps that in a list of attributes."""
    reason = error.__cause__ or error
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0][:300]


def _set_locale(graph: Any) -> None:
    """Without en_US on the machine a graph that wants it (the default) does not load; C.UTF-8 is everywhere."""
    for node in graph.node:
        if node.op_type == "StringNormalizer":
            others = [attribute for attribute in node.attribute if attribute.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*others, helper.make_attribute("locale", "C.UTF-8")])
