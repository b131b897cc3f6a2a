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
_MEMORY_MARGIN = 1.25
_MIB = 2**20
_MOST_PODS = 1000


@dataclass(frozen=True)
class PodMeasurement:
    """One pod under load on this machine.

    Attributes:
        workers, threads, max_batch_size: fields of the server: `workers`, `intra_op_num_threads`, `max_batch_size`.
        cores: the cores of the pod, to which its processes were pinned.
        highest_rate: the highest rate of requests per second at which the 99th percentile held the limit.
        rate: the planned rate of the pod, below `highest_rate` by the headroom, at which the next figures are measured.
        p99: 99th percentile of the latency in seconds.
        cpus: CPU seconds per second of all processes.
        memory_bytes: the largest memory of all processes; `version_bytes` is the size of the version's files.
    """

    workers: int
    threads: int
    max_batch_size: int
    cores: int
    highest_rate: float
    rate: float
    p99: float
    cpus: float
    memory_bytes: int
    version_bytes: int


@dataclass(frozen=True)
class Plan:
    """The pods for a rate of requests.

    Attributes:
        memory_bytes: the memory limit of a pod: 125 % of the measured memory and a second copy of the version's files
            for each worker, because a worker loads a new version before it drops the old version.
        cost_per_million: price of a million predicted rows at the rate.
        options, hpa, keda: fields of the spec for `-C`: of the pods, and of each autoscaler.
    """

    pods: int
    cpus: float
    memory_bytes: int
    cost_per_million: float
    options: Mapping[str, object]
    hpa: Mapping[str, object]
    keda: Mapping[str, object]


def plan_pods(
    pod: PodMeasurement,
    rate: float,
    rows: int = 1,
    cpu_hour_price: float = CPU_HOUR_PRICE,
    gb_hour_price: float = GB_HOUR_PRICE,
) -> Plan:
    """Return the pods for `rate` requests per second with `rows` rows each. Raises InvalidConfig for over 1,000 pods."""
    pods = math.ceil(rate / pod.rate)
    if pods > _MOST_PODS:
        raise InvalidConfig(
            f"--rate {rate:g}: {pods:,} pods would be needed, and {_MOST_PODS:,} pods of this machine's cores reach "
            f"{_MOST_PODS * pod.rate:,.0f} requests/s; set a lower rate, or more workers per pod: -C server.workers=…"
        )
    memory = math.ceil(_MEMORY_MARGIN * (pod.memory_bytes + pod.workers * pod.version_bytes) / _MIB) * _MIB
    hourly = pods * (pod.cores * cpu_hour_price + memory / 1e9 * gb_hour_price)
    options = {
        "server.workers": pod.workers,
        "server.intra_op_num_threads": pod.threads,
        "server.max_batch_size": pod.max_batch_size,
        "container.cpus": pod.cores,
        "container.memory_bytes": memory,
        "kubernetes.replicas": pods,
    }
    # The autoscaler may double the pods. Its thresholds are the CPU and the rate of a pod at the planned rate.
    most = {"kubernetes.max_replicas": min(2 * pods, _MOST_PODS)}
    hpa = {**most, "kubernetes.target_cpu_percent": max(1, min(100, round(100 * pod.cpus / pod.cores)))}
    keda = {
        **most,
        "kubernetes.requests_per_second": float(f"{pod.rate:.3g}"),
        "kubernetes.prometheus_url": "http://prometheus:9090",
    }
    return Plan(pods, pod.cores, memory, hourly / (rate * rows * 3600) * 1e6, options, hpa, keda)


def config_line(options: Mapping[str, object]) -> str:
    """Return fields of a spec as the options `-C NAME=VALUE` of a shell command."""
    return " ".join(f"-C {shlex.quote(f'{name}={value}')}" for name, value in options.items())
