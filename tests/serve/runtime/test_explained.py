"""The features and numbers of a model that can be explained, and the models that
cannot.
"""

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Output
from mlflow_deploy_plugin.serve.runtime.explained import (
    MAX_COLUMNS,
    explained_columns,
    explained_features,
    explained_outputs,
)
from tests.support.schemas import bare_artifact


def artifact(**fields):
    return bare_artifact(**fields)


def test_columns_are_features():
    model = artifact(
        columns=(Column("a", "double"), Column("b", "double"), Column("c", "double")),
        inputs=(Input("x", "float32", (-1, 2), ("b", "a")), Input("y", "float32", (-1,), ("c",))),
    )
    feeds = {"x": np.array([[1.0, 2.0]]), "y": np.array([3.0])}
    assert {
        feature.name: feature.values(feeds).tolist() for feature in explained_features(model, feeds)
    } == {"a": [2.0], "b": [1.0], "c": [3.0]}


@pytest.mark.parametrize(
    ("names", "features"), [(("x",), ["0", "1"]), (("x", "y"), ["x[0]", "x[1]", "y[0]", "y[1]"])]
)
def test_tensor_values_are_numbered(names, features):
    model = artifact(inputs=tuple(Input(name, "float32", (-1, 2)) for name in names))
    feeds = {name: np.ones((1, 2)) for name in names}
    assert [feature.name for feature in explained_features(model, feeds)] == features


@pytest.mark.parametrize("shape", [(1,) * 3, (1, MAX_COLUMNS + 1)])
def test_images_and_wide_rows_are_refused(shape):
    model = artifact(inputs=(Input("x", "float32", ()),))
    with pytest.raises(InvalidRequest):
        explained_features(model, {"x": np.ones(shape)})


def test_probabilities_are_explained_by_class():
    scores = Output("s", "float32", (-1, 2), "scores")
    chances = Output("p", "float32", (-1, 2), "probabilities")
    model = artifact(outputs=(scores, chances), classes=("no", "yes"))
    outputs = {"p": np.array([[0.25, 0.75]])}
    assert explained_outputs(model) == [chances]
    names, numbers = explained_columns(model, [chances], outputs)
    assert names == ["no", "yes"]
    assert numbers.tolist() == [[0.25, 0.75]]


def test_labels_alone_cannot_be_explained():
    with pytest.raises(InvalidRequest, match="only labels"):
        explained_outputs(
            artifact(outputs=(Output("y", "str", (-1,), "label"),), prediction=("y",))
        )
