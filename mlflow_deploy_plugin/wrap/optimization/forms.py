"""Create smaller or faster forms of a graph: 8-bit integers, 16-bit floats.

| form         | smaller numbers               | gain on a CPU                       |
|--------------|-------------------------------|-------------------------------------|
| int8 static  | weights and activations of    | convolutions, large layers; a       |
|              | Conv, MatMul …                | quarter of the size                 |
| int8 dynamic | weights of MatMul, Gemm, LSTM | transformers, LSTM, large dense     |
|              |                               | layers; needs no rows               |
| fp16         | all 32-bit weights            | size; ONNX Runtime computes most of |
|              |                               | it in 32 bits                       |

The forms are created by ONNX Runtime's quantizer and 16-bit converter. The functions do
not change their argument.
"""

import copy
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Literal

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.session import (
    describe_error,
    import_onnxruntime,
    session_options,
)

Int8 = Literal["dynamic", "static"]

DYNAMIC_OPS = ("MatMul", "Gemm", "LSTM", "Attention", "EmbedLayerNormalization")
"""The operators for dynamic quantization. Conv is excluded, because its dynamic form is
five times slower.
"""
_QUANTIZED = (
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "DynamicQuantizeLSTM",
    "QAttention",
    "QEmbedLayerNormalization",
)
_STATISTICS = (
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
)
"""Operators whose means and variances need 32 bits. ONNX Runtime 1.31 also crashes on a
16-bit LayerNormalization.
"""
_HALF_LIMIT = float(np.finfo(np.float16).max) / 4
"""The largest number for 16 bits: a quarter of the 16-bit maximum, since other rows may
have larger numbers.
"""
_MASKED = 1e8
"""The limit above which magnitudes belong to attention masks (-inf, -1e9, …), which
would distort the scale.
"""


def int8_dynamic(proto: ModelProto) -> ModelProto:
    """Quantize weights to 8 bits. Each run quantizes activations by their current
    range. Raises ConversionError if no node can be quantized.
    """
    from onnxruntime import quantization  # This import is slow.

    result = copy.deepcopy(proto)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        flags = [entry for entry in node.attribute if entry.name == "transB" and entry.i]
        if node.op_type == "Gemm" and flags and node.input[1] in weights:
            name = f"{node.input[1]}_transposed"
            if name not in weights:
                array = np.ascontiguousarray(numpy_helper.to_array(weights[node.input[1]]).T)
                weights[name] = result.graph.initializer.add()
                weights[name].CopyFrom(numpy_helper.from_array(array, name))
            node.input[1] = name
            node.attribute.remove(flags[0])
    return _quantized(
        result,
        lambda ready, path: quantization.quantize_dynamic(
            ready,
            path,
            op_types_to_quantize=list(DYNAMIC_OPS),
            per_channel=True,
            reduce_range=_reduces_range(),
        ),
        DYNAMIC_OPS,
    )


def int8_static(proto: ModelProto, rows: Sequence[Feeds], per_channel: bool = True) -> ModelProto:
    """Quantize weights and activations to 8 bits (QDQ, MinMax). Raises ConversionError
    if no node can be quantized.

    Operators that add or read a mask remain in 32 bits. Activations are unsigned: with
    signed activations, ONNX Runtime 1.31 leaves half of a ResNet18's convolutions in 32
    bits, which takes 2.3 to 3.5 times the time of the base instead of 0.74 to 0.82.

    Args:
        proto: the graph, which is not changed.
        rows: the feeds that determine the ranges of the activations.
        per_channel: True to give each channel of a weight a separate scale.
    """
    from onnxruntime import quantization  # This import is slow.

    reader = SimpleNamespace(get_next=partial(next, iter(rows), None))
    return _quantized(
        proto,
        lambda ready, path: quantization.quantize_static(
            ready,
            path,
            reader,
            activation_type=quantization.QuantType.QUInt8,
            per_channel=per_channel,
            reduce_range=_reduces_range(),
            nodes_to_exclude=_nodes_with(
                onnx.load(ready), rows, lambda values: np.abs(values) > _MASKED
            ),
        ),
        ("Conv", "MatMul", "Gemm", "LSTM"),
    )


def half_precision(proto: ModelProto, rows: Sequence[Feeds]) -> ModelProto:
    """Convert 32-bit floats to 16-bit floats, except in islands. Inputs and outputs are
    not changed.

    Islands are the operators that ONNX Runtime's converter blocks (trees, TopK, …),
    normalizations, and nodes whose numbers on `rows` are near 65,504, the largest
    16-bit float. Raises ConversionError if all weights are in islands.
    """
    # These imports are slow.
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers import float16

    graph = preprocessed(proto)
    half_count = _count_halves(graph)
    try:
        half = float16.convert_float_to_float16(
            graph,
            keep_io_types=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_STATISTICS],
            node_block_list=_nodes_with(
                graph, rows, lambda values: np.isfinite(values) & (np.abs(values) > _HALF_LIMIT)
            ),
        )
    except Exception as error:  # noqa: BLE001 - the converter may raise any error.
        raise ConversionError(f"ONNX Runtime's converter failed: {describe_error(error)}") from None
    if _count_halves(half) == half_count:
        raise ConversionError(
            f"no 32-bit weight can be converted to 16 bits ({shown_operators(proto)})"
        )
    # The converter leaves casts to 16 bits and back to 32 bits within islands.
    casts = {node.output[0]: node for node in half.graph.node if node.op_type == "Cast"}
    # names of the converter's casts
    cast_names = re.compile(r"graph_input_cast\d+|.*_cast_to_fp16_node")
    to_half = {
        name: node.input[0] for name, node in casts.items() if cast_names.fullmatch(node.name)
    }
    for node in casts.values():
        if node.attribute[0].i == TensorProto.FLOAT and node.input[0] in to_half:
            node.op_type = "Identity"
            node.input[0] = to_half[node.input[0]]
            del node.attribute[:]
    used = set(chain.from_iterable(node.input for node in half.graph.node))
    used.update(output.name for output in half.graph.output)
    for name, node in casts.items():
        if name not in used:
            half.graph.node.remove(node)
    sorter = ONNXModel(half)
    sorter.topological_sort()
    return sorter.model


def _count_halves(proto: ModelProto) -> int:
    return sum(tensor.data_type == TensorProto.FLOAT16 for tensor in _tensors(proto.graph))


def preprocessed(proto: ModelProto) -> ModelProto:
    """Return the graph after ONNX Runtime's basic optimizations, with inferred shapes
    and named nodes.

    ONNX Runtime 1.31's `quant_pre_process` does not support graphs in memory, and its
    quantizer fails for torch shapes.
    """
    # This import is slow.
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    ort = import_onnxruntime()
    options = session_options(ort, 0)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with TemporaryDirectory(prefix="onnxserve-") as folder:
        path = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no common class
            raise ConversionError(f"ONNX Runtime cannot load it: {describe_error(error)}") from None
        graph = onnx.load(path)
    names: set[str] = set()
    for position, node in enumerate(graph.graph.node):
        if not node.name or node.name in names:
            node.name = f"node_{position}"
        names.add(node.name)
    del graph.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(graph)
    add_pre_process_metadata(graph)  # The quantizer warns if these entries are missing.
    return graph


def _quantized(
    proto: ModelProto, quantize: Callable[[str, str], None], operators: Sequence[str]
) -> ModelProto:
    """Apply `quantize` to the file of the preprocessed graph, because the quantizer
    would change a graph in memory. Raises ConversionError if it fails, or if no weight
    is quantized.

    Args:
        proto: the graph.
        quantize: a function from the paths of the graph and of the result.
        operators: the operators that can be quantized.
    """
    present = sorted({node.op_type for node in proto.graph.node} & set(operators))
    if not present:
        raise ConversionError(f"it has no {', '.join(operators[:3])} ({shown_operators(proto)})")
    with TemporaryDirectory(prefix="onnxserve-") as folder:
        ready = Path(folder) / "ready.onnx"
        path = Path(folder) / "quantized.onnx"
        onnx.save(preprocessed(proto), ready)
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # The quantizer logs to the root logger.
        try:
            # The quantizer also computes unused scales of masks.
            with np.errstate(invalid="ignore"):
                quantize(str(ready), str(path))
        except Exception as error:  # noqa: BLE001 - the quantizer may raise any error.
            raise ConversionError(
                f"ONNX Runtime's quantizer failed: {describe_error(error)}"
            ) from None
        finally:
            logging.disable(disabled)
        result = onnx.load(path)
    if not any(node.op_type in _QUANTIZED for node in result.graph.node):
        raise ConversionError(f"no {' or '.join(present)} has 32-bit float weights")
    return result


def _reduces_range() -> bool:
    """Return True if weights need 7 bits, because sums of 8-bit products saturate on
    x86 processors without VNNI.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx2" in flags and "vnni" not in flags


def _nodes_with(
    proto: ModelProto, rows: Sequence[Feeds], is_large: Callable[[Array], Array]
) -> list[str]:
    """Return the names of the nodes whose inputs or outputs contain large numbers
    (`is_large`) for these rows.
    """

    def exceeds(values: object) -> bool:
        array: Array = np.asarray(values)
        return array.dtype.kind == "f" and bool(is_large(array).any())

    # The session also returns all intermediate 32-bit floats.
    traced = copy.deepcopy(proto)
    floats = {
        value.name: value
        for value in traced.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    traced.graph.output.extend(floats.values())
    ort = import_onnxruntime()
    options = session_options(ort, 0)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = traced.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    large = {
        tensor.name for tensor in _tensors(proto.graph) if exceeds(numpy_helper.to_array(tensor))
    }
    for feeds in rows:
        values = dict(zip(names, session.run(names, feeds), strict=True))
        large |= {name for name, array in (values | feeds).items() if exceeds(array)}
    return [node.name for node in proto.graph.node if large & {*node.input, *node.output}]


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield the weights of a graph, which are initializers and constants."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def shown_operators(proto: ModelProto) -> str:
    """Return a text with the most frequent operators of a graph, for messages."""
    counts = Counter(node.op_type for node in proto.graph.node)
    names = ", ".join(name for name, _ in counts.most_common(6))
    return f"its operators are {names}"
