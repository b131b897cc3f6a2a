"""The values that add onnxserve to two charts of MLflow, rendered with the charts.

MLFLOW_CHART is the folder `charts` of github.com/mlflow/mlflow, and
MLFLOW_COMMUNITY_CHART the folder `charts/mlflow` of
github.com/community-charts/helm-charts.
"""

import os
import shutil
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path, PurePosixPath

import kubernetes_validate
import pytest
import yaml

from mlflow_deploy_plugin.core.settings import Settings
from tests.ship.manifests.test_helm import NEEDS_HELM, helm

VALUES = Path(__file__).parents[2] / "docker" / "mlflow-chart"
CLAIM = yaml.safe_load((VALUES / "claim.yaml").read_text())
OFFICIAL = yaml.safe_load((VALUES / "values.yaml").read_text())
COMMUNITY = yaml.safe_load((VALUES / "values-community.yaml").read_text())
APP = "onnxserve-basic-auth"
# The values that a user has without onnxserve.
DATABASE = {"mlflow": {"backendStoreUriFrom": {"secretKeyRef": {"name": "database", "key": "uri"}}}}
POSTGRES = {"enabled": True, "host": "db", "database": "mlflow", "driver": "psycopg"}
COMMUNITY_DATABASE = {
    "backendStore": {
        "databaseMigration": True,
        "postgres": POSTGRES,
        "existingDatabaseSecret": {"name": "database"},
    }
}
CHARTS = {
    "official": ("MLFLOW_CHART", "values.yaml", DATABASE),
    "community": ("MLFLOW_COMMUNITY_CHART", "values-community.yaml", COMMUNITY_DATABASE),
}


@pytest.fixture(params=CHARTS)
def documents(request, tmp_path):
    """Return the objects of the chart with our values."""
    variable, file, own = CHARTS[request.param]
    if variable not in os.environ:
        pytest.skip(f"no chart of MLflow is named by {variable}")
    chart = shutil.copytree(os.environ[variable], tmp_path / "chart")
    # The chart's databases are charts of other repositories, and are off by default.
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    about.pop("dependencies", None)
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    done = helm("template", "mlflow", str(chart), "-f", str(VALUES / file), values=own)
    assert done.returncode == 0, done.stderr
    return list(filter(None, yaml.safe_load_all(done.stdout)))


@pytest.fixture
def deployment(documents):
    (found,) = [document for document in documents if document["kind"] == "Deployment"]
    return found["spec"]


@pytest.fixture
def pod(deployment):
    return deployment["template"]["spec"]


@pytest.fixture
def server(pod):
    (container,) = pod["containers"]
    return container


def in_clear(container):
    """Return the variables whose values are in the manifest."""
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def test_values_name_known_settings_and_an_app():
    official = {entry["name"] for entry in OFFICIAL["env"]}
    names = official | set(COMMUNITY["extraEnvVars"])
    ours = {name.removeprefix("ONNXSERVE_") for name in names if name.startswith("ONNXSERVE_")}
    apps = {entry.name for entry in entry_points(group="mlflow.app")}

    assert {name.lower() for name in ours} <= set(Settings.model_fields) | {"home"}
    assert OFFICIAL["server"]["value_options"]["app_name"] == APP
    assert COMMUNITY["auth"]["appName"] == APP
    assert APP in apps


@NEEDS_HELM
def test_objects_match_the_schema_of_kubernetes(documents):
    for document in documents:
        kubernetes_validate.validate(document, "1.32", strict=True)


@NEEDS_HELM
def test_server_runs_the_app_with_one_worker(deployment, server):
    words = [*server["command"], *server.get("args", ())]

    assert words[:2] == ["mlflow", "server"]
    assert [word for word in words if word.startswith("--app-name")] == [f"--app-name={APP}"]
    assert [word for word in words if word.startswith("--workers")] == ["--workers=1"]
    assert server["image"] == "registry.example/onnxserve:mlflow"
    assert deployment["replicas"] == 1
    assert deployment["strategy"]["type"] == "Recreate"
    assert server["readinessProbe"]["httpGet"]["path"] == "/health"
    assert server["livenessProbe"]["httpGet"]["path"] == "/health"


@NEEDS_HELM
def test_store_and_login_come_from_the_secret_last(server):
    *_, last = server["envFrom"]  # Kubernetes takes the last value of a name.

    assert last == {"secretRef": {"name": "onnxserve"}}
    secret = {"STORE_URI", "ADMIN_PASSWORD", "SECRET_KEY", "PGPASSWORD"}
    assert [name for name in in_clear(server) if name.endswith(tuple(secret))] == []


@NEEDS_HELM
def test_key_is_on_the_claim_that_outlives_a_release(documents, pod, server):
    folder = PurePosixPath(in_clear(server)["ONNXSERVE_AUDIT_KEY_FILE"]).parent
    (mount,) = [one for one in server["volumeMounts"] if one["mountPath"] == str(folder)]
    (volume,) = [one for one in pod["volumes"] if one["name"] == mount["name"]]

    assert not mount.get("readOnly")
    assert volume["persistentVolumeClaim"] == {"claimName": CLAIM["metadata"]["name"]}
    assert "PersistentVolumeClaim" not in {document["kind"] for document in documents}
    others = chain.from_iterable(one["volumeMounts"] for one in pod.get("initContainers", ()))
    assert mount["name"] not in {one["name"] for one in others}


@NEEDS_HELM
def test_accounts_are_read_from_a_mounted_file(server):
    file = PurePosixPath(in_clear(server)["MLFLOW_AUTH_CONFIG_PATH"])
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in server["volumeMounts"]}

    assert mounts.get(str(file)) or mounts.get(str(file.parent))


@NEEDS_HELM
def test_pod_has_minimal_rights_and_its_volume_is_writable(documents, pod):
    assert pod["securityContext"]["fsGroup"] == 10001
    # The default policy would make the key readable for the group at each start.
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        rights = {**pod["securityContext"], **container["securityContext"]}
        assert rights["runAsNonRoot"]
        assert rights["runAsUser"] == 10001
        assert rights["readOnlyRootFilesystem"]
        assert not rights["allowPrivilegeEscalation"]
        assert rights["capabilities"] == {"drop": ["ALL"]}
    (account,) = [document for document in documents if document["kind"] == "ServiceAccount"]
    assert account["automountServiceAccountToken"] is False


@NEEDS_HELM
def test_service_of_the_release_is_an_allowed_host(documents, server):
    (service,) = [document for document in documents if document["kind"] == "Service"]
    settings = [document.get("data") or {} for document in documents]
    options = "".join(word for word in server["command"] if word.startswith("--allowed-hosts="))
    configured = "".join(one.get("MLFLOW_SERVER_ALLOWED_HOSTS", "") for one in settings)
    hosts = (options.removeprefix("--allowed-hosts=") or configured).split(",")

    (port,) = [one["port"] for one in service["spec"]["ports"]]
    assert f"{service['metadata']['name']}.mlflow.svc:{port}" in hosts
