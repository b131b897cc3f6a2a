"""Convert statsmodels results that predict with a linear predictor and an inverse link:
OLS, GLM, Logit, Poisson, …

Plain columns and interactions are converted. Terms that Python computes (`C(city)`) and
time series are not.
"""

from collections.abc import Callable
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import statsmodels
from onnx import TensorProto, helper
from scipy import special
from skl2onnx.common._topology import Scope
from statsmodels.base.model import Model

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert import converted
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData, ModelInput
from mlflow_deploy_plugin.wrap.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    Forms,
    TrainedModel,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import (
    SAMPLE_ROWS,
    Traced,
    TracedArray,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import OPSETS, Subgraph

_LINEAR = ("OLS", "WLS", "GLS", "GLSAR", "QuantReg", "RLM")
_DISCRETE = {"Logit": "Logit", "Poisson": "Log", "MNLogit": "Multinomial"}


def read_batch(model: TrainedModel, data: ModelData) -> ModelInput:
    """Return a table (only the columns of the formula), or an array [N, k] in the order
    of the parameters.
    """
    if not isinstance(data, pd.DataFrame):
        return {"": np.asarray(data, dtype=np.float64)}
    if not _has_formula(model):
        return data
    terms = [term.split(":") for term in model.model.exog_names if term != "Intercept"]
    read = set(chain.from_iterable(terms))
    if read and read <= set(data):
        return data[[name for name in data if name in read]]
    return data


def _has_formula(results: TrainedModel) -> bool:
    return getattr(results.model, "formula", None) is not None


def forms(
    model: TrainedModel, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> Forms:
    """Return one form, the linear predictor with its link. Raises the errors of
    `require_example`.
    """
    example = converted.require_example(batch, predict_fn, "a model of statsmodels", "predict")

    def form() -> ConvertedModel:
        """Return the graph of the results. Raises InvalidConfig if the example does not
        match the formula or the parameters, and ConversionError if the model is not
        supported.
        """
        kind = type(model.model).__name__
        if not type(model.model).__module__.startswith("statsmodels."):
            link_name = ""  # A user's class may compute something else.
        elif kind == "GLM":
            link_name = type(model.model.family.link).__name__
        elif kind in _LINEAR:
            link_name = "Identity"
        else:
            link_name = _DISCRETE.get(kind, "")
        if not link_name:
            raise ConversionError(
                f"{kind} cannot be converted to ONNX: only models with a linear predictor and a "
                f"link are supported: {', '.join([*_LINEAR, 'GLM', *_DISCRETE])}"
            )
        if link_name not in _INVERSE_LINKS:
            raise ConversionError(
                f"GLM cannot be converted to ONNX: its link {link_name} is not supported in ONNX"
            )
        original = original_model(model)
        if isinstance(example, pd.DataFrame):
            names = [*map(str, example)]
        elif _has_formula(model):
            raise InvalidConfig(
                "input_example: the model has a formula; pass a table with its columns"
            )
        else:
            names = [""] * example[""].shape[-1]
        # The call checks the columns.
        converted.call_original(original, Batch(example).take(slice(0, 1)).data)
        graph = Subgraph(Scope("statsmodels"))
        weights = np.asarray(model.params, dtype=np.float64)
        rows: TracedArray = Traced(graph, "columns", np.ones((SAMPLE_ROWS, len(names))))
        if _has_formula(model):
            linear = _formula(model.model, weights, rows, names)
        else:
            linear = rows @ weights
        answer = _INVERSE_LINKS[link_name](linear)
        graph.node("Identity", [answer.name], "prediction")
        body = graph.finish({"columns": _doubles(rows)}, {"prediction": _doubles(answer)})
        proto = helper.make_model(
            body, opset_imports=[helper.make_opsetid("", OPSETS[""])], ir_version=10
        )
        return converted.bind_graph(
            proto, example, "statsmodels", str(statsmodels.__version__), original
        )

    return [form]


def _doubles(array: TracedArray) -> tuple[int, list[Any]]:
    """Return the ONNX type and shape of rows of 64-bit floats."""
    return TensorProto.DOUBLE, ["batch", *array.sample.shape[1:]]


def _formula(model: Model, weights: Array, rows: TracedArray, columns: list[str]) -> TracedArray:
    """Return the linear predictor for the columns. Raises ConversionError if Python
    computes a term.
    """
    positions_by_term = {}
    for index, term in enumerate(model.exog_names):
        if term == "Intercept":
            continue
        names = term.split(":")
        if not set(names) <= set(columns):
            raise ConversionError(
                f"{type(model).__name__} cannot be converted to ONNX: its term {term!r} is "
                "computed by Python; add it to the table as a column"
            )
        positions_by_term[index] = list(map(columns.index, names))
    parts = []
    # Terms with equally many columns are computed together.
    for count in sorted(set(map(len, positions_by_term.values()))):
        terms = [term for term, positions in positions_by_term.items() if len(positions) == count]
        factors = np.transpose([positions_by_term[term] for term in terms])
        product = reduce(np.multiply, [rows[:, factor.tolist()] for factor in factors])
        parts.append(product @ weights[terms])
    if not parts:
        parts = [np.zeros_like(rows[:, :1]) @ weights[:1]]
    constants = [term for term in range(len(model.exog_names)) if term not in positions_by_term]
    return reduce(np.add, parts) + weights[constants].sum(axis=0)


def original_model(results: TrainedModel) -> converted.OriginalModel:
    def original(batch: ModelInput) -> dict[str, Array]:
        rows = batch if isinstance(batch, pd.DataFrame) else batch[""]
        return {"prediction": np.asarray(results.predict(rows), dtype=np.float64)}

    return original


def _shares(linear: TracedArray) -> TracedArray:
    """Return the probabilities of the classes. The score of the first class is 0."""
    first = np.zeros_like(linear[:, :1])
    scores = np.exp(np.concatenate([first, linear], axis=1))
    return scores / scores.sum(axis=1, keepdims=True)


_INVERSE_LINKS: dict[str, Callable[[TracedArray], TracedArray]] = {
    "Identity": lambda linear: linear,
    "Log": np.exp,
    "Logit": special.expit,
    "InversePower": np.reciprocal,
    "Sqrt": np.square,
    "CLogLog": lambda linear: 1.0 - np.exp(-np.exp(linear)),
    "Multinomial": _shares,
}
"""The inverse link function by class name of a GLM's link, and of the multinomial
Logit.
"""
