"""The pods, resources and cost that a rate of requests needs, computed from the measurement of one pod."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_deploy_plugin.errors import InvalidConfig

HEADROOM = 0.3
"""The default of `kubernetes.target_cpu_percent`, 70 %, leaves the same share of a pod free."""
CPU_HOUR_PRICE, GB_HOUR_PRICE = 0.04048, 0.004445
"""USD per vCPU and hour, and per GB and hour: AWS Fargate, Linux on x86, us-east-1."""
MOST_PODS = 500
"""An autoscaler may double the pods, and an endpoint has at most 1,000."""
NOTICEABLE_CPUS = 0.1
"""If other processes use more cores, the measured latency may be theirs."""
_MEMORY_MARGIN, _MIB = 1.25, 2**20


@dataclass(frozen=True)
class PodMeasurement:
    """A pod under load. The server has `workers`, `threads` (intra_op_num_threads) and `max_batch_size`.

    Attributes:
        cores: the cores of the pod.
        highest_rate: requests per second up to which the 99th percentile of the latency is below its limit.
        highest_cpus: CPU seconds per second of all processes at this rate.
        rate: the pod's share of the wanted rate, at which the next figures are measured.
        p99: 99th percentile of the latency in seconds.
        cpus: CPU seconds per second of all processes of the pod.
        other_cpus: CPU seconds per second that unrelated processes used on the cores of the measurement.
        memory_bytes: peak memory of all processes; `version_bytes` is the size of the version's files.
    """

    workers: int
    threads: int
    max_batch_size: int
    cores: int
    highest_rate: float
    highest_cpus: float
    rate: float
    p99: float
    cpus: float
    other_cpus: float
    memory_bytes: int
    version_bytes: int


@dataclass(frozen=True)
class Plan:
    """The pods for a rate.

    Attributes:
        cpus: CPU limit of a pod: its cores. A lower limit stops the workers during bursts.
        memory_bytes: memory limit of a pod: 125 % of the measured memory and of another copy of the version's files per
            worker, because a worker loads a new version before it drops the old version.
        cost_per_million: USD per million predicted rows.
        options, hpa, keda: fields of the spec by dotted name: of the pods, and of each autoscaler.
    """

    pods: int
    cpus: int
    memory_bytes: int
    cost_per_million: float
    options: Mapping[str, object]
    hpa: Mapping[str, object]
    keda: Mapping[str, object]


def count_pods(rate: float, rate_per_pod: float) -> int:
    """Return the number of pods for `rate`. Raises InvalidConfig for more than 500 pods."""
    if (pods := math.ceil(rate / rate_per_pod)) > MOST_PODS:
        raise InvalidConfig(
            f"--rate {rate:g} needs {pods:,} pods like the measured pod, and {MOST_PODS} pods reach "
            f"{MOST_PODS * rate_per_pod:,.0f} requests/s: set a lower rate, or larger pods (-C server.workers=…)"
        )
    return pods


def plan_pods(pod: PodMeasurement, rate: float, rows: int, headroom: float, cpu_price: float, gb_price: float) -> Plan:
    """Return the pods for `rate` requests per second with `rows` rows each, if the share `headroom` of a pod's highest
    rate stays free. The prices are USD per core or GB and hour. Raises InvalidConfig for more than 500 pods."""
    rate_per_pod, cpus = pod.highest_rate * (1 - headroom), pod.cores
    pods = count_pods(rate, rate_per_pod)
    memory = math.ceil(_MEMORY_MARGIN * (pod.memory_bytes + pod.workers * pod.version_bytes) / _MIB) * _MIB
    options = {
        "server.workers": pod.workers,
        "server.intra_op_num_threads": pod.threads,
        "server.max_batch_size": pod.max_batch_size,
        "container.cpus": cpus,
        "container.memory_bytes": memory,
        "kubernetes.replicas": pods,
    }
    most = {"kubernetes.max_replicas": 2 * pods}
    percent = round(100 * pod.highest_cpus * (1 - headroom) / cpus)
    hpa = {**most, "kubernetes.target_cpu_percent": max(1, min(100, percent))}
    keda = {**most, "kubernetes.requests_per_second": float(f"{rate_per_pod:.3g}")}
    cost = pods * (cpus * cpu_price + memory / 1e9 * gb_price) / (rate * rows * 3600) * 1e6
    return Plan(pods, cpus, memory, cost, options, hpa, keda)


def config_line(options: Mapping[str, object]) -> str:
    """Return fields of a spec as the options `-C NAME=VALUE` of a shell command."""
    return " ".join(f"-C {shlex.quote(f'{name}={value}')}" for name, value in options.items())
