"""Mount a model into another application: the scoring routes of one endpoint under a prefix.

app.mount("/flights", asgi_app("models:/flight-delay@champion"))
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.registry import default_endpoint_name
from mlflow_deploy_plugin.server.http.embedded import AsgiApp, EmbeddedModel, WsgiApp
from mlflow_deploy_plugin.settings import absolute_path, load_settings
from mlflow_deploy_plugin.spec import apply_config, new_endpoint
from mlflow_deploy_plugin.statedir import KeyEntry, ValidKeys, Wanted, WantedEndpoint, WantedVariant
from mlflow_deploy_plugin.statedir.files import KEYS, WANTED, write_state

_WAIT_SECONDS = 120.0


def asgi_app(
    model_uri: str,
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    follow: bool = True,
    state_dir: Path | str | None = None,
    wait_seconds: float = _WAIT_SECONDS,
) -> AsgiApp:
    """Return an ASGI application that serves the model. The function returns once the model is loaded (docs/embed.md).

    Call the function after a fork, in the process that serves. The model ends with `close()` or with the process.

    Args:
        model_uri: as in `onnxserve serve -m`.
        name: the endpoint's name in metrics, the inference log and paths; None for the model's name.
        config: fields of the endpoint's spec by their dotted names, such as `{"capture.fraction": 0.1}`.
        follow: True to follow a stage or alias; False to resolve it once.
        state_dir: the folder of this process; None for the first free folder of the endpoint in ONNXSERVE_HOME.
        wait_seconds: the time limit for the registry and the load.

    Raises InvalidConfig if a field is unknown or mistyped or the folder is not writable, and DeploymentFailed if the
    model cannot be resolved, downloaded or loaded.
    """
    return AsgiApp(_embedded_model(model_uri, name, config, follow, state_dir, wait_seconds))


def wsgi_app(
    model_uri: str,
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    follow: bool = True,
    state_dir: Path | str | None = None,
    wait_seconds: float = _WAIT_SECONDS,
) -> WsgiApp:
    """Return a WSGI application that serves the model. The function returns once the model is loaded (docs/embed.md).

    Call the function after a fork, in the process that serves. The model ends with `close()` or with the process.

    Args:
        model_uri: as in `onnxserve serve -m`.
        name: the endpoint's name in metrics, the inference log and paths; None for the model's name.
        config: fields of the endpoint's spec by their dotted names, such as `{"capture.fraction": 0.1}`.
        follow: True to follow a stage or alias; False to resolve it once.
        state_dir: the folder of this process; None for the first free folder of the endpoint in ONNXSERVE_HOME.
        wait_seconds: the time limit for the registry and the load.

    Raises InvalidConfig if a field is unknown or mistyped or the folder is not writable, and DeploymentFailed if the
    model cannot be resolved, downloaded or loaded.
    """
    return WsgiApp(_embedded_model(model_uri, name, config, follow, state_dir, wait_seconds))


def local_app(
    folder: Path, state_dir: Path, *, name: str, version: str, key: str = "", config: Mapping[str, Any]
) -> AsgiApp:
    """Return an ASGI application of the version in an MLmodel folder, without a registry and without an agent.

    The application has pages, so it must not be mounted at a prefix. It neither captures nor explains requests.
    `state_dir` is an empty folder. `key` is the only valid API key; an empty key leaves the routes open.

    Raises InvalidConfig if a field of `config` is unknown or mistyped, and DeploymentFailed like `asgi_app`.
    """
    fixed = {"capture.fraction": 0, "server.explain_max_rows": 0, "server.api_keys": bool(key)}
    spec = new_endpoint(default_endpoint_name(str(folder.with_name(name))), str(folder), {**config, **fixed})
    served = WantedVariant(model_uri=f"models:/{name}/{version}", model=name, version=version, folder=folder)
    endpoint = WantedEndpoint(variants={spec.name: served}, capture=spec.capture)
    write_state(state_dir / WANTED, Wanted(generation=1, endpoints={spec.name: endpoint}))
    rights = KeyEntry(name="desktop", scopes=("infer", "read"))
    write_state(state_dir / KEYS, ValidKeys(keys={hashlib.sha256(key.encode()).hexdigest(): rights}))
    return AsgiApp(EmbeddedModel(spec, state_dir, None, _WAIT_SECONDS))


def _embedded_model(
    model_uri: str,
    name: str | None,
    config: Mapping[str, Any] | None,
    follow: bool,
    state_dir: Path | str | None,
    wait_seconds: float,
) -> EmbeddedModel:
    spec = apply_config(new_endpoint(name or default_endpoint_name(model_uri), model_uri), dict(config or {}))
    folder = load_settings().home_path / "embedded" / spec.name if state_dir is None else absolute_path(state_dir)
    return EmbeddedModel(spec, folder, follow, wait_seconds)
