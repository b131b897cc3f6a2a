"""The saved model refuses the rows that a step of the original refuses."""

from typing import Any

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
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.refusals import REFUSED_ROWS
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap

RANDOM = np.random.default_rng(0)
TABLE = pd.DataFrame({"a": RANDOM.lognormal(size=300), "b": RANDOM.lognormal(size=300)})
IS_LARGE = (TABLE.a + TABLE.b > 2).astype(int)
ASKED = [-999.0, -5.0, -1.0, 0.0, 2.0]


def _of_a(transformer):
    return make_column_transformer((transformer, ["a"]), remainder="passthrough")


def _before(last):
    return make_pipeline(FunctionTransformer(np.log1p), last)


LOGARITHM = _before(LogisticRegression())
FOREST = RandomForestClassifier(5)
MODELS: dict[str, Any] = {
    "log1p, linear": make_pipeline(_of_a(FunctionTransformer(np.log1p)), LogisticRegression()),
    "log, scaled": make_pipeline(_of_a(FunctionTransformer(np.log)), StandardScaler(), SVC()),
    "sqrt, a number": make_pipeline(_of_a(FunctionTransformer(np.sqrt)), Ridge()),
    "log of all": make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()),
    "a quotient": make_pipeline(
        FunctionTransformer(lambda x: x[:, 1:] / x[:, :1]), LogisticRegression()
    ),
    "Box-Cox": make_pipeline(_of_a(PowerTransformer("box-cox")), LogisticRegression()),
    "Box-Cox, gaps are taken": make_pipeline(
        _of_a(PowerTransformer("box-cox")), RandomForestClassifier(5)
    ),
    "a forest takes NaN": make_pipeline(
        _of_a(FunctionTransformer(np.log1p)), RandomForestClassifier(5)
    ),
    "gaps are filled": make_pipeline(
        FunctionTransformer(np.log1p), SimpleImputer(), LogisticRegression()
    ),
    "splines": make_pipeline(SplineTransformer(extrapolation="error"), LogisticRegression()),
    "splines of two columns": make_pipeline(
        make_column_transformer((SplineTransformer(extrapolation="error"), ["a", "b"])),
        LogisticRegression(),
    ),
    "in a vote": VotingClassifier([("log", LOGARITHM), ("forest", FOREST)]),
    "in a vote, scaled": make_pipeline(
        StandardScaler(with_mean=False), VotingClassifier([("log", LOGARITHM)], voting="soft")
    ),
    "in a vote, columns": VotingClassifier(
        [
            (
                "log",
                make_pipeline(
                    make_column_transformer(
                        (FunctionTransformer(np.log1p), [0]), remainder="passthrough"
                    ),
                    SVC(),
                ),
            )
        ]
    ),
    "in a vote, Box-Cox": VotingClassifier(
        [("one", make_pipeline(PowerTransformer("box-cox"), FOREST)), ("two", FOREST)]
    ),
    "in a vote, filled": VotingClassifier(
        [("one", make_pipeline(FunctionTransformer(np.log1p), SimpleImputer(), FOREST))]
    ),
    "in a stack": StackingClassifier([("log", LOGARITHM), ("forest", FOREST)]),
    "in a bag": BaggingClassifier(LOGARITHM, 3, random_state=0),
    "one against the rest": OneVsRestClassifier(LOGARITHM),
    "calibrated": CalibratedClassifierCV(LOGARITHM, cv=2),
    "a changed target": TransformedTargetRegressor(
        _before(Ridge()), func=np.log1p, inverse_func=np.expm1
    ),
}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # The original raises numpy's warnings.
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_each_row_is_refused_that_the_original_refuses(model, tmp_path):
    first = model[0] if isinstance(model, Pipeline) else model
    data = TABLE if hasattr(first, "transformers") else TABLE.to_numpy()
    model.fit(data, IS_LARGE)
    save_model(model, tmp_path / "model", input_example=data)
    served = OnnxModel.load(tmp_path / "model")

    for number in ASKED:
        row = np.array([[number, 1.0]])
        inputs = pd.DataFrame(row, columns=["a", "b"]) if data is TABLE else row
        feeds = (
            served.schema.from_columns({"a": row[:, 0], "b": row[:, 1]}) if data is TABLE else None
        )
        feeds = feeds or served.schema.from_array(row)
        try:
            answer = model.predict(inputs)
        except ValueError:
            with pytest.raises(InferenceError, match=r"^row 0: "):
                served.run(feeds)
        else:
            assert served.prediction(served.run(feeds)) == pytest.approx(answer)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_that_32_bits_do_not_hold_is_refused(dtype, tmp_path):
    rows = TABLE.to_numpy(dtype)
    save_model(
        make_pipeline(PolynomialFeatures(), Ridge()).fit(rows, IS_LARGE),
        tmp_path / "m",
        input_example=rows,
    )
    served = OnnxModel.load(tmp_path / "m")

    with pytest.raises(InferenceError, match=r"^row 1:.*NaN.*Ridge"):
        served.run(served.schema.from_array(np.array([[1, 1], [1, 1e30]], dtype)))


def test_the_reason_names_the_step(tmp_path):
    save_model(
        MODELS["log1p, linear"].fit(TABLE, IS_LARGE), tmp_path / "model", input_example=TABLE
    )
    served = OnnxModel.load(tmp_path / "model")
    feeds = served.schema.from_columns({"a": np.array([1.0, -5.0]), "b": np.ones(2)})

    reason = (
        "^row 1: the model computes NaN or infinity for the row, which its LogisticRegression "
        "refuses$"
    )
    with pytest.raises(InferenceError, match=reason):
        served.run(feeds)
    with pytest.raises(InferenceError, match=reason):
        served.run(feeds, ["label"])


def test_steps_that_compute_finite_numbers_mark_no_rows():
    halved = make_pipeline(
        StandardScaler(), FunctionTransformer(lambda x: x / 2), LogisticRegression()
    )

    graph = wrap(halved.fit(TABLE.to_numpy(), IS_LARGE), TABLE.to_numpy()).converted.proto.graph

    assert REFUSED_ROWS not in [value.name for value in graph.output]
