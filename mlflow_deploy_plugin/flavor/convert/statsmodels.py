"""Results of statsmodels whose prediction is a linear predictor and the inverse of a link: OLS, GLM, Logit, Poisson, …

All is computed in 64 bits, as statsmodels does. Formulas of plain columns are converted; a term that computes
(`C(city)`, `np.log(x)`, `a:b`) is Python, and so are time series.
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
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, DynamicAxes, OriginalModel, bind_graph
from mlflow_deploy_plugin.runtime import Array

_OPSET = 18

_LINEAR = ("OLS", "WLS", "GLS", "GLSAR", "QuantReg", "RLM")
_INVERSE_LINKS: dict[str, tuple[str, ...]] = {
    "Identity": (),
    "Log": ("Exp",),
    "Logit": ("Sigmoid",),
    "InversePower": ("Reciprocal",),
    "Sqrt": ("Square",),
    "CLogLog": ("Exp", "Neg", "Exp", "Complement"),
    "Multinomial": ("Zero first", "Exp", "Share"),  # no Softmax: where exp overflows, statsmodels answers NaN
}
"""Operators by the class of a GLM's link (statsmodels.genmod.families.links), and for the multinomial Logit."""
_DISCRETE = {"Logit": "Logit", "Poisson": "Log", "MNLogit": "Multinomial"}


def read_batch(model: Any, data: Any) -> Batch:
    """Return a table, or one [N, k] array in the order of the parameters."""
    return data if isinstance(data, pd.DataFrame) else {"": np.asarray(data, dtype=np.float64)}


def forms(
    model: Any, batch: Batch | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> list[Callable[[], ConvertedModel]]:
    """Return one form, the linear predictor with its link.

    Raises:
        InvalidConfig: no example, or `predict_proba`, which results do not have.
    """
    if batch is None:
        raise InvalidConfig("input_example: results of statsmodels need one, to know the columns that they read")
    if predict_fn != "predict":
        raise InvalidConfig("pyfunc_predict_fn: results of statsmodels have only their predict; leave it at 'predict'")
    return [partial(_convert, model, batch)]


def _convert(results: Any, batch: Batch) -> ConvertedModel:
    weights = np.asarray(results.params, dtype=np.float64)
    operators = _inverse_link(results.model)
    graph = _Graph()
    linear = "columns"
    width = batch.shape[1] if isinstance(batch, pd.DataFrame) else batch[""].shape[-1]
    terms = list(results.model.exog_names)
    if getattr(results.model, "formula", None) is not None:
        if not isinstance(batch, pd.DataFrame):
            raise InvalidConfig("input_example: the model has a formula; give a table with its columns")
        columns = [str(name) for name in batch.columns]
        used = [position for position, term in enumerate(terms) if term != "Intercept"]
        if computed := [terms[position] for position in used if terms[position] not in columns]:
            raise ConversionError(
                f"{type(results.model).__name__} cannot be converted to ONNX: its term {computed[0]!r} is computed by "
                "Python; make it a column of the table"
            )
        places = np.array([columns.index(terms[position]) for position in used], dtype=np.int64)
        linear = graph.add("Gather", linear, graph.constant(places), axis=1)
        intercept = weights[[position for position in range(len(terms)) if position not in used]].sum(axis=0)
        linear = graph.add("MatMul", linear, graph.constant(weights[used]))
        linear = graph.add("Add", linear, graph.constant(intercept))
    else:
        linear = graph.add("MatMul", linear, graph.constant(weights))
    for operator in operators:
        if operator == "Complement":
            linear = graph.add("Sub", graph.constant(np.array(1.0)), linear)
        elif operator == "Square":
            linear = graph.add("Mul", linear, linear)
        elif operator == "Zero first":  # the scores of the first class
            first = graph.add("Slice", linear, *map(graph.constant, _FIRST))
            zeros = graph.add("Sub", first, first)
            linear = graph.add("Concat", zeros, linear, axis=1)
        elif operator == "Share":
            linear = graph.add("Div", linear, graph.add("ReduceSum", linear, graph.constant(_FIRST[1])))
        else:
            linear = graph.add(operator, linear)
    shape = ["batch"] if weights.ndim == 1 else ["batch", weights.shape[1] + ("Share" in operators)]
    proto = graph.model(linear, width, shape)
    return bind_graph(proto, batch, "statsmodels", str(statsmodels.__version__), original_model(results))


_FIRST = tuple(np.array([place], dtype=np.int64) for place in (0, 1, 1))  # start, end, axis


def _inverse_link(model: Any) -> tuple[str, ...]:
    """Return the operators from the linear predictor to the prediction.

    Raises:
        ConversionError: the model predicts otherwise.
    """
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
    """A chain of operators, with its constants."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, value: Array) -> str:
        self._constants.append(numpy_helper.from_array(value, f"constant_{len(self._constants)}"))
        return str(self._constants[-1].name)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

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
