"""Callers with and without a client certificate, over HTTP and gRPC, with authorities
that the tests create.
"""

import os
import shutil
import ssl
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

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

    def post(self, body=ROW, certificate=None, **headers):
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(
            f"{self.url}/invocations",
            body,
            headers=JSON | fields,
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


def test_caller_needs_a_trusted_certificate(client, ours, foreign, tmp_path):
    refused = client.post()
    assert refused.status_code == 401
    assert mentions(refused.json()["message"], "client certificate", "authorities")
    assert client.post(authorization="Bearer wrong").status_code == 401

    shop = ours.issue("shop")
    assert client.post(certificate=shop).status_code == 200
    with pytest.raises(requests.RequestException):  # TLS closes the connection.
        client.post(certificate=foreign.issue("shop"))

    page = requests.get(f"{client.url}/metrics", cert=shop, verify=ours.certificate, timeout=20)
    assert 'onnxserve_key_requests_total{key="a certificate"} 2' in page.text
    # the commands of this machine
    local = (tmp_path / LOCAL_KEY).read_text()
    assert client.post(authorization=f"Bearer {local}").status_code == 200


def replace_files(settings, by):
    """Replace the certificate, its key and the authorities, as a renewal does."""
    for name, file in by.items():
        new = Path(settings[name]).with_suffix(".new")
        new.write_bytes(Path(file).read_bytes())
        os.replace(new, settings[name])


@pytest.mark.long
def test_new_connections_use_replaced_certificates(client, ours, foreign, settings, tmp_path):
    shop = ours.issue("shop")
    certfile, keyfile = foreign.issue("server")
    replace_files(settings, {"certfile": certfile})
    # The key still belongs to the previous certificate.
    assert client.post(certificate=shop).status_code == 200
    assert "key values mismatch" in (tmp_path / "server.log").read_text()

    replace_files(settings, {"keyfile": keyfile, "ca_certs": foreign.certificate})
    with pytest.raises(requests.RequestException):
        client.post(certificate=shop)
    client.authority = foreign
    assert client.post(certificate=foreign.issue("shop")).status_code == 200
    with pytest.raises(requests.RequestException):
        client.post(certificate=shop)


@pytest.mark.long
def test_server_with_client_certificates_starts(serve, bias_folders, ours, settings):
    options = chain.from_iterable(
        ("-C", f"server.{name}={value}") for name, value in settings.items()
    )
    served = serve(str(bias_folders["1"]), "--host", "127.0.0.1", *options).wait_ready()
    pinged = requests.get(f"{served.url}/ping", verify=ours.certificate, timeout=20)
    assert pinged.status_code == 200


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"keyfile": "other.key"}, "server.pem with .*other.key and .*ca.pem: key values mismatch"),
        ({"certfile": "server.key"}, "a certificate and a key without a password"),
        ({"ca_certs": "server.key"}, "no certificate or crl found"),
        ({"certfile": "gone.pem"}, "gone.pem: No such file or directory"),
    ],
)
def test_mismatched_certificate_files_stop_the_start(ours, tmp_path, changed, reason):
    certfile, keyfile = ours.issue("server")
    ours.issue("other")
    files = {"certfile": certfile, "keyfile": keyfile, "ca_certs": ours.certificate}
    files |= {name: str(ours.folder / value) for name, value in changed.items()}
    write_spec(tmp_path, "e", ServerSpec.model_validate(files))
    with pytest.raises(InvalidConfig, match=reason):
        supervise(tmp_path, follow=False, announce=print)


def served_by_grpc(port, authority, caller=None):
    """Return the models that a caller sees, with or without a certificate."""
    files = authority.issue(caller)[::-1] if caller else ()
    credentials = grpc.ssl_channel_credentials(
        Path(authority.certificate).read_bytes(), *(Path(file).read_bytes() for file in files)
    )
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        service = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = service.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=60)
        return [model.name for model in answer.models]


def test_grpc_requires_and_reloads_certificates(serve_here, bias_folders, ours, foreign, settings):
    server = serve_here(one_endpoint(bias_folders["1"]), settings)
    port = free_port()
    spec = ServerSpec.model_validate({"host": "localhost", "grpc_port": port, **settings})
    listener = GrpcServer(replace(server, spec=spec), 100)
    assert served_by_grpc(port, ours, "shop") == ["e"]
    with pytest.raises(grpc.RpcError) as refused:
        served_by_grpc(port, ours)
    assert refused.value.code().name == "UNAVAILABLE"
    certfile, keyfile = foreign.issue("server")
    replace_files(settings, {"certfile": certfile, "ca_certs": foreign.certificate})
    # The key is still the previous key.
    assert served_by_grpc(port, ours, "shop") == ["e"]
    replace_files(settings, {"keyfile": keyfile})
    assert served_by_grpc(port, foreign, "shop") == ["e"]
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
def test_certificate_names_its_caller(certificate, name):
    assert certificate_name(certificate) == name


def test_client_certificates_need_https():
    with pytest.raises(ValueError, match=r"ca_certs.*certfile and keyfile"):
        ServerSpec(ca_certs=ssl.get_default_verify_paths().openssl_cafile)
