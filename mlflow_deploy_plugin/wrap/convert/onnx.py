"""Read ONNX models and files. The models need no conversion, and there is no original
to compare with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.runtime.artifact import Role
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.session import (
    describe_error,
    import_onnxruntime,
    session_options,
)
from mlflow_deploy_plugin.serve.runtime.values import numpy_dtype
from mlflow_deploy_plugin.wrap.convert import converted
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData, ModelInput
from mlflow_deploy_plugin.wrap.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    Forms,
    TrainedModel,
)

if TYPE_CHECKING:
    import onnxruntime

Sizes = list[int | str | None]
"""The sizes of an output, as numbers or names; None is a free size."""
_OLDEST_OPSET = 7
"""The oldest opset that ONNX Runtime supports. This opset is valid in all IR versions.
"""


def read_batch(model: TrainedModel, data: ModelData) -> ModelInput:
    """Return a table, or arrays by input name; a single array may be unnamed."""
    return Batch.read(data).data


def forms(
    model: TrainedModel, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> Forms:
    """Return one form, a copy of the graph with its weights inline. Raises
    InvalidConfig for `predict_proba`.
    """
    if predict_fn != "predict":
        raise InvalidConfig(
            "pyfunc_predict_fn: an ONNX graph returns all its outputs; only 'predict' is possible"
        )
    return [partial(_read, model, batch)]


def _read(model: TrainedModel, batch: ModelInput | None) -> ConvertedModel:
    """Return the graph with tensors as outputs. With two outputs, of which one was a
    ZipMap, the model is a classifier.
    """
    try:
        if isinstance(model, str | PathLike):
            proto = onnx.load(str(Path(model)))
        else:
            proto = onnx.ModelProto()
            proto.CopyFrom(model)
    except Exception as error:  # noqa: BLE001 - protobuf and the file system raise errors of many classes.
        raise ConversionError(f"not a valid ONNX model: {one_line(error, 300)}") from None
    # ONNX Runtime 1.31 updates the statistics of a BatchNormalization in training mode.
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization" and any(
            attribute.name == "training_mode" and attribute.i for attribute in node.attribute
        ):
            raise ConversionError(
                f"the graph's BatchNormalization {node.output[0]!r} is in training mode, so "
                "predictions depend on other rows and earlier requests; export the model in "
                "evaluation mode"
            )
    # Each ZipMap (one mapping per row) is replaced by its input matrix.
    classes: dict[str, tuple[int | str, ...]] = {}
    for node in proto.graph.node:
        if node.op_type == "ZipMap":
            if len(node.attribute) != 1:
                raise ConversionError(
                    f"not a valid ONNX model: the ZipMap node {node.name!r} has no classes"
                )
            classes[node.output[0]] = tuple(
                label.decode() if isinstance(label, bytes) else label
                for label in helper.get_attribute_value(node.attribute[0])
            )
            node.CopyFrom(helper.make_node("Identity", node.input, node.output))
    if classes and not any(opset.domain in ("", "ai.onnx") for opset in proto.opset_import):
        # CatBoost omits the domain of Identity.
        proto.opset_import.append(helper.make_opsetid("", _OLDEST_OPSET))
    for value in proto.graph.output:
        if value.name in classes:
            value.CopyFrom(
                helper.make_tensor_value_info(
                    value.name, onnx.TensorProto.FLOAT, [None, len(classes[value.name])]
                )
            )
    _replace_sequences(proto)
    _declare_outputs(proto)
    bound = converted.bind_graph(
        proto, batch, framework="onnx", framework_version=onnx.__version__, original=None
    )
    if len(classes) != 1 or len(bound.outputs) != 2:
        return bound
    [probabilities] = classes
    outputs = []
    for output in bound.outputs:
        role: Role = "probabilities" if output.name == probabilities else "label"
        outputs.append(replace(output, role=role))
    label = next(output.name for output in outputs if output.role == "label")
    return replace(
        bound, outputs=tuple(outputs), prediction=(label,), classes=classes[probabilities]
    )


def _replace_sequences(proto: ModelProto) -> None:
    """Replace sequences of fixed length (such as probabilities of several targets) by
    tensors `NAME_0`, `NAME_1`, ….
    """
    graph = proto.graph
    if not any(output.type.HasField("sequence_type") for output in graph.output):
        return
    sequences = _Sequences.of(proto)
    input_names = [value.name for value in (*graph.input, *graph.initializer)]
    used_names = {*sequences.makers, *input_names}
    outputs = []
    for output in graph.output:
        length = None
        if output.type.sequence_type.elem_type.HasField("tensor_type"):
            length = sequences.length(output.name)
        if length is None:
            outputs.append(output)
            continue
        for index in range(length):
            # The new names must not be used in the graph.
            name = f"{output.name}_{index}"
            while not used_names.isdisjoint({name, f"{name}.place"}):
                name += "_"
            place = numpy_helper.from_array(np.array(index), f"{name}.place")
            graph.initializer.append(place)
            graph.node.append(helper.make_node("SequenceAt", [output.name, place.name], [name]))
            outputs.append(onnx.ValueInfoProto(name=name))
    del graph.output[:]
    graph.output.extend(outputs)


@dataclass(frozen=True)
class _Sequences:
    """The values of a graph that determine the lengths of its sequences.

    Attributes:
        makers: the node that computes each value.
        shapes: the shape of each value.
        parts: the length of each one-dimensional weight.
    """

    makers: Mapping[str, NodeProto]
    shapes: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, int]

    @classmethod
    def of(cls, proto: ModelProto) -> "_Sequences":
        """Return the values of the graph. Raises ConversionError if the graph is
        invalid.
        """
        try:
            inferred = onnx.shape_inference.infer_shapes(proto).graph
        except Exception as error:  # noqa: BLE001 - protobuf and the inference raise errors of many classes.
            raise ConversionError(f"not a valid ONNX model: {one_line(error, 300)}") from None
        shapes = {
            value.name: converted.dtype_and_shape(value)[1]
            for value in (*inferred.input, *inferred.value_info)
        }
        weights = proto.graph.initializer
        parts = {weight.name: weight.dims[0] for weight in weights if len(weight.dims) == 1}
        return cls(converted.makers_of(proto.graph), shapes, parts)

    def length(self, name: str) -> int | None:
        """Return the number of tensors in a sequence, or None if the number depends on
        the input.
        """
        node = self.makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        match node.op_type:
            case "SequenceConstruct":
                return len(node.input)
            case "SequenceEmpty":
                return 0
            case "Identity":
                return self.length(node.input[0])
            case "SequenceInsert":
                length = self.length(node.input[0])
                return None if length is None else length + 1
            # The second input contains the size of each tensor.
            case "SplitToSequence" if len(node.input) > 1:
                return self.parts.get(node.input[1])
            case "SplitToSequence":  # Without sizes, each slice has size 1.
                shape = self.shapes.get(node.input[0])
                if not shape:
                    return None
                axes = (entry.i for entry in node.attribute if entry.name == "axis")
                size = shape[next(axes, 0)]
                return None if size == -1 else size
        return None


def _declare_outputs(proto: ModelProto) -> None:
    """Declare missing output types and shapes from ONNX Runtime. Raises ConversionError
    if it cannot load the graph.
    """
    undeclared = {
        output.name: output
        for output in proto.graph.output
        if output.type.WhichOneof("value") in (None, "tensor_type")
        and not output.type.tensor_type.HasField("shape")
    }
    if not undeclared:
        return
    ort = import_onnxruntime()
    try:
        session = ort.InferenceSession(
            proto.SerializeToString(), session_options(ort, 1), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a dozen unrelated classes
        raise ConversionError(
            f"ONNX Runtime cannot load the graph: {describe_error(error)}"
        ) from None
    nodes = {
        node.name: node
        for node in session.get_outputs()
        if node.name in undeclared and node.type.startswith("tensor(")
    }
    shapes: dict[str, Sizes] = {name: node.shape for name, node in nodes.items()}
    unknown = [name for name, shape in shapes.items() if not shape]
    if unknown:
        shapes |= _computed_shapes(session, unknown, proto.graph)
    for name, node in nodes.items():
        type_name = node.type.removeprefix("tensor(").removesuffix(")")
        kind = getattr(onnx.TensorProto, type_name.upper())
        undeclared[name].CopyFrom(helper.make_tensor_value_info(name, kind, shapes[name]))


def _computed_shapes(
    session: "onnxruntime.InferenceSession", outputs: list[str], graph: GraphProto
) -> dict[str, Sizes]:
    """Return the output shapes of runs with two and with three rows of zeros. Sizes
    that differ are None. Raises ConversionError if a run fails.
    """
    types = {
        value.name: converted.served_type(value, None) for value in converted.fed_inputs(graph)
    }

    def zeros(size: int) -> dict[str, Array]:
        """Return zeros or empty strings with the size for each free dimension."""
        feeds = {}
        for name, (dtype, shape) in types.items():
            sizes = [size if declared == -1 else declared for declared in shape]
            zero = "" if dtype == "str" else 0
            feeds[name] = np.full(sizes, zero).astype(numpy_dtype(dtype))
        return feeds

    try:
        two_rows = session.run(outputs, zeros(2))
        three_rows = session.run(outputs, zeros(3))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises many classes
        raise ConversionError(
            f"the graph does not declare the shape of its output {outputs[0]!r}, and a run with "
            f"zeros failed: {describe_error(error)}"
        ) from None
    shapes: dict[str, Sizes] = {}
    for name, two, three in zip(outputs, two_rows, three_rows, strict=True):
        shapes[name] = list(two.shape)
        for axis, (size, other) in enumerate(zip(two.shape, three.shape, strict=True)):
            if size != other:
                shapes[name][axis] = None
    return shapes
