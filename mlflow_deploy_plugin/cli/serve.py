"""`onnxserve serve` runs a server in the foreground, and `onnxserve fetch` writes files
for other servers.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from mlflow_deploy_plugin.cli.options import (
    config_option,
    flag,
    key_values,
    model_argument,
    option,
    optional_model_argument,
    path_option,
    registry_options,
)
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.registry.model_folders import find_models, is_model_file
from mlflow_deploy_plugin.core.registry.model_uri import (
    default_endpoint_name,
    model_pattern,
    parse_model_uri,
    registry_uri,
)
from mlflow_deploy_plugin.core.settings import absolute_path, load_settings
from mlflow_deploy_plugin.core.spec.document import (
    apply_config,
    dump_spec,
    load_specs,
    new_endpoint,
    steps_files,
)
from mlflow_deploy_plugin.core.spec.parts import (
    EndpointSpec,
    PyfuncEnv,
    ServerSpec,
    VariantSpec,
)
from mlflow_deploy_plugin.core.spec.steps import STEPS
from mlflow_deploy_plugin.core.statedir.files import (
    SPEC,
    claim_free_state_dir,
    claim_state_dir,
    write_atomically,
)
from mlflow_deploy_plugin.core.text_files import read_text
from mlflow_deploy_plugin.serve.cloud import read_cloud
from mlflow_deploy_plugin.serve.device import require_device
from mlflow_deploy_plugin.serve.supervisor import supervise

_log = logging.getLogger(__name__)


@click.command()
@optional_model_argument
@path_option(
    "--spec",
    "spec_file",
    "YAML file with the endpoints to serve. Changes of the file are served without a restart, "
    "except `server`.",
)
@registry_options
@option("--host ADDRESS", "Address to listen on.", show_default="127.0.0.1")
@option(
    "-p --port PORT", "Port to listen on.", type=int, show_default="the first free port from 8080"
)
@option("--metrics-port PORT", "Port for /metrics without a key.", type=int, show_default="none")
@option("-w --workers COUNT", "Number of worker processes.", type=int, show_default="1")
@path_option(
    "--steps",
    "Python file with before(request) and after(outputs, request), or one of them, around the "
    "model. Changes of the file are served without a restart.",
)
@option("-n --name NAME", "Name of the endpoint.", show_default="the model's name")
@option(
    "--device DEVICE",
    "Device of ONNX Runtime: cpu or cuda. There is no fallback to another device.",
    show_default="cpu",
)
@option(
    "--env-manager",
    "pyfunc_env",
    "Python environment of a version without an ONNX form: local uses the server's own; uv builds "
    "one from the version's requirements.",
    type=click.Choice(get_args(PyfuncEnv)),
    show_default="local",
)
@flag(
    "--insecure",
    "Accept callers from other machines without an API key. The alternative is -C "
    "server.api_keys=true.",
    default=None,
)
@flag(
    "--allow-pickle",
    "Serve joblib and pickle files, and plain flavors of MLflow behind a stage or an alias. They "
    "can run any code of their authors.",
)
@flag("--no-follow", "Resolve a stage or alias only once, at the start.")
@config_option
@path_option(
    "--state-dir FOLDER",
    "Folder for the state of the server. After a restart, the server can serve from it without "
    "the registry.",
    show_default="ONNXSERVE_HOME/serve/NAME, or NAME-PORT with -p",
)
def serve(
    model_uri: str | None,
    spec_file: Path | None,
    steps: Path | None,
    registry: str | None,
    only: str,
    name: str | None,
    allow_pickle: bool,
    no_follow: bool,
    config: tuple[str, ...],
    state_dir: Path | None,
    **server: Any,
) -> None:
    """Serve a model or the endpoints of a spec in the foreground.

    MODEL is a URI, a folder, or a file of a library. A stage or alias is followed. On
    SIGTERM or Ctrl-C, the server finishes the requests in flight and ends. `mlflow
    deployments create -t onnxserve` serves in the background instead.

    \b
      onnxserve serve models:/flight-delay@champion -p 8123
      onnxserve serve --spec endpoints.yaml
      onnxserve serve models:/churn@champion --steps steps.py
      onnxserve serve --registry @champion --only 'team-*'
    """
    changes = key_values(config) | {
        f"server.{field}": value for field, value in server.items() if value is not None
    }
    if steps is not None:
        changes[STEPS] = str(steps)
    cloud = read_cloud()
    settings = load_settings()
    if not (model_uri or spec_file or registry):
        model_uri = settings.model_uri or cloud.model_uri
    folder_fields: Mapping[str, object] = {}
    match model_uri or None, spec_file, registry:
        case str(uri), None, None:
            specs, folder_fields = _endpoints_of(uri, name)
        case None, None, str(selector) if "*" in only:
            specs = [new_endpoint(name or "registry", registry_uri(selector, only))]
        case None, Path() as file, None:
            if name is not None:
                raise click.UsageError(
                    "--name requires MODEL; a spec contains the names of its endpoints"
                )
            specs = load_specs(read_text(file, "the spec"), file.parent)
        case _:
            raise click.UsageError(
                "specify either MODEL (models:/NAME@champion, models:/NAME/3 or a folder), --spec "
                "FILE, or --registry @ALIAS, which serves all models with the alias that match "
                "--only, a pattern with a *"
            )
    first, *others = specs
    model_pattern(specs)
    # A cloud platform specifies the port, sends requests from outside the container,
    # and authenticates the callers.
    is_in_cloud = cloud.port is not None
    defaults: dict[str, object] = {
        "host": settings.host,
        "port": cloud.port or settings.port,
        "device": settings.device or None,
        "pyfunc_env": settings.pyfunc_env or None,
        "insecure": settings.insecure or is_in_cloud or None,
    }
    if is_in_cloud and "host" not in settings.model_fields_set:
        defaults["host"] = "0.0.0.0"
    if first.server.providers or "server.providers" in changes:
        defaults["device"] = None
    defaults |= folder_fields
    for field, default in defaults.items():
        if default is not None and field not in first.server.model_fields_set:
            changes.setdefault(f"server.{field}", default)
    first = apply_config(first, changes)
    require_device(first.server)
    absolute_path(".")  # gunicorn does not start if the current folder was deleted.
    configure_logging(settings.log_format, "serve")
    if state_dir is not None:
        claimed = claim_state_dir(absolute_path(state_dir))
    else:
        suffix = f"-{first.server.port}" if first.server.port is not None else ""
        claimed = claim_free_state_dir(settings.home_path / "serve" / f"{first.name}{suffix}")
    # The agent is a child of this process.
    permits = {"ONNXSERVE_ALLOW_PICKLE": "true"} if allow_pickle else {}
    os.environ.update(permits)
    with claimed as folder:
        _write_specs(folder, first, others)
        refresh = None
        # The agent watches SPEC.
        if spec_file is not None and spec_file.absolute() == folder / SPEC:
            spec_file = None
        if spec_file is not None or changes.get(STEPS):
            refresh = _WatchedSpec(spec_file, specs, folder, first.server, changes).refresh
        jobs = [sys.executable, "-m", "mlflow_deploy_plugin.ship.batch.jobs", str(folder)]
        supervise(folder, not no_follow, click.echo, refresh, jobs)


@click.command()
@model_argument
@click.argument("folder", type=click.Path(path_type=Path))
@option(
    "--require REQUIREMENTS",
    "Requirements that the version must meet: gate=passed, name=true and signature=/FILE, "
    "separated by commas.",
    default="",
)
def fetch(model_uri: str, folder: Path, require: str) -> None:
    """Write the checked files of a version into a folder.

    FOLDER is empty or has the files of another version, which are replaced. KServe runs
    this command before a pod starts (`onnxserve render --for kserve`).

    \b
      onnxserve fetch models:/flight-delay@champion /mnt/models
      onnxserve fetch mlflow://flight-delay/3 /mnt/models --require gate=passed
    """
    # Serving does not need the modules of the agent.
    from mlflow_deploy_plugin.serve.agent.storage_container import fetch_into

    version = fetch_into(model_uri, folder, require)
    click.echo(
        f"{version.model} version {version.version} is in {folder} (sha256 {version.digest})"
    )


def _endpoints_of(
    model_uri: str, name: str | None
) -> tuple[list[EndpointSpec], Mapping[str, object]]:
    """Return the endpoint of a model, or an endpoint for each model of a folder that is
    not an MLflow folder, with a variant for each of its versions; and the fields of
    `server` that the settings of the folder specify. `name` renames a single endpoint.
    """
    found = None
    uri = parse_model_uri(model_uri)
    if uri.kind == "path":
        path = absolute_path(uri.name)
        if path.is_dir() or is_model_file(path):
            found = find_models(path)
    if found is None:
        return [new_endpoint(name or default_endpoint_name(model_uri), model_uri)], {}
    if name is not None and len(found.models) > 1:
        raise click.UsageError("--name requires a folder with one model")
    specs = []
    for endpoint, versions in found.models.items():
        *others, (label, newest) = versions.items()
        # The names differ, because the versions do.
        variant = f"v{label}" if others else None
        spec = new_endpoint(name or endpoint, str(newest), variant=variant)
        older = {f"v{label}": VariantSpec(model=str(path), weight=0) for label, path in others}
        specs.append(spec.model_copy(update={"variants": {**older, **spec.variants}}))
    return specs, found.server


class _WatchedSpec:
    """The spec file of a running server and its files of steps, whose changes are
    served. Only a change of `server` needs a restart. Without a spec file, `specs` are
    served.

    The content of the files is compared, because a mounted ConfigMap is changed through
    a symbolic link in its path.
    """

    def __init__(
        self,
        path: Path | None,
        specs: Sequence[EndpointSpec],
        folder: Path,
        server: ServerSpec,
        changes: Mapping[str, object],
    ) -> None:
        self._path = path
        self._specs = specs
        self._folder = folder
        self._server = server
        self._changes = changes
        self._text = ""
        self._steps: list[Path] = []
        self._error = ""
        self._contents = self._read()

    def refresh(self) -> None:
        """Pass a changed spec to the agent. If it cannot be read or written, log the
        error and keep the old spec.
        """
        try:
            contents = self._read()
            if contents != self._contents:
                specs = self._specs
                if self._path is not None:
                    specs = load_specs(self._text, self._path.parent)
                first = apply_config(specs[0], self._changes)
                if first.server != self._server:
                    _log.warning(
                        "%s: the change of `server` takes effect at the next start", self._path
                    )
                    first = first.model_copy(update={"server": self._server})
                _write_specs(self._folder, first, specs[1:])
            self._contents = contents
            self._error = ""
        except (OnnxserveError, OSError) as error:
            reason = error.message if isinstance(error, OnnxserveError) else str(error.strerror)
            if reason != self._error:
                changed = self._path or self._changes[STEPS]
                _log.error("the change of %s is not served: %s", changed, reason)
            self._error = reason

    def _read(self) -> list[str]:
        """Return the contents of all files. Raises InvalidConfig if a file cannot be
        read.
        """
        contents = []
        if self._path is not None:
            text = read_text(self._path, "the spec")
            contents.append(text)
            if text != self._text:
                self._steps = steps_files(text, self._path.parent)
                self._text = text
        steps = [*self._steps]
        if self._changes.get(STEPS):
            steps.append(Path(str(self._changes[STEPS])))
        return contents + [read_text(file, "the file of steps") for file in steps]


def _write_specs(folder: Path, first: EndpointSpec, others: Sequence[EndpointSpec]) -> None:
    """Write the endpoints into the state folder, unless its spec already has them. The
    `server` part of the first spec applies to all endpoints.
    """
    followers = [spec.model_copy(update={"server": ServerSpec()}) for spec in others]
    text = "---\n".join(map(dump_spec, [first, *followers]))
    path = folder / SPEC
    if not path.exists() or read_text(path, "the spec") != text:
        write_atomically(path, text.encode())
