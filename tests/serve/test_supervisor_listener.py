import re
import socket

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.supervisor import check_exposure, open_listener, reserve_grpc_port
from tests.support.waiting import free_port


def test_a_port_in_use_is_refused_by_name():
    with open_listener("127.0.0.1", None) as first:
        port = first.getsockname()[1]
        with pytest.raises(InvalidConfig, match=f"port {port} .*--port"):
            open_listener("127.0.0.1", port)


def test_without_a_port_the_first_free_one_is_taken():
    address = "127.77.0.1"  # Other tests' servers use 127.0.0.1.
    with open_listener(address, None) as first, open_listener(address, None) as second:
        assert 8080 <= first.getsockname()[1] < second.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "Cannot assign"),
        ("no.such.host.invalid", "(not known|failure in name resolution)"),
    ],
)
def test_a_host_that_is_not_this_machine_is_refused(host, reason):
    with pytest.raises(InvalidConfig, match=f"{re.escape(host)}:8080: .*{reason}"):
        open_listener(host, 8080)


def test_ipv6_works_where_it_exists():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 in this Python")
    try:
        listener = open_listener("::1", None)
    except InvalidConfig:
        pytest.skip("no IPv6 on this machine")
    with listener:
        assert listener.family == socket.AF_INET6


def test_without_a_grpc_port_none_is_reserved():
    with reserve_grpc_port(ServerSpec()):
        pass


def test_the_port_is_kept_for_those_that_share_it():
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


@pytest.mark.parametrize("field", ["server.grpc_port", "server.metrics_port"])
def test_a_port_in_use_is_refused_in_one_line_before_anything_starts(serve, model_folders, field):
    with socket.socket() as taken:
        # Otherwise a gRPC server would share it silently.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = serve(str(model_folders["stock"]), "-C", f"{field}={port}")
        assert refused.process.wait(60) == 1
    lines = refused.log.read_text().splitlines()
    assert lines == [
        f"Error: port {port} on 127.0.0.1 is in use; set another port with -C {field}=…"
    ]


@pytest.mark.long
def test_a_served_port_is_announced_ready_and_free_again_at_the_end(serve, model_folders):
    port = free_port()
    running = serve(str(model_folders["stock"]), "-C", f"server.grpc_port={port}").wait_ready()
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    assert running.end() == 0
    with reserve_grpc_port(ServerSpec(grpc_port=port)):  # The next server starts like this.
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost"])
def test_a_server_that_only_its_machine_reaches_needs_no_keys(host):
    messages: list[str] = []
    check_exposure(ServerSpec(host=host), messages.append)
    assert messages == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "models.example"])
def test_a_server_that_others_reach_needs_keys_or_says_that_it_has_none(host):
    messages: list[str] = []
    with pytest.raises(InvalidConfig, match=r"-C server\.api_keys=true .*--insecure"):
        check_exposure(ServerSpec(host=host), messages.append)
    check_exposure(ServerSpec(host=host, api_keys=True), messages.append)
    assert messages == []
    check_exposure(ServerSpec(host=host, insecure=True), messages.append)
    assert messages == [f"insecure: everybody who can connect to {host} may use this server"]
