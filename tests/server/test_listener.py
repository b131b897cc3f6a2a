import re
import socket

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.server.listener import open_listener, reachable_url


def test_a_port_in_use_is_refused_by_name() -> None:
    with open_listener("127.0.0.1", None) as first:
        port = first.getsockname()[1]
        with pytest.raises(InvalidConfig, match=f"port {port} on 127.0.0.1 is in use; choose another with --port"):
            open_listener("127.0.0.1", port)


def test_without_a_port_the_first_free_one_is_taken() -> None:
    with open_listener("127.0.0.1", None) as first, open_listener("127.0.0.1", None) as second:
        assert 8080 <= first.getsockname()[1] < second.getsockname()[1]


@pytest.mark.parametrize(("host", "reason"), [("192.0.2.1", "Cannot assign"), ("no.such.host.invalid", "")])
def test_a_host_that_is_not_this_machine_is_refused(host: str, reason: str) -> None:
    with pytest.raises(InvalidConfig, match=f"{re.escape(host)}:8080 cannot be listened on: .*{reason}"):
        open_listener(host, 8080)


def test_ipv6_works_where_it_exists() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 in this Python")
    try:
        listener = open_listener("::1", None)
    except InvalidConfig:
        pytest.skip("no IPv6 on this machine")
    with listener:
        assert listener.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("example.org", "http://example.org:80"),
    ],
)
def test_the_url_is_one_that_this_machine_reaches(host: str, url: str) -> None:
    assert reachable_url(host, 80) == url
