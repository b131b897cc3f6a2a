"""`onnxserve export`, `build-docker` and `render`: files, images and manifests."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import click

from mlflow_deploy_plugin.cli.options import (
    config_option,
    flag,
    folder_option,
    key_values,
    model_argument,
    opened_store,
    option,
    optional_model_argument,
    path_option,
    registry_options,
    show_lines,
    show_progress,
)
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.extensions import EXPORTERS, RUNTIMES, find_entry, registered_in
from mlflow_deploy_plugin.core.registry.model_uri import default_endpoint_name, registry_uri
from mlflow_deploy_plugin.core.spec.document import (
    apply_config,
    load_specs,
    new_endpoint,
)
from mlflow_deploy_plugin.core.spec.parts import Device, EndpointSpec, PyfuncEnv
from mlflow_deploy_plugin.core.text_files import read_text
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS, render_files
from mlflow_deploy_plugin.ship.manifests.served import Place, missing_settings

_FORMATS = ("onnx", "ort", *registered_in(EXPORTERS))


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
    model_uri: str, export_format: str, output_path: Path, rows: Path | None, **options: Any
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

    given = {name: value for name, value in options.items() if value}
    result = export_model(
        model_uri, export_format, output_path, rows=rows, progress=show_progress, **given
    )
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
@registry_options
@option(
    "--replicas COUNT",
    "Number of servers of all registered models, behind an nginx that sends each model to the same "
    "one.",
    type=int,
    show_default="one Deployment or service",
)
@option("--namespace NAME", "Namespace in Kubernetes.", default="default")
@folder_option("--folder", "Folder for the files.", show_default="standard output")
@flag("--runtime", "Show the runtime that serves the models of KServe's InferenceServices.")
@flag("--no-auto-select", "With --runtime, serve only InferenceServices that name the runtime.")
@config_option
def render(
    format_name: str,
    name: str | None,
    model_uri: str | None,
    spec_file: Path | None,
    registry: str | None,
    only: str,
    replicas: int | None,
    namespace: str,
    folder: Path | None,
    runtime: bool,
    no_auto_select: bool,
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
      onnxserve render --for kserve --runtime -C container.image=…/onnxserve:runtime
      onnxserve render --for kubernetes --registry @champion --replicas 4

    The command does not apply manifests or change endpoints.
    """
    if runtime or no_auto_select:
        if not runtime or name or model_uri or spec_file:
            raise click.UsageError(
                "--runtime is for all models, without MODEL, --spec and -n; --no-auto-select is "
                "for --runtime"
            )
        render_runtime = find_entry(RUNTIMES, format_name, "runtime", ())
        _show_files(render_runtime(key_values(config), not no_auto_select), folder)
        return
    original: EndpointSpec
    match name, model_uri, spec_file, registry:
        case _, str(uri), None, None:
            original = new_endpoint(name or default_endpoint_name(uri), uri)
        case _, None, None, str(selector) if "*" in only:
            original = new_endpoint(name or "registry", registry_uri(selector, only))
        case None, None, Path() as file, None:
            original, *surplus = load_specs(read_text(file, "the spec"), file.parent)
            if surplus:
                raise InvalidConfig(
                    f"{file} contains {len(surplus) + 1} endpoints; only one is allowed"
                )
        case str(stored), None, None, None:
            with opened_store() as store:
                original = store.require_endpoint(stored).spec
        case _:
            raise click.UsageError(
                "specify either MODEL, --spec FILE, -n NAME of a stored endpoint, or --registry "
                "@ALIAS with a pattern --only that has a *"
            )
    changes = key_values(config)
    if replicas is not None:
        changes["proxy.replicas"] = str(replicas)
    spec = apply_config(original, changes)
    files = render_files(format_name, spec, Place(namespace))
    _show_files(files, folder)
    if format_name != "helm":  # The chart's values may have the rest.
        for sentence in missing_settings(spec):
            show_progress(f"note: the server of {spec.name} {sentence}")


def _show_files(files: Mapping[str, str], folder: Path | None) -> None:
    """Write the files (path → text) into the folder, or to standard output."""
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
