"""The saved model refuses the rows that a step of the original refuses."""

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import (
    BaggingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    PolynomialFeatures,
    PowerTransformer,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import SVC

from mlflow_deploy_plugin.core.errors import InferenceError
from mlflow_deploy_plugin.serve.runtime.refusals import REFUSED_ROWS
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.refusals import refused
from tests.wrap.conftest import cases

RANDOM = np.random.default_rng(0)
TABLE = pd.DataFrame({"a": RANDOM.lognormal(size=300), "b": RANDOM.lognormal(size=300)})
IS_LARGE = (TABLE.a + TABLE.b > 2).astype(int)
ASKED = [-999.0, -5.0, -1.0, 0.0, 2.0]


def _of_a(transformer):
    return make_column_transformer((transformer, ["a"]), remainder="passthrough")


LOGARITHM = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression())
FOREST = RandomForestClassifier(5)
LOG = FunctionTransformer(np.log1p)
SPLINES = SplineTransformer(extrapolation="error")
LINE = LogisticRegression()
MODELS = {
    "log1p, linear": make_pipeline(_of_a(LOG), LINE),
    "log of all": LOGARITHM,
    "a quotient": make_pipeline(FunctionTransformer(lambda x: x[:, 1:] / x[:, :1]), LINE),
    "Box-Cox": make_pipeline(_of_a(PowerTransformer("box-cox")), LINE),
    "Box-Cox, gaps are taken": make_pipeline(_of_a(PowerTransformer("box-cox")), FOREST),
    "a forest takes NaN": make_pipeline(_of_a(LOG), FOREST),
    "gaps are filled": make_pipeline(LOG, SimpleImputer(), LINE),
    "splines": make_pipeline(SPLINES, LINE),
    "in a vote": VotingClassifier([("log", LOGARITHM), ("forest", FOREST)]),
    "in a vote, columns": VotingClassifier(
        [
            (
                "log",
                make_pipeline(make_column_transformer((LOG, [0]), remainder="passthrough"), SVC()),
            )
        ]
    ),
    "in a vote, Box-Cox": VotingClassifier(
        [("one", make_pipeline(PowerTransformer("box-cox"), FOREST)), ("two", FOREST)]
    ),
    "in a stack": StackingClassifier([("log", LOGARITHM), ("forest", FOREST)]),
    "in a bag": BaggingClassifier(LOGARITHM, 3, random_state=0),
    "one against the rest": OneVsRestClassifier(LOGARITHM),
    "calibrated": CalibratedClassifierCV(LOGARITHM, cv=2),
    "a changed target": TransformedTargetRegressor(
        make_pipeline(LOG, Ridge()), func=np.log1p, inverse_func=np.expm1
    ),
}


def _feeds(model, a, b, dtype=None):
    """Return the feeds of two columns, or of a matrix of two columns."""
    if len(model.schema.names) == 2:
        return model.schema.from_columns({"a": np.array(a), "b": np.array(b)})
    return model.schema.from_array(np.array([a, b], dtype).T)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # The original raises numpy's warnings.
@pytest.mark.parametrize("model", cases(MODELS))
def test_original_refusals_are_kept(model, saved):
    first = model[0] if isinstance(model, Pipeline) else model
    data = TABLE if hasattr(first, "transformers") else TABLE.to_numpy()
    served = saved(model.fit(data, IS_LARGE), data)

    for number in ASKED:
        row = pd.DataFrame({"a": [number], "b": [1.0]})
        feeds = _feeds(served, [number], [1.0])
        try:
            answer = model.predict(row if data is TABLE else row.to_numpy())
        except ValueError:
            with pytest.raises(InferenceError, match=r"^row 0: "):
                served.run(feeds)
        else:
            assert served.prediction(served.run(feeds)) == pytest.approx(answer)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflowing_product_is_refused(dtype, saved):
    rows = TABLE.to_numpy(dtype)
    served = saved(make_pipeline(PolynomialFeatures(), Ridge()).fit(rows, IS_LARGE), rows)

    with refused(InferenceError, "row 1", "NaN", "Ridge"):
        served.run(_feeds(served, [1, 1], [1, 1e30], dtype))


def test_refusal_names_row_and_step(saved):
    served = saved(MODELS["log1p, linear"].fit(TABLE, IS_LARGE), TABLE)

    for outputs in (None, ["label"]):
        with refused(InferenceError, "row 1", "NaN", "LogisticRegression"):
            served.run(_feeds(served, [1.0, -5.0], [1.0, 1.0]), outputs)


def test_finite_steps_mark_no_rows():
    halved = make_pipeline(
        StandardScaler(), FunctionTransformer(lambda x: x / 2), LogisticRegression()
    )

    graph = wrap(halved.fit(TABLE.to_numpy(), IS_LARGE), TABLE.to_numpy()).converted.proto.graph

    assert REFUSED_ROWS not in [value.name for value in graph.output]
