"""Locality: a rollout is run by a controller that sees the state folder of its endpoint's server.

The state folders of a machine have a name of their own, and the holder of the lease of this name works on all of them.
So controllers in pods, and those next to other servers of the same store, neither run such a rollout nor block it.
"""

import uuid

from mlflow_deploy_plugin.deployments import state_dir
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.statedir import locked, write_atomically

_NAME = ".place"


def rollouts_lease_name(settings: Settings) -> str:
    """Return the name of the lease for the rollouts of this machine's servers; empty if there never was a server.

    Raises:
        OSError: the state folders cannot be read, or written.
    """
    folder = settings.deployments_path
    if not folder.is_dir():
        return ""
    written = folder / _NAME
    if not written.exists():
        with locked(folder / f"{_NAME}.lock"):
            if not written.exists():
                write_atomically(written, uuid.uuid4().hex.encode())
    return f"rollouts/{written.read_text()}"


def is_local(endpoint: str, settings: Settings) -> bool:
    """Return True if this process sees the state folder of the endpoint's server."""
    return state_dir(endpoint, settings).is_dir()
