"""Where servers stand: a rollout is taken further by a controller that sees the state folder of its endpoint's server.

The state folders of a machine have a name of their own, and whoever has the lease of this name works on all of them. So
controllers in pods, and those beside other servers of the same store, neither do a rollout nor keep it from being done.
"""

import uuid

from mlflow_deploy_plugin.deployments.backends.local import state_dir
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.statedir import locked, write_atomically

_NAME = ".place"


def rollouts_lease_name(settings: Settings) -> str:
    """The name of the lease under which rollouts of the servers here are taken further; empty where none ever stood.

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
    """Whether the state folder of its server is to be seen."""
    return state_dir(endpoint, settings).is_dir()
