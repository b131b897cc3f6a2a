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


def test_noise_is_a_share_of_the_standard_deviation_and_keeps_the_types(rng):
    rows = {
        "wide": rng.normal(0, 100, 5000),
        "narrow": rng.normal(0, 1, 5000).astype(np.float32),
        "count": np.arange(5000) % 50,
        "text": np.array(["x"] * 5000, dtype=object),
        "flag": np.arange(5000) % 2 == 0,
    }
    disturbed = with_noise(rows, 0.1, rng)
    assert (disturbed["wide"] - rows["wide"]).std() == pytest.approx(10, rel=0.1)
    assert (disturbed["narrow"] - rows["narrow"]).std() == pytest.approx(0.1, rel=0.1)
    assert (disturbed["count"] != rows["count"]).mean() > 0.5
    assert {name: values.dtype for name, values in disturbed.items()} == {
        name: v.dtype for name, v in rows.items()
    }
    assert disturbed["text"] is rows["text"]
    assert disturbed["flag"] is rows["flag"]


def test_missing_values_are_nan_in_numbers_and_none_elsewhere(rng):
    rows = {
        "x": np.ones(5000),
        "n": np.ones(5000, dtype=int),
        "t": np.array(["x"] * 5000, dtype=object),
    }
    disturbed = with_missing(rows, 0.2, rng)
    assert np.isnan(disturbed["x"]).mean() == pytest.approx(0.2, abs=0.03)
    for name in ("n", "t"):
        assert np.mean([value is None for value in disturbed[name]]) == pytest.approx(0.2, abs=0.03)


def test_values_out_of_range_lie_beyond_both_ends_and_within_the_type(rng):
    rows: dict[str, Any] = {
        "x": np.linspace(0, 1, 5000),
        "n": np.array([-(2**31), 2**31 - 1] * 2500, dtype=np.int32),
        "t": np.array(["x"] * 5000, dtype=object),
        "empty": np.full(5000, np.nan),
    }
    disturbed = with_out_of_range(rows, 2.0, rng)
    assert disturbed["x"].min() == -2
    assert disturbed["x"].max() == 3
    assert ((disturbed["x"] < 0) | (disturbed["x"] > 1)).mean() == pytest.approx(0.1, abs=0.02)
    assert disturbed["n"].dtype == np.int32
    assert set(disturbed["t"]) == {"x", "(never seen)"}
    assert np.isnan(disturbed["empty"]).all()


def test_swaps_move_a_share_of_each_column_and_keep_its_values(rng):
    rows = {
        "x": np.arange(5000.0),
        "table": np.arange(10_000).reshape(5000, 2),
        "picture": np.ones((5000, 2, 2)),
    }
    disturbed = with_swaps(rows, 0.2, rng)
    assert (disturbed["x"] != rows["x"]).mean() == pytest.approx(0.2, abs=0.03)
    assert sorted(disturbed["x"]) == rows["x"].tolist()
    assert (disturbed["table"] != rows["table"]).mean(axis=0) == pytest.approx([0.2, 0.2], abs=0.03)
    assert disturbed["picture"] is rows["picture"]


def test_typos_change_a_share_of_the_characters_and_keep_other_values(rng):
    rows = {
        "t": np.array(
            ["the quick brown fox jumps over the lazy dog"] * 200 + [None, 7], dtype=object
        )
    }
    disturbed = with_typos(rows, 0.05, rng)["t"]
    assert disturbed[-2:].tolist() == [None, 7]
    assert 0.5 < np.mean(disturbed[:-2] != rows["t"][:-2]) < 1.0
    assert all(abs(len(text) - 43) < 10 for text in disturbed[:-2])


def test_unseen_texts_replace_a_share(rng):
    ((_, disturbed),) = DISTURB["unseen"]({"t": np.array(["x"] * 5000, dtype=object)}, 0.2, rng)
    assert (disturbed["t"] == "(never seen)").mean() == pytest.approx(0.2, abs=0.03)


def test_each_column_of_numbers_is_scaled_by_itself_within_its_type(rng):
    rows: dict[str, Any] = {
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


def test_pictures_get_brighter_and_darker_within_their_range(rng):
    pictures = rng.integers(0, 256, (20, 8, 8)).astype(np.uint8)
    disturbed = dict(DISTURB["brightness"]({"x": pictures}, 0.5, rng))
    assert disturbed["brighter"]["x"].mean() > pictures.mean() > disturbed["darker"]["x"].mean()
    assert disturbed["brighter"]["x"].max() == pictures.max()


@pytest.mark.parametrize(
    "shape", [(40, 10, 10), (40, 3, 10, 10), (40, 10, 10, 3), (40, 2, 2, 10, 10)]
)
def test_a_box_of_each_picture_is_covered_in_all_its_channels(shape, rng):
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
def test_disturbances_that_do_not_fit_the_rows_give_a_reason(rows, unfit):
    names = ("noise", "missing", "swap", "scale", "unseen", "typos", "brightness", "occlusion")
    assert {name for name in names if unfit_reason(name, rows)} == unfit
