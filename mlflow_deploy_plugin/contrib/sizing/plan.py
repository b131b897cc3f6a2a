"""The pods, resources and cost that a rate of requests needs, computed from the
measurement of one pod.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_deploy_plugin.core.errors import InvalidConfig

HEADROOM = 0.3
"""The share of a pod's highest rate that stays free for bursts and lost pods:
Kubernetes' autoscalers aim at 70 %.
"""
CPU_HOUR_PRICE = 0.04048
GB_HOUR_PRICE = 0.004445
"""USD per vCPU and hour, and per GB and hour: AWS Fargate, Linux on x86, us-east-1."""
MOST_PODS = 500  # An autoscaler may double the pods, and an endpoint has at most 1,000.
_MEMORY_MARGIN = 1.25
_MIB = 2**20
_TOLERATED_CPUS = 0.25


@dataclass(frozen=True)
class Load:
    """A load of a pod.

    Attributes:
        rate: the requests per second.
        p99: the 99th percentile of the latency in seconds.
        error: the first wrong answer; empty if all answers are right.
        cpus: the number of cores that the pod used.
        other_cpus: the number of cores that other processes of this machine used.
    """

    rate: float
    p99: float
    error: str
    cpus: float
    other_cpus: float

    def holds(self, p99: float) -> bool:
        """Return True if all answers are right, and the 99th percentile of the latency
        is at most `p99` seconds.
        """
        return not self.error and self.p99 <= p99

    def require(self, p99: float) -> None:
        """Raise InvalidConfig if the load does not hold `p99`."""
        if self.error:
            raise InvalidConfig(
                f"the model answers its own example with {self.error}; log a valid input_example"
            )
        if self.p99 > p99:
            raise InvalidConfig(
                f"--p99 {p99 * 1e3:g}ms: the 99th percentile is {self.p99 * 1e3:.3g} ms at "
                f"{self.rate:.3g} requests/s (other processes used {self.other_cpus:.1f} cores); "
                "set a larger --p99, or try `onnxserve optimize`"
            )


@dataclass(frozen=True)
class PodMeasurement:
    """A pod under load.

    Attributes:
        threads: the number of threads per worker (intra_op_num_threads).
        highest: the load with the highest rate that holds.
        planned: the load at the pod's share of the wanted rate.
        memory_bytes: the peak memory of all processes.
        version_bytes: the size of the version's files.
    """

    workers: int
    threads: int
    max_batch_size: int
    highest: Load
    planned: Load
    memory_bytes: int
    version_bytes: int


@dataclass(frozen=True)
class Plan:
    """The pods for a rate.

    Attributes:
        cost_per_million: the cost in USD per million predicted rows.
        options: the fields of the spec by dotted name.
        hpa: further fields for a HorizontalPodAutoscaler.
        keda: further fields for KEDA.
    """

    pods: int
    cost_per_million: float
    options: Mapping[str, float]
    hpa: Mapping[str, float]
    keda: Mapping[str, float]


def count_pods(rate: float, highest_rate: float) -> int:
    """Return the number of pods for `rate`, with headroom. Raises InvalidConfig for
    more than 500 pods.
    """
    rate_per_pod = highest_rate * (1 - HEADROOM)
    if (pods := math.ceil(rate / rate_per_pod)) > MOST_PODS:
        raise InvalidConfig(
            f"--rate {rate:g} needs {pods:,} pods like the measured pod; set a rate of at most "
            f"{MOST_PODS * rate_per_pod:,.0f} for {MOST_PODS} pods, or measure larger pods (-C "
            "server.workers=…)"
        )
    return pods


def plan_pods(
    pod: PodMeasurement, rate: float, rows: int, cpu_hour_price: float, gb_hour_price: float
) -> Plan:
    """Return the pods for `rate` requests per second with `rows` rows each. Raises
    InvalidConfig above 500 pods.

    The CPU limit is the cores of the pod, because a lower limit stops the workers
    during bursts. The memory limit is 125 % of the measured memory and of a copy of the
    version's files per worker, for the load of the next version.
    """
    pods = count_pods(rate, pod.highest.rate)
    cpus = pod.workers * pod.threads
    used_bytes = pod.memory_bytes + pod.workers * pod.version_bytes
    memory = math.ceil(_MEMORY_MARGIN * used_bytes / _MIB) * _MIB
    options = {
        "server.workers": pod.workers,
        "server.intra_op_num_threads": pod.threads,
        "server.max_batch_size": pod.max_batch_size,
        "container.cpus": cpus,
        "container.memory_bytes": memory,
        "kubernetes.replicas": pods,
    }
    percent = max(1, round(100 * pod.highest.cpus * (1 - HEADROOM) / cpus))
    hpa = {"kubernetes.max_replicas": 2 * pods, "kubernetes.target_cpu_percent": percent}
    rate_per_pod = float(f"{pod.highest.rate * (1 - HEADROOM):.3g}")
    keda = {"kubernetes.max_replicas": 2 * pods, "kubernetes.requests_per_second": rate_per_pod}
    pod_hour_price = cpus * cpu_hour_price + memory / 1e9 * gb_hour_price
    cost = pods * pod_hour_price / (rate * rows * 3600) * 1e6
    return Plan(pods, cost, options, hpa, keda)


def disturbance(pod: PodMeasurement, cores: int) -> str:
    """Return a warning if other processes have used more than the free cores of this
    machine; otherwise an empty text.

    `cores` is the number of cores of the machine. The pod has a core per thread, and
    its client has one core.
    """
    used = max(pod.highest.other_cpus, pod.planned.other_cpus)
    free = cores - pod.workers * pod.threads - 1
    if used <= free + _TOLERATED_CPUS:
        return ""
    return (
        f"warning: other processes used {used:.1f} cores during the measurement, and only {free} "
        f"of the {cores} cores were free for them: the rate per pod is too low, and the pods and "
        "the cost are too high; end the other processes, or measure on another machine"
    )


def config_line(options: Mapping[str, object]) -> str:
    """Return fields of a spec as the options `-C NAME=VALUE` of a shell command."""
    assignments = [f"{name}={value}" for name, value in options.items()]
    return " ".join(f"-C {shlex.quote(assignment)}" for assignment in assignments)
