"""docker/compose.yaml as Compose reads it: every profile, the reachable ports, and the
rights of our services.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import yaml

from tests.stack.native import COMPOSE

CORE = {
    "postgres",
    "minio",
    "redis",
    "mlflow",
    "setup",
    "server-a",
    "server-b",
    "nginx",
    "controller",
}
PROFILES = {
    "metrics": {"prometheus", "alertmanager", "grafana"},
    "traces": {"otel-collector", "jaeger"},
    "logs": {"elasticsearch", "kibana", "filebeat"},
}


def read(*profiles):
    """Return Compose's configuration for these profiles."""
    command = [
        "docker",
        "compose",
        "-f",
        str(COMPOSE),
        *(f"--profile={profile}" for profile in profiles),
        "config",
    ]
    # without the settings of this process
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    done = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", autouse=True)
def _compose():
    if (
        shutil.which("docker") is None
        or subprocess.run(
            ["docker", "compose", "version"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("docker compose is not installed")


@pytest.mark.parametrize(("profile", "more"), [("", set()), *PROFILES.items()])
def test_profile_adds_its_services(profile, more):
    services = read(*filter(None, [profile]))["services"]
    assert services.keys() == CORE | more
    for name, service in services.items():
        assert re.search(r":(\w+\.)*[\w.-]*\d|^onnxserve:", service["image"]), name  # no moving tag
        assert (
            name in {"otel-collector", "jaeger", "setup", "filebeat", "kibana"}
            or "healthcheck" in service
            or "build" in service
        )


def test_only_tls_ports_of_core_are_published():
    services = read(*PROFILES)["services"]
    ports = {name: service.get("ports", []) for name, service in services.items()}
    assert {port["host_ip"] for port in chain.from_iterable(ports.values())} == {"127.0.0.1"}
    assert {name for name in CORE if ports[name]} == {"nginx"}
    assert {port["target"] for port in ports["nginx"]} == {8443, 5443}


def test_our_containers_have_minimal_rights():
    services = read()["services"]
    ours = {
        name: service
        for name, service in services.items()
        if service["image"].startswith("onnxserve:")
    }
    assert ours.keys() == {"mlflow", "setup", "server-a", "server-b", "controller"}
    for service in ours.values():
        assert (service["user"], service["read_only"], service["cap_drop"]) == (
            "10001",
            True,
            ["ALL"],
        )
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_environments_contain_no_secret():
    services = read(*PROFILES)["services"]
    values = [
        (key, value)
        for service in services.values()
        for key, value in (service.get("environment") or {}).items()
    ]
    keys = {key for key, _ in values if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", key)}
    assert {key for key in keys if not key.endswith("_FILE")} == set()


def test_env_example_has_all_defaults():
    lines = (COMPOSE.parent / ".env.example").read_text().splitlines()[1:]
    example = dict(line.partition(" #")[0].strip().split("=", 1) for line in lines)
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE.read_text()))
    assert {**defaults, "COMPOSE_PROFILES": ""} == example


def test_mounted_files_exist():
    document = yaml.safe_load(COMPOSE.read_text())
    services = document["services"].values()
    volumes = chain.from_iterable(service.get("volumes", ()) for service in services)
    sources = [volume.split(":")[0] for volume in volumes]
    missing = [
        source
        for source in sources
        if source.startswith(".") and not (COMPOSE.parent / source).exists()
    ]
    assert missing == []


def test_secrets_are_created_once_and_private(tmp_path):
    folder = tmp_path / "secrets"
    make = [
        sys.executable,
        str(COMPOSE.parent / "stack" / "make_secrets.py"),
        "--folder",
        str(folder),
    ]
    subprocess.run([*make, "--host", "ml.example", "--host", "fd00::7"], check=True)
    made = {file.name: file.read_text() for file in folder.iterdir()}
    wanted = {
        Path(secret["file"]).name
        for secret in yaml.safe_load(COMPOSE.read_text())["secrets"].values()
    }
    assert wanted <= made.keys()
    assert folder.stat().st_mode & 0o777 == 0o700
    certificate = [
        "openssl",
        "x509",
        "-in",
        str(folder / "tls.crt"),
        "-noout",
        "-ext",
        "subjectAltName",
    ]
    names = subprocess.run(certificate, check=True, capture_output=True, text=True).stdout
    assert "DNS:ml.example, IP Address:FD00:0:0:0:0:0:0:7" in names
    subprocess.run([*make, "--host", "ml.example"], check=True)
    refused = subprocess.run(
        [*make, "--host", "other.example"], capture_output=True, text=True, check=False
    )
    message = (
        f"{folder}/tls.crt exists, but is not for other.example: remove it, and run this again\n"
    )
    assert refused.returncode == 1
    assert refused.stderr == message
    assert {file.name: file.read_text() for file in folder.iterdir()} == made
