"""`onnxserve export`, `build-docker`, `render` and `size`: files, images, manifests and
the resources of pods.
"""

import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    NumberRange,
    align_columns,
    config_option,
    flag,
    folder_option,
    key_values,
    model_argument,
    opened_store,
    option,
    optional_model_argument,
    output_option,
    path_option,
    show_lines,
    show_progress,
    show_result,
)
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.model_uri import default_endpoint_name
from mlflow_deploy_plugin.core.spec.document import apply_config, load_specs, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import Device, EndpointSpec, PyfuncEnv
from mlflow_deploy_plugin.core.spec.types import parse_latency
from mlflow_deploy_plugin.core.text_files import read_text
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Place, missing_settings
from mlflow_deploy_plugin.ship.sizing.plan import (
    CPU_HOUR_PRICE,
    GB_HOUR_PRICE,
    HEADROOM,
    config_line,
    disturbance,
    plan_pods,
)

if TYPE_CHECKING:
    from mlflow_deploy_plugin.wrap.exporter.exporting import ExportFormat

_PRICE = "Price of a {} per hour. AWS Fargate has this price for Linux on x86 in us-east-1."
_FORMATS = ("onnx", "ort", "wheel", "bundle", "conda", "tflite", "desktop")


@click.command()
@model_argument
@option(
    "--format",
    "export_format",
    "Format of the export.",
    type=click.Choice(_FORMATS),
    default="onnx",
)
@path_option(
    "-o --output-path",
    "File to write. A bundle may be a folder. If a wheel is written to a folder, it gets the "
    "standard file name.",
    required=True,
)
@path_option(
    "--rows",
    "Rows to check the export with: CSV, JSON, JSON Lines or Parquet.",
    show_default="the model's input example",
)
@option("--name NAME", "Package name of the wheel.", show_default="the model's name")
@path_option("--wheels FOLDER", "Folder of wheels for a bundle.")
@flag("--download-wheels", "Download onnxruntime and numpy with pip into the bundle.")
def export(
    model_uri: str, export_format: "ExportFormat", output_path: Path, **options: Any
) -> None:
    """Export a version as files that run without onnxserve.

    \b
      onnxserve export models:/flight-delay/3 --format wheel -o dist
      onnxserve export models:/flight-delay@champion --format bundle -o flights.zip \\
          --download-wheels

    The formats are: onnx, the graph with metadata; ort, ONNX Runtime's own format;
    wheel, a Python package with predict(); bundle, a folder or .zip file for machines
    without a network; conda, the same with an environment.yml; tflite, a neural network
    for TensorFlow Lite (LiteRT); desktop, a folder with a program for this machine's
    platform. The export is run on rows in a separate process. If its predictions differ
    from the predictions of the served version, FILE is not written.
    """
    if options["name"] is not None and export_format != "wheel":
        raise click.UsageError(f"--name is for a wheel; the format is {export_format}")
    if (options["wheels"] or options["download_wheels"]) and export_format != "bundle":
        raise click.UsageError(
            f"--wheels and --download-wheels are for a bundle; the format is {export_format}"
        )
    from mlflow_deploy_plugin.wrap.exporter.exporting import export as export_model

    result = export_model(model_uri, export_format, output_path, progress=show_progress, **options)
    difference = f", numbers within {result.max_error:.1g}" if result.max_error else ""
    click.echo(
        f"{result.name} version {result.version}: {result.path}, checked on {result.rows} "
        f"rows{difference}"
    )


@click.command()
@model_argument
@option("-n --name NAME:TAG", "Name of the image, including the registry for --push.")
@flag("--gpu", "Include CUDA's libraries to serve on a GPU.")
@flag("--follow", "Do not include the model: the server follows MODEL in the registry.")
@flag("--test", "Test the image: compare its answers without a network with the version's.")
@flag("--push", "Push the image. Your AWS credentials log in to ECR.")
@flag("--pull", "Rebuild the server's image on the newest base image.")
@path_option("--sbom", "File for the SBOM in CycloneDX format.")
@option("--base-image IMAGE", "Base image of the server's image, with Python 3.11 or newer.")
@option("--server-image IMAGE", "Existing server image to use instead of building an image.")
@option(
    "--platform PLATFORM",
    "Platform of the machines that run the image: linux/amd64 or linux/arm64.",
    envvar="DOCKER_DEFAULT_PLATFORM",
    show_default="the platform of this machine",
)
@option(
    "--env-manager",
    "pyfunc_env",
    "Python environment of a version without an ONNX form: uv builds one into the image, from the "
    "version's requirements. Without it, such a version is refused.",
    type=click.Choice(get_args(PyfuncEnv)),
    default="local",
)
@flag("--dry-run", "Print the input of Docker without a build.")
def build_docker(
    model_uri: str,
    name: str | None,
    gpu: bool,
    follow: bool,
    test: bool,
    push: bool,
    pull: bool,
    sbom: Path | None,
    dry_run: bool,
    pyfunc_env: PyfuncEnv,
    **images: str | None,
) -> None:
    """Build an image that serves a model.

    MODEL is a URI or a folder.

    \b
      onnxserve build-docker models:/flight-delay/3 -n flights:3
      docker run -p 8080:8080 flights:3

    The image contains the model and starts without a network. With --follow, it loads
    the model from the registry (-e MLFLOW_TRACKING_URI=http://…). The server's image is
    built once from this installation. The model is added as a layer, which is identical
    for identical inputs. An image that fails its --test is kept but not pushed. The
    image meets the container contracts of MLflow, SageMaker, Vertex AI, Azure ML,
    KServe and Cloud Run.
    """
    from mlflow_deploy_plugin.ship.images.build import build_image, planned_image
    from mlflow_deploy_plugin.ship.images.engine import image_sbom, push_image

    if not (name or dry_run):
        raise click.UsageError("Missing option '-n' / '--name'.")
    if test and follow:
        raise click.UsageError(
            "--test compares the answers of the model in the image; with --follow there is none"
        )
    if test and pyfunc_env == "uv":
        raise click.UsageError(
            "--test compares answers with ONNX Runtime's; --env-manager uv is for models without "
            "an ONNX form"
        )
    if sbom is not None and not sbom.parent.is_dir():
        raise InvalidConfig(f"--sbom: there is no folder {sbom.parent}")
    device: Device = "cuda" if gpu else "cpu"
    with planned_image(
        model_uri, device=device, follow=follow, pyfunc_env=pyfunc_env, **images
    ) as plan:
        if dry_run:
            if plan.server is not None:
                arguments = " ".join((*plan.options, *plan.platform))
                click.echo(f"# {plan.server_image}: docker build {arguments}")
                show_lines([*plan.server.listing(), ""])
            show_lines([f"# {name or 'the image'}", *plan.model.listing()])
            return
        built = build_image(plan, cast("str", name), show_progress, pull)
        version = f" version {plan.resolved.version}" if plan.resolved.version else ""
        served = f"follows {model_uri}" if follow else f"{plan.resolved.name}{version}"
        size = f"{built.size / 1e6:,.0f} MB"
        click.echo(
            f"{built.name}: {served}, {size} for {built.platform}, {built.id} on "
            f"{plan.server_image}"
        )
        if test and plan.folder:
            from mlflow_deploy_plugin.ship.images.trial import try_image  # Importing numpy is slow.

            # The container must end with this process.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            trial = try_image(built.name, plan.folder, gpu)
            figures = (
                f"difference {trial.max_difference:.1g}, answer after {trial.seconds:.1f} s, "
                f"{trial.memory} memory"
            )
            click.echo(f"{built.name}: answers {trial.rows} as {served}, {figures}, {size} on disk")
    if sbom is not None:
        sbom.write_bytes(image_sbom(built.name))
        click.echo(f"{built.name}: the SBOM is in {sbom}")
    if push:
        pushed = push_image(built.name, show_progress)
        click.echo(f"{built.name}: pushed, {pushed}")


@click.command()
@option(
    "--for",
    "format_name",
    "Format of the manifests.",
    required=True,
    type=click.Choice(list(FORMATS)),
)
@option("-n --name NAME", "Stored endpoint; with MODEL, the name of a new endpoint.")
@optional_model_argument
@path_option("--spec", "spec_file", "YAML file with one endpoint.")
@option("--namespace NAME", "Namespace in Kubernetes.", default="default")
@folder_option("--folder", "Folder for the files.", show_default="standard output")
@config_option
def render(
    format_name: str,
    name: str | None,
    model_uri: str | None,
    spec_file: Path | None,
    namespace: str,
    folder: Path | None,
    config: tuple[str, ...],
) -> None:
    """Show an endpoint as manifests for GitOps.

    With MODEL, a URI or a folder, the endpoint is new.

    \b
      onnxserve render models:/flight-delay@champion --for kubernetes -n flights \\
          --namespace ml
      onnxserve render --for kubernetes --spec flights.yaml > flights.kubernetes.yaml
      onnxserve render --for kubernetes -n flights -C kubernetes.replicas=5
      onnxserve render models:/flight-delay@champion --for compose -n flights \\
          --folder deploy/

    The command does not apply manifests or change endpoints.
    """
    original: EndpointSpec
    match name, model_uri, spec_file:
        case _, str(uri), None:
            original = new_endpoint(name or default_endpoint_name(uri), uri)
        case None, None, Path() as file:
            original, *surplus = load_specs(read_text(file, "the spec"), file.parent)
            if surplus:
                raise InvalidConfig(
                    f"{file} contains {len(surplus) + 1} endpoints; only one is allowed"
                )
        case str(stored), None, None:
            with opened_store() as store:
                original = store.require_endpoint(stored).spec
        case _:
            raise click.UsageError("specify MODEL, --spec FILE, or -n NAME of a stored endpoint")
    spec = apply_config(original, key_values(config))
    files = FORMATS[format_name](spec, Place(namespace))
    # The files must be readable for the user of the server, which runs in a unit or
    # container.
    os.umask(0o022)
    for path, text in files.items():
        if folder is None:
            if len(files) > 1:
                click.echo(f"# {path}")
            click.echo(text, nl=False)
            continue
        try:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        except OSError as error:
            raise InvalidConfig(f"{folder / path} cannot be written: {error.strerror}") from None
        show_progress(f"written: {folder / path}")
    if format_name != "helm":  # The chart's values may have the rest.
        for sentence in missing_settings(spec):
            show_progress(f"note: the server of {spec.name} {sentence}")


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
    from mlflow_deploy_plugin.core.registry.resolution import resolve
    from mlflow_deploy_plugin.serve.device import require_device
    from mlflow_deploy_plugin.ship.sizing.measure import measure_pod, request_bodies
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
