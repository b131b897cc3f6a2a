"""Tests of specs as Compose projects: not reachable from outside, with few rights.
tests/docker/test_compose.py starts one with Docker Compose.
"""

import json
from importlib.resources import files

import jsonschema_rs  # schemathesis depends on this package.
import pytest
import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import load_specs, new_endpoint
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Place
from tests.support.refusals import refused

MODEL = "models:/flight-delay/Production"
SCHEMA = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"


def rendered(config=None, model=MODEL):
    """Return compose.yaml and the spec."""
    files = FORMATS["compose"](new_endpoint("flights", model, config), Place())
    return yaml.safe_load(files["compose.yaml"]), files["flights/spec.yaml"]


FULL = {
    "container.cpus": "1.5",
    "container.memory_bytes": str(1024**3),
    "container.environment.A": "costs $5 or ${HOME}: 'a' \"b\" #c",
    "container.environment.AWS_SECRET_ACCESS_KEY": "of the spec",
    "container.secrets.AWS_SECRET_ACCESS_KEY": "/etc/onnxserve/secrets/aws",
    "container.secret_files.ONNXSERVE_KEYS_FILE": "/etc/onnxserve/keys.json",
    "container.network": "front",
    "server.certfile": "/etc/ssl/flights.pem",
    "server.keyfile": "/etc/ssl/private/flights.key",
    "server.host": "0.0.0.0",
    "server.port": "8443",
    "server.grpc_port": "8001",
    "server.api_keys": "true",
}


def test_project_has_the_spec_settings():
    document, _ = rendered(FULL, "/srv/flights")
    service = document["services"]["flights"]
    # Docker Compose reads $$ as $. A secret has priority over a variable.
    assert service["environment"] == {
        "A": FULL["container.environment.A"].replace("$", "$$"),
        "ONNXSERVE_KEYS_FILE": "/etc/onnxserve/keys.json",
        "ONNXSERVE_SECRETS": "/run/secrets",
    }
    assert service["deploy"]["resources"]["limits"] == {
        "cpus": "1.5",
        "memory": str(1024**3),
        "pids": 1024,
    }
    assert service["ports"] == ["0.0.0.0:8443:8443", "0.0.0.0:8001:8001"]
    assert {mount["source"]: mount["target"] for mount in service["volumes"]} == {
        "./flights": "/etc/onnxserve",
        "/srv/flights": "/srv/flights",
        "/etc/ssl/flights.pem": "/etc/ssl/flights.pem",
        "/etc/ssl/private/flights.key": "/etc/ssl/private/flights.key",
        "/etc/onnxserve/keys.json": "/etc/onnxserve/keys.json",
        "state": "/var/lib/onnxserve",
    }
    assert document["secrets"]["AWS_SECRET_ACCESS_KEY"]["file"] == "/etc/onnxserve/secrets/aws"
    assert document["networks"]["front"]["external"]
    assert service["user"] == "10001:10001"
    assert service["healthcheck"]["test"][-1] == "https://127.0.0.1:8443"


def test_service_has_no_rights_and_listens_on_loopback():
    document, spec = rendered({"server.grpc_port": "8001", "server.metrics_port": "9100"})
    service = document["services"]["flights"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in (8080, 8001, 9100)]
    assert service["stop_grace_period"] == "70s"
    (served,) = load_specs(spec)
    # Only the loopback interface reaches the container.
    assert (served.server.host, served.server.insecure) == ("0.0.0.0", True)


def test_project_name_includes_the_workspace(monkeypatch):
    assert rendered()[0]["name"] == "flights"
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    assert rendered()[0]["name"] == "team-a_flights"
    assert (
        rendered({"container.environment.MLFLOW_WORKSPACE": "team-b"})[0]["name"]
        == "team-b_flights"
    )


def test_host_network_listens_where_the_spec_sets():
    document, spec = rendered({"container.network": "host"})
    assert document["services"]["flights"]["network_mode"] == "host"
    assert "ports" not in document["services"]["flights"]
    (served,) = load_specs(spec)
    assert (served.server.host, served.server.insecure) == ("127.0.0.1", False)
    elsewhere, _ = rendered(
        {"container.network": "host", "server.host": "10.0.0.5", "server.api_keys": "true"}
    )
    assert elsewhere["services"]["flights"]["healthcheck"]["test"][-1] == "http://10.0.0.5:8080"


def test_gpu_server_reserves_its_devices():
    def devices(config):
        document, _ = rendered({"server.device": "cuda", **config})
        (reservation,) = document["services"]["flights"]["deploy"]["resources"]["reservations"][
            "devices"
        ]
        return reservation  # type: ignore[no-any-return]

    assert devices({}) == {"driver": "nvidia", "capabilities": ["gpu"], "count": 1}
    assert devices({"server.device_ids": "1,3", "server.workers": "2"})["device_ids"] == ["1", "3"]


def test_projects_match_the_compose_schema():
    configs = [
        {},
        FULL,
        {"container.network": "host"},
        {"server.device": "cuda"},
    ]
    schema = json.loads(SCHEMA.read_text())
    for config in configs:
        jsonschema_rs.validate(schema, rendered(config)[0])


@pytest.mark.parametrize(
    ("model", "config", "names"),
    [
        (
            MODEL,
            {"server.host": "0.0.0.0"},
            ["server.host 0.0.0.0", "all clients", "-C server.api_keys=true"],
        ),
        ("models/flights", {}, ["variants.flights.model", "absolute path", "'models/flights'"]),
    ],
)
def test_unsupported_spec_is_refused(model, config, names):
    with refused(InvalidConfig, *names):
        rendered(config, model)
