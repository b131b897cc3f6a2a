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
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from skl2onnx.common._topology import Scope

from mlflow_deploy_plugin.serve.runtime.feeds import Array
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
        if node.op_type not in _OPERATORS or len(modes) - modes.count(b"LEAF") < _FEWEST_SPLITS:
            graph.node.append(node)
            continue
        before, after = _sort_around(node, attributes, names)
        graph.initializer.extend([*before.initializer, *after.initializer])
        graph.node.extend([*before.node, node, *after.node])


def _sort_around(
    node: NodeProto,
    attributes: _Attributes,
    names: Scope,
) -> tuple[GraphProto, GraphProto]:
    """Return the nodes that sort the rows before a tree operator, and the nodes that
    restore their order. The operator's input and outputs are renamed.
    """
    before = Subgraph(names)
    after = Subgraph(names)
    order = _write_order(before, node.input[0], attributes)
    node.input[0] = before.node(
        "GatherND",
        [node.input[0], order],
    )
    for index, name in enumerate(node.output):
        node.output[index] = after.name()
        after.node(
            "ScatterND",
            [node.output[index], order, node.output[index]],
            name,
        )
    return before.finish({}, {}), after.finish({}, {})


def _write_order(graph: Subgraph, rows: str, attributes: _Attributes) -> str:
    """Add the row indices in sorted order, [N, 1]. Below `MANY_ROWS` rows, the order is
    unchanged.
    """
    size = graph.row_count(rows)
    few = graph.subgraph()
    many = graph.subgraph()
    keys = _write_keys(many, rows, attributes)
    _, positions = many.nodes(
        "TopK",
        [keys, size],
        2,
        axis=0,
        largest=0,
    )
    by_key = many.node("Unsqueeze", [positions, [1]])
    as_they_are = few.node(
        "Slice",
        [np.arange(MANY_ROWS)[:, None], [0], size],
    )
    return graph.node(
        "If",
        [graph.node("GreaterOrEqual", [size, [MANY_ROWS]])],
        then_branch=many.finish(
            {},
            {by_key: (TensorProto.INT64, [None, 1])},
        ),
        else_branch=few.finish(
            {},
            {as_they_are: (TensorProto.INT64, [None, 1])},
        ),
    )


def _write_keys(graph: Subgraph, rows: str, attributes: _Attributes) -> str:
    """Add the sort key of each row, [N]."""
    column, threshold, weight = _comparisons(attributes)
    numbers = graph.cast(graph.node("Transpose", [rows]), TensorProto.FLOAT)
    values = graph.node("Gather", [numbers, column], axis=0)
    above = graph.node(
        "Greater",
        [values, threshold.astype(np.float32)[:, None]],
    )
    is_above = graph.cast(above, TensorProto.FLOAT)
    return graph.node("MatMul", [weight.astype(np.float32), is_above])


def _comparisons(attributes: _Attributes) -> tuple[Array, Array, Array]:
    """Return columns, thresholds and weights [K] of K comparisons. A row's key is the
    weighted sum of their results.
    """
    nodes = _read_nodes(attributes)
    decides = np.bincount(nodes.column, nodes.share)
    bits = _divide_bits(decides)
    parts = []
    weight = 1
    for feature in np.argsort(decides):
        if not bits[feature] or not decides[feature]:
            continue
        edges = nodes.edges(feature, bits[feature])
        parts.append(
            (
                np.full(len(edges), feature),
                edges,
                np.full(len(edges), weight),
            )
        )
        weight *= len(edges) + 1
    columns, thresholds, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
    return columns, thresholds, weights


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
        """Return at most 2**bits - 1 thresholds of a feature, between which equal
        shares of the rows are split.
        """
        at = np.flatnonzero((self.column == feature) & (self.share > 0))
        at = at[np.argsort(self.threshold[at])]
        quantiles = np.arange(1, 2**bits) / 2**bits
        shares = np.cumsum(self.share[at]) / self.share[at].sum()
        return np.unique(self.threshold[at][np.searchsorted(shares, quantiles)])


def _read_nodes(attributes: _Attributes) -> _Nodes:
    tensor = attributes.get("nodes_values_as_tensor")
    if tensor is None:
        threshold = np.array(attributes["nodes_values"])
    else:
        threshold = numpy_helper.to_array(tensor)
    tree, number, column, *sides = (
        np.array(attributes[f"nodes_{name}"])
        for name in ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids")
    )
    is_inner = np.array(attributes["nodes_modes"]) != b"LEAF"
    name, *children = (tree * (number.max() + 1) + each for each in (number, *sides))
    return _Nodes(column, threshold, _estimate_shares(name, children, is_inner))


def _estimate_shares(name: Array, children: list[Array], is_inner: Array) -> Array:
    """Return the estimated share of the rows that reach each node, which is halved per
    level, [nodes].

    Args:
        name: a number for each node of all trees, [nodes].
        children: the names of the left children and of the right children.
        is_inner: True for the nodes that are not leaves, [nodes].
    """
    order = np.argsort(name)
    share = np.zeros(len(name))
    below = np.setdiff1d(
        name,
        np.concatenate([each[is_inner] for each in children]),
    )
    for level in range(_KEY_BITS):
        at = order[np.searchsorted(name, below, sorter=order)]
        at = at[is_inner[at]]
        share[at] = np.maximum(share[at], 0.5**level)
        # Equality tests may share a child.
        below = np.unique(np.concatenate([each[at] for each in children]))
    return share


def _divide_bits(decides: Array) -> Array:
    """Return the bits of a key per column, by the share of the rows that the column's
    nodes split, [columns].
    """
    left = decides
    bits = np.zeros(len(left), dtype=np.int64)
    for _ in range(_KEY_BITS):
        bits[np.argmax(left)] += 1
        left = decides / 2.0**bits
    return np.minimum(bits, _COLUMN_BITS)
