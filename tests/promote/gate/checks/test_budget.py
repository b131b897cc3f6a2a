import os
import resource

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InferenceError
from mlflow_deploy_plugin.core.registry.policy import BudgetPolicy
from mlflow_deploy_plugin.promote.gate.checks.budget import (
    MeasuredCost,
    check_budget,
    measure_costs,
    median_ratio,
)
from tests.support.classifiers import COLUMNS, labelled, write_classifier
from tests.support.refusals import mentions, refused


def cost(row_ms=1.0, batch_ms=10.0, memory_mb=100.0):
    rounds = range(1, 4)  # The load of the machine grows in each round.
    return MeasuredCost(
        memory_mb * 1e6,
        tuple(np.full(20, row_ms * slow / 1e3) for slow in rounds),
        tuple(np.full(5, batch_ms * slow / 1e3) for slow in rounds),
    )


@pytest.mark.parametrize(
    ("candidate", "policy", "state", "names"),
    [
        (cost(), {}, "passed", ["a row 2 ms", "1 times models:/m/1"]),
        (cost(row_ms=2.5), {}, "failed", ["a row 5 ms", "2.5 times models:/m/1", "allows 2"]),
        (
            cost(batch_ms=30),
            {},
            "failed",
            ["a batch of 64 60 ms", "3 times models:/m/1", "allows 2"],
        ),
        (cost(memory_mb=300), {}, "failed", ["memory 300 MB", "3 times models:/m/1", "allows 2"]),
        (cost(row_ms=2.5), {"max_latency_ratio": 3}, "passed", ["a row 5 ms"]),
        (cost(row_ms=2.5), {"max_latency_ratio": None}, "passed", ["a row 5 ms"]),
        (cost(row_ms=2.5), {"ignore_below_ms": 10}, "passed", ["a row 5 ms"]),
        (cost(), {"max_p99_ms": 2.5}, "failed", ["99th percentile", "3.00 ms", "allows 2.5"]),
        (cost(), {"max_memory_mb": 50}, "failed", ["100 MB", "allows 50"]),
    ],
)
def test_cost_ratio_is_limited(candidate, policy, state, names):
    result = check_budget(candidate, cost(), BudgetPolicy(**policy), "models:/m/1")
    assert result.state == state
    assert mentions(result.reason, *names)


def test_only_absolute_limits_apply_without_served_version():
    result = check_budget(cost(row_ms=500), None, BudgetPolicy())
    assert result.state == "passed"
    assert "ratio" not in " ".join(result.figures)
    assert check_budget(cost(), None, BudgetPolicy(max_memory_mb=50)).state == "failed"


@pytest.fixture
def many_open_files():
    """Open files so that the next file numbers are above 1,023, as in a server with a
    thousand connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    opened = []
    try:
        while not opened or opened[-1] < 1024:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
def test_two_versions_are_measured_alternately(tmp_path):
    small = write_classifier(tmp_path / "small")
    slow = write_classifier(
        tmp_path / "slow",
        extra="""zero = Constant <value = int64[1] {0}> ()
        big = RandomNormal <shape = [4000, 1000], dtype = 11> ()
        first = Gather <axis = 0> (x, zero)
        total = ReduceSum <keepdims = 0> (big)
        none = Sub(total, total)
        z = Add(x, none)""",
    )
    rows = {name: values for name, values in labelled(20).items() if name in COLUMNS}
    plain, costly = measure_costs([small, slow], rows, 8, rounds=2)
    assert len(plain.rows) == len(plain.batches) == 2
    assert median_ratio(costly.rows, plain.rows) > 5
    assert costly.memory - plain.memory > 10e6  # The model has 32 MB of random numbers.


@pytest.mark.usefixtures("many_open_files")
def test_failing_model_has_a_reason(tmp_path):
    folder = write_classifier(tmp_path / "model")
    with refused(InferenceError, "measured", "column 'b'"):
        measure_costs([folder], {"a": np.zeros(3)}, 8, rounds=1)
