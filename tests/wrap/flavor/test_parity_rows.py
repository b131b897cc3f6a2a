from collections import Counter

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy_plugin.wrap.convert.batch import Batch
from mlflow_deploy_plugin.wrap.convert.converted import BoundaryValues
from mlflow_deploy_plugin.wrap.flavor.parity_rows import MIN_PARITY_ROWS, parity_rows
from tests.support.random_rows import normal_rows


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "city": ["rome", "oslo", "lima", "rome"],
            "temperature": [1.5, -3.25, 20.0, 7.0],
            "hour": [0, 30, 12, 23],
            "weekend": [True, False, True, True],
        }
    )


def _by_source(example, edges=None, parity_data=None, **known):
    boundary_values = BoundaryValues(edges=edges or {}, **known)
    further = None if parity_data is None else Batch(parity_data)
    return {group.source: group for group in parity_rows(Batch(example), further, boundary_values)}


def test_few_rows_become_a_thousand_and_more(table):
    counts: Counter[str] = Counter()
    for group in parity_rows(Batch(table), None, BoundaryValues()):
        counts[group.source] += len(group.batch)

    assert sum(counts.values()) >= MIN_PARITY_ROWS
    assert counts["example"] == 4


def test_parity_data_counts_as_given(table):
    groups = _by_source(table, parity_data=table.head(2))

    assert not groups["parity_data"].generated
    assert len(groups["parity_data"].batch) == 2


def test_generated_rows_keep_columns_types_and_ranges(table):
    rows = _by_source(table)["ranges"].batch.data

    assert rows.dtypes.to_dict() == table.dtypes.to_dict()
    assert rows.temperature.between(-3.25, 20).all()
    assert set(rows.city) == {"rome", "oslo", "lima"}
    assert rows.temperature.nunique() <= 4  # Columns with few distinct numbers are codes.


def test_numbers_are_drawn_around_the_only_one():
    rows = _by_source(pd.DataFrame({"a": [20.0], "b": [-0.5], "gap": [np.inf], "city": ["rome"]}))[
        "ranges"
    ].batch.data

    assert (rows.a.min() >= 0, rows.a.max() <= 40, rows.a.nunique() > 500) == (True, True, True)
    assert rows.b.between(-1.5, 0.5).all()
    assert np.isinf(rows.gap).all()
    zeros = {"": np.zeros((2, 3, 4), np.float32)}
    drawn = [
        group.batch.data[""]
        for group in parity_rows(Batch(zeros), None, BoundaryValues())
        if group.source == "ranges"
    ]
    assert all(len(np.unique(part)) > 1000 for part in drawn)


def test_numbers_are_drawn_between_the_observed():
    random = np.random.default_rng(0)
    example = pd.DataFrame({"a": random.normal(size=100), "n": np.arange(100)})

    rows = _by_source(example)["ranges"].batch.data

    assert rows.a.nunique() > 500
    assert rows.n.between(0, 99).all()
    assert rows.n.dtype == np.int64


def test_threshold_rows_are_on_and_one_step_around_the_edge_in_both_precisions(table):
    edge = 0.1

    rows = _by_source(table, {"temperature": np.array([edge])})["thresholds"]

    single = np.float32(edge)
    expected = {
        edge,
        np.nextafter(edge, 0),
        np.nextafter(edge, 1),
        float(single),
        edge / 2 + float(single) / 2,
    }
    expected |= {float(np.nextafter(single, np.float32(side))) for side in (0, 1)}
    assert expected <= set(rows.batch.data.temperature)
    assert not rows.may_tie


def test_numbers_far_outside_of_their_range_come_alone_and_together(table):
    groups = _by_source(table)

    alone = groups["far"].batch.data
    together = groups["far together"].batch.data
    assert alone.temperature.abs().max() == pytest.approx(20e6)
    # Only one column changes at a time.
    assert 5 <= (alone.temperature.abs() > 1000).sum() < len(alone) / 2
    assert (together.temperature.abs() > 1e5).any()
    assert (together[["temperature", "hour"]] == 0).all(axis=1).any()
    assert together.hour.dtype == np.int64


def test_numbers_that_people_use_for_a_missing_value_come_alone_and_together(table):
    groups = _by_source(table)
    near = _by_source(table, farthest=1e9)

    assert {-999.0, 999_999_999.0, -1e9, 1e9, -1e15, 1e15} <= set(
        groups["sentinels"].batch.data.temperature
    )
    assert set(groups["sentinels together"].batch.data.temperature) == set(
        groups["sentinels together"].batch.data.hour
    )
    assert near["sentinels"].batch.data.temperature.abs().max() == 1e9


def test_learned_rows_come_as_they_are_and_by_halves(table):
    learned = {"temperature": np.array([2.0, 4.0]), "hour": np.array([2.0, 4.0])}

    groups = _by_source(table, rows=(learned,))

    assert set(groups["learned"].batch.data.temperature) == {2.0, 4.0}
    assert set(groups["halfway"].batch.data.temperature) == {2.0, 3.0, 4.0}
    assert (groups["halfway"].may_tie, groups["learned"].may_tie) == (True, False)


def test_rows_include_all_categories_and_values_that_look_like_them(table):
    numbers = _by_source(table, categories={"temperature": (1.5, np.nan)})
    texts = _by_source(table, categories={"city": ("rome", "łódź")})
    assert set(texts["categories"].batch.data.city) == {"rome", "łódź"}
    assert {"ROME", "rome ", "romeé", "ŁÓDŹ"} <= set(texts["near categories"].batch.data.city)
    assert np.nextafter(1.5, 2) in set(numbers["near categories"].batch.data.temperature)


@pytest.mark.long
def test_categories_of_a_wide_table_come_in_one_group_of_each_kind_and_in_few_rows():
    wide = pd.DataFrame({f"c{number}": ["a", "b"] for number in range(400)})
    boundaries = BoundaryValues(
        categories=dict.fromkeys(wide.columns, tuple(f"k{n}" for n in range(50)))
    )

    together, *groups = [
        group
        for group in parity_rows(Batch(wide), None, boundaries)
        if "categories" in group.source
    ]

    assert isinstance(together.batch.data, pd.DataFrame)
    assert len(together.batch) == 200
    assert all(
        set(together.batch.data[name]) == set(learned)
        for name, learned in boundaries.categories.items()
    )
    assert [group.source for group in groups] == ["categories", "near categories"]
    for group in groups:
        assert isinstance(group.batch.data, pd.DataFrame)
        assert len(group.batch) == len(group.columns) * group.block <= 4_000
        for block, name in enumerate(group.columns):
            rows = group.batch.data.iloc[block * group.block : (block + 1) * group.block]
            assert not set(rows[name]) & {"a", "b"}


def test_texts_are_made_of_the_vocabulary_and_of_characters_that_may_join_a_word(table):
    rows = _by_source(table, texts={"city": ("wärm", "kind")})["vocabulary"]

    texts = set(rows.batch.data.city)
    assert rows.alone
    assert {"", " "} <= texts
    assert any("wärm" in text for text in texts)
    assert any("WÄRM" in text for text in texts)
    assert any("kindé" in text for text in texts)


def test_integers_stand_on_both_sides_of_a_threshold(table):
    rows = _by_source(table, {"hour": np.array([7.5])})["thresholds"].batch.data

    assert {7, 8} <= set(rows.hour)


def test_each_column_that_can_is_missing_and_each_text_unseen(table):
    groups = _by_source(table)

    missing = groups["missing"]
    assert missing.columns == ("city", "temperature")
    assert missing.batch.data.isna().sum().to_dict() == {  # One row per block is unchanged.
        "city": missing.block - 1,
        "temperature": missing.block - 1,
        "hour": 0,
        "weekend": 0,
    }
    assert (groups["unseen"].batch.data.city == "never seen").sum() == groups["unseen"].block


def test_same_seed_gives_the_same_rows(table):
    first = _by_source(table)["ranges"].batch.data
    second = _by_source(table)["ranges"].batch.data

    pd.testing.assert_frame_equal(first, second)


def test_matrix_keeps_its_dtype():
    example = {"": normal_rows(30, 3).astype(np.float32)}

    for group in parity_rows(Batch(example), None, BoundaryValues(edges={"1": np.array([0.5])})):
        assert group.batch.data[""].dtype == np.float32
        assert group.batch.data[""].shape[1] == 3


def test_tensors_are_drawn_within_their_range():
    example = {"ids": np.array([[1, 5], [3, 9]]), "image": np.ones((2, 4, 4), np.float32)}

    groups = [
        group
        for group in parity_rows(Batch(example), None, BoundaryValues())
        if group.source == "ranges"
    ]

    assert sum(len(group.batch) for group in groups) >= MIN_PARITY_ROWS - 2
    assert all(
        group.batch.data["ids"].min() >= 1 and group.batch.data["ids"].max() <= 9
        for group in groups
    )
    assert {group.batch.data["image"].shape[1:] for group in groups} == {(4, 4)}


@pytest.mark.parametrize("largest", [np.inf, 1.5e308])
def test_numbers_that_span_more_than_a_float_are_drawn_all_the_same(largest):
    example = pd.DataFrame({"a": [-largest, largest, *np.linspace(0, 1, 50)]})

    rows = _by_source(example)["ranges"].batch.data
    tensors = _by_source({"x": example.to_numpy()[:, :, None]})["ranges"].batch.data

    assert len(rows) == 600
    assert rows.a.nunique() > 500
    assert len(tensors["x"]) > 0


def test_thresholds_without_a_number_are_left_out():
    example = pd.DataFrame({"a": np.arange(50.0), "n": pd.array([None, *range(49)], dtype="Int64")})

    rows = _by_source(example, {"a": np.array([5.5, np.inf]), "n": np.array([5.5, np.inf])})[
        "thresholds"
    ].batch.data

    assert np.isfinite(rows.a).all()
    assert rows.n.dtype == "Int64"


@pytest.mark.long
def test_rows_with_gaps_are_bounded_in_wide_tables():
    example = pd.DataFrame(normal_rows(20, 1500)).rename(columns=str)

    group = _by_source(example)["missing"]
    gaps = pd.DataFrame(group.batch.data).isna()

    assert gaps.size < 5_000_000
    assert (gaps.sum(axis=1) == np.resize([0] + [1] * (group.block - 1), len(gaps))).all()
    assert gaps.any().sum() == len(group.columns) > 50  # Some columns change, one at a time.


def test_uint64_tensors_are_drawn_in_their_range():
    example = {"x": np.array([[[0, 2**63 + 5]]], dtype=np.uint64)}

    assert _by_source(example)["ranges"].batch.data["x"].dtype == np.uint64


def test_a_generator_that_raises_an_error_is_left_out_and_named(table):
    broken = BoundaryValues(texts={"city": ()}, edges={"temperature": np.array([1.0])})
    left_out: dict[str, str] = {}

    sources = [group.source for group in parity_rows(Batch(table), None, broken, left_out=left_out)]

    assert list(left_out) == ["vocabulary"]
    assert {"example", "ranges", "thresholds", "unseen", "far together"} <= set(sources)
    assert "vocabulary" not in sources


def test_a_column_of_categories_has_another_one_in_rows_of_its_own(table):
    typed = table.assign(half=0.5).astype(dict.fromkeys(("city", "hour", "half"), "category"))

    groups = [
        group
        for group in parity_rows(Batch(typed), None, BoundaryValues())
        if group.source == "unseen"
    ]

    assert [group.columns for group in groups] == [("city",), ("hour",)]
    for group in groups:
        (name,), batch = group.columns, pd.DataFrame(group.batch.data)
        learned = set(typed[name].cat.categories)
        categories = list(batch[name].cat.categories)
        assert set(batch[name]) == {categories[-1]} <= set(categories) - learned
        assert categories[-1] == max(categories)
