"""Mark rows that a step of the original refuses, such as a negative number in a
logarithm before a regression.

scikit-learn refuses NaN and infinity. If a graph may compute NaN or infinity from
finite numbers, it has the output `REFUSED_ROWS`, and `serve/runtime/model.py` refuses
the marked rows.
"""

import warnings
from collections.abc import Iterator
from itertools import chain

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper
from skl2onnx.common._topology import Operator, Scope, Topology
from sklearn.preprocessing import (
    FunctionTransformer,
    PolynomialFeatures,
    PowerTransformer,
    SplineTransformer,
)

from mlflow_deploy_plugin.serve.runtime.refusals import REFUSED_ROWS
from mlflow_deploy_plugin.wrap.convert.converted import makers_of
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import Subgraph
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import Computed

_PARTIAL = {
    "Log",
    "Sqrt",
    "Div",
    "Pow",
    "Reciprocal",
    "Exp",
    "Tan",
    "Asin",
    "Acos",
    "Acosh",
    "Atanh",
    "Sinh",
    "Cosh",
}
"""Operators that return NaN or infinity for some finite numbers."""
_Marks = Iterator[tuple[str, str]]
"""Pairs: the reason for refusing rows, and the name of a 32-bit array [N, k] that is 0
for all other rows.
"""


def mark_refused_rows(graph: GraphProto, topology: Topology) -> str:
    """Add the output `REFUSED_ROWS` to the graph if a step may refuse a row, and return
    the reasons; "" if no step refuses a row.
    """
    operators = list(chain.from_iterable(scope.operators.values() for scope in topology.scopes))
    added = Subgraph(Scope("refused", naming="refused_rows_"))
    marks = [*_out_of_range(added, operators), *_not_finite(added, graph, operators)]
    if not marks:
        return ""
    sums = [added.node("ReduceSum", [mark, [1]], keepdims=0) for _, mark in marks]
    added.node("Sum", sums, REFUSED_ROWS)
    nodes = added.finish({}, {})
    graph.initializer.extend(nodes.initializer)
    graph.node.extend(nodes.node)
    graph.output.append(helper.make_tensor_value_info(REFUSED_ROWS, TensorProto.FLOAT, ["batch"]))
    reasons = dict.fromkeys(reason for reason, _ in marks)
    return ", or ".join(reasons)


def _out_of_range(added: Subgraph, operators: list[Operator]) -> _Marks:
    """Mark the rows with a number outside the range of a step."""
    for operator in operators:
        step = operator.raw_operator
        # Each bound, one number per column, has an ONNX comparison that is true for the
        # numbers outside the range.
        match step:
            case PowerTransformer(method="box-cox"):
                accepted = "positive numbers"
                bounds = {"LessOrEqual": np.zeros(step.n_features_in_)}
            case SplineTransformer(extrapolation="error"):
                accepted = "numbers between its knots"
                bounds = {
                    "Less": np.array([spline.t[spline.k] for spline in step.bsplines_]),
                    "Greater": np.array([spline.t[-spline.k - 1] for spline in step.bsplines_]),
                }
            case _:
                continue
        start = 0
        for entry in operator.inputs:
            wide = added.cast(entry.full_name, TensorProto.DOUBLE)
            end = start + entry.type.shape[1]
            for test, bound in bounds.items():
                mark = added.node(test, [wide, bound[start:end]])
                yield (
                    f"its {type(step).__name__} accepts only {accepted}",
                    added.cast(mark, TensorProto.FLOAT),
                )
            start = end


def _not_finite(added: Subgraph, graph: GraphProto, operators: list[Operator]) -> _Marks:
    """Mark the rows for which a function or product is not finite, if a later step
    refuses such numbers.
    """
    readers: dict[str, list[Estimator]] = {}
    for operator in operators:
        for entry in operator.inputs:
            readers.setdefault(entry.full_name, []).append(operator.raw_operator)
    doubtful = set(_doubtful_outputs(graph, operators))
    for node in graph.node:
        if not doubtful.isdisjoint(node.input):
            doubtful.update(node.output)
        for name in sorted(doubtful.intersection([*node.input, *node.output])):
            # Mark each value only once.
            refusing = [one for one in readers.pop(name, []) if not _accepts(one, np.inf)]
            if not refusing:
                continue
            refusing_nan = [one for one in refusing if not _accepts(one, np.nan)]
            if refusing_nan:
                # The difference is NaN for NaN and infinity, otherwise 0.
                mark = added.node("Sub", [name, name])
                numbers = "NaN or infinity"
                doubtful.remove(name)
            else:
                mark = added.node("IsInf", [name])
                numbers = "infinity"
            step = type((refusing_nan or refusing)[0]).__name__
            yield (
                f"the model computes {numbers} for the row, which its {step} refuses",
                added.cast(mark, TensorProto.FLOAT),
            )


def _doubtful_outputs(graph: GraphProto, operators: list[Operator]) -> Iterator[str]:
    """Yield the outputs of products, and of functions that may not be finite."""
    makers = makers_of(graph)
    constants = {entry.name: entry for entry in graph.initializer}
    for operator in operators:
        step = operator.raw_operator
        is_doubtful = isinstance(step, PolynomialFeatures)
        # A function is doubtful if one of its nodes may compute NaN or infinity from
        # finite numbers.
        names = []
        if isinstance(step, FunctionTransformer | Computed):
            names = [entry.full_name for entry in operator.outputs]
        seen = {entry.full_name for entry in operator.inputs}
        while names and not is_doubtful:
            name = names.pop()
            if name in seen or name not in makers:
                continue
            seen.add(name)
            node = makers[name]
            if node.op_type in _PARTIAL:
                divisor = constants.get(node.input[-1])
                has_constant_divisor = node.op_type == "Div" and divisor is not None
                is_doubtful = not has_constant_divisor or not numpy_helper.to_array(divisor).all()
            names.extend(node.input)
        if is_doubtful:
            yield from (entry.full_name for entry in operator.outputs)


def _accepts(estimator: Estimator, number: float) -> bool:
    """Return False if a fitted estimator refuses a row of `number` but accepts a row of
    ones. An estimator that refuses all rows cannot be judged.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        method = "predict" if hasattr(estimator, "predict") else "transform"
        for value in (1.0, number):
            try:
                getattr(estimator, method)(np.full((1, estimator.n_features_in_), value))
            except Exception:  # noqa: BLE001 - estimators may raise any error.
                return value == 1.0
    return True
