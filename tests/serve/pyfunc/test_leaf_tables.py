"""The contributions by tables of leaves are those of shap for the same trees."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor
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


def test_missing_and_infinite_values_follow_trees():
    gaps = RNG.random(ROWS.shape) < 0.2
    original = DecisionTreeRegressor(max_depth=5).fit(np.where(gaps, np.nan, ROWS), ROWS[:, 0])
    form = form_of(original)
    rows = np.vstack(
        [np.where(gaps, np.nan, ROWS), np.where(gaps, np.inf, ROWS), np.where(gaps, -np.inf, ROWS)]
    )
    totals = contributions(form, rows).sum(axis=1).T + form.sums(BACKGROUND).mean(axis=0)
    assert totals == pytest.approx(form.sums(rows))


def test_single_leaf_contributes_nothing():
    form = form_of(DecisionTreeRegressor().fit(ROWS, np.ones(len(ROWS))))
    assert not contributions(form, ROWS).any()


def test_size_is_known_in_advance():
    form = form_of(RandomForestRegressor(3, max_depth=1).fit(ROWS, ROWS[:, 0]))
    # A leaf with one feature has two contributions of 8 bytes.
    assert fits(form, 3 * 2 * 16)
    assert not fits(form, 3 * 2 * 16 - 1)


def test_many_features_do_not_fit():
    """Each feature splits off one row, so that a path has 19 features."""
    chain = DecisionTreeRegressor().fit(np.tri(21, 20), 4.0 ** np.arange(21))
    assert not fits(form_of(chain), 2**60)
