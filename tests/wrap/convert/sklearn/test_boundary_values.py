import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import BaggingRegressor
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlflow_deploy_plugin.core.errors import ParityError
from mlflow_deploy_plugin.wrap.convert.converted import MAX_VALUES
from mlflow_deploy_plugin.wrap.convert.sklearn.boundary_values import boundary_values_of
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.wrap.conftest import is_proven


def test_wrong_equal_neighbour_is_refused():
    random = np.random.default_rng(0)
    grid = pd.DataFrame(random.integers(0, 4, (120, 2)).astype(float), columns=["a", "b"])

    with refused(ParityError):
        wrap(KNeighborsRegressor(3).fit(grid, random.normal(size=120)), grid)


def test_thresholds_of_repeated_columns_are_complete():
    rows = normal_rows(60, 2)
    bag = BaggingRegressor(n_estimators=1, bootstrap_features=True, random_state=1).fit(
        rows, rows[:, 0]
    )
    (drawn,), (tree,) = bag.estimators_features_, bag.estimators_
    thresholds = tree.tree_.threshold[tree.tree_.feature >= 0]
    assert len(set(tree.tree_.feature.tolist())) > 2, "it splits by both copies, and has leaves"
    assert drawn[0] == drawn[1]

    edges = boundary_values_of(bag, ["a", "b"]).edges["ab"[drawn[0]]]

    assert set(thresholds) <= set(edges)


def test_thresholds_include_the_begin_of_rounding():
    rows = np.array([[0.0], [0.1], [0.2], [0.3]])
    tree = DecisionTreeRegressor().fit(rows, rows[:, 0])
    thresholds = tree.tree_.threshold[tree.tree_.feature >= 0]

    edges = boundary_values_of(tree, ["a"]).edges["a"]

    assert len(edges) == 2 * len(thresholds)
    assert set(thresholds) <= set(edges)
    for middle in set(edges) - set(thresholds):
        below, above = np.nextafter(middle, [-np.inf, np.inf])
        (threshold,) = thresholds[np.isclose(thresholds, middle, atol=1e-6)]
        assert np.float32(below) <= threshold < np.float32(above)


def test_many_categories_are_sampled_evenly():
    categories = [f"{number:06}" for number in range(MAX_VALUES + 1)]
    encoder = OrdinalEncoder().fit(np.array(categories, dtype=object)[:, None])

    tried = boundary_values_of(encoder, ["a"]).categories["a"]

    assert len(set(tried)) == MAX_VALUES
    assert tried[0] == categories[0]
    assert tried[-1] == categories[-1]


def test_step_without_edges_is_proven():
    rows = pd.DataFrame(normal_rows(60, 2), columns=["a", "b"])
    scaler = StandardScaler().set_output(transform="pandas")
    model = make_pipeline(scaler, FunctionTransformer(np.abs), Ridge()).fit(rows, rows.a)

    assert is_proven(model, rows)


def test_infinite_threshold_is_proven():
    random = np.random.default_rng(0)
    gaps = pd.DataFrame(random.normal(size=(90, 2)), columns=["a", "b"])
    gaps.loc[::3, "a"] = np.nan
    model = make_pipeline(StandardScaler(), DecisionTreeClassifier()).fit(gaps, gaps.a.isna())

    report = wrap(model, gaps).report

    assert model[-1].tree_.threshold[0] == np.inf
    assert report.state == "proven"
    assert report.left_out == {}


def test_unreadable_step_is_reported():
    rows = pd.DataFrame({"city": ["rome", "oslo"] * 30, "a": normal_rows(60)})
    columns = make_column_transformer((OrdinalEncoder(), ["city"]), (StandardScaler(), ["a"]))
    model = make_pipeline(columns, DecisionTreeRegressor()).fit(rows, rows.a)
    # Calling None is an error.
    columns.named_transformers_["standardscaler"].inverse_transform = None

    boundaries = boundary_values_of(model, ["city", "a"])
    report = wrap(model, rows).report

    assert list(boundaries.left_out) == ["boundary values of ColumnTransformer"]
    assert boundaries.edges == {}
    assert boundaries.categories == {"city": ("oslo", "rome")}
    assert report.state == "proven"
    assert report.left_out == boundaries.left_out
    assert report.as_dict()["left_out"] == boundaries.left_out
