"""What a server must know of its registry beyond the spec: kept beside it, so that `onnxserve start` means the same
MLflow server as the command that created the deployment, from whatever shell and folder it is typed.
"""

import json
import os
from pathlib import Path

from mlflow_deploy_plugin.server.state import write_atomically
from mlflow_deploy_plugin.settings import Settings

ENVIRONMENT = "environment.json"
_SQLITE = "sqlite:///"


def server_environment(state_dir: Path, settings: Settings) -> dict[str, str]:
    """The environment of the server in `state_dir`: this process's own, with the registry as it was at the start."""
    kept = state_dir / ENVIRONMENT
    if not kept.exists():
        # a URI may hold a password; the folder is open to its owner only
        write_atomically(kept, json.dumps(_registry()).encode())
    places = {"ONNXSERVE_HOME": str(settings.home_path), "ONNXSERVE_LOG_URI": settings.inference_log}
    return {**os.environ, **json.loads(kept.read_text()), **places, "PYTHONUNBUFFERED": "1"}


def _registry() -> dict[str, str]:
    import mlflow  # a second; only whoever creates a deployment needs it, and has it already

    uris = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
    return {variable: _absolute(str(uri)) for variable, uri in uris.items()}


def _absolute(uri: str) -> str:
    """The server runs in another folder than whoever starts it."""
    if uri.startswith(_SQLITE) and not uri.startswith((_SQLITE + "/", _SQLITE + ":")):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).absolute())
    return uri if ":" in uri else str(Path(uri).absolute())
