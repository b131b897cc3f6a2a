"""Boosted trees for many rows: all rows descend all trees together, level by level.

ONNX Runtime's tree operator descends each tree per row with branches, half of which are
mispredicted: 3.3 ns per node. The tree operator is fastest for few rows. From
`MANY_ROWS` on, an `If` selects this module's operators, which do not branch. Each level
doubles a row's position in a tree, and adds 1 if the comparison at the node is true
(Hummingbird's PerfectTreeTraversal; Nakandala et al., OSDI 2020). In the first three
levels, and in each level of symmetric trees, all nodes are compared for all rows.

| 10,000 rows, 100 trees of depth 6, one thread | tree operator | by levels | native |
|-----------------------------------------------|---------------|-----------|--------|
| XGBoost                                       | 20.5 ms       | 8.8 ms    | 8.5 ms |
| CatBoost, whose trees are symmetric           | 21.0 ms       | 2.2 ms    | 2.0 ms |
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import NodeBuilder

MANY_ROWS = 128
"""The minimum number of rows for descent by levels. With 128 rows and 32 trees, both
methods take the same time.
"""
MIN_TREES = 32
_COMPARED_LEVELS = 3
"""The levels in which all nodes are compared: looking up a row's node costs as much as
eight comparisons.
"""
_BLOCK = 2**17
"""The number of positions (rows × trees) per block: the result of each operator takes
half a megabyte.
"""
_FEWEST_ROWS = 512
"""The minimum number of rows per block: smaller blocks would increase operator overhead
(by 8 % for 1,000 trees).
"""
MAX_SUMMED = 64
"""The maximum number of leaves per 32-bit sum (12 % to 17 % faster). For 1,000 trees,
the error is 7e-7, not 2e-7.
"""


@dataclass(frozen=True)
class Levels:
    """Complete binary trees of equal depth: T trees, ordered by target, or T trees that
    all targets share.

    A row at node k of a level goes to 2k + 1 if the comparison with the node's split is
    true, otherwise to 2k.

    Attributes:
        nodes: the index of each node's split, [T, 2**d] at each level d.
        column: the column that each split compares, [splits].
        threshold: the right side of the comparison, [splits], with the float type of
            the rows (32 or 64 bits).
        default: True if the comparison is true for a missing value, [splits].
        comparison: Less, LessOrEqual, Greater or GreaterOrEqual; the last two do not
            support a default.
        value: the leaves, [targets, T / targets or T, 2**depth] 32-bit floats.
        base: the sums before the first tree, [targets], with the float type of the
            sums.
        groups: the number of groups of each target's trees; leaves within a group are
            summed in 32 bits.
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
    """Add the trees for rows [N ≥ 1, features], in blocks to limit memory, and return
    32-bit sums [N, targets].
    """
    count = graph.node("Shape", [rows], start=0, end=1)
    blocks, size = graph.equal_blocks(count, [max(_FEWEST_ROWS, _BLOCK // len(levels.nodes[0]))])
    lacking = graph.node("Sub", [graph.node("Mul", [blocks, size]), count])
    padded = graph.node("Pad", [rows, graph.node("Concat", [[0, 0], lacking, [0]], axis=0)])
    shape = graph.node("Concat", [blocks, size, [-1]], axis=0)
    body = graph.subgraph()
    block = body.name()
    sums = _write_block(body, block, levels)
    rows_type, sums_type = (
        helper.np_dtype_to_tensor_dtype(array.dtype) for array in (levels.threshold, levels.base)
    )
    step = body.finish(
        {block: (rows_type, [None, None])},
        {sums: (sums_type, [None, len(levels.base)])},
    )
    stacked = graph.node(
        "Scan",
        [graph.node("Reshape", [padded, shape])],
        body=step,
        num_scan_inputs=1,
    )
    flat = graph.node("Reshape", [stacked, [-1, len(levels.base)]])
    return graph.node("Cast", [graph.node("Slice", [flat, [0], count])], to=TensorProto.FLOAT)


def _write_block(graph: NodeBuilder, rows: str, levels: Levels) -> str:
    """Add the trees for a block of rows, and return their sums, [rows, targets]."""
    # Select the compared columns, [columns, rows]. For splits with a default, add a
    # copy with -inf for missing values.
    codes = levels.column * 2 + levels.default
    used = np.unique(codes)
    indices = np.searchsorted(used, codes)
    columns = graph.node("Gather", [graph.node("Transpose", [rows]), used // 2], axis=0)
    if levels.default.any():
        missing = np.where(used % 2, -np.inf, np.nan)[:, None].astype(levels.threshold.dtype)
        columns = graph.node("Where", [graph.node("IsNaN", [columns]), missing, columns])

    # Compare the splits of some levels (`are_compared`) for all rows. Symmetric trees
    # have one split per level.
    nodes = [level[:, :1] if (level == level[:, :1]).all() else level for level in levels.nodes]
    are_compared = [
        depth < _COMPARED_LEVELS or level.shape[1] == 1 for depth, level in enumerate(nodes)
    ]
    used_levels = [
        level.ravel() for level, is_used in zip(nodes, are_compared, strict=True) if is_used
    ]
    compared = np.unique(np.concatenate(used_levels))
    values = graph.node("Gather", [columns, indices[compared]], axis=0)
    holds = graph.node(levels.comparison, [values, levels.threshold[compared, None]])
    holds = graph.node("Cast", [holds], to=TensorProto.UINT8)

    # Compute each row's node in each tree, [trees, rows], per level. A step is 1 if the
    # comparison at the node is true.
    position = ""
    kind = TensorProto.UINT8
    steps: list[str] = []
    for depth, (level, is_compared) in enumerate(zip(nodes, are_compared, strict=True)):
        if depth == 8:  # Up to level 7, positions fit into bytes, which are four times as fast.
            kind = TensorProto.INT32
            position = graph.node("Cast", [position], to=kind)
        if is_compared:
            # Each earlier step, from the last to the first, selects half of the level's
            # nodes until one node is left.
            choices = [
                graph.node("Gather", [holds, np.searchsorted(compared, node)], axis=0)
                for node in level.T
            ]
            for before in reversed(steps if len(choices) > 1 else []):
                condition = graph.node("Cast", [before], to=TensorProto.BOOL)
                pairs = zip(choices[1::2], choices[::2], strict=True)
                choices = [graph.node("Where", [condition, odd, even]) for odd, even in pairs]
            [step] = choices
        else:
            at = graph.node("Cast", [position], to=TensorProto.INT32)
            index = graph.node("GatherElements", [indices[level].astype(np.int32), at], axis=1)
            values = graph.node("GatherElements", [columns, index], axis=0)
            threshold = graph.node("GatherElements", [levels.threshold[level], at], axis=1)
            step = graph.node(
                "Cast",
                [graph.node(levels.comparison, [values, threshold])],
                to=TensorProto.UINT8,
            )
        steps.append(step)
        number = graph.node("Cast", [step], to=kind)
        position = (
            graph.node("Add", [graph.node("Add", [position, position]), number])
            if position
            else number
        )

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
    total = graph.node(
        "ReduceSum",
        [graph.node("Reshape", [grouped, [targets, levels.groups, -1]]), [1]],
        keepdims=0,
    )
    return graph.node("Add", [graph.node("Transpose", [total]), levels.base])
