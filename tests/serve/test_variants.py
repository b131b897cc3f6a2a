"""Variants get their shares of the traffic, and a sticky client keeps its variant."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.serve.variants import answering_variants, sticky_variant, weighted_variant


@dataclass(frozen=True)
class Routed:
    """A variant as far as routing needs it."""

    weight: int
    shadow: bool = False
    name: str = ""


def variant(weight, shadow=False, name=""):
    return Routed(weight, shadow, name)


@pytest.mark.parametrize("weights", [(1,), (95, 5), (1, 1, 1), (100, 100), (3, 0, 7)])
def test_draws_fall_into_the_shares_of_the_weights(weights):
    variants = answering_variants([variant(weight) for weight in weights])
    total = sum(weights)
    picks = [weighted_variant(variants, (mark + 0.5) / total) for mark in range(total)]
    assert [picks.count(variant) for variant in dict.fromkeys(variants)] == [
        sum(weight for weight in weights if weight == variant.weight)
        for variant in dict.fromkeys(variants)
    ]


def test_the_ends_of_the_draw_are_someones():
    variants = [variant(1), variant(2)]
    assert weighted_variant(variants, 0.0) is variants[0]
    assert weighted_variant(variants, 1.0) is variants[1]


def test_neither_shadow_nor_zero_answers():
    assert answering_variants([variant(0), variant(9, shadow=True)]) == ()


KEYS = [f"user-{number}" for number in range(1000)]
WEIGHTS = st.lists(st.integers(1, 100), min_size=1, max_size=5)


def named(weights):
    return [variant(weight, name=f"v{place}") for place, weight in enumerate(weights)]


@settings(max_examples=25)
@given(WEIGHTS)
def test_keys_fall_into_the_shares_of_the_weights(weights):
    variants = named(weights)
    picks = [sticky_variant(variants, "e", key) for key in KEYS]
    for variant in variants:
        share = variant.weight / sum(weights)
        deviation = (share * (1 - share) / len(KEYS)) ** 0.5
        assert abs(picks.count(variant) / len(KEYS) - share) <= 6 * deviation + 0.005


@settings(max_examples=25)
@given(WEIGHTS, st.data())
def test_a_weight_that_grows_only_draws_callers_to_its_variant(weights, data):
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
def test_neither_the_order_nor_a_common_factor_moves_a_caller(weights, random):
    variants = named(weights)
    scaled_variants = [variant(3 * entry.weight, name=entry.name) for entry in variants]
    random.shuffle(scaled_variants)
    for key in KEYS[:200]:
        assert (
            sticky_variant(variants, "e", key).name
            == sticky_variant(scaled_variants, "e", key).name
        )


def test_a_caller_keeps_to_its_variant_in_every_process():
    variants = named([50, 50])
    picks = [sticky_variant(variants, "e", key).name for key in [*KEYS[:7], "\udce9"]]
    assert picks == ["v1", "v0", "v0", "v0", "v0", "v1", "v1", "v1"]
    assert [sticky_variant(variants, "f", key).name for key in KEYS] != [
        sticky_variant(variants, "e", key).name for key in KEYS
    ]
