"""`onnxserve size`: the resources of pods."""

import os
import shlex

import click

from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    NumberRange,
    align_columns,
    config_option,
    key_values,
    model_argument,
    option,
    output_option,
    show_progress,
    show_result,
)
from mlflow_deploy_plugin.contrib.sizing.plan import (
    CPU_HOUR_PRICE,
    GB_HOUR_PRICE,
    HEADROOM,
    config_line,
    disturbance,
    plan_pods,
)
from mlflow_deploy_plugin.core.registry.model_uri import default_endpoint_name
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.spec.types import parse_latency

_PRICE = "Price of a {} per hour. AWS Fargate has this price for Linux on x86 in us-east-1."


@click.command()
@model_argument
@option("--rate RATE", "Requests per second.", type=NumberRange(1e-3, 1e9), required=True)
@option("--p99 LATENCY", "Largest 99th percentile of the latency: 20ms or 1.5s.", required=True)
@option("--rows ROWS", "Rows per request.", type=POSITIVE, default=1)
@option("--cpu-hour-price USD", _PRICE.format("core"), type=NumberRange(0), default=CPU_HOUR_PRICE)
@option("--gb-hour-price USD", _PRICE.format("GB"), type=NumberRange(0), default=GB_HOUR_PRICE)
@config_option
@output_option
def size(
    model_uri: str,
    rate: float,
    p99: str,
    rows: int,
    config: tuple[str, ...],
    output: str,
    **prices: float,
) -> None:
    """Measure the pods, cores and memory that a load needs.

    The command serves the version on this machine, and searches the highest rate at
    which the 99th percentile of the latency is at most --p99. This takes two to six
    minutes. The requests have the rows of the version's input example.

    \b
      onnxserve size models:/flight-delay/3 --rate 500 --p99 20ms \\
          -C capture.fraction=0.1
    """
    from mlflow_deploy_plugin.contrib.sizing.measure import measure_pod, request_bodies
    from mlflow_deploy_plugin.core.registry.resolution import resolve
    from mlflow_deploy_plugin.serve.device import require_device
    from mlflow_deploy_plugin.wrap.evaluation.model import downloaded_version

    limit = parse_latency(p99, "--p99")
    changes = key_values(config)
    spec = apply_config(new_endpoint(default_endpoint_name(model_uri), model_uri), changes)
    require_device(spec.server)
    with downloaded_version(resolve(model_uri)) as folder:
        pod = measure_pod(spec, folder, request_bodies(folder, rows), rate, limit, show_progress)
    plan = plan_pods(pod, rate, rows, **prices)
    options = config_line({**changes, **plan.options})
    load = pod.planned
    memory = plan.options["container.memory_bytes"] / 1e6
    render = f"onnxserve render {shlex.quote(model_uri)} -n {spec.name} {options}"
    table = [
        ("pods", f"{plan.pods} for {rate:,g} requests/s"),
        (
            "rate per pod",
            f"{load.rate:,.1f} requests/s; at most {pod.highest.rate:,.1f}, of which "
            f"{HEADROOM:.0%} stay free",
        ),
        (
            "p99",
            f"{load.p99 * 1e3:.3g} ms; limit {p99}; other processes used {load.other_cpus:.1f} "
            "cores",
        ),
        (
            "server",
            f"workers {pod.workers}, threads {pod.threads}, batch size {pod.max_batch_size}",
        ),
        ("CPU per pod", f"{load.cpus:.2f} cores; limit {plan.options['container.cpus']}"),
        ("memory per pod", f"{pod.memory_bytes / 1e6:,.0f} MB; limit {memory:,.0f} MB"),
        ("cost", f"{plan.cost_per_million:.3g} USD per million predictions"),
        ("options", options),
        ("autoscaler", f"{render} {config_line(plan.hpa)} --for kubernetes"),
        ("KEDA", f"{render} {config_line(plan.keda)} --for keda"),
    ]
    warning = disturbance(pod, os.cpu_count() or 1)
    show_result(output, {"pod": pod, "plan": plan, "warning": warning}, align_columns(table))
    if warning:
        show_progress(warning)
