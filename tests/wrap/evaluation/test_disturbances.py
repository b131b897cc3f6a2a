from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.wrap.evaluation.disturbances import (
    DISTURB,
    unfit_reason,
    with_missing,
    with_noise,
    with_out_of_range,
    with_swaps,
    with_typos,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


NORMAL = np.random.default_rng(1).normal(size=5000)
ROWS = {
    "x": np.linspace(0, 1, 5000),
    "n": np.arange(5000) % 50,
    "t": np.array(["x"] * 5000, dtype=object),
    "table": np.arange(10_000).reshape(5000, 2),
}


def is_changed(disturbed, name):
    """Return which values of a column are not those of ROWS."""
    return disturbed[name] != ROWS[name]


def test_noise_follows_the_deviation(rng):
    rows = {
        **ROWS,
        "wide": NORMAL * 100,
        "narrow": NORMAL.astype(np.float32),
        "flag": NORMAL > 0,
    }
    disturbed = with_noise(rows, 0.1, rng)
    assert (disturbed["wide"] - rows["wide"]).std() == pytest.approx(10, rel=0.1)
    assert (disturbed["narrow"] - rows["narrow"]).std() == pytest.approx(0.1, rel=0.1)
    assert is_changed(disturbed, "n").mean() > 0.5
    assert all(disturbed[name].dtype == rows[name].dtype for name in rows)
    assert disturbed["t"] is rows["t"]
    assert disturbed["flag"] is rows["flag"]


def test_missing_values_are_nan_or_none(rng):
    disturbed = with_missing({name: ROWS[name] for name in "xnt"}, 0.2, rng)
    assert np.isnan(disturbed["x"]).mean() == pytest.approx(0.2, abs=0.03)
    for name in ("n", "t"):
        assert np.mean([value is None for value in disturbed[name]]) == pytest.approx(0.2, abs=0.03)


def test_values_out_of_range_keep_their_type(rng):
    extremes = np.array([-(2**31), 2**31 - 1] * 2500, dtype=np.int32)
    rows = {**ROWS, "n": extremes, "empty": np.full(5000, np.nan)}
    disturbed = with_out_of_range(rows, 2.0, rng)
    x = disturbed["x"]
    assert (x.min(), x.max()) == (-2, 3)
    assert ((x < 0) | (x > 1)).mean() == pytest.approx(0.1, abs=0.02)
    assert disturbed["n"].dtype == np.int32
    assert set(disturbed["t"]) == {"x", "(never seen)"}
    assert np.isnan(disturbed["empty"]).all()


def test_swaps_move_a_share(rng):
    rows = {**ROWS, "picture": np.ones((5000, 2, 2))}
    disturbed = with_swaps(rows, 0.2, rng)
    assert is_changed(disturbed, "x").mean() == pytest.approx(0.2, abs=0.03)
    assert sorted(disturbed["x"]) == ROWS["x"].tolist()
    moved = is_changed(disturbed, "table").mean(axis=0)
    assert moved == pytest.approx([0.2, 0.2], abs=0.03)
    assert disturbed["picture"] is rows["picture"]


def test_typos_change_a_share(rng):
    sentence = "the quick brown fox jumps over the lazy dog"
    texts = np.array([sentence] * 200 + [None, 7], dtype=object)
    *disturbed, none, number = with_typos({"t": texts}, 0.05, rng)["t"]
    assert (none, number) == (None, 7)
    assert 0.5 < np.mean([text != sentence for text in disturbed]) < 1.0
    assert all(abs(len(text) - 43) < 10 for text in disturbed)


def test_unseen_texts_replace_a_share(rng):
    ((_, disturbed),) = DISTURB["unseen"]({"t": ROWS["t"]}, 0.2, rng)
    assert (disturbed["t"] == "(never seen)").mean() == pytest.approx(0.2, abs=0.03)


def test_columns_are_scaled_within_types(rng):
    rows: Any = {
        "x": np.ones(3),
        "n": np.full(3, 100, dtype=np.int8),
        "t": np.array(["x"] * 3),
        "table": np.ones((3, 2)),
    }
    disturbed = dict(DISTURB["scale"](rows, 10.0, rng))
    assert list(disturbed) == ["x", "n", "table[0]", "table[1]"]
    assert disturbed["x"]["x"].tolist() == [10, 10, 10]
    assert disturbed["x"]["n"] is rows["n"]
    assert disturbed["n"]["n"].tolist() == [127, 127, 127]
    assert disturbed["table[1]"]["table"].tolist() == [[1, 10]] * 3


def test_pictures_are_brightened_and_darkened(rng):
    pictures = rng.integers(0, 256, (20, 8, 8)).astype(np.uint8)
    disturbed = dict(DISTURB["brightness"]({"x": pictures}, 0.5, rng))
    assert disturbed["brighter"]["x"].mean() > pictures.mean() > disturbed["darker"]["x"].mean()
    assert disturbed["brighter"]["x"].max() == pictures.max()


@pytest.mark.parametrize(
    "shape", [(40, 10, 10), (40, 3, 10, 10), (40, 10, 10, 3), (40, 2, 2, 10, 10)]
)
def test_box_of_each_picture_is_covered(shape, rng):
    pictures = rng.normal(size=shape)
    ((_, disturbed),) = DISTURB["occlusion"]({"x": pictures}, 0.25, rng)
    assert (disturbed["x"] != pictures).mean() == pytest.approx(0.25)
    # The positions are random.
    assert len({tuple(np.argwhere(changed)[0]) for changed in disturbed["x"] != pictures}) > 1


@pytest.mark.parametrize(
    ("rows", "unfit"),
    [
        ({"t": np.array(["x"], dtype=object)}, {"noise", "scale", "brightness", "occlusion"}),
        ({"x": np.ones(3)}, {"unseen", "typos", "brightness", "occlusion"}),
        ({"x": np.ones((3, 4, 4))}, {"unseen", "typos", "missing", "swap"}),
    ],
)
def test_unfit_disturbances_have_a_reason(rows, unfit):
    names = ("noise", "missing", "swap", "scale", "unseen", "typos", "brightness", "occlusion")
    assert {name for name in names if unfit_reason(name, rows)} == unfit
