"""`onnxserve render`: an endpoint as documents for those who run servers, printed and not applied."""

from pathlib import Path

import click

from mlflow_deploy_plugin.cli.options import key_values, opened_store, read_spec_file, show_progress
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.manifests import FORMATS, Place
from mlflow_deploy_plugin.registry import default_endpoint_name
from mlflow_deploy_plugin.spec import EndpointSpec, apply_config, load_specs, new_endpoint


@click.command()
@click.option("--for", "format_name", required=True, type=click.Choice(list(FORMATS)), help="Form of the documents.")
@click.option("-n", "--name", metavar="NAME", help="Endpoint: a stored one, or with -m the name of a new one.")
@click.option("-m", "--model-uri", metavar="URI", help="Model of a new endpoint.")
@click.option(
    "--spec", "spec_file", type=click.Path(path_type=Path), metavar="FILE", help="YAML file with one endpoint."
)
@click.option("--namespace", default="default", show_default=True, metavar="NAME", help="Namespace in Kubernetes.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    show_default="they are printed",
    help="Folder that the files are written to.",
)
@click.option("-C", "--config", multiple=True, metavar="KEY=VALUE", help="Field to set; may be given again.")
def render(
    format_name: str,
    name: str | None,
    model_uri: str | None,
    spec_file: Path | None,
    namespace: str,
    output: Path | None,
    config: tuple[str, ...],
) -> None:
    """Show an endpoint as manifests, for GitOps.

    \b
      onnxserve render --for kubernetes -n flights -m models:/flight-delay/Production --namespace ml
      onnxserve render --for kubernetes --spec flights.yaml > flights.kubernetes.yaml
      onnxserve render --for kubernetes -n flights -C kubernetes.replicas=5
      onnxserve render --for compose -n flights -m models:/flight-delay/Production -o deploy/

    Nothing is applied or changed.
    """
    found: EndpointSpec
    match name, model_uri, spec_file:
        case _, str(uri), None:
            found = new_endpoint(name or default_endpoint_name(uri), uri)
        case None, None, Path() as file:
            found, *others = load_specs(read_spec_file(file))
            if others:
                raise InvalidConfig(f"{file} has {len(others) + 1} endpoints: one is expected")
        case str(stored), None, None:
            with opened_store() as store:
                found = store.require_endpoint(stored).spec
        case _:
            raise InvalidConfig("give -m MODEL_URI, --spec FILE, or -n NAME of a stored endpoint")
    files = FORMATS[format_name](apply_config(found, key_values(config)), Place(namespace))
    for path, text in files.items():
        if output is None:
            click.echo(f"# {path}\n{text}" if len(files) > 1 else text, nl=False)
            continue
        try:
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            (output / path).write_text(text)
        except OSError as error:
            raise InvalidConfig(f"{output / path} cannot be written: {error.strerror}") from None
        show_progress(f"written: {output / path}")
