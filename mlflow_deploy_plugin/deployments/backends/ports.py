"""Ports of this machine: which are free, and which belongs to a new deployment."""

import errno
import socket
from collections.abc import Collection

from mlflow_deploy_plugin.errors import DeploymentFailed, InvalidConfig

FIRST_PORT = 8080
_PORTS_TRIED = 1000


def choose_port(host: str, reserved: Collection[int]) -> int:
    """The first free port from 8080 up that no other deployment keeps.

    Raises:
        DeploymentFailed: none is free.
    """
    for port in range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED):
        if port not in reserved and is_port_free(host, port):
            return port
    raise DeploymentFailed(
        f"no port from {FIRST_PORT} to {FIRST_PORT + _PORTS_TRIED - 1} is free: give one by -C server.port=…"
    )


def check_port(host: str, port: int) -> None:
    """Raises InvalidConfig where another program listens."""
    if not is_port_free(host, port):
        raise InvalidConfig(
            f"port {port} on {host} is in use: choose another by -C server.port=…; of a deployment that is there, by "
            "`onnxserve endpoint update NAME -C server.port=…`"
        )


def is_port_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Raises InvalidConfig where `host` is no address of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as gunicorn does: closing connections do not count
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise InvalidConfig(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return True
