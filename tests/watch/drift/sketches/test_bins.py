"""Bins that are frozen on the reference, and distances over them."""

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.drift.sketches.bins import CategoryBins, OrderedBins, freeze_bins
from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.drift.sketches.sketch import encode_columns

RNG = np.random.default_rng(0)


def numbers(values):
    return ColumnValues("x", "number", np.asarray(values, dtype=np.float64))


def texts(values):
    return ColumnValues("x", "category", np.array(values, dtype=object))


def codes_of(bins, feature):
    kind = pa.float64() if feature.kind == "number" else pa.string()
    return encode_columns({"x": bins}, pa.table({"x": pa.array(feature.values, kind)}))["x"]


def distance(reference, current):
    bins = freeze_bins(reference)
    left, right = (
        np.bincount(codes_of(bins, feature), minlength=bins.size + 1)[:-1].astype(float)
        for feature in (reference, current)
    )
    return float(bins.distance(left, right))


def frozen_texts(values):
    bins = freeze_bins(texts(values))
    assert isinstance(bins, CategoryBins)
    return bins


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0, 8.0])
def test_distance_of_numbers_is_in_deviations(shift):
    values = RNG.normal(10, 3, 20_000)

    assert distance(numbers(values), numbers(values + 3 * shift)) == pytest.approx(
        shift, abs=0.06 + 0.02 * shift
    )


def test_sentinel_has_a_bounded_weight():
    values = RNG.normal(size=10_000)
    with_sentinel = np.append(values[1:], -1e300)

    assert distance(numbers(values), numbers(with_sentinel)) < 0.01
    assert distance(numbers(with_sentinel), numbers(values + 1)) == pytest.approx(1, abs=0.05)


def test_new_categories_count_as_rare():
    reference = texts([f"id{number}" for number in range(1000, 6000)])
    fresh = texts([f"is{number}" for number in range(1000, 6000)])

    assert distance(reference, fresh) < 0.1
    assert distance(texts(["a"] * 100), texts(["b"] * 100)) == 1


@pytest.mark.parametrize(
    ("values", "least"),
    [
        (["id1234"] * 5000, 0.9),
        ([""] * 5000, 1.0),
        ([f"id{number}" for number in range(10**9, 10**9 + 5000)], 1.0),
    ],
)
def test_ids_differ_from_constants_and_other_lengths(values, least):
    reference = texts([f"id{number}" for number in range(1000, 6000)])

    assert distance(reference, texts(values)) >= least - 0.02


@pytest.mark.parametrize(
    "values",
    [
        [],
        [np.nan],
        [1.0],
        [1.0] * 9,
        [0.0, 1.0],
        [np.inf, -np.inf],
        [1e308, -1e308, 0.0],
        [5e-324, 0.0, 1.0],
    ],
)
def test_numbers_without_spread_are_categories(values):
    bins = freeze_bins(numbers(values))

    codes = codes_of(bins, numbers([*values, 7.0, np.inf, np.nan]))
    assert isinstance(bins, CategoryBins) or np.isfinite(bins.positions).all()
    assert codes[-1] == bins.size
    assert ((codes >= 0) & (codes <= bins.size)).all()


def test_bins_are_independent_of_row_order():
    values = [f"c{number % 70}" for number in range(700)]
    shuffled = list(RNG.permutation(values))

    assert frozen_texts(values).codes == frozen_texts(shuffled).codes
    assert isinstance(freeze_bins(numbers(np.arange(1000))), OrderedBins)


def test_empty_side_has_no_distance():
    bins = freeze_bins(numbers(np.arange(100)))

    empty = np.zeros(bins.size)
    full = np.ones(bins.size)
    assert bins.distance(empty, full) == bins.distance(full, empty) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "reference",
    [
        RNG.normal(size=5000),
        np.exp(RNG.normal(0, 4, 5000)),
        RNG.normal(size=5000) * 1e-310,
        [*range(400), -1e30],
    ],
    ids=[
        "evenly spread edges",
        "crowded edges",
        "numbers below the precision of a float",
        "a sentinel",
    ],
)
def test_bin_of_a_number_equals_binary_search(reference):
    bins = freeze_bins(numbers(reference), "double")
    assert isinstance(bins, OrderedBins)
    beside = [np.nextafter(bins.edges, -np.inf), bins.edges, np.nextafter(bins.edges, np.inf)]
    values = np.concatenate(
        [*beside, np.asarray(reference), [0.0, -0.0, 1e308, -1e308, np.inf, -np.inf]]
    )

    assert (
        bins.bin_of(values).tolist() == np.searchsorted(bins.edges, values, side="right").tolist()
    )


@pytest.mark.filterwarnings("error")
def test_range_beyond_a_float_is_binned():
    values = np.array([-1.7e308, 1.7e308, np.inf, *np.zeros(5), np.nan])

    assert isinstance(freeze_bins(ColumnValues("x", "number", values)), CategoryBins)


def test_frequent_categories_exceed_chance():
    alike, few = (list(RNG.integers(1000, 1000 + count, 9000).astype(str)) for count in (500, 100))

    assert len(frozen_texts(few).codes) == 100
    assert frozen_texts(alike).codes == {}
    assert frozen_texts([*alike, *["a"] * 200, *["b"] * 100]).codes == {"a": 0, "b": 1}
