"""Boosted trees for many rows: in all trees at once, all rows go down one level after the other.

ONNX Runtime's own operator walks each row down each tree by branches, and a processor predicts half of them wrongly:
3.3 ns per node. That is best for a few rows. From `MANY_ROWS` on, an `If` chooses these operators without branches.
Each level doubles a row's position in a tree, and adds 1 if the comparison at its node holds (Hummingbird's
PerfectTreeTraversal; Nakandala et al., OSDI 2020). The nodes of the first three levels, and of each level of symmetric
trees, are compared for all rows.

| 10,000 rows, 100 trees of depth 6, one thread | tree operator | by levels | native |
|-----------------------------------------------|---------------|-----------|--------|
| XGBoost                                       | 20.5 ms       | 8.8 ms    | 8.5 ms |
| CatBoost, whose trees are symmetric           | 21.0 ms       | 2.2 ms    | 2.0 ms |
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from mlflow_deploy_plugin.flavor.convert.sklearn.graph import NodeBuilder
from mlflow_deploy_plugin.runtime.feeds import Array

MANY_ROWS = 128
"""The fewest rows that are computed by levels. There, 32 trees take as long in both forms, and more are faster so."""
MIN_TREES = 32
_COMPARED_LEVELS = 3
"""The levels of which all nodes are compared, for a lookup of each row's own node costs as much as eight of them."""
_BLOCK = 2**17
"""The positions, rows × trees, that are computed at once: half a megabyte for the result of each operator."""
_FEWEST_ROWS = 512
"""The fewest rows of a block: with fewer, the calls of its operators cost as much as their work (1,000 trees: 8 %)."""
MAX_SUMMED = 64
"""The most leaves summed in 32 bits: 12 % to 17 % less time. Answers of 1,000 trees differ by 7e-7 instead of 2e-7."""


@dataclass(frozen=True)
class Levels:
    """Complete binary trees of one depth: T trees, ordered by their targets, or T trees that the targets share.

    A row at the node k of a level goes to 2k + 1 if the comparison with the node's split holds, otherwise to 2k.

    Attributes:
        nodes: the position in the splits of each node, [T, 2**d] at each level d.
        column: the position in the rows of the number that each split compares, [splits].
        threshold: the number on the right of the comparison, [splits], as wide as the rows: 32-bit or 64-bit floats.
        default: True if the comparison counts as holding for a missing value, [splits].
        comparison: Less, LessOrEqual, Greater or GreaterOrEqual; the last two allow no default.
        value: the leaves, [targets, T / targets or T, 2**depth] 32-bit floats.
        base: the sums before the first tree, [targets], as wide as the sums.
        groups: the number of equal groups of each target's trees, in which the leaves are summed in 32 bits.
    """

    nodes: list[Array]
    column: Array
    threshold: Array
    default: Array
    comparison: str
    value: Array
    base: Array
    groups: int


def write_levels(graph: NodeBuilder, rows: str, levels: Levels) -> str:
    """Add the trees for rows [N ≥ 1, features], in blocks that bound the memory; return 32-bit sums [N, targets]."""
    count = graph.node("Shape", [rows], start=0, end=1)
    blocks, size = graph.equal_blocks(count, [max(_FEWEST_ROWS, _BLOCK // len(levels.nodes[0]))])
    lacking = graph.node("Sub", [graph.node("Mul", [blocks, size]), count])
    padded = graph.node("Pad", [rows, graph.node("Concat", [[0, 0], lacking, [0]], axis=0)])
    shape = graph.node("Concat", [blocks, size, [-1]], axis=0)
    body = graph.subgraph()
    block = body.name()
    sums = _write_block(body, block, levels)
    given, found = (helper.np_dtype_to_tensor_dtype(array.dtype) for array in (levels.threshold, levels.base))
    step = body.finish({block: (given, [None, None])}, {sums: (found, [None, len(levels.base)])})
    stacked = graph.node("Scan", [graph.node("Reshape", [padded, shape])], body=step, num_scan_inputs=1)
    flat = graph.node("Reshape", [stacked, [-1, len(levels.base)]])
    return graph.node("Cast", [graph.node("Slice", [flat, [0], count])], to=TensorProto.FLOAT)


def _write_block(graph: NodeBuilder, rows: str, levels: Levels) -> str:
    """Add the trees for a block of rows, and return their sums, [rows, targets]."""
    # the columns that splits compare, [columns, rows]; one whose missing values count as holding for some splits stands
    # there once more, with -inf in their place
    codes = levels.column * 2 + levels.default
    used = np.unique(codes)
    places = np.searchsorted(used, codes)
    columns = graph.node("Gather", [graph.node("Transpose", [rows]), used // 2], axis=0)
    if levels.default.any():
        missing = np.where(used % 2, -np.inf, np.nan)[:, None].astype(levels.threshold.dtype)
        columns = graph.node("Where", [graph.node("IsNaN", [columns]), missing, columns])

    # the splits that are compared for all rows, [splits, rows]; a symmetric tree has one split a level
    nodes = [level[:, :1] if (level == level[:, :1]).all() else level for level in levels.nodes]
    are_compared = [depth < _COMPARED_LEVELS or level.shape[1] == 1 for depth, level in enumerate(nodes)]
    compared = np.unique(np.concatenate([level.ravel() for level, one in zip(nodes, are_compared, strict=True) if one]))
    values = graph.node("Gather", [columns, places[compared]], axis=0)
    holds = graph.node(levels.comparison, [values, levels.threshold[compared, None]])
    holds = graph.node("Cast", [holds], to=TensorProto.UINT8)

    # each row's node in each tree, [trees, rows], level by level; a step is 1 if the comparison at the node holds
    position, kind = "", TensorProto.UINT8
    steps: list[str] = []
    for depth, (level, is_compared) in enumerate(zip(nodes, are_compared, strict=True)):
        if depth == 8:  # bytes hold the positions so far, and are computed four times as fast
            kind = TensorProto.INT32
            position = graph.node("Cast", [position], to=kind)
        if is_compared:
            # of all nodes of the level, the steps so far choose the row's own: the last one halves them, and so on
            choices = [graph.node("Gather", [holds, np.searchsorted(compared, node)], axis=0) for node in level.T]
            for before in reversed(steps if len(choices) > 1 else []):
                condition = graph.node("Cast", [before], to=TensorProto.BOOL)
                pairs = zip(choices[1::2], choices[::2], strict=True)
                choices = [graph.node("Where", [condition, odd, even]) for odd, even in pairs]
            [step] = choices
        else:
            at = graph.node("Cast", [position], to=TensorProto.INT32)
            place = graph.node("GatherElements", [places[level].astype(np.int32), at], axis=1)
            values = graph.node("GatherElements", [columns, place], axis=0)
            threshold = graph.node("GatherElements", [levels.threshold[level], at], axis=1)
            step = graph.node("Cast", [graph.node(levels.comparison, [values, threshold])], to=TensorProto.UINT8)
        steps.append(step)
        number = graph.node("Cast", [step], to=kind)
        position = graph.node("Add", [graph.node("Add", [position, position]), number]) if position else number

    # the leaves at these positions, summed in groups in 32 bits, then as wide as the base
    leaf = graph.node("Cast", [position], to=TensorProto.INT32)
    targets, trees, leaves = levels.value.shape
    size = trees // levels.groups
    sums = []
    for table in levels.value if len(nodes[0]) == trees else [levels.value.reshape(-1, leaves)]:
        values = graph.node("GatherElements", [table, leaf], axis=1)
        grouped = graph.node("Reshape", [values, [len(table) // size, size, -1]])
        sums.append(graph.node("ReduceSum", [grouped, [1]], keepdims=0))
    kind = helper.np_dtype_to_tensor_dtype(levels.base.dtype)
    grouped = graph.node("Cast", [graph.node("Concat", sums, axis=0)], to=kind)
    total = graph.node("ReduceSum", [graph.node("Reshape", [grouped, [targets, levels.groups, -1]]), [1]], keepdims=0)
    return graph.node("Add", [graph.node("Transpose", [total]), levels.base])
