"""Variants get their shares of the traffic, and a sticky client keeps its variant."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from mlflow_deploy_plugin.serve.variants import (
    answering_variants,
    has_sticky_column,
    sticky_key,
    sticky_variant,
    weighted_variant,
)
from tests.support.schemas import tensor_schema


@dataclass(frozen=True)
class Routed:
    """A variant as far as routing needs it."""

    weight: int
    shadow: bool = False
    name: str = ""


def variant(weight, shadow=False, name=""):
    return Routed(weight, shadow, name)


@pytest.mark.parametrize("weights", [(1,), (95, 5), (1, 1, 1), (100, 100), (3, 0, 7)])
def test_draws_match_the_weights(weights):
    variants = answering_variants([variant(weight) for weight in weights])
    total = sum(weights)
    picks = [weighted_variant(variants, (mark + 0.5) / total) for mark in range(total)]
    assert [picks.count(variant) for variant in dict.fromkeys(variants)] == [
        sum(weight for weight in weights if weight == variant.weight)
        for variant in dict.fromkeys(variants)
    ]


def test_extreme_draws_select_a_variant():
    variants = [variant(1), variant(2)]
    assert weighted_variant(variants, 0.0) is variants[0]
    assert weighted_variant(variants, 1.0) is variants[1]


def test_shadow_and_zero_never_answer():
    assert answering_variants([variant(0), variant(9, shadow=True)]) == ()


KEYS = [f"user-{number}" for number in range(1000)]
WEIGHTS = st.lists(st.integers(1, 100), min_size=1, max_size=5)


def named(weights):
    return [variant(weight, name=f"v{place}") for place, weight in enumerate(weights)]


@settings(max_examples=25)
@given(WEIGHTS)
def test_keys_match_the_weights(weights):
    variants = named(weights)
    picks = [sticky_variant(variants, "e", key) for key in KEYS]
    for variant in variants:
        share = variant.weight / sum(weights)
        deviation = (share * (1 - share) / len(KEYS)) ** 0.5
        assert abs(picks.count(variant) / len(KEYS) - share) <= 6 * deviation + 0.005


@settings(max_examples=25)
@given(WEIGHTS, st.data())
def test_growing_weight_only_attracts_callers(weights, data):
    grown = data.draw(st.integers(0, len(weights) - 1))
    more = [
        weight + data.draw(st.integers(1, 100)) if at == grown else weight
        for at, weight in enumerate(weights)
    ]
    before = named(weights)
    after = named(more)
    for key in KEYS[:200]:
        was = sticky_variant(before, "e", key).name
        now = sticky_variant(after, "e", key).name
        assert now in (was, f"v{grown}")


@settings(max_examples=25)
@given(WEIGHTS, st.randoms())
def test_order_and_scale_move_no_caller(weights, random):
    variants = named(weights)
    scaled_variants = [variant(3 * entry.weight, name=entry.name) for entry in variants]
    random.shuffle(scaled_variants)
    for key in KEYS[:200]:
        assert (
            sticky_variant(variants, "e", key).name
            == sticky_variant(scaled_variants, "e", key).name
        )


def test_caller_keeps_its_variant_everywhere():
    variants = named([50, 50])
    picks = [sticky_variant(variants, "e", key).name for key in [*KEYS[:7], "\udce9"]]
    assert picks == ["v0", "v0", "v1", "v0", "v0", "v0", "v1", "v1"]
    assert [sticky_variant(variants, "f", key).name for key in KEYS] != [
        sticky_variant(variants, "e", key).name for key in KEYS
    ]


COLUMNS = (Column("user", "string"), Column("account", "long"), Column("amount", "double"))
INPUTS = (
    Input("u", "str", (-1, 1), ("user",), missing="none"),
    Input("numbers", "float32", (-1, 2), ("amount", "account")),
)
SCHEMA = compile_schema(COLUMNS, (), INPUTS)


@pytest.mark.parametrize(
    ("column", "values", "key"),
    [
        ("user", ["ann", "bob"], "ann"),
        ("user", [None, "bob"], None),
        ("account", [7, 8], "7"),
        ("amount", [0.5, 1.0], "0.5"),
        ("amount", [2.0, 1.0], "2"),
        ("amount", [float("nan"), 1.0], None),
        ("unknown", [1, 2], None),
    ],
)
def test_first_row_has_the_key(column, values, key):
    data: dict[str, list[Any]] = {
        "user": ["a", "b"],
        "account": [1, 2],
        "amount": [1.5, 2.5],
        column: values,
    }
    assert sticky_key(SCHEMA, SCHEMA.from_columns(data), column) == key
    assert has_sticky_column(SCHEMA, column) == (column != "unknown")


def test_number_is_one_caller_in_every_type():
    apart = compile_schema(COLUMNS[1:2], (), (Input("a", "int64", (-1,), ("account",)),))
    data: dict[str, list[Any]] = {"user": ["a"], "account": [12345], "amount": [0.0]}
    assert sticky_key(apart, apart.from_columns(data), "account") == sticky_key(
        SCHEMA, SCHEMA.from_columns(data), "account"
    )


def test_tensor_is_known_by_name():
    schema = tensor_schema("int64", -1, name="id", graph_name="id")
    assert sticky_key(schema, {"id": np.array([9, 8])}, "id") == "9"
    assert sticky_key(schema, {}, "id") is None
