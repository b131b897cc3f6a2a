"""The number of different values, estimated from registers that merge."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.sketches.hyperloglog import (
    count_registers,
    estimate_distinct,
    hash_numbers,
    hash_texts,
)


def registers(hashes: Array) -> Array:
    return count_registers(hashes, np.zeros(len(hashes), np.int64), 1)[0]


@pytest.mark.parametrize("count", [0, 1, 10, 500, 3_000, 50_000])
@pytest.mark.parametrize(
    "hashed", [lambda values: hash_numbers(values / 7), lambda values: hash_texts(values.astype(str))]
)
def test_the_estimate_is_good_to_a_few_percent_and_nearly_exact_for_few(count: int, hashed: Callable[..., Any]) -> None:
    values = hashed(np.arange(count))

    assert estimate_distinct(registers(np.concatenate([values, values]))) == pytest.approx(count, rel=0.1, abs=0.5)


def test_merged_registers_are_those_of_all_values() -> None:
    left, right = hash_numbers(np.arange(0.0, 900.0)), hash_numbers(np.arange(600.0, 2000.0))

    merged = np.maximum(registers(left), registers(right))

    np.testing.assert_array_equal(merged, registers(np.concatenate([left, right])))


def test_groups_have_registers_of_their_own() -> None:
    hashes, groups = hash_numbers(np.arange(100.0)), np.arange(100) % 3

    for group, one in enumerate(count_registers(hashes, groups, 3)):
        np.testing.assert_array_equal(one, registers(hashes[groups == group]))


def test_both_zeros_are_one_value_and_hashes_are_the_same_in_every_process() -> None:
    assert hash_numbers(np.array([0.0])) == hash_numbers(np.array([-0.0]))
    assert hash_texts(["flights"])[0] == 2708606575706552584
