"""The contributions by tables of leaves are those of shap for the same trees."""

from dataclasses import replace

import numpy as np
import pytest
import shap
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor

from mlflow_deploy_plugin.serve.pyfunc.leaf_tables import LeafTables, fits
from mlflow_deploy_plugin.wrap.convert.sklearn.additive import additive_form

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(300, 3)).astype("float32").astype(float)
BACKGROUND = ROWS[:40]


def form_of(estimator):
    form = additive_form(estimator)
    assert form is not None
    return form


def contributions(form, rows):
    """Return the contributions of the features, [K, F, N]."""
    totals = np.zeros((len(form.base), *rows.T.shape))
    for tree in range(len(form.left)):
        LeafTables(form, tree, BACKGROUND.T).add_to(totals, rows.T)
    return totals


def test_the_trees_of_several_sums_have_the_contributions_of_shap():
    """The paths compare each of three features several times."""
    classes = np.digitize(ROWS[:, 0] * ROWS[:, 1], [-0.3, 0.3])
    original = RandomForestClassifier(5, random_state=0).fit(ROWS, classes)
    explainer = shap.TreeExplainer(original, BACKGROUND, feature_perturbation="interventional")
    expected = explainer.shap_values(ROWS, check_additivity=False)
    values = contributions(form_of(original), ROWS)
    assert values.transpose(2, 1, 0) == pytest.approx(expected, abs=1e-6)


def test_missing_and_infinite_values_follow_the_trees():
    gaps = RNG.random(ROWS.shape) < 0.2
    original = DecisionTreeRegressor(max_depth=5).fit(np.where(gaps, np.nan, ROWS), ROWS[:, 0])
    form = form_of(original)
    rows = np.vstack(
        [np.where(gaps, np.nan, ROWS), np.where(gaps, np.inf, ROWS), np.where(gaps, -np.inf, ROWS)]
    )
    totals = contributions(form, rows).sum(axis=1).T + form.sums(BACKGROUND).mean(axis=0)
    assert totals == pytest.approx(form.sums(rows))


def test_a_tree_without_splits_contributes_nothing():
    form = form_of(DecisionTreeRegressor().fit(ROWS, np.ones(len(ROWS))))
    assert not contributions(form, ROWS).any()


def test_the_size_of_the_tables_is_known_before_they_are_computed():
    form = form_of(RandomForestRegressor(3, max_depth=1).fit(ROWS, ROWS[:, 0]))
    # A leaf with one feature has two contributions of 8 bytes.
    assert fits(form, 3 * 2 * 16)
    assert not fits(form, 3 * 2 * 16 - 1)


def test_paths_with_many_features_do_not_fit():
    depth = 20
    node = np.arange(2 * depth + 1)
    is_inner = node % 2 == 0
    is_inner[-1] = False
    stump = form_of(DecisionTreeRegressor(max_depth=1).fit(ROWS, ROWS[:, 0]))
    chain = replace(
        stump,
        feature=node[np.newaxis] // 2,
        threshold=np.zeros((1, len(node))),
        left=np.where(is_inner, node + 1, -1)[np.newaxis],
        right=np.where(is_inner, node + 2, -1)[np.newaxis],
        missing_left=np.zeros((1, len(node)), bool),
        value=np.ones((1, len(node), 1)),
    )
    assert not fits(chain, 2**40)
