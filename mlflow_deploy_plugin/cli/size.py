"""`onnxserve size`: the pods and resources that a model needs for a rate of requests."""

import shlex
from dataclasses import asdict

import click

from mlflow_deploy_plugin.cli.options import (
    NumberRange,
    align_columns,
    config_option,
    key_values,
    option,
    output_option,
    show_progress,
    show_result,
)
from mlflow_deploy_plugin.server.device import require_device
from mlflow_deploy_plugin.sizing.plan import (
    CPU_HOUR_PRICE,
    GB_HOUR_PRICE,
    HEADROOM,
    NOTICEABLE_CPUS,
    config_line,
    plan_pods,
)
from mlflow_deploy_plugin.spec import apply_config, new_endpoint
from mlflow_deploy_plugin.spec.types import parse_latency

_PRICE = "Price of a {} per hour, e.g. of AWS Fargate, Linux on x86, in us-east-1."


@click.command()
@click.argument("model_uri", metavar="MODEL_URI")
@option("--rate", type=NumberRange(1e-3, 1e9), required=True, metavar="RATE", help="Requests per second.")
@option("--p99", required=True, metavar="LATENCY", help="Largest 99th percentile of the latency: 20ms or 1.5s.")
@option("--rows", type=click.IntRange(1), metavar="ROWS", default=1, help="Rows per request.")
@option(
    "--headroom",
    type=NumberRange(0, 0.9),
    metavar="SHARE",
    default=HEADROOM,
    help="Share of a pod's highest rate that stays free for bursts and lost pods.",
)
@option("--cpu-hour-price", type=NumberRange(0), metavar="USD", default=CPU_HOUR_PRICE, help=_PRICE.format("core"))
@option(
    "--gb-hour-price", type=NumberRange(0), metavar="USD", default=GB_HOUR_PRICE, help=_PRICE.format("GB of memory")
)
@config_option
@output_option
def size(
    model_uri: str,
    rate: float,
    p99: str,
    rows: int,
    headroom: float,
    config: tuple[str, ...],
    output: str,
    **prices: float,
) -> None:
    """Measure the pods, cores and memory that a load needs.

    The command serves the version on this machine, and searches the highest rate at which the 99th percentile of the
    latency is at most --p99. This takes two to four minutes. The requests have the rows of the version's input example.

    \b
      onnxserve size models:/flight-delay/3 --rate 500 --p99 20ms
      onnxserve size models:/flight-delay/3 --rate 500 --p99 20ms -C server.workers=4 -C capture.fraction=0.1
    """
    from mlflow_deploy_plugin.evaluation import downloaded_version
    from mlflow_deploy_plugin.registry import default_endpoint_name, resolve
    from mlflow_deploy_plugin.sizing.measure import measure_pod, request_bodies

    limit, changes = parse_latency(p99, "--p99"), key_values(config)
    spec = apply_config(new_endpoint(default_endpoint_name(model_uri), model_uri), changes)
    require_device(spec.server)
    with downloaded_version(resolve(model_uri)) as folder:
        bodies = request_bodies(folder, rows)
        pod = measure_pod(spec, folder, bodies, rate, limit, headroom, show_progress)
    plan = plan_pods(pod, rate, rows, headroom, prices["cpu_hour_price"], prices["gb_hour_price"])
    options = config_line({**changes, **plan.options})
    render = f"onnxserve render -n {spec.name} -m {shlex.quote(model_uri)} {options}"
    table = [
        ("pods", f"{plan.pods} for {rate:,g} requests/s"),
        (
            "rate per pod",
            f"{pod.rate:,.1f} requests/s; at most {pod.highest_rate:,.1f}, of which {headroom:.0%} stay free",
        ),
        ("p99", f"{pod.p99 * 1e3:.3g} ms; limit {p99}"),
        ("server", f"workers {pod.workers}, threads {pod.threads}, batch size {pod.max_batch_size}"),
        ("CPU per pod", f"{pod.cpus:.2f} cores; limit {plan.cpus}"),
        ("memory per pod", f"{pod.memory_bytes / 1e6:,.0f} MB; limit {plan.memory_bytes / 1e6:,.0f} MB"),
        ("cost", f"{plan.cost_per_million:.3g} USD per million predictions"),
        ("options", options),
        ("autoscaler", f"{render} {config_line(plan.hpa)} --for kubernetes"),
        ("KEDA", f"{render} {config_line(plan.keda)} --for keda"),
    ]
    if pod.other_cpus > NOTICEABLE_CPUS:
        click.echo(
            f"Note: other processes used {pod.other_cpus:.1f} of the {pod.cores + 1} cores of the measurement; "
            "the rate may be too low, and the latency too high",
            err=True,
        )
    show_result(output, {"pod": asdict(pod), "plan": asdict(plan)}, align_columns(table))
