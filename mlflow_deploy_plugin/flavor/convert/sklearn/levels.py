"""Boosted trees for many rows: all rows take the same step in all trees, one level after the other.

ONNX Runtime's own operator walks each row down each tree by branches, half of which a processor guesses wrong: 3.3 ns a
node. That is best for a few rows. From `MANY_ROWS` on, an `If` chooses the operators that are written here. They have
no branches: the position of each row in each tree is a number, which each level doubles, and increases by one where the
row goes to the left. The shape is that of Hummingbird's PerfectTreeTraversal (Nakandala et al., OSDI 2020).

| 10,000 rows, 100 trees of depth 6, one thread | tree operator | by levels | native |
|-----------------------------------------------|---------------|-----------|--------|
| XGBoost                                       | 20.4 ms       | 8.9 ms    | 8.3 ms |
| CatBoost, whose trees are symmetric           | 19.9 ms       | 2.7 ms    | 2.0 ms |
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from mlflow_deploy_plugin.flavor.convert.sklearn.graph import NodeBuilder
from mlflow_deploy_plugin.runtime import Array

MANY_ROWS = 128
"""The fewest rows that are computed by levels. There, 32 trees take as long in both forms, and more are faster so."""
MIN_TREES = 32
_COMPARED_LEVELS = 3
"""The levels of which all nodes are compared, for a lookup of each row's own node costs as much as eight of them."""
_BLOCK = 2**18
"""The positions, rows × trees, that are computed at once: a megabyte for each operator's result."""


@dataclass(frozen=True)
class Levels:
    """Complete binary trees of one depth; T trees, those of the first target first, or T that the targets share.

    The children of the node k of a level are 2k + 1 to the left and 2k to the right.

    Attributes:
        feature: the positions of the columns, [T, 2**d] at each level d.
        threshold: those that a row's number is compared with, alike; 32-bit floats or 64-bit ones, as the rows.
        default_left: True where a missing value goes to the left, alike.
        value: the leaves, [targets, T / targets or T, 2**depth], as wide as the sums.
        comparison: the ONNX operator that sends a row to the left: Less or LessOrEqual.
        base: the sums before the first tree, [targets].
    """

    feature: list[Array]
    threshold: list[Array]
    default_left: list[Array]
    value: Array
    comparison: str
    base: Array


def write_levels(graph: NodeBuilder, rows: str, levels: Levels) -> str:
    """Add the trees, and return [N, targets] 32-bit floats, the sums of their leaves.

    The rows are computed in blocks of equal size, so that the memory does not grow with them.

    Args:
        rows: [N, features], at least one.
    """
    trees = len(levels.feature[0])
    one, largest = graph.array([1]), graph.array([max(1, _BLOCK // trees)])
    count = graph.node("Shape", [rows], start=0, end=1)
    blocks = graph.node("Div", [graph.node("Sub", [graph.node("Add", [count, largest]), one]), largest])
    size = graph.node("Div", [graph.node("Sub", [graph.node("Add", [count, blocks]), one]), blocks])
    lacking = graph.node("Sub", [graph.node("Mul", [blocks, size]), count])
    padded = graph.node("Pad", [rows, graph.node("Concat", [graph.array([0, 0]), lacking, graph.array([0])], axis=0)])
    shape = graph.node("Concat", [blocks, size, graph.array([-1])], axis=0)
    body = graph.subgraph()
    block = body.name()
    sums = _write_block(body, block, levels)
    kinds = [
        TensorProto.DOUBLE if array.dtype == np.float64 else TensorProto.FLOAT
        for array in (levels.threshold[0], levels.value)
    ]
    step = body.finish({block: (kinds[0], [None, None])}, {sums: (kinds[1], [None, len(levels.base)])})
    stacked = graph.node("Scan", [graph.node("Reshape", [padded, shape])], body=step, num_scan_inputs=1)
    flat = graph.node("Reshape", [stacked, graph.array([-1, len(levels.base)])])
    return graph.node("Cast", [graph.node("Slice", [flat, graph.array([0]), count])], to=TensorProto.FLOAT)


def _write_block(graph: NodeBuilder, rows: str, levels: Levels) -> str:
    """Add the trees for a block of rows, and return their sums, [rows, targets]."""
    columns, places = _write_columns(graph, rows, levels)
    kind = TensorProto.UINT8 if len(places) <= 8 else TensorProto.INT32
    position = ""
    sides: list[str] = []  # of the levels so far, 1 where a row goes to the left
    for column, threshold in zip(places, levels.threshold, strict=True):
        is_symmetric = (column == column[:, :1]).all() and (threshold == threshold[:, :1]).all()
        if is_symmetric or len(sides) < _COMPARED_LEVELS:
            compared = []
            for node in range(1 if is_symmetric else column.shape[1]):
                values = graph.node("Gather", [columns, graph.array(column[:, node])], axis=0)
                side = graph.node(levels.comparison, [values, graph.array(threshold[:, node : node + 1])])
                compared.append(graph.node("Cast", [side], to=TensorProto.UINT8))
            for side in reversed([] if is_symmetric else sides):
                is_left = graph.node("Cast", [side], to=TensorProto.BOOL)
                pairs = zip(compared[1::2], compared[::2], strict=True)
                compared = [graph.node("Where", [is_left, left, right]) for left, right in pairs]
            [number] = compared
        else:
            at = graph.node("Cast", [position], to=TensorProto.INT32)
            features = graph.node("GatherElements", [graph.array(column.astype(np.int32)), at], axis=1)
            values = graph.node("GatherElements", [columns, features], axis=0)
            thresholds = graph.node("GatherElements", [graph.array(threshold), at], axis=1)
            number = graph.node("Cast", [graph.node(levels.comparison, [values, thresholds])], to=TensorProto.UINT8)
        sides.append(number)
        number = graph.node("Cast", [number], to=kind)
        position = graph.node("Add", [graph.node("Add", [position, position]), number]) if position else number
    leaf = graph.node("Cast", [position], to=TensorProto.INT32)
    targets, trees, leaves = levels.value.shape
    is_shared = len(places[0]) == trees
    if is_shared:
        found = [graph.node("GatherElements", [graph.array(values), leaf], axis=1) for values in levels.value]
    else:
        value = graph.node("GatherElements", [graph.array(levels.value.reshape(-1, leaves)), leaf], axis=1)
        found = [graph.node("Reshape", [value, graph.array([targets, trees, -1])])]
    over = graph.array([-2])
    sums = [graph.node("ReduceSum", [values, over], keepdims=int(is_shared)) for values in found]
    return graph.node("Add", [graph.node("Transpose", [graph.node("Concat", sums, axis=0)]), graph.array(levels.base)])


def _write_columns(graph: NodeBuilder, rows: str, levels: Levels) -> tuple[str, list[Array]]:
    """Add the columns that the trees compare, [columns, rows], and return the place of each node's, as `feature`.

    A column with missing values stands there as it is, so that they go to the right; and with -inf in their stead, so
    that they go to the left.
    """
    codes = [feature * 2 + left for feature, left in zip(levels.feature, levels.default_left, strict=True)]
    used = np.unique(np.concatenate([code.ravel() for code in codes]))
    columns = graph.node("Gather", [graph.node("Transpose", [rows]), graph.array(used // 2)], axis=0)
    if (used % 2).any():
        missing = np.where(used % 2, -np.inf, np.nan)[:, None].astype(levels.threshold[0].dtype)
        columns = graph.node("Where", [graph.node("IsNaN", [columns]), graph.array(missing), columns])
    return columns, [np.searchsorted(used, code) for code in codes]
