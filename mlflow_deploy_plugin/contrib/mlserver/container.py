"""`onnxserve kserve`: the entry point of the image `runtime`, which understands the
arguments of KServe's servers and the variables of MLServer.

An image changes before its manifests do. An argument or a variable that has no meaning
here is therefore logged, and never ends the server.
https://github.com/kserve/kserve/blob/master/python/kserve/kserve/model_server.py and
MLServer's `mlserver/settings.py` declare them.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from mlflow_deploy_plugin.cli.options import config_option, option
from mlflow_deploy_plugin.cli.serve import serve
from mlflow_deploy_plugin.contrib.mlserver.folders import (
    MLFLOW,
    OF_SERVER,
    RUNTIMES,
    server_settings,
)
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.settings import load_settings

NAMES = ("-C", "server.v2_names=mlserver")
"""The arguments of `onnxserve serve` that select MLServer's names of outputs."""
_IMPLEMENTATION = "MLSERVER_MODEL_IMPLEMENTATION"
_NO_VALUE = "<no value>"
"""KServe's text for a label or an annotation that an InferenceService lacks."""
_CONSENT = ("true", "1", "yes")
_PORT = click.IntRange(1, 65535)
_READ = {"MLSERVER_MODELS_DIR", *(f"MLSERVER_{key.upper()}" for key in OF_SERVER)}
"""MLServer's variables of a server that this command reads."""


class _Entry(click.Command):
    """A command whose wrong values are errors of one line, because a pod shows the last
    line of its log.
    """

    def make_context(
        self, info_name: str | None, args: list[str], *contexts: Any, **attributes: Any
    ) -> click.Context:
        try:
            context = super().make_context(info_name, [*args], *contexts, **attributes)
            # MLServer prefers its file to its variables.
            variables = settings_variables(model_folder(**context.params))
            if variables:
                os.environ.update(variables)
                context = super().make_context(info_name, [*args], *contexts, **attributes)
            return context
        except click.UsageError as error:
            raise InvalidConfig(error.format_message()) from None


_option = partial(option, show_envvar=True)


@click.command(cls=_Entry, context_settings={"ignore_unknown_options": True})
@_option("--model_name NAME", "Name of the model in the paths.", envvar="MLSERVER_MODEL_NAME")
@_option(
    "--model_dir FOLDER",
    "Folder of the model, or of MLServer's folders.",
    envvar=["MLSERVER_MODEL_URI", "MLSERVER_MODELS_DIR"],
    default="/mnt/models",
)
@_option(
    "--host ADDRESS",
    "Address to listen on.",
    envvar="MLSERVER_HOST",
    show_default="ONNXSERVE_HOST, which is 0.0.0.0 in the image",
)
@_option("--http_port PORT", "Port of HTTP.", envvar="MLSERVER_HTTP_PORT", type=_PORT, default=8080)
@_option("--grpc_port PORT", "Port of gRPC.", envvar="MLSERVER_GRPC_PORT", type=_PORT, default=8081)
@_option(
    "--metrics_port PORT",
    "Port of the metrics, which port 8080 also has.",
    envvar="MLSERVER_METRICS_PORT",
    type=_PORT,
    default=8082,
)
@_option("--enable_grpc", "Serve gRPC.", type=bool, default=True)
@_option(
    "--workers COUNT",
    "Number of worker processes; 0 means 1.",
    envvar="MLSERVER_PARALLEL_WORKERS",
    type=click.IntRange(min=0),
    default=1,
)
@_option("--framework FORMAT", "KServe's name of the model's format.", default="")
@config_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def kserve(framework: str, arguments: Sequence[str], **options: Any) -> None:
    """Serve a model with the arguments of KServe's servers and the variables of
    MLServer.

    The image `runtime` runs this command, so that the manifests of KServe and MLServer
    only need another image. `mlserver start FOLDER` is accepted as arguments.

    \b
      onnxserve kserve --model_name=iris --model_dir=/mnt/models --http_port=8080
      onnxserve kserve mlserver start ./models

    A variable ALLOW_PICKLE=true is the consent to load pickles.
    """
    # A Service with the name `onnxserve` sets this variable to its address.
    os.environ.pop("ONNXSERVE_PORT", None)
    configure_logging(load_settings().log_format, "serve")
    for line in ignored(arguments, os.environ):
        logging.getLogger(__name__).info("%s", line)
    changed = server_environment(framework, os.environ)
    os.environ.pop(_IMPLEMENTATION, None)
    os.environ.update(changed)
    serve.main(serve_arguments(arguments, **options), standalone_mode=False)


def serve_arguments(arguments: Sequence[str], **options: Any) -> list[str]:
    """Return the arguments of `onnxserve serve`.

    Args:
        arguments: may contain `mlserver start FOLDER`.
        options: the other options of this command.
    """
    port = options["http_port"]
    call = ["--port", str(port), "--workers", str(max(1, options["workers"])), *NAMES]
    # The gateway authenticates callers, as for MLServer and KServe's own servers.
    call.append("--insecure")
    if options["host"]:
        call += ["--host", options["host"]]
    if options["model_name"]:
        call += ["--name", options["model_name"]]
    # An empty field also replaces the one of settings.json.
    grpc_port = options["grpc_port"] if options["enable_grpc"] else ""
    metrics_port = options["metrics_port"] if options["metrics_port"] != port else ""
    ports = (f"server.grpc_port={grpc_port}", f"server.metrics_port={metrics_port}")
    for pair in (*ports, *options["config"]):
        call += ["-C", pair]
    return [*call, "--", model_folder(arguments, **options)]


def model_folder(arguments: Sequence[str], model_dir: str, **_: Any) -> str:
    """Return the folder of `mlserver start FOLDER`, otherwise of `--model_dir`."""
    if "mlserver" in arguments:
        words = arguments[arguments.index("mlserver") + 1 :]
        match [word for word in words if not word.startswith("-")]:
            case ["start", str(started), *_]:
                return started
    return model_dir


def settings_variables(folder: str) -> dict[str, str]:
    """Return the variables of MLServer that the file `settings.json` of a folder
    replaces. Raises InvalidConfig if the file cannot be read.
    """
    settings = server_settings(Path(folder))
    return {
        f"MLSERVER_{key.upper()}": str(value).replace("\0", "") for key, value in settings.items()
    }


def ignored(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return a line about the arguments that have no meaning here, and a line about the
    variables of MLServer that have none.
    """
    options = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    variables = [
        name
        for name in sorted(environment)
        if name.startswith("MLSERVER_")
        and name not in _READ
        and not name.startswith("MLSERVER_MODEL_")
    ]
    return [
        f"{kind} without a meaning here: {join_names(names)}"
        for kind, names in (("arguments", options), ("variables", variables))
        if names
    ]


def server_environment(framework: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the server that follow from KServe's and MLServer's: the
    class of the model, if one is known, and the consent to load pickles. A refusal of
    the consent switches all code of models off.
    """
    implementation = environment.get(_IMPLEMENTATION, "")
    if implementation in ("", _NO_VALUE):
        kinds = {runtime.kind: name for name, runtime in RUNTIMES.items()}
        implementation = {**kinds, "mlflow": MLFLOW}.get(framework, "")
    variables = {}
    if implementation:
        variables[_IMPLEMENTATION] = implementation
    consent = environment.get("ALLOW_PICKLE", "").lower()
    is_decided = "ONNXSERVE_ALLOW_PICKLE" in environment
    if consent in _CONSENT and not is_decided:
        variables["ONNXSERVE_ALLOW_PICKLE"] = "true"
    elif consent and not is_decided:
        # An MLflow folder of a pickle, which needs no consent in `serve FOLDER`, is
        # refused as well.
        variables[MODEL_CODE] = environment.get(MODEL_CODE, "false")
    return variables
