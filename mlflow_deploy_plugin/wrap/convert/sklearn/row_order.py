"""Sort rows so that adjacent rows take similar paths through the trees.

ONNX Runtime's tree operator spends most of its time on branch mispredictions and, in
large forests, on cache misses. Mispredictions and cache misses are rarer if a row is
similar to the previous row. A batch of at least `MANY_ROWS` rows is sorted; its
predictions are bit-identical, and are returned in the original order. The `_KEY_BITS`
bits of the sort key are divided among the columns that split the most rows.

| 8,192 rows, one thread          | sorted ÷ unsorted time |
|---------------------------------|------------------------|
| forests of 50 and 100 trees     | 0.29 to 0.61           |
| 100 and 1,000 trees of boosting | 0.72 to 1.00           |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper
from skl2onnx.common._topology import Scope

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.tree_operator import MANY_ROWS_CONSTANT, REPLACED_OPERATOR
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import Subgraph
from mlflow_deploy_plugin.wrap.convert.sklearn.levels import MANY_ROWS

_OPERATORS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
_FEWEST_SPLITS = 2048
"""The minimum number of splits for which sorting saves time: sorting takes 140 ns per
row, or 2 µs for a single row.
"""
_Attributes = Mapping[str, Sequence[float] | Sequence[bytes] | TensorProto]
_KEY_BITS = 13
_COLUMN_BITS = 7
"""The bits of a key, and the maximum bits per column: a column needs 2**bits
comparisons per row, of 9 bytes each.
"""


def sort_rows(graph: GraphProto) -> None:
    """Sort the rows for each large tree operator of a GraphProto. Subgraphs are not
    changed.
    """
    nodes = list(graph.node)
    names = Scope("order", naming="order_of_rows_")
    del graph.node[:]
    for node in nodes:
        attributes = {
            attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
        }
        modes = attributes.get("nodes_modes", [])
        # Sorting saves time only for many splits.
        if node.op_type not in _OPERATORS or len(modes) - modes.count(b"LEAF") < _FEWEST_SPLITS:
            graph.node.append(node)
            continue
        # The rows are sorted before the operator, and their order is restored after it.
        before = Subgraph(names)
        many_rows = ""
        if node.op_type == REPLACED_OPERATOR:
            many_rows = before.constant([MANY_ROWS], MANY_ROWS_CONSTANT)
        order = _write_order(before, node.input[0], attributes, many_rows)
        node.input[0] = before.node("GatherND", [node.input[0], order])
        after = Subgraph(names)
        for index, name in enumerate(node.output):
            node.output[index] = after.name()
            after.node("ScatterND", [node.output[index], order, node.output[index]], name)
        added = before.finish({}, {})
        graph.initializer.extend(added.initializer)
        graph.node.extend([*added.node, node])
        added = after.finish({}, {})
        graph.initializer.extend(added.initializer)
        graph.node.extend(added.node)


def _write_order(graph: Subgraph, rows: str, attributes: _Attributes, many_rows: str) -> str:
    """Add the row indices in sorted order, [N, 1]. Below `MANY_ROWS` rows, and below
    the constant `many_rows` unless it is "", the order is unchanged.
    """
    row_count = graph.row_count(rows)
    few = graph.subgraph()
    many = graph.subgraph()
    # The key of a row is the sum of the weights of its comparisons that are true.
    columns, thresholds, weights = _choose_comparisons(attributes)
    numbers = many.cast(many.node("Transpose", [rows]), TensorProto.FLOAT)
    values = many.node("Gather", [numbers, columns], axis=0)
    above = many.node("Greater", [values, thresholds.astype(np.float32)[:, None]])
    is_above = many.cast(above, TensorProto.FLOAT)
    keys = many.node("MatMul", [weights.astype(np.float32), is_above])
    _, positions = many.nodes("TopK", [keys, row_count], count=2, axis=0, largest=0)
    sorted_order = many.node("Unsqueeze", [positions, [1]])
    unchanged_order = few.node("Slice", [np.arange(MANY_ROWS)[:, None], [0], row_count])
    sorting = many.finish({}, {sorted_order: (TensorProto.INT64, [None, 1])})
    if many_rows:
        sorting = _sort_unless_replaced(graph, row_count, many_rows, sorting)
    has_many = graph.node("GreaterOrEqual", [row_count, [MANY_ROWS]])
    return graph.node(
        "If",
        [has_many],
        then_branch=sorting,
        else_branch=few.finish({}, {unchanged_order: (TensorProto.INT64, [None, 1])}),
    )


def _sort_unless_replaced(
    graph: Subgraph, row_count: str, many_rows: str, sorting: GraphProto
) -> GraphProto:
    """Return a graph of the order that `sorting` computes, or below the constant
    `many_rows` of the unchanged order.
    """
    unsorted = graph.subgraph()
    stop = unsorted.node("Squeeze", [row_count])
    positions = unsorted.node("Range", [np.array(0), stop, np.array(1)])
    order = unsorted.node("Unsqueeze", [positions, [1]])
    choice = graph.subgraph()
    is_sorted = choice.node("GreaterOrEqual", [row_count, many_rows])
    chosen = choice.node(
        "If",
        [is_sorted],
        then_branch=sorting,
        else_branch=unsorted.finish({}, {order: (TensorProto.INT64, [None, 1])}),
    )
    return choice.finish({}, {chosen: (TensorProto.INT64, [None, 1])})


def _choose_comparisons(attributes: _Attributes) -> tuple[Array, ...]:
    """Return the comparisons of the columns that split the most rows: the column that
    each comparison reads, the threshold that this column is above, and the number that
    a true comparison adds to the key, [comparisons].

    A key is a number with one digit per column: the number of the column's thresholds
    that are below the row's value. The column that splits the most rows has the most
    significant digit.
    """
    nodes = _read_nodes(attributes)
    split_shares = np.bincount(nodes.column, nodes.share)
    # Each bit goes to the column with the largest share of split rows, which is halved
    # for each bit that the column has.
    remaining = split_shares
    bits = np.zeros(len(remaining), dtype=np.int64)
    for _ in range(_KEY_BITS):
        bits[np.argmax(remaining)] += 1
        remaining = split_shares / 2.0**bits
    bits = np.minimum(bits, _COLUMN_BITS)
    parts = []
    place_value = 1
    for feature in np.argsort(split_shares):
        if not bits[feature] or not split_shares[feature]:
            continue
        edges = nodes.edges(feature, bits[feature])
        counts = np.ones(len(edges), dtype=np.int64)
        parts.append((counts * feature, edges, counts * place_value))
        place_value *= len(edges) + 1  # A digit is at most len(edges).
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


@dataclass(frozen=True, eq=False)
class _Nodes:
    """The nodes of all trees as arrays [nodes].

    Attributes:
        share: the estimated share of the rows that reach each node; 0 for leaves.
    """

    column: Array
    threshold: Array
    share: Array

    def edges(self, feature: int, bits: int) -> Array:
        """Return at most 2**bits - 1 thresholds of a feature: the quantiles of its
        thresholds, weighted by the share of the rows that each of them splits.
        """
        splits = np.flatnonzero((self.column == feature) & (self.share > 0))
        splits = splits[np.argsort(self.threshold[splits])]
        thresholds = self.threshold[splits]
        shares = self.share[splits]
        quantiles = np.arange(1, 2**bits) / 2**bits
        shares_below = np.cumsum(shares) / shares.sum()
        return np.unique(thresholds[np.searchsorted(shares_below, quantiles)])


def _read_nodes(attributes: _Attributes) -> _Nodes:
    """Return the nodes that the attributes of a tree operator describe."""
    if "nodes_values_as_tensor" in attributes:
        threshold = numpy_helper.to_array(attributes["nodes_values_as_tensor"])
    else:
        threshold = np.array(attributes["nodes_values"])
    is_inner = np.array(attributes["nodes_modes"]) != b"LEAF"
    number = np.array(attributes["nodes_nodeids"])
    # Numbers are unique only within a tree; with this offset, they are unique.
    offset = np.array(attributes["nodes_treeids"]) * (number.max() + 1)
    children = [
        offset + np.array(attributes["nodes_truenodeids"]),
        offset + np.array(attributes["nodes_falsenodeids"]),
    ]
    # The estimated share of the rows that reach a node is halved per level.
    numbers = offset + number
    order = np.argsort(numbers)
    shares = np.zeros(len(numbers))
    # The roots are nobody's children.
    level_numbers = np.setdiff1d(numbers, np.concatenate([side[is_inner] for side in children]))
    for level in range(_KEY_BITS):
        nodes = order[np.searchsorted(numbers, level_numbers, sorter=order)]
        nodes = nodes[is_inner[nodes]]
        shares[nodes] = np.maximum(shares[nodes], 0.5**level)
        # Equality tests may share a child.
        level_numbers = np.unique(np.concatenate([side[nodes] for side in children]))
    return _Nodes(np.array(attributes["nodes_featureids"]), threshold, shares)
