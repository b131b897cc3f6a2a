"""The error of a failed conversion names the unsupported part and the alternative."""

import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.cluster import AgglomerativeClustering
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.decomposition import NMF
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer
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
from tests.support.refusals import refused
from tests.wrap.conftest import cases

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

    def fit(self, rows, target):
        self.tree_ = KDTree(rows)
        self.target_ = np.asarray(target)
        return self

    def predict(self, rows):
        return self.target_[self.tree_.query(rows, 1, return_distance=False)[:, 0]]

    def predict_proba(self, rows):
        raise AttributeError("probability=False")


class Labelled(Nearest):
    def fit(self, rows, target):
        self.classes_ = np.unique(target)
        super().fit(rows, target)
        return self


class Lazy(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regression with an attribute that raises an error, like in scikit-survival."""

    def fit(self, rows, target):
        self.target_ = target
        return self

    @property
    def baseline_(self):
        raise ValueError("`fit` must be called with the fit_baseline option")

    def predict(self, rows):
        return np.hypot(rows.a, rows.b)


SKLEARN = (
    'Log it with mlflow.sklearn.log_model(…, serialization_format="cloudpickle") and deploy it '
    "with the same"
)
CASES = {
    "an outer one": (
        TransformedTargetRegressor(make_pipeline(NMF(1), LinearRegression())),
        NUMBERS.abs(),
        "TransformedTargetRegressor cannot be converted to ONNX: its step 'regressor → nmf' (NMF)",
    ),
    "an option, deep within": (
        make_pipeline(DOUBLED, LogisticRegression()),
        NUMBERS,
        "its step 'columntransformer → functiontransformer' (FunctionTransformer): its option "
        "func=sort",
    ),
    "a step that the error does not name": (
        make_pipeline(StandardScaler(), GradientBoostingClassifier(init=LogisticRegression())),
        NUMBERS,
        "its step 'gradientboostingclassifier' (GradientBoostingClassifier)",
    ),
    "a graph that is not loaded": (
        make_pipeline(CountVectorizer(analyzer=str.split), LogisticRegression()),
        TEXTS,
        "its step 'countvectorizer' (CountVectorizer): its option analyzer=str.split",
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
    "an answer for too few rows": (RadiusNeighborsClassifier(radius=0.2), NUMBERS, "1000 rows"),
}


@pytest.mark.long
@pytest.mark.parametrize(("model", "data", "words"), cases(CASES))
def test_error_names_step_option_and_alternative(model, data, words, saved):
    fitted = model.fit(data, TARGET if data is not TEXTS else [0, 1] * 30)

    with refused(ModelError) as failed:
        saved(fitted, data)

    message = failed.value.message
    assert words in message
    assert SKLEARN in message
    for technical in ("://", "<class", "at most"):
        assert technical not in message


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyError("leaf_weights"), "KeyError: 'leaf_weights'"), (NotImplementedError(), "NotImplem")],
    ids=repr,
)
def test_failure_is_explained_by_its_error(error, words):
    assert words in explain_failure(error, LogisticRegression())


@pytest.mark.parametrize(
    ("model", "called"),
    [
        ({}, "mlflow.pyfunc.log_model"),
        (np.square, "mlflow.pyfunc.log_model"),
        (Prophet(), "mlflow.prophet.log_model"),
        (AgglomerativeClustering().fit(NUMBERS), "mlflow.pyfunc.log_model"),
    ],
)
def test_other_framework_has_an_alternative(model, called, saved):
    with refused(ConversionError, called):
        saved(model, NUMBERS)


def test_onnx_file_has_no_alternative(tmp_path):
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
def test_messages_of_converters_are_simplified(said, plainly):
    assert plain_reason(said).startswith(plainly)
    assert "://" not in plain_reason(said)


def test_too_old_framework_is_named(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.delitem(sys.modules, "mlflow_deploy_plugin.wrap.convert.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch.export", ModuleType("torch.export"))
    model = type("Net", (), {"__module__": "torch.old"})()
    with refused(ConversionError, "newer torch", "'mlflow-onnxserve[torch]'"):
        converter_for(model)
