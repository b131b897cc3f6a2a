"""Contributions by tables of leaves, and without them."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeRegressor

from mlflow_deploy_plugin.serve.models import leaf_tables
from mlflow_deploy_plugin.serve.models.leaf_tables import LeafTables
from mlflow_deploy_plugin.wrap.convert.sklearn.additive import additive_form

lightgbm = pytest.importorskip("lightgbm")

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(300, 3)).astype("float32").astype(float)
BACKGROUND = ROWS[:40]


def contributions(original, rows, background=BACKGROUND):
    """Return the contributions of the features, [N, F, K], and the sums that they add
    up to.
    """
    form = additive_form(original)
    assert form is not None
    form = replace(form, columns=np.arange(rows.shape[1]))
    tables = LeafTables(form, background)
    totals = np.zeros((*rows.shape, len(form.base)))
    for row, total in zip(rows, totals, strict=True):
        tables.add_to(total, row)
    return totals, form.sums(rows) - form.sums(background).mean(axis=0)


def test_missing_and_infinite_values_follow_trees():
    gaps = RNG.random(ROWS.shape) < 0.2
    original = DecisionTreeRegressor(max_depth=5).fit(np.where(gaps, np.nan, ROWS), ROWS[:, 0])
    rows = np.vstack(
        [np.where(gaps, np.nan, ROWS), np.where(gaps, np.inf, ROWS), np.where(gaps, -np.inf, ROWS)]
    )
    totals, expected = contributions(original, rows)
    assert totals.sum(axis=1) == pytest.approx(expected)


def test_unknown_codes_follow_trees():
    codes = np.arange(300.0) % 6
    original = lightgbm.LGBMRegressor(min_data_per_group=2, n_estimators=5)
    rows = np.column_stack([codes, ROWS])
    original.fit(rows, codes % 3 + ROWS[:, 0], categorical_feature=[0])
    asked = np.column_stack([np.resize([-3, -1, -0.5, 2.5, 99, np.nan], 300), ROWS])
    totals, expected = contributions(original, asked, asked[10:40])
    assert totals.sum(axis=1) == pytest.approx(expected)
    assert expected[:, 0] + original.predict(asked[10:40]).mean() == pytest.approx(
        original.predict(asked)
    )


def test_single_leaf_contributes_nothing():
    totals, _ = contributions(DecisionTreeRegressor().fit(ROWS, np.ones(len(ROWS))), ROWS)
    assert not totals.any()


@pytest.mark.parametrize("count", [1, 64, 65])
def test_values_are_independent_of_kept_bytes(monkeypatch, count):
    original = RandomForestClassifier(3, max_depth=6).fit(ROWS, ROWS[:, 0] > ROWS[:, 1] ** 2)
    kept, expected = contributions(original, ROWS[:50], ROWS[:count])
    assert kept.sum(axis=1) == pytest.approx(expected)
    for most_bytes in (0, 2_000):
        monkeypatch.setattr(leaf_tables, "KEPT_BYTES", most_bytes)
        computed, _ = contributions(original, ROWS[:50], ROWS[:count])
        assert computed == pytest.approx(kept)


def test_paths_of_many_features_are_explained():
    """Each feature splits off one row, so that a path has 79 features."""
    rows = np.tri(81, 80)
    totals, expected = contributions(
        DecisionTreeRegressor().fit(rows, np.arange(81.0) ** 2), rows[::20], rows[:7]
    )
    assert totals.sum(axis=1) == pytest.approx(expected)
