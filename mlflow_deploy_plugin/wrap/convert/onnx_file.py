"""The ONNX file of a saved model. If its weights exceed protobuf's 2 GB limit, they are
saved as external data.

ONNX Runtime memory-maps page-aligned weights:
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md.
"""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto, helper

from mlflow_deploy_plugin.core.errors import ConversionError

ONNX_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

MAX_INLINE_BYTES = 2_000_000_000
"""The maximum size of the weights in the graph's file. protobuf allows 2**31 - 1 bytes,
including nodes and names.
"""
_LEAST_BYTES = 1024
"""The minimum size of external weights. Smaller weights remain in the graph, where
shape inference can read them.
"""
_PAGE = 4096


def has_external_weights(proto: ModelProto) -> bool:
    """Return True if the model's weights exceed `MAX_INLINE_BYTES`."""
    return bool(sum(weights.ByteSize() for weights in proto.graph.initializer) > MAX_INLINE_BYTES)


def check_graph(proto: ModelProto) -> None:
    """Check the model with ONNX's checker, without weights above 2 GB in total. Raises
    onnx.checker.ValidationError.
    """
    if not has_external_weights(proto):
        onnx.checker.check_model(proto)
        return
    graph = _without_weights(proto)
    for weights in graph.graph.initializer:  # Check the weights as inputs, which need no data.
        graph.graph.input.append(
            onnx.helper.make_tensor_value_info(weights.name, weights.data_type, weights.dims)
        )
    del graph.graph.initializer[:]
    onnx.checker.check_model(graph)


def write_graph(folder: Path, proto: ModelProto) -> dict[str, str]:
    """Write the model and return file names with their `sha256:…`. Raises
    ConversionError if the model is too large.
    """
    digests = {}
    if has_external_weights(proto):
        graph = _without_weights(proto)
        digest = hashlib.sha256()
        with (folder / DATA_FILE).open("wb") as file:
            for weights, entry in zip(
                proto.graph.initializer, graph.graph.initializer, strict=True
            ):
                if entry.data_location == onnx.TensorProto.EXTERNAL:
                    data = weights.raw_data
                    entry.external_data.add(key="offset", value=str(file.tell()))
                    entry.external_data.add(key="length", value=str(len(data)))
                    for part in (data, bytes(-len(data) % _PAGE)):
                        file.write(part)
                        digest.update(part)
        digests[DATA_FILE] = f"sha256:{digest.hexdigest()}"
        proto = graph
    try:
        content = proto.SerializeToString()
    except Exception as error:  # noqa: BLE001 - the error classes of protobuf's implementations differ
        raise ConversionError(
            f"the model does not fit into one ONNX file of 2 GB: {error}"
        ) from None
    (folder / ONNX_FILE).write_bytes(content)
    return {ONNX_FILE: f"sha256:{hashlib.sha256(content).hexdigest()}", **digests}


def _without_weights(proto: ModelProto) -> ModelProto:
    """Return a copy in which large initializers refer to `DATA_FILE`. Their bytes are
    not copied.
    """
    slim = onnx.ModelProto()
    _copy_fields(proto, slim, left_out="graph")
    _copy_fields(proto.graph, slim.graph, left_out="initializer")
    for weights in proto.graph.initializer:
        if len(weights.raw_data) < _LEAST_BYTES:
            slim.graph.initializer.append(weights)
            continue
        external = slim.graph.initializer.add(
            name=weights.name, data_type=weights.data_type, dims=weights.dims
        )
        external.data_location = onnx.TensorProto.EXTERNAL
        external.external_data.add(key="location", value=DATA_FILE)
    return slim


def _copy_fields(source: Message, target: Message, left_out: str) -> None:
    """Copy the fields of a message, except for the field `left_out`."""
    for field, value in source.ListFields():
        name = field.name
        if name == left_out:
            continue
        if hasattr(value, "extend"):
            getattr(target, name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)


def rename_output(graph: GraphProto, old: str, new: str, dtype: str) -> None:
    """Rename an output of a graph, and cast it to a numpy dtype; `str` for texts."""
    inner = f"{old}_of_graph"
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = inner
    (value,) = (value for value in graph.output if value.name == old)
    value.name = new
    kind = value.type.tensor_type.elem_type
    wanted = kind
    if dtype != "str":
        wanted = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if kind == wanted or TensorProto.STRING in (kind, wanted):
        graph.node.append(helper.make_node("Identity", [inner], [new]))
    else:
        value.type.tensor_type.elem_type = wanted
        graph.node.append(helper.make_node("Cast", [inner], [new], to=wanted))
