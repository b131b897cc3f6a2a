"""The judge of converters, and the reader of scikit-learn's examples."""

from itertools import count

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto, helper
from sklearn.linear_model import LinearRegression

from benchmarks.coverage import alone
from projects.converters.converted import ConvertedModel, within
from projects.converters.judge import Case, judge_converter

ROWS = np.random.default_rng(0).normal(size=(60, 2))
CASE = Case(LinearRegression().fit(ROWS, ROWS.sum(axis=1)), ROWS[:30], ROWS[30:])

EXAMPLE = """
import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.manifold import TSNE
X = np.random.default_rng(0).normal(size=(60, 2))
GridSearchCV(LinearRegression(), {"fit_intercept": [True, False]}).fit(X, X.sum(axis=1))
TSNE(max_iter=250).fit_transform(X)
1 / 0
LinearRegression().fit(X, X.sum(axis=1))
"""


def faithful(model, example):
    return lambda rows: [model.predict(rows)]


def shifted(model, example):
    return lambda rows: [model.predict(rows) + 0.1]


def silent(model, example):
    return lambda rows: []


def worded(model, example):
    return lambda rows: [["a word"] * len(rows)]


def unequal(model, example):
    return lambda rows: [[[1.0], [1.0, 2.0]]]


def ruining(model, example):
    model.coef_ = np.zeros(2)
    return lambda rows: [model.predict(rows)]


def refusing(model, example):
    raise ValueError("not this model")


def failing(model, example):
    raise KeyError("a name")


def unanswering(model, example):
    def run(rows):
        raise ValueError("not these rows")

    return run


def unloadable(model, example):
    return b"not a graph"


@pytest.mark.parametrize(
    ("converter", "outcome"),
    [
        (faithful, "equal"),
        (shifted, "wrong"),
        (ruining, "wrong"),
        (silent, "wrong"),
        (worded, "wrong"),
        (unequal, "wrong"),
        (unanswering, "wrong"),
        (refusing, "refused"),
        (failing, "crashed"),
        (unloadable, "crashed"),
    ],
)
def test_converter_is_judged_by_its_answers(converter, outcome):
    [verdict] = judge_converter({"a case": CASE}, converter)
    assert verdict.outcome == outcome
    refuses_rows = converter in (silent, worded, unequal, unanswering)
    assert verdict.unanswered == (verdict.wrong.total() if refuses_rows else 0)


def test_graph_receives_one_input_per_column():
    names = ["a", "b"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in names]
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph([helper.make_node("Add", names, ["sum"])], "g", inputs, [output])
    opset = [helper.make_opsetid("", 17)]
    model = ConvertedModel(helper.make_model(graph, opset_imports=opset, ir_version=9))

    table = pd.DataFrame({"a": [1.0, 2.0], "b": pd.Categorical(["x", "y"])})
    answers = model.answers(table, table, {"prediction": np.zeros(2)})
    assert answers["prediction"].tolist() == [1.0, 3.0]


def test_probabilities_of_maps_become_a_matrix():
    maps = [{"no": 0.25, "yes": 0.75}]
    model = ConvertedModel(lambda rows: [np.array(["yes"]), maps])
    want = {"label": np.array(["yes"]), "probabilities": np.zeros((1, 2))}
    assert model.answers(None, None, want)["probabilities"].tolist() == [[0.25, 0.75]]


def test_block_is_ended_after_its_cpu_time():
    with pytest.raises(TimeoutError), within(1):
        all(True for _ in count())


@pytest.mark.long
def test_example_keeps_estimators_fitted_before_its_error(tmp_path):
    path = tmp_path / "plot_x.py"
    path.write_text(EXAMPLE)
    verdicts, without = alone([str(path)], f"{__name__}:faithful", 0)
    assert [(one.name, one.outcome) for one in verdicts] == [("plot_x 0: GridSearchCV", "equal")]
    assert sorted(without) == [
        ("plot_x 1: TSNE", "no new rows"),
        ("plot_x.py", "ended by ZeroDivisionError"),
    ]
