"""Shares of the traffic."""

from dataclasses import dataclass

import pytest

from mlflow_deploy_plugin.server.routing import answering, choose


@dataclass(frozen=True)
class Variant:
    weight: int
    shadow: bool = False


@pytest.mark.parametrize("weights", [(1,), (95, 5), (1, 1, 1), (100, 100), (3, 0, 7)])
def test_draws_fall_into_the_shares_of_the_weights(weights: tuple[int, ...]) -> None:
    variants = answering([Variant(weight) for weight in weights])
    total = sum(weights)
    chosen = [choose(variants, (mark + 0.5) / total) for mark in range(total)]
    assert [chosen.count(variant) for variant in dict.fromkeys(variants)] == [
        sum(weight for weight in weights if weight == variant.weight) for variant in dict.fromkeys(variants)
    ]


def test_the_ends_of_the_draw_are_someones() -> None:
    variants = [Variant(1), Variant(2)]
    assert choose(variants, 0.0) is variants[0]
    assert choose(variants, 1.0) is variants[1]


def test_neither_shadow_nor_zero_answers() -> None:
    assert answering([Variant(0), Variant(9, shadow=True)]) == ()
