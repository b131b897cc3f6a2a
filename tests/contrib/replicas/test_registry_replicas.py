"""Tests of the routing of nginx. A replica is another nginx, which answers with its
number and with what it received.
"""

import ast
import json
import select
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain, pairwise, repeat
from urllib.parse import quote

import grpc
import pytest
import requests

from mlflow_deploy_plugin.contrib.replicas.routing import nginx_conf, ring_keys, shares
from mlflow_deploy_plugin.core.spec.parts import ProxySpec, ServerSpec
from tests.support.keypairs import Authority
from tests.support.waiting import free_port

NUMBER = 4
REPLICA = """
pid /tmp/nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off; client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
  server {{
    listen 127.0.0.1:{port};
    add_header X-Replica {number} always;
    set $seen "$request_uri|$http_x_real_ip|$http_x_forwarded_for|$http_authorization";
    add_header X-Seen $seen always;
    location / {{ return 200 "{{}}"; }}
    location = /key {{
      if ($http_authorization != "Bearer k") {{ return 401; }}
      return {known};
    }}
    location /models/full/ {{ add_header X-Replica {number} always; return 503 "full"; }}
    location /models/busy/ {{ add_header X-Replica {number} always; return 429 "busy"; }}
    location /models/crash/ {{ return 444; }}
    location /models/long/ {{ set $x {long}; add_header X-Long $x$x$x; return 200 "long"; }}
  }}
}}
"""


def replica_of(port, number, known=204):
    return REPLICA.format(port=port, number=number, long="x" * 3000, known=known)


@pytest.fixture
def known():
    """The status of a replica's answer to a known key."""
    return 204


@pytest.fixture
def replicas(nginx, known):
    """Yield the running replicas as processes by number, and their addresses."""
    with ExitStack() as stack:
        ports = [free_port() for _ in range(NUMBER)]
        processes = [
            stack.enter_context(nginx(replica_of(port, number, known), f"r{number}"))
            for number, port in enumerate(ports)
        ]
        yield processes, [f"127.0.0.1:{port}" for port in ports]


@pytest.fixture
def routed(nginx, replicas):
    """Return the address of a proxy for the replicas, with 20 requests/s of a model for
    its first replica.
    """
    port = free_port()
    spec = ProxySpec(replicas=NUMBER, hot_requests_per_second=20)
    listen = {"http": f"127.0.0.1:{port}"}
    server = ServerSpec(max_body_bytes=1024)
    with nginx(nginx_conf(spec, server, listen, [{"http": address} for address in replicas[1]])):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def guarded(nginx, replicas):
    """Return the address of a proxy for replicas with the key `k`."""
    port = free_port()
    server = ServerSpec(api_keys=True)
    addresses = [{"http": address} for address in replicas[1]]
    with nginx(nginx_conf(ProxySpec(), server, {"http": f"127.0.0.1:{port}"}, addresses)):
        yield "127.0.0.1", port


def post(url, path, count=1, **headers):
    """Return the answers to equal requests."""
    with requests.Session() as session:
        return [session.post(url + path, data=b"{}", headers=headers) for _ in range(count)]


def places(url, names, path="/models/{}/invocations"):
    """Return the replica of each model."""
    return {
        name: post(url, path.format(quote(name, safe="")))[0].headers["X-Replica"] for name in names
    }


NAMES = [f"model-{number}" for number in range(120)]


def test_every_route_of_a_model_has_one_replica(routed):
    for name in ("team-a", "Sales Forecast 2024", "50% off?#&=", "größe-価格", "x" * 256):
        path = quote(name, safe="")
        routes = [
            f"/models/{path}/invocations",
            f"/endpoints/{path}/jobs",
            f"/endpoints/{path}",
            f"/v1/models/{path}:predict",
            f"/v2/models/{path}/versions/3/infer",
            f"/v2/models/{path}?a=/models/other/invocations",
            f"/v2/repository/models/{path}/load",
            f"/models/%{ord(path[0]):02x}{path[1:]}/invocations",
        ]
        if path.startswith("%"):
            routes.pop()
        found = {post(routed, route)[0].headers["X-Replica"] for route in routes}
        assert len(found) == 1, name


def test_models_of_a_dead_replica_move_alone(routed, replicas):
    before = places(routed, NAMES)
    assert min(Counter(before.values())[str(number)] for number in range(NUMBER)) > 15
    processes, _ = replicas
    processes[2].terminate()
    processes[2].wait(timeout=30)
    after = places(routed, NAMES)
    moved = {name for name in NAMES if before[name] != after[name]}
    assert moved == {name for name in NAMES if before[name] == "2"}
    assert {after[name] for name in moved} == {"0", "1", "3"}
    assert places(routed, NAMES) == after


@pytest.mark.parametrize("name", ["team-a", "team-b", "größe-価格"])
def test_hot_model_has_two_replicas(routed, name):
    path = f"/models/{quote(name)}/invocations"
    first = places(routed, [name])[name]
    counts = Counter(answer.headers["X-Replica"] for answer in post(routed, path, 200))
    assert len(counts) == 2
    assert first in counts
    # Other routes of the model, such as its jobs, keep the first replica.
    others = post(routed, f"/endpoints/{quote(name)}/jobs", 30)
    assert {answer.headers["X-Replica"] for answer in others} == {first}
    assert {answer.status_code for answer in others} == {200}


@pytest.mark.parametrize(("name", "status"), [("crash", 503), ("long", 200)])
def test_model_closes_no_replica_for_the_others(routed, name, status):
    before = places(routed, NAMES[:20])
    answers = post(routed, f"/models/{name}/invocations", 20)
    assert {answer.status_code for answer in answers} == {status}
    assert places(routed, NAMES[:20]) == before


@pytest.mark.parametrize(("name", "status"), [("full", 503), ("busy", 429)])
def test_answer_of_a_full_replica_is_passed_on(routed, name, status):
    answers = post(routed, f"/models/{name}/invocations", 15)
    assert {answer.status_code for answer in answers} == {status}
    assert {answer.text for answer in answers} == {name}
    assert len({answer.headers["X-Replica"] for answer in answers}) == 1
    assert places(routed, NAMES[:20]) == places(routed, NAMES[:20])


def test_caller_chooses_neither_address_nor_replica(routed):
    forged = {"X-Real-IP": "10.0.0.1", "X-Forwarded-For": "10.0.0.2", "Authorization": "Bearer k"}
    forged |= {"mm-model-id": "other", "mm-vmodel-id": "other"}
    (answer,) = post(routed, "/models/Team%20A/invocations?x=1", **forged)
    path, *seen = answer.headers["X-Seen"].split("|")
    assert path == "/models/Team%20A/invocations?x=1"
    assert seen == ["127.0.0.1", "127.0.0.1", "Bearer k"]
    assert answer.headers["X-Replica"] == places(routed, ["Team A"])["Team A"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/metrics", 404, "ENDPOINT_NOT_FOUND"),
        ("/requests", 404, "ENDPOINT_NOT_FOUND"),
        ("/models/m/invocations", 413, "BAD_REQUEST"),
    ],
)
def test_proxy_answers_in_json(routed, path, status, code):
    answer = requests.post(routed + path, data=b"x" * (2000 if status == 413 else 1))
    assert answer.status_code == status
    assert answer.json()["error_code"] == code


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /a b HTTP/1.1", 400),
        ("GET / HTTP/1.1\r\nX-Long: " + "x" * 40_000, 400),
        ("TRACE / HTTP/1.1", 405),
        ("GET /" + "x" * 40_000 + " HTTP/1.1", 414),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: nothing", 501),
        ("GET / HTTP/7.0", 505),
        ("GET /nginx/error HTTP/1.1", 404),
    ],
)
def test_errors_of_nginx_are_json(guarded, head, status):
    with socket.create_connection(guarded) as caller:
        caller.sendall(f"{head}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(partial(caller.recv, 65536), b""))
    line, _, body = answer.partition(b"\r\n")
    assert int(line.split()[1]) == status
    assert "error_code" in json.loads(body.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    "field",
    [
        "Content-Length: 1000000",
        "Content-Length: 1000000\r\nAuthorization: Bearer wrong",
        "Content-Length: 1000000\r\nContent-Encoding: gzip",
        "Transfer-Encoding: chunked",
    ],
)
@pytest.mark.parametrize(("path", "status"), [("/models/m/invocations", 401), ("/ping", 200)])
def test_proxy_stores_no_body_before_the_key(guarded, tmp_path, field, path, status):
    with ExitStack() as stack:
        strangers = [stack.enter_context(socket.create_connection(guarded, 20)) for _ in range(16)]
        for stranger in strangers:
            stranger.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n".encode())
            stranger.sendall(b"ffff\r\n" + b"x" * 60_000)
        answers = {stranger.recv(65536)[9:12] for stranger in strangers}
        assert answers == {str(status).encode()}
        assert [*(tmp_path / "proxy" / "body").iterdir()] == []
        assert ask(guarded).status_code == 200


@pytest.mark.parametrize(("known", "status"), [(404, 200), (503, 503)])
def test_replica_of_an_earlier_version_checks_the_key(guarded, known, status):
    """404 is the answer of an earlier version."""
    assert ask(guarded).status_code == status


def ask(address, key="k"):
    """Return the answer to a prediction."""
    url = "http://{}:{}/models/m/invocations".format(*address)
    return requests.post(url, data=b"{}", headers={"Authorization": f"Bearer {key}"}, timeout=20)


@pytest.mark.long
@pytest.mark.parametrize("sent", ["POST / HTTP/1.1\r\n", "X", ""])
def test_connections_of_an_address_leave_room_before_the_key(guarded, sent):
    if sent.startswith("POST"):
        sent += "Host: a\r\nAuthorization: Bearer k\r\nContent-Length: 100000\r\n\r\n{"
    with ExitStack() as stack:
        for _ in range(4200):
            caller = socket.create_connection(guarded, 10, ("127.0.0.2", 0))
            stack.enter_context(caller)
            caller.sendall(sent.encode())
        assert {ask(guarded).status_code for _ in range(20)} == {200}


@pytest.mark.long
def test_dripping_body_is_closed_before_the_key(guarded):
    began = time.monotonic()
    with socket.create_connection(guarded) as stranger:
        stranger.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{")
        assert stranger.recv(65536).startswith(b"HTTP/1.1 401")
        with suppress(OSError):
            while True:
                stranger.sendall(b" ")
                select.select([stranger], [], [], 0.5)
    assert time.monotonic() - began < 15


def test_no_replica_is_503(routed, replicas):
    for process in replicas[0]:
        process.terminate()
        process.wait(timeout=30)
    (answer,) = post(routed, "/models/m/invocations")
    assert answer.status_code == 503
    assert answer.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
    assert int(answer.headers["Retry-After"]) > 0


def test_tls_ends_at_the_proxy_and_begins_again(nginx, tmp_path):
    authority = Authority(tmp_path / "ca", "ca")
    certfile, keyfile = authority.issue("registry")
    ports = [free_port() for _ in range(3)]
    server = ServerSpec(certfile=certfile, keyfile=keyfile)
    addresses = [{"http": f"127.0.0.1:{port}"} for port in ports]
    text = nginx_conf(ProxySpec(), server, addresses[0], addresses[1:])
    secret = f" ssl; ssl_certificate {certfile}; ssl_certificate_key {keyfile};"
    with ExitStack() as stack:
        for number, port in enumerate(ports[1:]):
            replica = replica_of(port, number)
            stack.enter_context(nginx(replica.replace(f":{port};", f":{port}{secret}"), str(port)))
        stack.enter_context(nginx(text))
        url = f"https://127.0.0.1:{ports[0]}/models/m/invocations"
        answer = requests.post(url, data=b"{}", verify=authority.certificate, timeout=30)
    assert answer.status_code == 200


def test_unknown_names_leave_a_hot_model_hot(routed):
    path = "/models/team-a/invocations"
    post(routed, path, 40)
    for number in range(3000):
        if number % 10 == 0:
            post(routed, path)
        if number % 3 == 0:
            post(routed, f"/models/{'x' * 900}{number}/invocations")
    counts = Counter(answer.headers["X-Replica"] for answer in post(routed, path, 100))
    assert len(counts) == 2


@pytest.mark.parametrize("number", range(2, 17))
def test_shares_are_equal(number):
    sums = Counter()
    for replica, share in shares(number):
        assert share > 0
        sums[replica] += share
    assert sum(sums.values()) == 10_000
    assert max(sums.values()) - min(sums.values()) <= 20


def test_added_replica_takes_only_its_share():
    for few, many in pairwise(range(2, 17)):
        before = chain.from_iterable(repeat(*entry) for entry in shares(few))
        after = chain.from_iterable(repeat(*entry) for entry in shares(many))
        changed = [new for old, new in zip(before, after, strict=True) if old != new]
        assert set(changed) == {many - 1}


@pytest.mark.parametrize("number", [2, 3, 8, 16])
def test_each_pair_of_replicas_has_a_key(number):
    keys = ring_keys([f"registry-{replica}:8080" for replica in range(number)])
    assert len(keys) == number * (number - 1)
    assert len({*keys.values()}) >= number


GET_OF_HTTP_2 = b"\x82\x86\x84\x41\x01x"
"""A request that a server of gRPC resets: `GET /`, in HPACK."""


def test_grpc_caller_chooses_no_address_and_closes_no_replica(nginx):
    address = f"127.0.0.1:{free_port()}"
    seen = grpc.unary_unary_rpc_method_handler(
        lambda _, context: repr(dict(context.invocation_metadata())).encode()
    )
    replicas = [grpc.server(ThreadPoolExecutor(2)) for _ in range(2)]
    ports = []
    for replica in replicas:
        replica.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", {"m": seen})])
        ports.append(replica.add_insecure_port("127.0.0.1:0"))
        replica.start()
    addresses = [dict.fromkeys(("http", "grpc"), f"127.0.0.1:{port}") for port in ports]
    listen = {"http": f"127.0.0.1:{free_port()}", "grpc": address}
    config = nginx_conf(ProxySpec(), ServerSpec(), listen, addresses)
    with nginx(config), grpc.insecure_channel(address) as channel:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as caller:
                caller.sendall(
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
                )
                head = len(GET_OF_HTTP_2).to_bytes(3, "big") + bytes.fromhex("010500000001")
                caller.sendall(head + GET_OF_HTTP_2)
                while b"error_code" not in caller.recv(65536):
                    pass
        call = channel.unary_unary("/s/m")
        forged = [("x-real-ip", "10.0.0.1"), ("x-forwarded-for", "10.0.0.2"), ("mm-model-id", "m")]
        metadata = ast.literal_eval(call(b"", metadata=forged, timeout=30).decode())
    for replica in replicas:
        replica.stop(None)
    assert metadata["x-real-ip"] == metadata["x-forwarded-for"] == "127.0.0.1"
