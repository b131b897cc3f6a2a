"""Sketches: columns of any type are counted, and merged parts equal the sketch of all
rows.
"""

import datetime
import decimal
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.watch.drift.sketches.bins import (
    bins_digest,
    freeze_bins,
    hash_numbers,
    hash_texts,
)
from mlflow_deploy_plugin.watch.drift.sketches.columns import read_columns
from mlflow_deploy_plugin.watch.drift.sketches.hourly import (
    profile_to_parquet,
    table_to_profiles,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import merge, sketch_batches, sketch_groups

EXACT = (
    "kind",
    "arrow_type",
    "rows",
    "missing",
    "mistyped",
    "below",
    "above",
    "unseen",
    "fresh",
    "finite",
    "expected_type",
)


def freeze(table):
    features, _ = read_columns(table)
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    return {
        name: freeze_bins(feature, types.get(name, "double")) for name, feature in features.items()
    }


def sketch(reference, *batches):
    return sketch_batches(freeze(pa.table(reference)), [pa.table(batch) for batch in batches])


def read_profile(content):
    (profile,) = table_to_profiles(pq.read_table(pa.BufferReader(content)))
    return profile


def assert_same(left, right):
    assert left.rows == right.rows
    assert set(left.columns) == set(right.columns)
    for name, column in left.columns.items():
        assert_same_column(column, right.columns[name])


def assert_same_column(left, right):
    assert [getattr(left, name) for name in EXACT] == [getattr(right, name) for name in EXACT]
    np.testing.assert_array_equal(left.counts, right.counts)
    np.testing.assert_array_equal([left.minimum, left.maximum], [right.minimum, right.maximum])
    np.testing.assert_allclose([left.mean, left.m2], [right.mean, right.m2], rtol=1e-9, atol=1e-9)


def test_numbers_are_counted_in_and_outside_bins():
    values = np.array([-5.0, 0.5, 1.5, 40.0, np.nan, np.inf])

    column = sketch({"x": np.linspace(0, 10, 1000)}, {"x": values}).columns["x"]

    assert (column.kind, column.arrow_type) == ("number", "double")
    assert (column.rows, column.missing, column.below, column.above) == (6, 1, 1, 2)
    assert (column.counts[-1], column.counts.sum(), column.finite) == (1, 6, 4)
    assert (column.minimum, column.maximum) == (-5, math.inf)
    assert column.mean == pytest.approx(np.mean(values[:4]))
    assert column.deviation == pytest.approx(np.std(values[:4]))


def test_new_categories_are_counted():
    rows = {"carrier": ["UA", "ZZ", None, "ZZ", "YY"]}

    column = sketch({"carrier": ["UA", "AA", "UA"]}, rows).columns["carrier"]

    assert column.unseen == 3
    assert column.unseen_values == {"ZZ": 2, "YY": 1}
    assert column.missing == 1
    assert column.counts.tolist() == [1, 0, 3, 1]  # UA, AA, all others, missing


def test_rare_category_is_not_unseen():
    names = [f"id{number}" for number in range(5000)]

    column = sketch({"id": names}, {"id": [*names[-10:], "new"]}).columns["id"]

    assert column.unseen == 1
    assert column.unseen_values == {"new": 1}


def test_unseen_numbers_without_spread_are_counted():
    column = sketch({"x": [1.0] * 9 + [2.0]}, {"x": [1.0, 2.0, 3.5, None]}).columns["x"]

    assert column.kind == "number"
    assert column.unseen == 1
    assert column.unseen_values == {"3.5": 1}
    assert column.mean == 6.5 / 3


@pytest.mark.parametrize(
    ("values", "arrow_type"),
    [
        (pa.array([datetime.datetime(2013, 1, 1), None]), "timestamp[us]"),
        (pa.array([b"a", None]), "binary"),
        (pa.array([["a"], None]), "list<item: string>"),
        (pa.array([{"a": 1}, None]), "struct<a: int64>"),
    ],
)
def test_unsupported_column_keeps_its_type(values, arrow_type):
    column = sketch({"x": values}, {"x": values}).columns["x"]

    assert (column.kind, column.arrow_type) == ("other", arrow_type)
    assert (column.rows, column.missing) == (2, 1)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([decimal.Decimal("1.25"), decimal.Decimal("2.50"), None]), "number"),
        (pa.array([1, 250, None], pa.uint8()), "number"),
        (pa.array([True, False, None]), "category"),
        (pa.array(["a", "b", None]).dictionary_encode(), "category"),
        (pa.array([1.5, 2.5, None]).dictionary_encode(), "number"),
        (pa.array(["a", "b", None], pa.large_string()), "category"),
    ],
)
def test_supported_types_are_counted(values, kind):
    column = sketch({"x": values}, {"x": values}).columns["x"]

    assert column.kind == kind
    assert (column.missing, column.unseen, column.counts.sum()) == (1, 0, 3)


def test_new_and_missing_columns_are_described():
    profile = sketch({"x": [1.0, 2.0], "gone": ["a", "b"]}, {"x": [1.0], "new": ["a"]})

    assert set(profile.columns) == {"x", "new"}
    assert profile.columns["x"].expected_type == "double"
    new = profile.columns["new"]
    assert (new.expected_type, new.kind, new.arrow_type) == ("", "other", "string")


@pytest.mark.parametrize(
    ("reference", "values", "arrow_type"),
    [([1.0, 2.0, 3.0], ["a", "b", None], "string"), (["a", "b"], [1, 2, None], "int64")],
)
def test_column_of_another_kind_is_mistyped(reference, values, arrow_type):
    column = sketch({"x": reference}, {"x": values}).columns["x"]

    assert column.kind == "other"
    assert column.mistyped == 2
    assert column.missing == 1
    assert column.arrow_type == arrow_type != column.expected_type


def test_empty_columns_fit_any_type():
    nulls = pa.nulls(3)

    assert sketch({"x": [1.0, 2.0, 3.0]}, {"x": nulls}).columns["x"].missing == 3
    column = sketch({"x": nulls}, {"x": ["a", "b", None]}).columns["x"]
    assert column.unseen == 2
    assert column.mistyped == 0
    assert column.counts.tolist() == [2, 1]


def test_differing_types_of_files_are_named():
    column = sketch(
        {"x": [1.0, 2.0, 3.0]}, {"x": [1.0]}, {"x": [1]}, {"x": pa.nulls(1)}, {"x": ["a"]}
    ).columns["x"]

    assert (column.kind, column.arrow_type) == ("number", "double | int64 | string")
    assert (column.rows, column.missing, column.mistyped) == (4, 1, 1)


def test_vector_stays_a_vector_in_all_batches():
    reference = {"p": [[0.25, 0.75]] * 5, "image": [list(range(9))] * 5}

    profile = sketch(
        reference, {"p": [[1.0]], "image": [[1, 2]]}, {"p": [[], None], "image": [None, []]}
    )

    projections = {f"image.projection.{number}" for number in range(8)}
    assert {*profile.columns} == {"p.0", "p.1", "image.mean", "image.std", *projections}
    assert profile.columns["p.1"].missing == 3
    assert profile.columns["image.mean"].mean == 1.5


def test_unseen_values_are_limited():
    texts = [f"id{number}" for number in range(100_000)]
    new = [f"new{number}" for number in range(1000)]

    column = sketch({"id": texts}, {"id": texts + new}).columns["id"]

    assert (column.unseen, len(column.unseen_values)) == (1000, 20)


def test_groups_equal_separate_sketches():
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "x": rng.normal(size=500),
            "c": rng.choice(np.array(["a", "b", "new", None], dtype=object), 500),
        }
    )
    bins = freeze(pa.table({"x": rng.normal(size=100), "c": ["a", "b"] * 50}))
    groups = rng.integers(0, 4, 500)

    for group, profile in enumerate(sketch_groups(bins, table, groups, 5)):
        rows = table.filter(pa.array(groups == group))
        assert_same(profile, sketch_groups(bins, rows, np.zeros(len(rows), int), 1)[0])


def test_profile_of_no_rows_is_empty():
    assert merge([]).rows == 0
    assert merge([]).columns == {}
    assert sketch({"x": [1.0, 2.0]}, {"x": pa.array([], pa.float64())}).columns["x"].rows == 0


VALUES = {
    "number": (
        st.one_of(st.none(), st.floats(-100, 100), st.sampled_from([math.nan, math.inf, 1e9])),
        pa.float64(),
    ),
    "text": (st.one_of(st.none(), st.sampled_from(["a", "b", "c", "new", "x" * 100])), pa.string()),
    "flag": (st.one_of(st.none(), st.booleans()), pa.bool_()),
}
REFERENCE = {
    "number": np.linspace(-50, 50, 300),
    "text": ["a", "b", "c"] * 100,
    "flag": [True] * 300,
}
BINS = freeze(pa.table(REFERENCE))


@st.composite
def tables(draw):
    """Rows that may lack a column, or have the column as text."""
    rows = draw(st.integers(0, 8))
    columns = {}
    for name in draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, min_size=1)):
        strategy, kind = VALUES[name]
        values = pa.array(draw(st.lists(strategy, min_size=rows, max_size=rows)), kind)
        columns[name] = pc.cast(values, pa.string()) if draw(st.booleans()) else values
    return pa.table(columns)


@settings(max_examples=25)
@given(st.lists(tables(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_merging_is_associative_and_commutative(parts, random):
    profiles = [sketch_batches(BINS, [part]) for part in parts]
    together = merge(profiles)

    shuffled = random.sample(profiles, len(profiles))
    assert_same(merge(shuffled), together)
    cut = random.randint(0, len(shuffled))
    assert_same(merge([merge(shuffled[:cut]), merge(shuffled[cut:])]), together)
    batches = [part.slice(first, 3) for part in parts for first in range(0, max(len(part), 1), 3)]
    assert_same(sketch_batches(BINS, batches), together)
    assert_same(read_profile(profile_to_parquet(together)), together)


def test_equal_bins_have_one_key():
    other = freeze(pa.table(dict(reversed(REFERENCE.items()))))

    assert bins_digest(BINS) == bins_digest(other)
    assert bins_digest(BINS) != bins_digest(
        freeze(pa.table(REFERENCE | {"number": np.linspace(-50, 51, 300)}))
    )


def test_key_of_bins_includes_frequent_lengths():
    items = ["i" * length for length in range(1, 301)]
    short, long = (freeze(pa.table({"item": items + some})) for some in (items[:150], items[150:]))

    assert short["item"].codes == long["item"].codes == {}
    assert bins_digest(short) != bins_digest(long)


SENT = [True, False, None, True]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int64(), pa.bool_()])
@pytest.mark.parametrize("given", [pa.float32(), pa.float64(), pa.int64(), pa.bool_()])
def test_boolean_is_equal_in_every_type(kind, given):
    as_numbers = [None if value is None else int(value) for value in SENT]
    sides = [
        pa.array(SENT if dtype == pa.bool_() else as_numbers, dtype) for dtype in (kind, given)
    ]

    column = sketch({"flag": sides[0]}, {"flag": sides[1]}).columns["flag"]

    assert column.kind == ("category" if kind == pa.bool_() else "number")
    assert (column.mistyped, column.unseen, column.missing) == (0, 0, 1)
    assert sorted(column.counts.tolist()) == [0, 1, 1, 2]  # neither value, missing, false, true
    assert column.arrow_type == str(given)


def test_other_numbers_are_no_booleans():
    assert sketch({"flag": [True, False]}, {"flag": [1.0, 2.0]}).columns["flag"].mistyped == 2


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("given", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("values", [[0.1, 0.3], [0.1, 0.7, 0.3, 0.2], [123456789, 3]])
def test_number_equals_its_32_bit_value(kind, given, values):
    sides = [pa.array(np.array(values, dtype.to_pandas_dtype())) for dtype in (kind, given)]

    column = sketch({"x": sides[0]}, {"x": sides[1]}).columns["x"]

    assert column.below == column.above == column.unseen == column.mistyped == 0


def test_integer_matches_its_rounded_reference():
    column = sketch(
        {"id": pa.array([123456789.0, 3.0], pa.float32())}, {"id": [123456789, 3]}
    ).columns["id"]

    assert column.unseen == 0
    assert column.counts.tolist() == [1, 1, 0, 0]


def test_hashes_are_stable_and_ignore_zero_signs():
    assert hash_numbers(np.array([0.0])) == hash_numbers(np.array([-0.0]))
    assert hash_texts(["flights"])[0] == 2708606575706552584
