"""The sockets of a server, opened by the supervisor before anything else starts."""

import errno
import importlib.util
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow_deploy_plugin.errors import InvalidConfig, RuntimeMissing
from mlflow_deploy_plugin.spec import ServerSpec

_FIRST_PORT, _LAST_PORT = 8080, 8999


def open_listener(host: str, port: int | None, option: str = "--port (-C server.port=…)") -> socket.socket:
    """Open a listening socket on `port`, or on the first free port from 8080 up. gunicorn inherits it.

    Args:
        option: the option that chooses another port, for error messages.

    Raises:
        InvalidConfig: the port is in use or may not be used, or the host is no address of this machine.
    """
    for candidate in range(_FIRST_PORT, _LAST_PORT + 1) if port is None else [port]:
        try:
            return _bind(host, candidate)
        except OSError as error:
            if port is not None or error.errno != errno.EADDRINUSE:
                raise InvalidConfig(_bind_error(host, candidate, option, error)) from None
    raise InvalidConfig(f"no port from {_FIRST_PORT} to {_LAST_PORT} is free on {host}; name one with --port")


@contextmanager
def reserve_grpc_port(spec: ServerSpec) -> Iterator[None]:
    """Reserve `grpc_port`, if it is set, for the workers: each binds it after the fork, with SO_REUSEPORT.

    That option alone would silently share the port with another server that has it. So it is bound without the option
    first. Then a socket that is bound and never listens holds it: it gets no connections, and nobody else can take the
    port while a worker is replaced.

    Raises:
        InvalidConfig: the port is in use or may not be used, or the host is no address of this machine.
        RuntimeMissing: grpcio is not installed.
    """
    if spec.grpc_port is None:
        yield
        return
    if any(importlib.util.find_spec(name) is None for name in ("grpc", "google.protobuf")):
        raise RuntimeMissing(
            "server.grpc_port is set, and grpcio is not installed: pip install 'mlflow-onnxserve[grpc]'"
        )
    taken = open_listener(spec.host, spec.grpc_port, "-C server.grpc_port=…")
    family, address = taken.family, taken.getsockname()
    taken.close()
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
        yield


def reachable_host(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def reachable_url(host: str, port: int, scheme: str = "http") -> str:
    address = reachable_host(host)
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def _bind(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # at once: with SO_REUSEADDR two sockets can be bound to a port as long as neither listens
    except OSError:
        listener.close()
        raise
    return listener


def _bind_error(host: str, port: int, option: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another with {option}"
    if error.errno == errno.EACCES:
        return f"port {port} may not be opened by this user; ports from 1024 up may"
    return f"{host}:{port} cannot be listened on: {os.strerror(error.errno) if error.errno else error}"
