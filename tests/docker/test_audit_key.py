"""The key that signs the audit trail in docker/compose.yaml and docker/kubernetes: all
replicas of MLflow's server have it, and no other service.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
MANIFESTS = sorted((DOCKER / "kubernetes").glob("*.yaml"))
SETTING = "ONNXSERVE_AUDIT_KEY_FILE"


def volumes(service: Mapping[str, Any]) -> dict[str, str]:
    """Return the mounts of a service: its named volumes by their folders."""
    mounts = (entry.split(":")[:2] for entry in service.get("volumes", ()))
    return {target: source for source, target in mounts if not source.startswith((".", "/"))}


def test_in_compose_the_key_is_in_a_volume_of_mlflow_only() -> None:
    document = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = document["services"]
    file = PurePosixPath(services["mlflow"]["environment"][SETTING])

    volume = volumes(services["mlflow"])[str(file.parent)]

    assert volume in document["volumes"]
    users = [name for name, service in services.items() if volume in volumes(service).values()]
    assert users == ["mlflow"]
    assert [
        name for name, entry in services.items() if SETTING in entry.get("environment", {})
    ] == ["mlflow"]


def test_in_kubernetes_the_key_is_in_a_secret_of_all_replicas() -> None:
    text = (DOCKER / "kubernetes" / "mlflow.yaml").read_text()
    deployment, _ = yaml.safe_load_all(text)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    (mount,) = (entry for entry in container["volumeMounts"] if entry["name"] == "secrets")
    (volume,) = (entry for entry in pod["volumes"] if entry["name"] == "secrets")

    paths = [PurePosixPath(value) for value in (*environment.values(), *container["args"])]
    files = {path.name for path in paths if str(path.parent) == mount["mountPath"]}

    assert PurePosixPath(environment[SETTING]) == PurePosixPath(mount["mountPath"], "audit.pem")
    # The command in the comment creates the Secret with these files.
    (source,) = volume["projected"]["sources"]
    secret = source["secret"]["name"]
    assert f"create secret generic {secret} " in text
    assert {Path(name).name for name in re.findall(r"--from-file=(\S+)", text)} == files
    others = [file.name for file in MANIFESTS if secret in file.read_text()]
    assert others == ["mlflow.yaml"]


def test_in_kubernetes_mlflow_runs_as_in_compose() -> None:
    """`make stack-test` runs the service of compose.yaml."""
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    deployment, _ = yaml.safe_load_all((DOCKER / "kubernetes" / "mlflow.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    set_there = services["mlflow"]["environment"].keys()
    names = {entry["name"] for entry in container["env"]}

    assert names <= set_there
    assert set_there - names == {"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "HOME"}
    arguments = [part.replace("/onnxserve/mlflow.env", "/mlflow.env") for part in container["args"]]
    assert ["mlflow", *arguments] == services["mlflow"]["command"]
