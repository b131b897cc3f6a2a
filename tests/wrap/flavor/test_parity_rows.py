from typing import Any

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


def _by_source(example, parity_data=None, **known):
    further = None if parity_data is None else Batch(parity_data)
    groups = parity_rows(Batch(example), further, BoundaryValues(**known))
    return {group.source: group for group in groups}


def _drawn(example, source, **known):
    """Return the rows of a source."""
    return _by_source(example, **known)[source].batch.data


def test_few_rows_become_a_thousand(table):
    groups = list(parity_rows(Batch(table), Batch(table.head(2)), BoundaryValues()))

    assert sum(len(group.batch) for group in groups) >= MIN_PARITY_ROWS
    assert [(group.source, len(group.batch)) for group in groups if not group.generated] == [
        ("example", 4),
        ("parity_data", 2),
    ]


def test_generated_rows_keep_types_and_ranges(table):
    rows = _drawn(table, "ranges")

    assert rows.dtypes.to_dict() == table.dtypes.to_dict()
    assert rows.temperature.between(-3.25, 20).all()
    assert set(rows.city) == {"rome", "oslo", "lima"}
    assert rows.temperature.nunique() <= 4  # Columns with few distinct numbers are codes.
    pd.testing.assert_frame_equal(rows, _drawn(table, "ranges"))


def test_single_numbers_get_a_range():
    rows = _drawn(
        pd.DataFrame({"a": [20.0], "b": [-0.5], "gap": [np.inf], "city": ["rome"]}), "ranges"
    )

    assert rows.a.between(0, 40).all()
    assert rows.a.nunique() > 500
    assert rows.b.between(-1.5, 0.5).all()
    assert np.isinf(rows.gap).all()
    zeros = _drawn({"": np.zeros((2, 3, 4), np.float32)}, "ranges")
    assert len(np.unique(zeros[""])) > 1000


def test_thresholds_are_tried_in_both_precisions(table):
    edge = 0.1

    rows = _by_source(table, edges={"temperature": np.array([edge])})["thresholds"]

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


def test_far_numbers_come_alone_and_together(table):
    alone = _drawn(table, "far")
    together = _drawn(table, "far together")

    assert alone.temperature.abs().max() == pytest.approx(20e6)
    # Only one column changes at a time.
    assert 5 <= (alone.temperature.abs() > 1000).sum() < len(alone) / 2
    assert (together.temperature.abs() > 1e5).any()
    assert (together[["temperature", "hour"]] == 0).all(axis=1).any()
    assert together.hour.dtype == np.int64


def test_sentinels_come_alone_and_together(table):
    together = _drawn(table, "sentinels together")
    near = _drawn(table, "sentinels", farthest=1e9)

    sentinels = {-999.0, 999_999_999.0, -1e9, 1e9, -1e15, 1e15}
    assert sentinels <= set(_drawn(table, "sentinels").temperature)
    assert set(together.temperature) == set(together.hour)
    assert near.temperature.abs().max() == 1e9


def test_learned_rows_come_whole_and_halved(table):
    learned = {"temperature": np.array([2.0, 4.0]), "hour": np.array([2.0, 4.0])}

    groups = _by_source(table, rows=(learned,))

    assert set(groups["learned"].batch.data.temperature) == {2.0, 4.0}
    assert set(groups["halfway"].batch.data.temperature) == {2.0, 3.0, 4.0}
    assert (groups["halfway"].may_tie, groups["learned"].may_tie) == (True, False)


def test_categories_and_similar_values_are_tried(table):
    numbers = _drawn(table, "near categories", categories={"temperature": (1.5, np.nan)})
    texts = _by_source(table, categories={"city": ("rome", "łódź")})

    assert set(texts["categories"].batch.data.city) == {"rome", "łódź"}
    assert {"ROME", "rome ", "romeé", "ŁÓDŹ"} <= set(texts["near categories"].batch.data.city)
    assert np.nextafter(1.5, 2) in set(numbers.temperature)


@pytest.mark.long
def test_wide_categories_take_few_rows():
    wide = pd.DataFrame({f"c{number}": ["a", "b"] for number in range(400)})
    learned = tuple(f"k{n}" for n in range(50))
    boundaries = BoundaryValues(categories=dict.fromkeys(wide.columns, learned))

    together, *groups = [
        group
        for group in parity_rows(Batch(wide), None, boundaries)
        if "categories" in group.source
    ]

    table: Any = together.batch.data
    assert len(table) == 200
    assert all(set(table[name]) == set(learned) for name in wide)
    assert [group.source for group in groups] == ["categories", "near categories"]
    for group in groups:
        table = group.batch.data
        assert len(table) == len(group.columns) * group.block <= 4_000
        for block, name in enumerate(group.columns):
            rows = table.iloc[block * group.block : (block + 1) * group.block]
            assert not set(rows[name]) & {"a", "b"}


def test_texts_are_made_of_the_vocabulary(table):
    rows = _by_source(table, texts={"city": ("wärm", "kind")})["vocabulary"]

    texts = set(rows.batch.data.city)
    assert rows.alone
    assert {"", " "} <= texts
    for part in ("wärm", "WÄRM", "kindé"):
        assert any(part in text for text in texts)


def test_columns_have_missing_and_unseen_values(table):
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


def test_matrix_keeps_its_dtype():
    example = {"": normal_rows(30, 3).astype(np.float32)}

    for group in _by_source(example, edges={"1": np.array([0.5])}).values():
        assert group.batch.data[""].dtype == np.float32
        assert group.batch.data[""].shape[1] == 3


def test_tensors_are_drawn_within_their_range():
    example = {
        "ids": np.array([[1, 5], [3, 9]]),
        "image": np.ones((2, 4, 4), np.float32),
        "large": np.array([0, 2**63 + 5], dtype=np.uint64),
    }

    groups = [
        group
        for group in parity_rows(Batch(example), None, BoundaryValues())
        if group.source == "ranges"
    ]

    assert sum(len(group.batch) for group in groups) >= MIN_PARITY_ROWS - 2
    for group in groups:
        assert group.batch.data["ids"].min() >= 1
        assert group.batch.data["ids"].max() <= 9
        assert group.batch.data["image"].shape[1:] == (4, 4)
        assert group.batch.data["large"].dtype == np.uint64


@pytest.mark.parametrize("largest", [np.inf, 1.5e308, 1.0])
def test_any_span_of_numbers_is_drawn(largest):
    example = pd.DataFrame({"a": [-largest, largest, *np.linspace(0, 1, 50)], "n": np.arange(52)})

    rows = _drawn(example, "ranges")
    tensors = _drawn({"x": example.to_numpy()[:, :, None]}, "ranges")

    assert len(rows) == 600
    assert rows.a.nunique() > 500
    assert rows.n.between(0, 51).all()
    assert rows.n.dtype == np.int64
    assert len(tensors["x"]) > 0


def test_infinite_thresholds_are_left_out():
    example = pd.DataFrame({"a": np.arange(50.0), "n": pd.array([None, *range(49)], dtype="Int64")})

    edges = np.array([5.5, np.inf])
    rows = _drawn(example, "thresholds", edges={"a": edges, "n": edges})

    assert np.isfinite(rows.a).all()
    assert rows.n.dtype == "Int64"
    assert {5, 6} <= set(rows.n.dropna())


@pytest.mark.long
def test_gaps_of_wide_tables_are_bounded():
    example = pd.DataFrame(normal_rows(20, 1500)).rename(columns=str)

    group = _by_source(example)["missing"]
    gaps = pd.DataFrame(group.batch.data).isna()

    assert gaps.size < 5_000_000
    assert (gaps.sum(axis=1) == np.resize([0] + [1] * (group.block - 1), len(gaps))).all()
    assert gaps.any().sum() == len(group.columns) > 50  # Some columns change, one at a time.


def test_failed_generator_is_named(table):
    broken = BoundaryValues(texts={"city": ()}, edges={"temperature": np.array([1.0])})
    left_out: dict[str, str] = {}

    sources = [group.source for group in parity_rows(Batch(table), None, broken, left_out=left_out)]

    assert list(left_out) == ["vocabulary"]
    assert {"example", "ranges", "thresholds", "unseen", "far together"} <= set(sources)
    assert "vocabulary" not in sources


def test_unseen_categories_have_their_own_rows(table):
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
