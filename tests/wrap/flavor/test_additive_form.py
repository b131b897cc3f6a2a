"""The additive form is saved only if it is proven."""

import shutil
import warnings
import zipfile
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMRegressor
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.serve.runtime.additive import (
    ADDITIVE_FILE,
    FEATURES_FILE,
    FeatureReader,
    read_additive,
)
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.batch import Batch
from mlflow_deploy_plugin.wrap.convert.converted import AdditiveParts
from mlflow_deploy_plugin.wrap.convert.sklearn.additive import additive_form
from mlflow_deploy_plugin.wrap.flavor.additive_form import with_additive_files
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused

ROWS = normal_rows(300, 3)
CLASSES = np.digitize(ROWS[:, 0] + ROWS[:, 1], [-0.5, 0.5])


def saved(folder, original, example=ROWS, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow_deploy_plugin.save_model(
            original, folder / "model", input_example=example, **options
        )
    return folder / "model"


def additive(folder):
    form = read_additive(folder)
    assert form is not None
    return form


def test_sums_are_the_original_scores(tmp_path):
    original = GradientBoostingClassifier(n_estimators=5).fit(ROWS, CLASSES > 1)
    form = additive(saved(tmp_path, original))
    rows = form.read_features(ROWS[:20])
    assert form.sums(rows)[:, 0] == pytest.approx(original.decision_function(ROWS[:20]))
    assert form.predictions(form.sums(rows)) == pytest.approx(original.predict_proba(ROWS[:20]))


def of_categories():
    """Return a model of a column of categories and a column of numbers, and its
    rows.
    """
    kinds = np.random.default_rng(0).integers(0, 8, len(ROWS))
    names = np.array([*"abcdefgh"])[kinds]
    table = pd.DataFrame({"kind": pd.Categorical(names), "a": ROWS[:, 0]})
    original = HistGradientBoostingClassifier(max_iter=5, categorical_features="from_dtype")
    return original.fit(table, kinds % 3 + ROWS[:, 0] > 1), table


def test_sums_of_categories_are_the_scores():
    original, table = of_categories()
    form = additive_form(original)
    assert form is not None
    rows = table[:30].copy()
    rows.loc[:5, "kind"] = np.nan
    codes = rows["kind"].cat.codes.to_numpy(float)
    codes[codes < 0] = np.nan
    sums = form.sums(np.column_stack([codes, rows["a"]]))
    assert sums[:, 0] == pytest.approx(original.decision_function(rows))


def test_form_of_categories_needs_one_row(tmp_path):
    original, table = of_categories()
    folder = saved(tmp_path, original, table[:1], parity_data=table)
    assert additive(folder).columns.tolist() == [0, 1]


def test_sums_of_linear_leaves_are_predictions():
    gaps = np.where(np.random.default_rng(0).random(ROWS.shape) < 0.1, np.nan, ROWS)
    original = LGBMRegressor(n_estimators=3, linear_tree=True, verbose=-1).fit(gaps, ROWS[:, 0])
    form = additive_form(original)
    assert form is not None
    assert len(form.slope_features)
    assert form.sums(gaps)[:, 0] == pytest.approx(original.predict(gaps))


def test_form_without_slopes_of_leaves_is_read(tree):
    """Files of earlier versions do not have `slope_features`."""
    with np.load(tree / ADDITIVE_FILE) as archive:
        arrays = {name: archive[name] for name in archive if name != "slope_features"}
    np.savez_compressed(tree / ADDITIVE_FILE, **arrays)
    assert not additive(tree).slope_features.size


def test_digests_of_the_files_are_checked(tmp_path):
    original = make_pipeline(StandardScaler(), LinearRegression()).fit(ROWS, ROWS[:, 0])
    folder = saved(tmp_path, original)
    assert {ADDITIVE_FILE, FEATURES_FILE} <= OnnxModel.load(folder).artifact.digests.keys()
    (folder / ADDITIVE_FILE).write_bytes(b"changed")
    with pytest.raises(InvalidArtifact, match=ADDITIVE_FILE):
        OnnxModel.load(folder)


@pytest.fixture(scope="module")
def saved_tree(tmp_path_factory):
    original = DecisionTreeRegressor(max_depth=2).fit(ROWS, ROWS[:, 0])
    return saved(tmp_path_factory.mktemp("tree"), original)


@pytest.fixture
def tree(saved_tree, tmp_path):
    """Return the folder of a model of a tree with seven nodes."""
    return shutil.copytree(saved_tree, tmp_path / "tree")


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [
        ("left", (0, 0), 0),  # The root is its own child.
        ("left", (0, 1), 1),
        ("right", (0, 0), -1),
        ("right", (0, 0), 7),
        ("feature", (0, 0), 3),
        ("membership", (0, 6), 0),
        ("link", (), "cube"),
    ],
)
def test_form_other_than_trees_is_refused(tree, name, position, value):
    form = additive(tree)
    array = np.array(getattr(form, name))
    array[position] = value
    (tree / ADDITIVE_FILE).write_bytes(replace(form, **{name: array}).to_bytes())
    with refused(InvalidArtifact, "cannot be read"):
        read_additive(tree)


def test_oversized_arrays_are_not_read(tree):
    large = replace(additive(tree), members=np.zeros((9_000, 9_000), bool)).to_bytes()
    (tree / ADDITIVE_FILE).write_bytes(large)
    assert len(large) < 100_000
    with refused(InvalidArtifact, "bytes"):
        read_additive(tree)


def test_unbounded_compression_is_not_read(tree):
    form = additive(tree)
    with zipfile.ZipFile(tree / ADDITIVE_FILE, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("members.npy", form.members.tobytes())
    with refused(InvalidArtifact, "Deflate"):
        read_additive(tree)


def test_damaged_form_is_refused_or_read(tree):
    content = (tree / ADDITIVE_FILE).read_bytes()
    for position in range(0, len(content), 30):
        damaged = content[:position] + b"X" + content[position + 1 :]
        (tree / ADDITIVE_FILE).write_bytes(damaged)
        with suppress(InvalidArtifact):
            read_additive(tree)


@pytest.mark.parametrize(
    "original",
    [make_pipeline(PCA(2), LinearRegression()), OneVsRestClassifier(LogisticRegression())],
    ids=["a feature of several columns", "one against the rest"],
)
def test_other_models_have_no_form(original, tmp_path):
    assert read_additive(saved(tmp_path, original.fit(ROWS, CLASSES))) is None


@pytest.mark.parametrize(("shift", "is_saved"), [(0.0, True), (0.01, False)])
def test_only_proven_sums_are_saved(tmp_path, shift, is_saved):
    original = LinearRegression().fit(ROWS, ROWS[:, 0])
    form = additive(saved(tmp_path, original))
    shifted = AdditiveParts(replace(form, base=form.base + shift), None)
    converted = replace(wrap(original, ROWS).converted, additive=lambda: shifted, files={})
    runnable = OnnxModel.load(tmp_path / "model")
    files = with_additive_files(converted, runnable, Batch.read(ROWS)).files
    assert (ADDITIVE_FILE in files) == is_saved


def test_features_are_read_by_input_names(tmp_path):
    table = pd.DataFrame(ROWS, columns=["a", "b", "c"])
    scaled = make_column_transformer((StandardScaler(), ["a", "c"]), remainder="passthrough")
    original = make_pipeline(scaled, LinearRegression()).fit(table, table["c"])
    reader = FeatureReader.load(saved(tmp_path, original, table))
    assert reader is not None
    feeds = Batch(table).feeds(OnnxModel.load(tmp_path / "model").schema)
    assert len(feeds) == 3
    reverse = {name: feeds[name] for name in reversed(feeds)}
    np.testing.assert_array_equal(reader.read(reverse), reader.read(feeds))


def test_pipeline_features_belong_to_columns(tmp_path):
    original = make_pipeline(StandardScaler(), GradientBoostingRegressor(n_estimators=3))
    original.fit(ROWS, ROWS[:, 2])
    assert additive(saved(tmp_path, original)).columns.tolist() == [0, 1, 2]
