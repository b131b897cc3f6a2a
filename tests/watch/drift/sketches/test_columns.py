"""Columns of any type, reduced to numbers and categories."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.drift.sketches.columns import (
    ColumnValues,
    pair_columns,
    read_columns,
)


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        (pa.array([1, None, 3], pa.int64()), "number", [1.0, np.nan, 3.0]),
        (pa.array([1, 2], pa.uint8()), "number", [1.0, 2.0]),
        (pa.array([2**63 + 1], pa.uint64()), "number", [float(2**63)]),
        (pa.array([0.5, np.nan, None], pa.float32()), "number", [0.5, np.nan, np.nan]),
        (pa.array([decimal.Decimal("1.25")]), "number", [1.25]),
        (pa.array([True, None, False]), "category", ["true", None, "false"]),
        (pa.array(["a", None]), "category", ["a", None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), "category", ["a", "b", "a"]),
        (pa.nulls(2), "category", [None, None]),
    ],
)
def test_column_becomes_a_feature(column, kind, values):
    features, notes = read_columns(pa.table({"x": column}))

    assert features["x"].kind == kind
    assert notes == []
    np.testing.assert_array_equal(
        features["x"].values, np.array(values, dtype=features["x"].values.dtype)
    )


def test_tensor_becomes_mean_spread_and_projections():
    nested = pa.array([[[1.0, 3.0], [5.0, 7.0]], [[2.0, 2.0], [2.0, 2.0]]])
    long = pa.array([list(range(9)), []])

    features, _ = read_columns(pa.table({"image": nested, "tokens": long}))

    projections = [f"projection.{number}" for number in range(8)]
    figures = ["mean", "std", *projections]
    assert list(features) == [f"{name}.{each}" for name in ("image", "tokens") for each in figures]
    np.testing.assert_allclose(features["image.mean"].values, [4, 2])
    np.testing.assert_allclose(features["image.std"].values, [np.sqrt(5), 0])
    np.testing.assert_array_equal(features["tokens.mean"].values, [4, np.nan])
    for name in projections:
        first, second = features[f"image.{name}"].values
        # The deviations -3, -1, 1 and 3, each with a sign, over the root of four.
        assert first in range(-4, 5)
        assert second == 0
        assert np.isnan(features[f"tokens.{name}"].values[1])


def test_short_vector_becomes_components():
    features, _ = read_columns(
        pa.table({"p": pa.array([[0.25, 0.75], [1.0], [], None, [None, 0.5]])})
    )

    assert list(features) == ["p.0", "p.1"]
    np.testing.assert_array_equal(features["p.0"].values, [0.25, 1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(features["p.1"].values, [0.75, np.nan, np.nan, np.nan, 0.5])


def test_log_columns_and_times_are_no_features():
    table = pa.table(
        {"_row": [1], "when": [datetime.datetime(2013, 1, 1)], "words": [["a"]], "x": [1.0]}
    )

    features, notes = read_columns(table)

    assert list(features) == ["x"]
    assert notes == [
        "when: a column of type timestamp[us] is not judged",
        "words: a column of type list<item: string> is not judged",
    ]


def test_features_are_paired_by_name():
    number = ColumnValues("x", "number", np.array([1.0, np.nan]))
    text = ColumnValues("x", "category", np.array(["1", "b"], dtype=object))

    assert pair_columns({"x": number, "gone": number}, {"x": text, "new": text}) == [(number, text)]


def test_booleans_paired_with_numbers_are_numbers():
    reference, _ = read_columns(pa.table({"flag": pa.array([1.0, 0.0, 1.0], pa.float32())}))
    current, _ = read_columns(pa.table({"flag": [True, None, False]}))

    ((left, right),) = pair_columns(reference, current)

    assert left.kind == "number"
    assert right.kind == "number"
    np.testing.assert_array_equal(right.values, [1.0, np.nan, 0.0])
