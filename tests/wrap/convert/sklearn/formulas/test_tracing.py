"""Each numpy function is computed by numpy and as a graph by ONNX Runtime."""

import numpy as np
import pandas as pd
import pytest
from scipy import special
from skl2onnx.common._topology import Scope
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import SAMPLE_ROWS, Traced
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import Subgraph
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.wrap.conftest import cases, is_proven

ROWS = normal_rows(200, 3)


def ratios(rows):
    """A typical function of a user, which adds new columns to the old columns."""
    positive = np.abs(rows) + 0.5
    return np.column_stack(
        [rows, positive[:, 0] / positive[:, 1], np.where(rows[:, 2] > 0, 1.0, -1.0)]
    )


FUNCTIONS = {
    "operators": lambda x: (x**2 + 3 * x - 1) / (2 + x.clip(0, 1)),
    "columns": lambda x: x[:, [2, 0]] * x[:, 1:2],
    "by row": lambda x: x - x.mean(axis=1, keepdims=True) + np.std(x, axis=1, keepdims=True),
    "norm": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    "logic": lambda x: ((x > 0) & ~(x > 1) | np.isnan(x)).astype(float),
    "rounded": lambda x: np.round(x, 1) + np.floor(x) + np.sign(x) + x % 2 + x // 3,
    "roots": lambda x: (
        np.cbrt(x) + np.sqrt(np.abs(x)) + np.hypot(x, 1.0) + np.expm1(x) + np.log10(x * x + 1)
    ),
    "interpolated": lambda x: np.stack(
        [np.interp(x[:, 0], [-1, 0, 2], [3.0, 1.0, 2.0]), x[:, 1]], axis=1
    ),
    "bins": lambda x: np.digitize(x, [-1.0, 0.0, 1.0]) * 1.0,
    "maxima": lambda x: np.stack(
        [x.max(axis=1), np.argmin(x, axis=1) * 1.0, np.any(x > 2, axis=1) * 1.0], axis=1
    ),
    "a function of one's own": ratios,
    "waves": lambda x: np.sin(x) + np.cos(x) + np.tan(x / 3) + np.arctan(x) + np.arcsinh(x),
}
SELDOM = {
    "a mask of columns": lambda x: x[:, np.array([True, False, True])],
    "ellipsis": lambda x: x[..., 1:],
    "choices": lambda x: np.select([x > 1, x < -1], [np.exp(x), np.zeros_like(x)], 0.5),
    "scipy": lambda x: special.expit(x) + special.exp10(x) + special.erf(x) + np.logaddexp(x, 0.0),
    "joined": lambda x: np.concatenate([x, np.hstack([x[:, :1], x[:, 1:]])], axis=1),
    "new axis": lambda x: (x[:, :, None] * np.ones((1, 1, 2))).sum(axis=2),
}


@pytest.mark.parametrize("function", [*cases(FUNCTIONS), *cases(SELDOM, is_long=True)])
def test_function_of_numpy_is_proven(function):
    model = make_pipeline(FunctionTransformer(function), Ridge()).fit(ROWS, ROWS[:, 0])

    assert is_proven(model, ROWS)


REFUSED = [
    (lambda x: x if x.sum() > 0 else -x, "a reduction"),
    (lambda x: x if x > 0 else -x, "numpy.where"),
    (lambda x: np.sort(x, axis=1), "numpy.sort"),
    (np.spacing, "numpy.spacing"),
    (lambda x: [row[::-1] for row in x], "a loop over rows"),
    (lambda x: x[::-1], "a selection of rows"),
    (lambda x: x["a"], "columns by name"),
    (lambda x: x[["a", "b"]], "columns by name"),
    (lambda x: x[:, np.argmax(x, axis=1)], "a selection by computed positions"),
    (lambda x: x.reshape(200, 3), "a reshape"),
    (lambda x: x * np.ones(len(x))[:, None], "the number of rows"),
    (np.asarray, "a call that reads values"),
    (lambda x: np.add(x, 1, where=[True, False, True]), "numpy.add with __call__ or options"),
    (lambda x: x.astype(np.complex128), "complex128"),
    (lambda x: np.linalg.norm(x, ord=1, axis=1), "numpy.linalg.norm with ord=1"),
    (lambda x: np.digitize(x, [1, 0]), "numpy.digitize with descending bins"),
    (lambda x: np.concatenate([x, np.ones((7, 1))], axis=1), "a concatenation with constants"),
]


@pytest.mark.parametrize(("function", "words"), REFUSED)
def test_untraceable_operation_is_named(function, words):
    with refused(NotImplementedError, words):
        function(Traced(Subgraph(Scope("refused")), "x", np.ones((SAMPLE_ROWS, 3))))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.rank(axis=1), ".rank"),
        (lambda x: np.ones((200, 2)), "computed columns"),
    ],
)
def test_unsupported_function_is_named(function, words):
    table = pd.DataFrame(ROWS, columns=["a", "b", "c"])
    model = make_pipeline(FunctionTransformer(function), Ridge()).fit(table, ROWS[:, 0])

    with pytest.raises(ConversionError, match=f"FunctionTransformer.* func=<lambda> .*{words}"):
        wrap(model, table)
