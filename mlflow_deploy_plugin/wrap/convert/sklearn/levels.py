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
from functools import cached_property
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, TensorProto, helper

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import NodeBuilder, Subgraph

MANY_ROWS = 128
"""The minimum number of rows for descent by levels. With 128 rows and 32 trees, both
methods take the same time.
"""
MIN_TREES = 32
_COMPARED_LEVELS = 3
"""The levels in which all nodes are compared: looking up a row's node costs as much as
eight comparisons.
"""
_LEVELS_IN_BYTES = 8
"""The levels whose positions fit into bytes, which are four times as fast."""
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
    row_count = graph.row_count(rows)
    most_rows = max(_FEWEST_ROWS, _BLOCK // len(levels.nodes[0]))
    block_count, block_rows = graph.equal_blocks(row_count, [most_rows])
    added_rows = graph.node("Sub", [graph.node("Mul", [block_count, block_rows]), row_count])
    pads = graph.node("Concat", [[0, 0], added_rows, [0]], axis=0)
    padded = graph.node("Pad", [rows, pads])
    shape = graph.node("Concat", [block_count, block_rows, [-1]], axis=0)
    body = _block_sums(graph.subgraph(), levels)
    blocks = graph.node("Reshape", [padded, shape])
    stacked = graph.node("Scan", [blocks], body=body, num_scan_inputs=1)
    flat = graph.node("Reshape", [stacked, [-1, len(levels.base)]])
    return graph.cast(graph.node("Slice", [flat, [0], row_count]), TensorProto.FLOAT)


class _Columns(NamedTuple):
    """The compared columns of a block of rows.

    Attributes:
        name: the tensor [columns, rows]. A column occurs twice if some of its splits
            have a default: missing values in the copy are -inf.
        indices: the position of each split's column in the tensor, [splits].
    """

    name: str
    indices: Array


class _Comparisons(NamedTuple):
    """The comparisons of some splits for all rows of a block.

    Attributes:
        name: the tensor [compared splits, rows] of bytes; 1 if the comparison is true.
        splits: the indices of the compared splits, sorted.
    """

    name: str
    splits: Array


def _is_compared(depth: int, level: Array) -> bool:
    """Return True if all nodes of the level are compared for all rows."""
    return depth < _COMPARED_LEVELS or level.shape[1] == 1


def _block_sums(graph: Subgraph, levels: Levels) -> GraphProto:
    """Return the graph that computes the sums of a block of rows, [rows, targets]."""
    rows = graph.name()
    block = _Block(graph, levels)
    columns = block.select_columns(rows)
    comparisons = block.compare(columns)
    leaf = block.descend(columns, comparisons)
    sums = block.sum_leaves(leaf)
    rows_type = helper.np_dtype_to_tensor_dtype(levels.threshold.dtype)
    return graph.finish(
        {rows: (rows_type, [None, None])}, {sums: (block.sums_type, [None, len(levels.base)])}
    )


@dataclass(frozen=True, eq=False)
class _Block:
    """The operators that compute the sums of a block of rows."""

    graph: NodeBuilder
    levels: Levels

    @cached_property
    def nodes(self) -> list[Array]:
        """The split of each node, [T, nodes] at each level. Symmetric trees have one
        split per level, [T, 1].
        """
        nodes = []
        for level in self.levels.nodes:
            is_symmetric = (level == level[:, :1]).all()
            nodes.append(level[:, :1] if is_symmetric else level)
        return nodes

    @property
    def sums_type(self) -> int:
        """The ONNX type of the sums."""
        return int(helper.np_dtype_to_tensor_dtype(self.levels.base.dtype))

    def select_columns(self, rows: str) -> _Columns:
        """Add the compared columns. For splits with a default, add a copy with -inf for
        missing values.
        """
        # A code is twice the column, plus 1 for the copy with -inf.
        codes = self.levels.column * 2 + self.levels.default
        used = np.unique(codes)
        transposed = self.graph.node("Transpose", [rows])
        columns = self.graph.node("Gather", [transposed, used // 2], axis=0)
        if self.levels.default.any():
            replacement = np.where(used % 2, -np.inf, np.nan)[:, None]
            replacement = replacement.astype(self.levels.threshold.dtype)
            is_missing = self.graph.node("IsNaN", [columns])
            columns = self.graph.node("Where", [is_missing, replacement, columns])
        return _Columns(columns, np.searchsorted(used, codes))

    def compare(self, columns: _Columns) -> _Comparisons:
        """Add the comparisons of all splits in the levels whose nodes are all compared
        for all rows.
        """
        levels = [
            level.ravel() for depth, level in enumerate(self.nodes) if _is_compared(depth, level)
        ]
        splits = np.unique(np.concatenate(levels))
        values = self.graph.node("Gather", [columns.name, columns.indices[splits]], axis=0)
        thresholds = self.levels.threshold[splits, None]
        holds = self.graph.node(self.levels.comparison, [values, thresholds])
        return _Comparisons(self.graph.cast(holds, TensorProto.UINT8), splits)

    def descend(self, columns: _Columns, comparisons: _Comparisons) -> str:
        """Add each row's node in each tree, level by level, and return the leaves,
        [trees, rows].

        A step is 1 if the comparison at the row's node is true.
        """
        position = ""
        kind = TensorProto.UINT8
        steps: list[str] = []
        for depth, level in enumerate(self.nodes):
            if depth == _LEVELS_IN_BYTES:
                kind = TensorProto.INT32
                position = self.graph.cast(position, kind)
            if _is_compared(depth, level):
                step = self._selected_step(level, steps, comparisons)
            else:
                # Each row's node is looked up: first the column and the threshold of
                # its split, then their comparison.
                node = self.graph.cast(position, TensorProto.INT32)
                index = self.graph.node(
                    "GatherElements", [columns.indices[level].astype(np.int32), node], axis=1
                )
                values = self.graph.node("GatherElements", [columns.name, index], axis=0)
                threshold = self.graph.node(
                    "GatherElements", [self.levels.threshold[level], node], axis=1
                )
                holds = self.graph.node(self.levels.comparison, [values, threshold])
                step = self.graph.cast(holds, TensorProto.UINT8)
            steps.append(step)
            number = self.graph.cast(step, kind)
            if position:
                position = self.graph.node(
                    "Add", [self.graph.node("Add", [position, position]), number]
                )
            else:
                position = number
        return self.graph.cast(position, TensorProto.INT32)

    def _selected_step(self, level: Array, steps: list[str], comparisons: _Comparisons) -> str:
        """Add the step of a compared level.

        Each earlier step, from the last to the first, selects half of the level's nodes
        until one node is left.
        """
        choices = []
        for node in level.T:
            index = np.searchsorted(comparisons.splits, node)
            choices.append(self.graph.node("Gather", [comparisons.name, index], axis=0))
        for step in reversed(steps):
            if len(choices) == 1:
                break
            condition = self.graph.cast(step, TensorProto.BOOL)
            pairs = zip(choices[1::2], choices[::2], strict=True)
            choices = [self.graph.node("Where", [condition, odd, even]) for odd, even in pairs]
        [selected] = choices
        return selected

    def sum_leaves(self, leaf: str) -> str:
        """Add the sums of the rows' leaves, [rows, targets], per group and then in
        total.
        """
        tables = self.levels.value
        trees = tables.shape[1]
        size = trees // self.levels.groups
        # Each target has a table of leaves only if the targets share their trees.
        if len(self.nodes[0]) != trees:
            tables = tables.reshape(1, -1, tables.shape[2])
        sums = []
        for table in tables:
            values = self.graph.node("GatherElements", [table, leaf], axis=1)
            shape = [len(table) // size, size, -1]
            grouped = self.graph.node("Reshape", [values, shape])
            sums.append(self.graph.node("ReduceSum", [grouped, [1]], keepdims=0))
        wide = self.graph.cast(self.graph.node("Concat", sums, axis=0), self.sums_type)
        shape = [len(self.levels.base), self.levels.groups, -1]
        by_target = self.graph.node("Reshape", [wide, shape])
        total = self.graph.node("ReduceSum", [by_target, [1]], keepdims=0)
        return self.graph.node("Add", [self.graph.node("Transpose", [total]), self.levels.base])
