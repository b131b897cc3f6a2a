"""`onnxserve serve` runs a server in the foreground."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from mlflow_deploy_plugin.cli.options import config_option, key_values, option, path_option
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.registry.model_uri import default_endpoint_name
from mlflow_deploy_plugin.core.settings import absolute_path, load_settings, read_text
from mlflow_deploy_plugin.core.spec.document import (
    apply_config,
    dump_spec,
    load_specs,
    new_endpoint,
)
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, ServerSpec
from mlflow_deploy_plugin.core.statedir.files import (
    SPEC,
    claim_free_state_dir,
    claim_state_dir,
    write_atomically,
)
from mlflow_deploy_plugin.serve.cloud import read_cloud
from mlflow_deploy_plugin.serve.device import require_device
from mlflow_deploy_plugin.serve.supervisor import supervise
from mlflow_deploy_plugin.ship.manifests.served import SPEC_FILE, SPEC_FOLDER

_log = logging.getLogger(__name__)
MOUNTED_SPEC = Path(SPEC_FOLDER, SPEC_FILE)
"""The spec in a pod or container of a manifest, such as the ConfigMap of an endpoint on
Kubernetes.
"""


@click.command()
@option(
    "-m",
    "--model-uri",
    metavar="URI",
    help=(
        "Model to serve: a folder or a URI, e.g. models:/flight-delay@champion. A stage or alias "
        "is followed."
    ),
)
@path_option(
    "--spec",
    "spec_file",
    help=(
        "YAML file with the endpoints to serve. Changes of the file are served without a restart, "
        "except `server`."
    ),
)
@option("-h", "--host", metavar="ADDRESS", show_default="127.0.0.1", help="Address to listen on.")
@option(
    "-p",
    "--port",
    type=int,
    metavar="PORT",
    show_default="the first free port from 8080",
    help="Port to listen on.",
)
@option(
    "--metrics-port",
    type=int,
    metavar="PORT",
    show_default="none",
    help="Port for /metrics without a key.",
)
@option(
    "-w",
    "--workers",
    type=int,
    metavar="COUNT",
    show_default="1",
    help="Number of worker processes.",
)
@option("--name", metavar="NAME", show_default="the model's name", help="Name of the endpoint.")
@option(
    "--device",
    metavar="DEVICE",
    show_default="cpu",
    help="Device of ONNX Runtime: cpu or cuda. There is no fallback to another device.",
)
@option(
    "--insecure",
    is_flag=True,
    default=None,
    help=(
        "Accept callers from other machines without an API key. The alternative is -C "
        "server.api_keys=true."
    ),
)
@option("--no-follow", is_flag=True, help="Resolve a stage or alias only once, at the start.")
@config_option
@path_option(
    "--state-dir",
    metavar="FOLDER",
    show_default="ONNXSERVE_HOME/serve/NAME, or NAME-PORT with -p",
    help=(
        "Folder for the state of the server. After a restart, the server can serve from it without "
        "the registry."
    ),
)
def serve(
    model_uri: str | None,
    spec_file: Path | None,
    name: str | None,
    no_follow: bool,
    config: tuple[str, ...],
    state_dir: Path | None,
    **server: Any,
) -> None:
    """Serve a model or the endpoints of a spec in the foreground.

    On SIGTERM or Ctrl-C, the server finishes the requests in flight and ends. `mlflow
    deployments create -t onnxserve` serves in the background instead.

    \b
      onnxserve serve -m models:/flight-delay@champion -p 8123
      onnxserve serve --spec endpoints.yaml
    """
    changes = key_values(config) | {
        f"server.{field}": value for field, value in server.items() if value is not None
    }
    cloud = read_cloud()
    settings = load_settings()
    match (
        model_uri or (None if spec_file else settings.model_uri or cloud.model_uri or None),
        spec_file,
    ):
        case str(uri), None:
            first, *rest = [new_endpoint(name or default_endpoint_name(uri), uri)]
        case None, Path() as file:
            if name is not None:
                raise click.UsageError(
                    "--name requires -m; a spec contains the names of its endpoints",
                )
            first, *rest = load_specs(read_text(file, "the spec"), _is_stored(file, state_dir))
        case _:
            raise click.UsageError("specify either -m MODEL_URI or --spec FILE")
    # A cloud platform specifies the port and sends requests from outside the container.
    is_in_cloud = cloud.port is not None
    defaults = {
        "host": "0.0.0.0"
        if is_in_cloud and "host" not in settings.model_fields_set
        else settings.host,
        "port": cloud.port or settings.port,
        "device": None
        if first.server.providers or "server.providers" in changes
        else settings.device or None,
        "insecure": settings.insecure
        or is_in_cloud
        or None,  # A cloud platform authenticates the callers.
    }
    for name_of_field, default in defaults.items():
        if default is not None and name_of_field not in first.server.model_fields_set:
            changes.setdefault(f"server.{name_of_field}", default)
    first = apply_config(first, changes)
    require_device(first.server)
    absolute_path(".")  # gunicorn does not start if the current folder was deleted.
    configure_logging(settings, "serve")
    port = first.server.port
    own_folder = (
        settings.home_path / "serve" / (first.name if port is None else f"{first.name}-{port}")
    )
    with (
        claim_free_state_dir(own_folder)
        if state_dir is None
        else claim_state_dir(absolute_path(state_dir)) as folder
    ):
        _write_specs(folder, [first, *rest])
        # The agent watches SPEC.
        is_watched = spec_file is not None and spec_file.absolute() != folder / SPEC
        if spec_file and is_watched:
            watched = _WatchedSpec(spec_file, folder, first.server, changes)
        else:
            watched = None
        supervise(
            folder,
            not no_follow,
            click.echo,
            watched.refresh if watched is not None else None,
        )


def _is_stored(file: Path, state_dir: Path | None) -> bool:
    """Return True for a spec that a version of onnxserve has written, which may be
    older than this version.
    """
    of_server = absolute_path(state_dir) / SPEC if state_dir is not None else None
    return file.absolute() in (MOUNTED_SPEC, of_server)


class _WatchedSpec:
    """The spec file of a running server, whose changes are served. Only a change of
    `server` needs a restart.

    The content of the file is compared, because a mounted ConfigMap is changed through
    a symbolic link in its path.
    """

    def __init__(
        self,
        path: Path,
        folder: Path,
        server: ServerSpec,
        changes: Mapping[str, object],
    ) -> None:
        self._path = path
        self._folder = folder
        self._server = server
        self._changes = changes
        self._text = read_text(path, "the spec")
        self._error = ""

    def refresh(self) -> None:
        """Pass a changed spec to the agent. If it cannot be read or written, log the
        error and keep the old spec.
        """
        try:
            if (text := read_text(self._path, "the spec")) != self._text:
                first, *rest = load_specs(text, _is_stored(self._path, self._folder))
                first = apply_config(first, self._changes)
                if first.server != self._server:
                    _log.warning(
                        "%s: the change of `server` takes effect at the next start",
                        self._path,
                    )
                    first = first.model_copy(update={"server": self._server})
                _write_specs(self._folder, [first, *rest])
            self._text = text
            self._error = ""
        except (OnnxserveError, OSError) as error:
            reason = error.message if isinstance(error, OnnxserveError) else str(error.strerror)
            if reason != self._error:
                _log.error("the change of %s is not served: %s", self._path, reason)
            self._error = reason


def _write_specs(folder: Path, specs: Sequence[EndpointSpec]) -> None:
    first, *further = specs
    # The `server` part of the first spec applies to all endpoints.
    rest = [other.model_copy(update={"server": ServerSpec()}) for other in further]
    text = "---\n".join(dump_spec(spec) for spec in [first, *rest])
    if not (folder / SPEC).exists() or read_text(folder / SPEC, "the spec") != text:
        write_atomically(folder / SPEC, text.encode())
