"""What the supervisor does about gRPC before anything is started, without importing grpcio."""

import importlib.util
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow_deploy_plugin.errors import RuntimeMissing
from mlflow_deploy_plugin.server.listener import listen_on
from mlflow_deploy_plugin.spec import ServerSpec


@contextmanager
def reserved(spec: ServerSpec) -> Iterator[None]:
    """Keeps `grpc_port`, where it is set, for the workers: each binds it after the fork, with SO_REUSEPORT.

    With that option alone a port would be shared silently with whoever has it already; so first it is asked for
    without. Then a socket that is bound and never listens holds it: it gets no connections, and nobody else can take
    the port while a worker is replaced.

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
    taken = listen_on(spec.host, spec.grpc_port, "-C server.grpc_port=…")
    family, address = taken.family, taken.getsockname()
    taken.close()
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
        yield
