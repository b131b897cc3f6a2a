"""The configuration of a cluster, for KUBECONFIG."""

import socket
from contextlib import contextmanager

import yaml

from tests.support.waiting import free_port


def kubeconfig(folder, server, token="t"):
    """Write the configuration of a cluster."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "config").write_text(yaml.safe_dump(config))
    return folder / "config"


@contextmanager
def silent_api(folder):
    """Yield the configuration and listener of a cluster whose API server accepts
    connections but never responds.
    """
    with socket.create_server(("127.0.0.1", free_port()), backlog=64) as listener:
        listener.settimeout(60)
        yield kubeconfig(folder, f"http://127.0.0.1:{listener.getsockname()[1]}"), listener
