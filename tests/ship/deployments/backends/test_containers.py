"""Tests of the creation of containers; tests/docker/test_docker_target.py tests them on
an engine.
"""

import pytest
from docker.errors import APIError

from mlflow_deploy_plugin.core.errors import AlreadyExists, DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.deployments.backends.containers import (
    DIGEST,
    check_registry,
    docker_errors,
    listener_options,
    make_folder,
    server_options,
)
from tests.support.refusals import refused


@pytest.fixture
def settings(tmp_path):
    make_folder(tmp_path / "docker" / "flights")
    return Settings(home=tmp_path, store_uri="postgresql+psycopg://ada:hidden@db/x")


def flights(**config):
    options = {key.replace("__", "."): value for key, value in config.items()}
    return new_endpoint("flights", "/models/flights", {"server.port": 8123, **options})


def test_container_has_spec_settings_and_needed_variables(settings, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("hidden\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://172.17.0.1:8080")
    monkeypatch.setenv("ONNXSERVE_STORE_URI", settings.store_uri)
    # The secrets are in a folder of this machine.
    monkeypatch.setenv("ONNXSERVE_SECRETS", "/run/secrets")
    monkeypatch.setenv("EDITOR", "vi")

    spec = flights(
        container__memory_bytes="536870912", container__cpus="1.5", container__environment__A="b"
    )
    made = server_options(spec, settings, "sha256:1")
    assert made["image"] == "onnxserve:cpu"
    assert made["mem_limit"] == 536870912
    assert made["nano_cpus"] == 1_500_000_000
    assert {"A": "b", "AWS_ENDPOINT_URL": "http://172.17.0.1:8080"}.items() <= made[
        "environment"
    ].items()
    assert made["environment"]["ONNXSERVE_PORT"] == "8123"
    not_passed_on = {"EDITOR", "ONNXSERVE_STORE_URI", "ONNXSERVE_SECRETS"}
    assert not not_passed_on & made["environment"].keys()
    mounts = {
        mount["Target"]: mount["ReadOnly"] for mount in made["mounts"] if mount["Type"] == "bind"
    }
    assert mounts == {
        "/models/flights": True,
        str(tmp_path / "docker" / "flights"): False,
        str(tmp_path / "inference_log"): False,
    }
    secret = server_options(
        flights(container__secrets__TOKEN=str(tmp_path / "token")), settings, "sha256:1"
    )
    assert secret["environment"]["TOKEN"] == "hidden"
    assert "hidden" not in str(secret["labels"])


def test_keys_file_of_the_spec_is_mounted(settings):
    spec = flights(
        server__api_keys="true", container__secret_files__ONNXSERVE_KEYS_FILE="/etc/keys.json"
    )
    made = server_options(spec, settings, "sha256:1")
    assert made["environment"]["ONNXSERVE_KEYS_FILE"] == "/etc/keys.json"
    assert ("/etc/keys.json", True) in [
        (mount["Target"], mount["ReadOnly"]) for mount in made["mounts"]
    ]


def test_relative_model_path_is_refused(settings):
    spec = new_endpoint("flights", "./models/flights", {"server.port": 8123})
    with refused(InvalidConfig, "variants.flights.model", "absolute path", "./models"):
        server_options(spec, settings, "sha256:1")


def test_listener_publishes_the_server_address(settings):
    assert listener_options(flights(), settings)["ports"] == {"8123/tcp": ("127.0.0.1", 8123)}
    exposed = flights(server__host="0.0.0.0", server__insecure="true")
    assert listener_options(exposed, settings)["ports"] == {"8123/tcp": ("0.0.0.0", 8123)}


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({}, "http://127.0.0.1:8123"),
        ({"server__certfile": "/tls.crt", "server__keyfile": "/tls.key"}, "https://127.0.0.1:8123"),
        (
            {
                "container__network": "host",
                "server__host": "172.17.0.1",
                "server__insecure": "true",
            },
            "http://172.17.0.1:8123",
        ),
    ],
)
def test_health_check_uses_the_server_address(settings, fields, url):
    options = server_options(flights(**fields), settings, "sha256:1")
    assert options["healthcheck"] == {"test": ["CMD", "onnxserve", "health", url]}


@pytest.mark.parametrize(
    ("changed", "image", "is_another"),
    [
        ({}, "sha256:1", False),
        ({"capture__fraction": "0.5", "variants__flights__weight": "50"}, "sha256:1", False),
        ({}, "sha256:2", True),
        ({"server__threads": "8"}, "sha256:1", True),
        ({"container__pids": "64"}, "sha256:1", True),
        ({"container__restart": "no"}, "sha256:1", True),
        ({"container__environment__A": "b"}, "sha256:1", True),
    ],
)
def test_only_unappliable_changes_replace_a_container(
    settings, monkeypatch, changed, image, is_another
):
    before = server_options(flights(), settings, "sha256:1")["labels"][DIGEST]
    monkeypatch.setenv("AWS_REGION", "that of another shell")
    after = server_options(flights(**changed), settings, image)["labels"][DIGEST]
    assert (after != before) is is_another


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("sqlite:////home/ada/mlflow.db", ["sqlite:…", "a file"]),
        ("/home/ada/mlruns", ["file:…", "a file"]),
        ("http://127.0.0.1:5000", ["-C container.network=host", "`mlflow server --host`"]),
        ("http://localhost:5000", ["http://localhost:5000", "loopback"]),
    ],
)
def test_registry_unreachable_from_containers_is_refused(uri, names):
    with refused(InvalidConfig, *names):
        check_registry(uri, is_host=False)


def test_reachable_registry_is_accepted():
    check_registry("http://172.17.0.1:5000", is_host=False)
    check_registry("http://127.0.0.1:5000", is_host=True)
    check_registry("databricks-uc", is_host=False)


@pytest.mark.parametrize(
    ("said", "kind", "names"),
    [
        ("Bind for 0.0.0.0:8123 failed: port is already allocated", InvalidConfig, ["port 8123"]),
        ("listen tcp4 0.0.0.0:8123: bind: address already in use", InvalidConfig, ["port 8123"]),
        (
            'The name "/x" is already in use by container "7"',
            AlreadyExists,
            ["another container", '"/x"'],
        ),
        ("Range of CPUs is from 0.01 to 4.00", InvalidConfig, ["container.cpus", "0.01 to 4.00"]),
        ("network ml not found", InvalidConfig, ["container.network", "ml"]),
        ("could not select device driver", InvalidConfig, ["NVIDIA container toolkit"]),
        ("bind source path does not exist: /x", InvalidConfig, ["a folder", "/x"]),
        ("the disk\nis full", DeploymentFailed, ["the disk is full"]),
    ],
)
def test_engine_refusal_names_the_field_to_change(said, kind, names):
    with refused(kind, *names), docker_errors(flights()):
        raise APIError("409 Client Error", explanation=said)
