"""The key that signs the audit trail in docker/compose.yaml: only MLflow's server has
it.
"""

from pathlib import Path, PurePosixPath

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
SETTING = "ONNXSERVE_AUDIT_KEY_FILE"


def volumes(service):
    """Return the mounts of a service: its named volumes by their folders."""
    mounts = (entry.split(":")[:2] for entry in service.get("volumes", ()))
    return {target: source for source, target in mounts if not source.startswith((".", "/"))}


def test_only_mlflow_has_the_audit_key_in_compose():
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
