"""The intermediate values of a graph: the outputs of its nodes for the inputs of one row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError
from mlflow_deploy_plugin.runtime.feeds import Feeds
from mlflow_deploy_plugin.runtime.session import describe_error, import_onnxruntime, session_options

_SHOWN_VALUES = 5


@dataclass(frozen=True)
class NodeValue:
    """An output of a node: its first values, and the counts of NaN and infinite values. A sequence or a mapping has
    the number of its entries as its shape."""

    node: str
    operator: str
    output: str
    dtype: str
    shape: tuple[int, ...]
    values: list[Any]
    nan: int
    infinite: int


def intermediate_values(onnx_file: Path, feeds: Feeds, most: int) -> tuple[list[NodeValue], int]:
    """Return the outputs of the first `most` nodes in the order of the graph, and the number of remaining nodes.

    Constants are not listed, and the nodes inside of a loop or a condition are a part of their node. The graph is not
    optimized, because optimization would remove nodes. A changed copy is written next to `onnx_file`, where ONNX
    Runtime finds external weights. Raises InferenceError if ONNX Runtime cannot compute or return a value.
    """
    import onnx  # The import takes 0.2 s, and only this function needs it.

    proto = onnx.load(onnx_file, load_external_data=False)
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    wanted = [(node, name) for node in nodes[:most] for name in node.output if name]
    declared = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for _, name in wanted if name not in declared)
    changed = onnx_file.with_name(f"every-node-{onnx_file.name}")
    onnx.save(proto, changed)
    module = import_onnxruntime()
    options = session_options(module, 1)
    options.graph_optimization_level = module.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = module.InferenceSession(str(changed), options, providers=["CPUExecutionProvider"])
        values = session.run([name for _, name in wanted], feeds)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a dozen unrelated classes here
        raise InferenceError(describe_error(error)) from None
    found = [_node_value(node, name, value) for (node, name), value in zip(wanted, values, strict=True)]
    return found, len(nodes) - len(nodes[:most])


def _node_value(node: Any, output: str, value: Any) -> NodeValue:
    is_array = isinstance(value, np.ndarray)
    flat = value.reshape(-1) if is_array else list(value.items() if isinstance(value, dict) else value or ())
    floats = flat if is_array and flat.dtype.kind == "f" else np.empty(0)
    return NodeValue(
        node.name,
        node.op_type,
        output,
        str(value.dtype) if is_array else type(value).__name__,
        value.shape if is_array else (len(flat),),
        flat[:_SHOWN_VALUES].tolist() if is_array else flat[:_SHOWN_VALUES],
        int(np.isnan(floats).sum()),
        int(np.isinf(floats).sum()),
    )
