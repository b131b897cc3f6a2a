"""Changes of ONNX graphs: names, shapes and types of the outputs as the original model has them."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
    "str": TensorProto.STRING,
}
_DTYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "str",
    **{getattr(TensorProto, name.upper()): name for name in ("int8", "int16", "int32", "int64")},
    **{getattr(TensorProto, name.upper()): name for name in ("uint8", "uint16", "uint32", "uint64")},
}


def dtype_and_shape(value: Any) -> tuple[str, tuple[int, ...]]:
    """Return the numpy dtype (`str` for strings) and shape of a graph input or output; -1 for free dimensions."""
    tensor = value.type.tensor_type
    sizes = (size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)
    return _DTYPES.get(tensor.elem_type, ""), tuple(max(size, -1) for size in sizes)


def finish_output(graph: Any, old: str, new: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Rename the output `old` to `new`, cast it to `dtype` and reshape it to `shape` (-1: the batch)."""
    output = next(value for value in graph.output if value.name == old)
    for taken in {old, new}:
        _rename(graph, taken, f"onnxserve_raw_{taken}")
    current = f"onnxserve_raw_{old}"
    if output.type.tensor_type.elem_type != _ONNX_TYPES[dtype]:
        current = _append(graph, "Cast", [current], f"{new}_cast", to=_ONNX_TYPES[dtype])
    sizes = f"{new}_shape"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, dtype=np.int64), sizes))
    _append(graph, "Reshape", [current, sizes], new)
    position = list(graph.output).index(output)
    graph.output.remove(output)
    free = ["batch" if size == -1 else size for size in shape]
    graph.output.insert(position, helper.make_tensor_value_info(new, _ONNX_TYPES[dtype], free))


def keep_outputs(graph: Any, names: list[str]) -> None:
    """Drop the graph's outputs that are not named, and order the rest."""
    by_name = {value.name: value for value in graph.output}
    kept = [by_name[name] for name in names]
    del graph.output[:]
    graph.output.extend(kept)


def _rename(graph: Any, old: str, new: str) -> None:
    """Rename a tensor in all nodes."""
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new


def _append(graph: Any, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
    graph.node.append(helper.make_node(operator, inputs, [output], name=f"onnxserve_{output}", **attributes))
    return output
