"""ONNX models and files: nothing to convert, and no original to compare with."""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig, one_line
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, DynamicAxes, bind_graph

_OLDEST_OPSET = 7
"""The oldest that ONNX Runtime promises to read, and so one that goes with every IR version."""


def read_batch(model: Any, data: Any) -> Batch:
    """Return a table, or arrays by the names of the model's inputs; the only one may have no name."""
    return batches.read_batch(data)


def forms(
    model: Any, batch: Batch | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> list[Callable[[], ConvertedModel]]:
    """Return one form, a copy of the graph with its weights inline.

    Raises:
        InvalidConfig: `predict_proba` is requested; a graph does not say which output that is.
    """
    if predict_fn != "predict":
        raise InvalidConfig("pyfunc_predict_fn: an ONNX graph answers all its outputs; only 'predict' is possible")

    def load() -> ConvertedModel:
        try:
            if isinstance(model, str | PathLike):
                proto = onnx.load(str(Path(model)))  # reads external weights too
            else:
                proto = onnx.ModelProto()
                proto.CopyFrom(model)
        except Exception as error:  # noqa: BLE001 - protobuf and the file system each raise their own
            raise ConversionError(f"not a valid ONNX model: {one_line(error, 300)}") from None
        classes = _matrices_for_maps(proto)
        converted = bind_graph(proto, batch, "onnx", onnx.__version__, None)
        if len(classes) != 1 or len(converted.outputs) != 2:
            return converted
        ((probabilities, labels),) = classes.items()
        roles = [
            replace(one, role="probabilities" if one.name == probabilities else "label") for one in converted.outputs
        ]
        label = next(one.name for one in roles if one.role == "label")
        return replace(converted, outputs=tuple(roles), prediction=(label,), classes=labels)

    return [load]


def _matrices_for_maps(proto: Any) -> dict[str, tuple[Any, ...]]:
    """Make each output of a ZipMap the matrix behind it, and return its classes.

    The converters of scikit-learn and of boosters write by default one mapping from class to probability a row, which
    has no form as an array.
    """
    classes: dict[str, tuple[Any, ...]] = {}
    graph = proto.graph
    for node in graph.node:
        if node.op_type == "ZipMap":
            if len(node.attribute) != 1:
                raise ConversionError(f"not a valid ONNX model: the ZipMap node {node.name!r} has no classes")
            labels = helper.get_attribute_value(node.attribute[0])
            classes[node.output[0]] = tuple(one.decode() if isinstance(one, bytes) else one for one in labels)
            node.CopyFrom(helper.make_node("Identity", node.input, node.output))
    if classes and not any(opset.domain in ("", "ai.onnx") for opset in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("", _OLDEST_OPSET))  # CatBoost's graphs have trees alone
    for output in graph.output:
        if output.name in classes:
            shape = [None, len(classes[output.name])]
            output.CopyFrom(helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, shape))
    return classes
