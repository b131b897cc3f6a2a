"""The error of a failed conversion names the unsupported part and the alternative."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.cluster import AgglomerativeClustering
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.decomposition import NMF
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.gaussian_process import GaussianProcessClassifier, kernels
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KDTree, RadiusNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder, StandardScaler

from mlflow_deploy_plugin.core.errors import ConversionError, ModelError
from mlflow_deploy_plugin.wrap.convert.conversion_errors import (
    explain_failure,
    plain_reason,
    with_alternative,
)
from mlflow_deploy_plugin.wrap.convert.converters import converter_for
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from tests.support.refusals import mentions

RANDOM = np.random.default_rng(0)
NUMBERS = pd.DataFrame(RANDOM.normal(size=(60, 2)), columns=["a", "b"])
MIXED = NUMBERS.assign(c=RANDOM.choice(["x", "y"], 60))
TARGET = (NUMBERS.a > 0).astype(int)
TEXTS = pd.Series(["hello world", "foo bar"] * 30, name="text")
DOUBLED = make_column_transformer((FunctionTransformer(np.sort), ["a"]), remainder="passthrough")
UNSEEN = {"handle_unknown": "use_encoded_value", "unknown_value": -1}


class Prophet:
    """A model of a package that is not installed here."""

    __module__ = "prophet.forecaster"


class Nearest(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of another library: it has no `classes_`, refuses probabilities, and
    has another kind of tree.
    """

    def fit(self, rows: Any, target: Any) -> "Nearest":
        self.tree_ = KDTree(rows)
        self.target_ = np.asarray(target)
        return self

    def predict(self, rows: Any) -> Any:
        return self.target_[self.tree_.query(rows, 1, return_distance=False)[:, 0]]

    def predict_proba(self, rows: Any) -> Any:
        raise AttributeError("probability=False")


class Labelled(Nearest):
    def fit(self, rows: Any, target: Any) -> "Labelled":
        self.classes_ = np.unique(target)
        super().fit(rows, target)
        return self


class Lazy(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regression with an attribute that raises an error, like in scikit-survival."""

    def fit(self, rows: Any, target: Any) -> "Lazy":
        self.target_ = target
        return self

    @property
    def baseline_(self) -> Any:
        raise ValueError("`fit` must be called with the fit_baseline option")

    def predict(self, rows: Any) -> Any:
        return np.hypot(rows.a, rows.b)


SKLEARN = (
    'Log it with mlflow.sklearn.log_model(…, serialization_format="cloudpickle") and deploy it '
    "with the same"
)
CASES = {
    "an estimator": (DummyClassifier(strategy="uniform"), NUMBERS, "its predictions are random"),
    "an outer one": (
        TransformedTargetRegressor(make_pipeline(NMF(1), LinearRegression())),
        NUMBERS.abs(),
        (
            "TransformedTargetRegressor cannot be converted to ONNX: its step 'regressor → nmf' "
            "(NMF): there"
        ),
    ),
    "an option, deep within": (
        make_pipeline(DOUBLED, LogisticRegression()),
        NUMBERS,
        (
            "its step 'columntransformer → functiontransformer' (FunctionTransformer): its option "
            "func=sort is a Python"
        ),
    ),
    "a step that the error does not name": (
        make_pipeline(StandardScaler(), GradientBoostingClassifier(init=LogisticRegression())),
        NUMBERS,
        (
            "its step 'gradientboostingclassifier' (GradientBoostingClassifier): Setting init to "
            "an estimator is not"
        ),
    ),
    "accents": (
        make_pipeline(TfidfVectorizer(strip_accents=str.title), LogisticRegression()),
        TEXTS,
        (
            "its step 'tfidfvectorizer' (TfidfVectorizer): its option strip_accents=str.title is a "
            "Python function"
        ),
    ),
    "a graph that is not loaded": (
        make_pipeline(CountVectorizer(analyzer=str.split), LogisticRegression()),
        TEXTS,
        (
            "its step 'countvectorizer' (CountVectorizer): its option analyzer=str.split is a "
            "Python function"
        ),
    ),
    "a part of an option": (
        GaussianProcessClassifier(kernels.ExpSineSquared()),
        NUMBERS,
        "GaussianProcessClassifier cannot be converted to ONNX: the kernel ExpSineSquared",
    ),
    "texts beside numbers": (
        make_pipeline(
            SimpleImputer(strategy="most_frequent"), OrdinalEncoder(**UNSEEN), LogisticRegression()
        ),
        MIXED,
        "a step reads strings and numbers together",
    ),
    "a classifier without classes_": (Nearest(), NUMBERS, "there is no converter for "),
    "one that refuses probabilities": (Labelled(), NUMBERS, "there is no converter for tests"),
    "one that raises where it is looked at": (
        make_pipeline(StandardScaler().set_output(transform="pandas"), Lazy()),
        NUMBERS,
        "its step 'lazy' (Lazy): there is no converter for ",
    ),
    "an answer for too few rows": (
        RadiusNeighborsClassifier(radius=0.2),
        NUMBERS,
        "parity needs 1000 rows, and only",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(("model", "data", "words"), CASES.values(), ids=CASES)
def test_the_step_and_its_option_are_named_and_the_way_that_is_left(model, data, words, tmp_path):
    fitted = model.fit(data, TARGET if data is not TEXTS else [0, 1] * 30)

    with pytest.raises(ModelError) as refused:
        save_model(fitted, tmp_path / "model", input_example=data)

    message = refused.value.message
    assert words in message
    assert SKLEARN in message
    assert "://" not in message
    assert "<class" not in message
    assert "at most" not in message


def test_a_failing_converter_is_explained_with_its_error():
    reason = explain_failure(KeyError("leaf_weights"), LogisticRegression())

    assert reason.endswith("its converter does not support this variant (KeyError: 'leaf_weights')")


@pytest.mark.parametrize(
    ("model", "called"),
    [
        ({}, "mlflow.pyfunc.log_model(python_model=…)"),
        (np.square, "mlflow.pyfunc.log_model(python_model=…)"),
        (Prophet(), "mlflow.prophet.log_model and"),
        (AgglomerativeClustering().fit(NUMBERS), "mlflow.pyfunc.log_model(python_model=…)"),
    ],
)
def test_an_object_of_another_framework_has_a_way_too(model, called, tmp_path):
    with pytest.raises(ConversionError) as refused:
        save_model(model, tmp_path / "model", input_example=NUMBERS)

    assert called in refused.value.message


def test_an_onnx_file_gets_no_hint_at_an_alternative(tmp_path):
    error = ConversionError("it is no graph")
    assert with_alternative(error, tmp_path / "model.onnx") is error


@pytest.mark.parametrize(
    ("said", "plainly"),
    [
        (
            "For operator Scaler (type: Scaler), at most 1 input(s) is(are) supported but we got "
            "3 input(s)",
            (
                "it reads 3 inputs of different types, but its converter supports 1; use columns "
                "of the same type"
            ),
        ),
        (
            "'functools.partial' object has no attribute 'upper'",
            "a kernel that is a Python function",
        ),
        (
            "Could not infer attribute `support_vectors` type from empty iterator",
            "a precomputed kernel (kernel='precomputed')",
        ),
        (
            "The detected shape was (2,) + inhomogeneous part.",
            "its targets have different numbers of classes",
        ),
        (
            "Unable to find a shape calculator for type '<class 'notebook.train.<locals>.Ratio'>'.",
            "there is no converter for notebook.train.<locals>.Ratio",
        ),
        ("No. You may raise an issue at https://github.com/onnx/sklearn-onnx/issues.", "No"),
        (
            "loss is not supported, please fill an isue at https://github.com/x/issues",
            "loss is not supported",
        ),
        (
            "No Op registered for Svd with domain_version of 18 ==> Context: Bad node",
            "ONNX has no operator for Svd",
        ),
        (
            "Error when translating node %_linalg_svd : [num_users=1] = call_function["
            "target=torch.ops.aten._linalg_svd.default](args = (%unsqueeze,), kwargs = {}).",
            "ONNX has no operator for aten._linalg_svd",
        ),
        (
            "Exporting the operator 'aten::bilinear' to ONNX opset version 20 is not supported. "
            "Please open a bug",
            "ONNX has no operator for aten::bilinear",
        ),
        (
            (
                'failed to unpack the object at pos 2 with error "type must be tuple of ints,but '
                'got FakeTensor"'
            ),
            "the size of a tensor depends on the data, as in pack_padded_sequence",
        ),
        (
            "torch.classes.quantized.LinearPackedParamsBase does not have a field with name "
            "'__obj_flatten__'",
            "its layers are quantized by torch; wrap the unquantized model",
        ),
        (
            "during initialization: size_t onnxruntime::Grams(int) [with K = std::string]",
            "during initialization",
        ),
    ],
)
def test_a_converters_words_are_put_plainly(said, plainly):
    assert plain_reason(said).startswith(plainly)
    assert "://" not in plain_reason(said)


def test_a_framework_that_is_too_old_for_its_converter_is_named(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.delitem(sys.modules, "mlflow_deploy_plugin.wrap.convert.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch.export", ModuleType("torch.export"))
    model = type("Net", (), {"__module__": "torch.old"})()
    with pytest.raises(ConversionError, match=r"newer torch.*'mlflow-onnxserve\[torch\]'"):
        converter_for(model)


def test_a_converter_without_a_word_is_named_by_its_error():
    message = explain_failure(NotImplementedError(), LinearRegression())
    assert mentions(message, "LinearRegression", "NotImplementedError")
