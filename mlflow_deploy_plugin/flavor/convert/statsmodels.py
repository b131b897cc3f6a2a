"""Results of statsmodels whose prediction is a linear predictor and the inverse of a link: OLS, GLM, Logit, Poisson, …

All is computed in 64 bits, as statsmodels does. Formulas of plain columns and their interactions are converted; a term
that computes (`C(city)`, `np.log(x)`) is Python, and so are time series.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import pandas as pd
import statsmodels
from onnx import TensorProto, helper, numpy_helper

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    OriginalModel,
    bind_graph,
    require_example,
)
from mlflow_deploy_plugin.runtime import Array

_OPSET = 18

_LINEAR = ("OLS", "WLS", "GLS", "GLSAR", "QuantReg", "RLM")
_DISCRETE = {"Logit": "Logit", "Poisson": "Log", "MNLogit": "Multinomial"}


def read_batch(model: Any, data: Any) -> Batch:
    """Return a table, of a formula's own columns, or one [N, k] array in the order of the parameters."""
    if not isinstance(data, pd.DataFrame):
        return {"": np.asarray(data, dtype=np.float64)}
    if getattr(model.model, "formula", None) is None:
        return data
    read = {name for term in model.model.exog_names if term != "Intercept" for name in term.split(":")}
    return data[[name for name in data if name in read]] if read and read <= set(data) else data  # else Python computes


def forms(
    model: Any, batch: Batch | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> list[Callable[[], ConvertedModel]]:
    """Return one form, the linear predictor with its link. Raises as `require_example`."""
    return [partial(_convert, model, require_example(batch, predict_fn, "a model of statsmodels", "predict"))]


def _convert(results: Any, batch: Batch) -> ConvertedModel:
    weights = np.asarray(results.params, dtype=np.float64)
    link, graph = _inverse_link(results.model), _Graph()
    width = batch.shape[1] if isinstance(batch, pd.DataFrame) else batch[""].shape[-1]
    if getattr(results.model, "formula", None) is None:
        linear = graph.add("MatMul", "columns", weights)
    elif isinstance(batch, pd.DataFrame):
        linear = _add_formula(graph, results.model, weights, [str(name) for name in batch.columns])
    else:
        raise InvalidConfig("input_example: the model has a formula; give a table with its columns")
    answer = link(graph, linear)
    shape = ["batch"] if weights.ndim == 1 else ["batch", weights.shape[1] + (link is _shares)]
    proto = graph.model(answer, width, shape)
    return bind_graph(proto, batch, "statsmodels", str(statsmodels.__version__), original_model(results))


def _add_formula(graph: "_Graph", model: Any, weights: Array, columns: list[str]) -> str:
    """Add the linear predictor of a formula of these columns; an interaction is the product of its columns.

    Raises ConversionError if Python computes a term.
    """
    terms = list(model.exog_names)
    factors = {place: term.split(":") for place, term in enumerate(terms) if term != "Intercept"}
    if computed := [terms[place] for place, names in factors.items() if not set(names) <= set(columns)]:
        raise ConversionError(
            f"{type(model).__name__} cannot be converted to ONNX: its term {computed[0]!r} is computed by "
            "Python; make it a column of the table"
        )
    linear = ""
    for count in sorted(set(map(len, factors.values()))) or [1]:
        group = [place for place, names in factors.items() if len(names) == count]
        product = ""
        for level in range(count):
            places = np.array([columns.index(factors[place][level]) for place in group], dtype=np.int64)
            picked = graph.add("Gather", "columns", places, axis=1)
            product = graph.add("Mul", product, picked) if product else picked
        part = graph.add("MatMul", product, weights[group])
        linear = graph.add("Add", linear, part) if linear else part
    intercept = weights[[place for place in range(len(terms)) if place not in factors]].sum(axis=0)
    return graph.add("Add", linear, intercept)


def _inverse_link(model: Any) -> Callable[["_Graph", str], str]:
    """Return what adds the prediction of a linear predictor. Raises ConversionError if the model predicts otherwise."""
    kind = type(model).__name__
    if type(model).__module__.startswith("statsmodels."):
        link = "Identity" if kind in _LINEAR else _DISCRETE.get(kind, "")
        if kind == "GLM":
            link = type(model.family.link).__name__
            if link not in _INVERSE_LINKS:
                raise ConversionError(f"GLM cannot be converted to ONNX: its link {link} has no form in ONNX")
        if link:
            return _INVERSE_LINKS[link]
    raise ConversionError(
        f"{kind} cannot be converted to ONNX: its prediction is not known as a linear predictor with a link; known are "
        f"{', '.join([*_LINEAR, 'GLM', *_DISCRETE])}"
    )


def original_model(results: Any) -> OriginalModel:
    """Return the predictions as `prediction`."""

    def original(batch: Batch) -> dict[str, Array]:
        rows = batch if isinstance(batch, pd.DataFrame) else batch[""]
        return {"prediction": np.asarray(results.predict(rows), dtype=np.float64)}

    return original


class _Graph:
    """A chain of operators, whose inputs are the names of others or constants."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        names = []
        for one in inputs:
            if not isinstance(one, str):
                self._constants.append(numpy_helper.from_array(np.asarray(one), f"constant_{len(self._constants)}"))
            names.append(one if isinstance(one, str) else self._constants[-1].name)
        output = f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def model(self, answer: str, width: int, shape: list[Any]) -> onnx.ModelProto:
        self._nodes.append(helper.make_node("Identity", [answer], ["prediction"]))
        graph = helper.make_graph(
            self._nodes,
            "statsmodels",
            [helper.make_tensor_value_info("columns", TensorProto.DOUBLE, ["batch", width])],
            [helper.make_tensor_value_info("prediction", TensorProto.DOUBLE, shape)],
            self._constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


def _shares(graph: _Graph, linear: str) -> str:
    """Add the first class, with the score 0, and the shares; where exp overflows, statsmodels and these are NaN."""
    first = graph.add("Slice", linear, [0], [1], [1])
    scores = graph.add("Exp", graph.add("Concat", graph.add("Sub", first, first), linear, axis=1))
    return graph.add("Div", scores, graph.add("ReduceSum", scores, [1]))


_INVERSE_LINKS: dict[str, Callable[[_Graph, str], str]] = {
    "Identity": lambda graph, linear: linear,
    "Log": lambda graph, linear: graph.add("Exp", linear),
    "Logit": lambda graph, linear: graph.add("Sigmoid", linear),
    "InversePower": lambda graph, linear: graph.add("Reciprocal", linear),
    "Sqrt": lambda graph, linear: graph.add("Mul", linear, linear),
    "CLogLog": lambda graph, linear: graph.add(
        "Sub", 1.0, graph.add("Exp", graph.add("Neg", graph.add("Exp", linear)))
    ),
    "Multinomial": _shares,
}
"""The prediction of a linear predictor by the class of a GLM's link (statsmodels.genmod.families.links), and for the
multinomial Logit."""
