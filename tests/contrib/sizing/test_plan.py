"""Tests of the plan for pods. See test_measure for the measurement."""

import shlex
from dataclasses import replace

import pytest
from hypothesis import strategies as st

from mlflow_deploy_plugin.contrib.sizing.plan import (
    MOST_PODS,
    Load,
    PodMeasurement,
    config_line,
    disturbance,
    plan_pods,
)
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from tests.support.refusals import mentions, refused

HIGHEST = Load(rate=200.0, p99=0.019, error="", cpus=1.8, other_cpus=0.0)
POD = PodMeasurement(
    workers=1,
    threads=2,
    max_batch_size=8,
    highest=HIGHEST,
    planned=Load(rate=125.0, p99=0.012, error="", cpus=1.2, other_cpus=0.0),
    memory_bytes=300 * 2**20,
    version_bytes=20 * 2**20,
)
rates = st.floats(0.001, 100_000)


def plan(pod=POD, rate=500.0, rows=1):
    return plan_pods(pod, rate, rows, cpu_hour_price=0.04, gb_hour_price=0.004)


def test_pods_leave_thirty_percent_free():
    assert plan(rate=280).pods == 2  # 200 requests/s per pod
    assert plan(rate=281).pods == 3


def test_memory_has_room_for_the_next_version():
    # 125 % of 300 MiB and a second copy of 20 MiB
    assert plan().options["container.memory_bytes"] == 400 * 2**20
    assert plan(replace(POD, workers=2)).options["container.memory_bytes"] == 425 * 2**20


def test_cpu_limit_is_the_cores_of_the_pod():
    assert plan().options["container.cpus"] == 2
    assert plan(replace(POD, workers=3)).options["container.cpus"] == 6


def test_cost_counts_predicted_rows():
    hourly = 4 * (2 * 0.04 + 400 * 2**20 / 1e9 * 0.004)
    assert plan().cost_per_million == pytest.approx(hourly / (500 * 3600) * 1e6)
    assert plan(rows=10).cost_per_million == pytest.approx(plan().cost_per_million / 10)


def test_options_are_fields_of_the_spec():
    made = plan()
    words = shlex.split(config_line({**made.options, **made.hpa}))
    values = dict(word.split("=", 1) for word in words if word != "-C")
    spec = apply_config(new_endpoint("flights", "models:/flights/1"), values)
    assert spec.server.workers == 1
    assert spec.server.intra_op_num_threads == 2
    assert spec.server.max_batch_size == 8
    assert spec.container.cpus == 2
    assert spec.container.memory_bytes == 400 * 2**20
    assert spec.kubernetes.replicas == 4
    assert spec.kubernetes.max_replicas == 8
    # 1.8 of 2 cores at the highest rate, of which 30 % stay free
    assert spec.kubernetes.target_cpu_percent == 63
    assert made.keda == {"kubernetes.max_replicas": 8, "kubernetes.requests_per_second": 140.0}


def test_too_high_rate_names_the_highest_rate():
    assert plan(rate=140 * MOST_PODS).pods == MOST_PODS
    with refused(InvalidConfig, "--rate", "70,000", "server.workers"):
        plan(rate=140 * MOST_PODS + 1)


def test_load_with_errors_or_slow_answers_fails():
    assert HIGHEST.holds(0.02)
    HIGHEST.require(0.02)
    assert not HIGHEST.holds(0.01)
    with refused(InvalidConfig, "--p99", "10ms", "19 ms", "200", "onnxserve optimize"):
        HIGHEST.require(0.01)
    failing = replace(HIGHEST, error="500: out of memory")
    assert not failing.holds(0.02)
    with refused(InvalidConfig, "500: out of memory", "input_example"):
        failing.require(0.02)


@pytest.mark.parametrize(
    ("highest", "planned", "cores", "free"),
    [
        (0.0, 0.2, 2, None),
        (0.0, 0.5, 3, 0),
        (2.0, 0.0, 4, 1),
        (1.2, 1.2, 4, None),
        (40.0, 0.0, 64, None),
    ],
)
def test_measurement_without_free_cores_is_a_warning(highest, planned, cores, free):
    """The pod has two cores, or one on the machine with two cores. Its client has
    another core.
    """
    pod = replace(
        POD,
        workers=min(2, cores - 1),
        threads=1,
        highest=replace(HIGHEST, other_cpus=highest),
        planned=replace(POD.planned, other_cpus=planned),
    )
    warning = disturbance(pod, cores)
    if free is None:
        assert warning == ""
    else:
        assert mentions(
            warning, f"used {max(highest, planned)} cores", f"only {free} of the {cores} cores"
        )
