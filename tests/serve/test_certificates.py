"""Callers with and without a client certificate, over HTTP and gRPC, with authorities
that the tests create.
"""

import os
import re
import shutil
import ssl
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import LOCAL_KEY, make_local_key
from mlflow_deploy_plugin.serve.grpc.grpc_server import GrpcServer
from mlflow_deploy_plugin.serve.inference.auth import certificate_name
from mlflow_deploy_plugin.serve.supervisor import supervise
from tests.support.keypairs import Authority
from tests.support.refusals import mentions
from tests.support.servers import gunicorn, one_endpoint, write_spec
from tests.support.waiting import free_port

ROW = b'{"inputs": [[1, 2, 3]]}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "ours", "our authority")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "foreign", "another authority")


@pytest.fixture
def settings(ours):
    certfile, keyfile = ours.issue("server")
    callers = shutil.copy(ours.certificate, ours.folder / "callers.pem")
    return {"certfile": certfile, "keyfile": keyfile, "ca_certs": str(callers)}


@dataclass
class Client:
    """A caller of one server."""

    url: str
    authority: Authority

    def post(
        self, body: Any = ROW, certificate: tuple[str, str] | None = None, **headers: str
    ) -> requests.Response:
        return requests.post(
            f"{self.url}/invocations",
            body,
            headers=JSON | {name.replace("_", "-"): value for name, value in headers.items()},
            cert=certificate,
            verify=self.authority.certificate,
            timeout=20,
        )


@pytest.fixture
def client(tmp_path, bias_folders, ours, settings):
    spec = ServerSpec.model_validate(settings)
    make_local_key(tmp_path)
    with gunicorn(tmp_path, one_endpoint(bias_folders["1"]), spec) as running:
        yield Client(running.url, ours)


def test_a_caller_needs_a_certificate_of_the_named_authority(client, ours, foreign, tmp_path):
    refused = client.post()
    assert refused.status_code == 401
    assert mentions(refused.json()["message"], "client certificate", "authorities")
    lines: dict[str, Any] = {"content_type": "application/jsonl"}
    assert client.post(iter([b"[1, 2, 3]\n"]), **lines).status_code == 401
    assert client.post(authorization="Bearer wrong").status_code == 401

    shop = ours.issue("shop")
    assert [client.post(certificate=shop).status_code for _ in range(3)] == [200, 200, 200]
    assert client.post(iter([b"[1, 2, 3]\n"]), shop, **lines).status_code == 200  # streamed
    with pytest.raises(requests.RequestException):  # TLS closes the connection.
        client.post(certificate=foreign.issue("shop"))

    page = requests.get(
        f"{client.url}/metrics", cert=shop, verify=ours.certificate, timeout=20
    ).text
    assert dict(re.findall(r'onnxserve_key_requests_total{key="([^"]*)"} (\d+)', page)) == {
        "a certificate": "5"
    }
    local = (tmp_path / LOCAL_KEY).read_text()
    # the commands of this machine
    assert client.post(authorization=f"Bearer {local}").status_code == 200


def replace_files(settings, by):
    """Replace the certificate, its key and the authorities, as a renewal does."""
    for name, file in by.items():
        new = Path(settings[name]).with_suffix(".new")
        new.write_bytes(Path(file).read_bytes())
        os.replace(new, settings[name])


def test_new_connections_take_the_certificates_that_lie_in_the_files_now(
    client, ours, foreign, settings, tmp_path
):
    shop = ours.issue("shop")
    of_foreign = foreign.issue("shop")
    certfile, keyfile = foreign.issue("server")
    replace_files(settings, {"certfile": certfile})
    # The key still belongs to the previous certificate.
    assert client.post(certificate=shop).status_code == 200
    assert "key values mismatch" in (tmp_path / "server.log").read_text()

    replace_files(settings, {"keyfile": keyfile, "ca_certs": foreign.certificate})
    with pytest.raises(requests.RequestException):
        client.post(certificate=shop)
    client.authority = foreign
    assert client.post(certificate=of_foreign).status_code == 200
    with pytest.raises(requests.RequestException):
        client.post(certificate=shop)


@pytest.mark.long
def test_a_server_with_client_certificates_starts_and_answers_its_own_machine(
    serve, bias_folders, ours, settings
):
    options = list(
        chain.from_iterable(("-C", f"server.{name}={value}") for name, value in settings.items())
    )
    served = serve(
        str(bias_folders["1"]), "--name", "e", "--host", "127.0.0.1", *options
    ).wait_ready()
    assert (
        requests.get(f"{served.url}/ping", verify=ours.certificate, timeout=20).status_code == 200
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"keyfile": "other.key"},
            "TLS cannot use .*server.pem with .*other.key and .*ca.pem: key values mismatch",
        ),
        (
            {"certfile": "server.key"},
            "a certificate and a key without a password in PEM are expected",
        ),
        ({"ca_certs": "server.key"}, "no certificate or crl found"),
        ({"certfile": "gone.pem"}, "TLS cannot read .*gone.pem: No such file or directory"),
    ],
)
def test_a_server_does_not_start_with_files_that_do_not_go_together(
    ours, tmp_path, changed, reason
):
    (certfile, keyfile), _ = ours.issue("server"), ours.issue("other")
    files = {"certfile": certfile, "keyfile": keyfile, "ca_certs": ours.certificate}
    write_spec(
        tmp_path,
        "e",
        ServerSpec.model_validate(files | {k: str(ours.folder / v) for k, v in changed.items()}),
    )
    with pytest.raises(InvalidConfig, match=reason):
        supervise(tmp_path, follow=False, announce=print)


def test_grpc_needs_one_too_and_takes_replaced_files(
    serve_here, bias_folders, ours, foreign, settings
):
    server = serve_here(one_endpoint(bias_folders["1"]), settings)
    spec = ServerSpec.model_validate({"host": "localhost", "grpc_port": free_port(), **settings})
    listener = GrpcServer(replace(server, spec=spec))
    root, (certificate, key) = Path(ours.certificate).read_bytes(), ours.issue("shop")
    mutual = grpc.ssl_channel_credentials(
        root, Path(key).read_bytes(), Path(certificate).read_bytes()
    )
    index = service_pb2.RepositoryIndexRequest()
    with grpc.secure_channel(f"localhost:{spec.grpc_port}", mutual) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).RepositoryIndex(
            index, timeout=20
        )
        assert [model.name for model in answer.models] == ["e"]
    with grpc.secure_channel(
        f"localhost:{spec.grpc_port}", grpc.ssl_channel_credentials(root)
    ) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).RepositoryIndex(index, timeout=60)
        assert refused.value.code().name == "UNAVAILABLE"
    replace_files(
        settings, {"certfile": foreign.issue("server")[0], "ca_certs": foreign.certificate}
    )
    with grpc.secure_channel(
        f"localhost:{spec.grpc_port}", mutual
    ) as channel:  # The key is still the previous key.
        assert (
            service_pb2_grpc.GRPCInferenceServiceStub(channel)
            .RepositoryIndex(index, timeout=20)
            .models
        )
    replace_files(settings, {"keyfile": str(foreign.folder / "server.key")})
    root, (certificate, key) = Path(foreign.certificate).read_bytes(), foreign.issue("shop")
    mutual = grpc.ssl_channel_credentials(
        root, Path(key).read_bytes(), Path(certificate).read_bytes()
    )
    with grpc.secure_channel(f"localhost:{spec.grpc_port}", mutual) as channel:
        assert (
            service_pb2_grpc.GRPCInferenceServiceStub(channel)
            .RepositoryIndex(index, timeout=20)
            .models
        )
    listener.drain()
    listener.wait()


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        (None, ""),
        ({}, ""),
        ({"subject": ((("countryName", "CH"),), (("commonName", "shop"),))}, "shop"),
        ({"subject": (), "subjectAltName": (("URI", "spiffe://x/shop"),)}, "spiffe://x/shop"),
        ({"subject": (), "notAfter": "soon"}, "a certificate without a name"),
        ({"subject": ((("commonName", 200 * "n"),),)}, 100 * "n"),
    ],
)
def test_a_caller_has_the_name_of_its_certificate(certificate, name):
    assert certificate_name(certificate) == name


def test_client_certificates_are_about_https():
    with pytest.raises(ValueError, match=r"ca_certs.*certfile and keyfile"):
        ServerSpec(ca_certs=ssl.get_default_verify_paths().openssl_cafile)
