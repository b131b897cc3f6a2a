"""The supervisor reserves the gRPC port before anything starts."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.server.listener import open_listener, reserve_grpc_port
from mlflow_deploy_plugin.spec import ServerSpec
from tests.support.serving import Served
from tests.support.waiting import free_port


def test_nothing_is_held_where_no_port_is_set() -> None:
    with reserve_grpc_port(ServerSpec()):
        pass


def test_the_port_is_kept_for_those_that_share_it() -> None:
    spec = ServerSpec(grpc_port=free_port())
    assert spec.grpc_port is not None
    with reserve_grpc_port(spec):
        with pytest.raises(InvalidConfig, match="is in use"):
            open_listener(spec.host, spec.grpc_port)
        for _ in range(2):
            with socket.socket() as worker:
                worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                worker.bind((spec.host, spec.grpc_port))
                worker.listen()
                with socket.create_connection((spec.host, spec.grpc_port), timeout=5):
                    pass
    open_listener(spec.host, spec.grpc_port).close()


def test_a_port_in_use_is_refused_in_one_line_before_anything_starts(
    serve: Callable[..., Served], model_folders: dict[str, Path]
) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # a server of gRPC: it would share it silently
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = serve("-m", str(model_folders["stock"]), "-C", f"server.grpc_port={port}")
        assert refused.process.wait(60) == 1
    lines = refused.log.read_text().splitlines()
    assert lines == [f"Error: port {port} on 127.0.0.1 is in use; choose another with -C server.grpc_port=…"]


def test_a_served_port_is_announced_ready_and_free_again_at_the_end(
    serve: Callable[..., Served], model_folders: dict[str, Path]
) -> None:
    port = free_port()
    for attempt in range(2):
        running = serve("-m", str(model_folders["stock"]), "-C", f"server.grpc_port={port}", state=f"state-{attempt}")
        running.wait_ready()
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        assert running.end() == 0
