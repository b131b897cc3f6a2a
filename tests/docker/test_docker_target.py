"""The target `onnxserve:/docker` on a real engine: the life of an endpoint, another
image under load, failures.
"""

import json
import socket
import uuid
from contextlib import suppress
from itertools import chain

import pytest
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.ship.deployments.backends import local
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from tests.docker.conftest import load, run_docker
from tests.docker.test_image import log_version
from tests.support.commands import onnxserve
from tests.support.deployments import save_models
from tests.support.refusals import mentions
from tests.support.waiting import free_port

pytestmark = [pytest.mark.docker, pytest.mark.long]

ROW = {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}


def container(name):
    """Return the engine's description of a container."""
    (description,) = json.loads(run_docker("inspect", name).stdout)
    return description


def restarts(name):
    return container(name)["RestartCount"]


def ours(home):
    """Return the names of the containers that were created from `home`."""
    label = f"label=onnxserve.home={home}"
    return sorted(
        run_docker("ps", "-a", "--filter", label, "--format", "{{.Names}}").stdout.split()
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def home(docker, tmp_path_factory):
    """Return a separate home, whose containers, volumes and folders are removed at the
    end.
    """
    folder = tmp_path_factory.mktemp("docker_target") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder))
        patch.setattr(local, "FIRST_PORT", free_port() - 10_000)
        yield folder
        with open_deployments(print) as deployments:
            for name in deployments.store.names():
                deployments.delete_endpoint(name)
    assert ours(folder) == []
    assert [*(folder / "docker").glob("*")] == []


@pytest.fixture(scope="module")
def client(home):
    return get_deploy_client("onnxserve:/docker")


@pytest.fixture
def name(client):
    """Return an unused name; its deployment is removed at the end."""
    name = f"t{uuid.uuid4().hex[:8]}"
    yield name
    # The test may not have created the deployment, or may have deleted it.
    with suppress(MlflowException):
        client.delete_deployment(name)


@pytest.fixture(scope="module")
def flights(client, models, image):
    """Return the name of a deployment that computes a + b."""
    name = f"flights-{uuid.uuid4().hex[:8]}"
    config = {
        "container.image": image,
        "container.memory_bytes": 512 * 1024**2,
        "container.cpus": 2,
    }
    client.create_deployment(name, models.once, config=config)
    return name


@pytest.fixture(scope="module")
def other_image(image):
    """Return an equivalent image with another id."""
    holder = f"onnxserve-test-{uuid.uuid4().hex[:12]}"
    run_docker("create", "--name", holder, image)
    run_docker(
        "commit", "-m", "the same", "--change", f"LABEL made={holder}", holder, f"{image}-other"
    )
    run_docker("rm", "-v", holder)
    yield f"{image}-other"
    run_docker("rmi", "-f", f"{image}-other")


def predictions(client, name, endpoint=None):
    answer = client.predict(name, ROW, endpoint)
    return json.loads(answer.to_json())["predictions"]


def test_deployment_is_a_hardened_container(client, flights, home):
    assert ours(home) == [flights, f"{flights}-listener"]
    server = container(flights)
    assert server["HostConfig"]["Memory"] == 512 * 1024**2
    assert server["HostConfig"]["NanoCpus"] == 2_000_000_000
    assert server["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    for description in (server, container(f"{flights}-listener")):
        assert description["Config"]["User"].partition(":")[0] not in ("", "0")
        assert description["HostConfig"]["ReadonlyRootfs"]
        assert description["HostConfig"]["CapDrop"] == ["ALL"]
        assert description["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
    assert predictions(client, flights) == [{"y": 3.0}]
    shown = client.get_deployment(flights)
    assert shown["state"] == "running"
    assert shown["target"] == "onnxserve:/docker"
    assert shown["log"] == f"docker logs {flights}"


def test_change_of_traffic_keeps_the_container(client, flights, models):
    # a folder of this machine is mounted
    client.create_deployment("twice", models.twice, endpoint=flights)
    before = container(flights)["Id"]
    client.update_endpoint(flights, {"traffic": {"twice": 100, flights: 0}})
    assert predictions(client, None, flights) == [{"y": 6.0}]
    client.update_endpoint(flights, {"traffic": {"twice": 0, flights: 100}})
    assert predictions(client, None, flights) == [{"y": 3.0}]
    assert container(flights)["Id"] == before


def test_image_change_fails_no_request(client, flights, other_image, home):
    before = container(flights)["Id"]

    with load(client.get_deployment(flights)["url"], ROW) as answers:
        client.update_deployment(flights, config={"container.image": other_image})

    assert container(flights)["Id"] != before
    assert ours(home) == [flights, f"{flights}-listener"]
    assert list(answers) == [str(b'{"predictions":[{"y":3.0}]}')]


def test_failed_update_keeps_the_container(client, flights, home):
    before = container(flights)["Id"]

    with (
        load(client.get_deployment(flights)["url"], ROW) as answers,
        pytest.raises(MlflowException) as failure,
    ):
        client.update_deployment(
            flights, config={"container.environment.ONNXSERVE_POLL_SECONDS": "often"}
        )

    assert mentions(failure.value.message, "exit status 1", "ONNXSERVE_POLL_SECONDS")
    assert container(flights)["Id"] == before
    assert ours(home) == [flights, f"{flights}-listener"]
    assert list(answers) == [str(b'{"predictions":[{"y":3.0}]}')]


def test_killed_container_is_reported_and_restartable(client, flights):
    run_docker("kill", flights)
    shown = client.get_deployment(flights)
    assert shown["state"] == "failed"
    assert shown["reason"].startswith(
        "its container was killed (exit status 137); `onnxserve start"
    )
    assert f"`onnxserve start {flights}`" in shown["reason"]
    with open_deployments(print) as deployments:
        deployments.start(flights)
        assert predictions(client, flights) == [{"y": 3.0}]
        deployments.stop(flights)
        assert client.get_deployment(flights)["state"] == "stopped"
        deployments.start(flights)
    assert predictions(client, flights) == [{"y": 3.0}]


def test_interrupted_takeover_is_finished_by_next_change(client, flights, home, image):
    run_docker("rename", flights, f"{flights}.earlier")
    slot = container(f"{flights}.earlier")["Config"]["Labels"]["onnxserve.slot"]
    labels = [f"onnxserve.endpoint={flights}", f"onnxserve.home={home}", f"onnxserve.slot={slot}9"]
    options = list(chain.from_iterable(("--label", label) for label in labels))
    run_docker("create", "--name", f"{flights}.{slot}9", *options, image)

    client.update_deployment(flights, config={"capture.fraction": 0.5})

    assert ours(home) == [flights, f"{flights}-listener"]


def test_interrupted_creation_is_finished_by_next_change(client, flights, home):
    (home / "deployments" / flights).unlink()  # created in the last step of a creation

    assert client.get_deployment(flights)["reason"].startswith(
        "the command that made it ended before it was ready; `"
    )

    client.update_deployment(flights, config={"capture.fraction": 0.25})
    assert client.get_deployment(flights)["state"] == "running"
    assert ours(home) == [flights, f"{flights}-listener"]


def test_host_network_serves_grpc(client, name, models, image, home):
    port = free_port()
    config = {"container.image": image, "container.network": "host", "server.grpc_port": port}
    client.create_deployment(name, models.once, config=config)
    assert f"{name}-listener" not in ours(home)
    assert predictions(client, name) == [{"y": 3.0}]
    socket.create_connection(("127.0.0.1", port), timeout=5).close()

    # back to a published port
    client.update_deployment(name, config={"container.network": "", "server.grpc_port": ""})

    assert predictions(client, name) == [{"y": 3.0}]
    assert f"{name}-listener" in ours(home)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"container.image": "onnxserve-test:of-nobody"},
            "there is no local image 'onnxserve-test:of-nobody'",
        ),
        (
            {"container.image": "python:3.11-slim-bookworm"},
            "set -C container.image=… to an onnxserve image",
        ),
        (
            {"container.memory_bytes": 64 * 1024**2},
            "is out of memory: set -C container.memory_bytes=… to more than",
        ),
        (
            {"container.secrets.TOKEN": "README.md"},
            "container.secrets.TOKEN: an absolute path is expected",
        ),
        (
            {"container.secrets.TOKEN": "/of/nobody"},
            "container.secrets.TOKEN: the file /of/nobody cannot be read",
        ),
        ({"server.api_keys": True}, "onnxserve keys export > keys.json"),
        (
            {"server.host": "0.0.0.0"},
            "0.0.0.0 is reachable from other machines, and no caller would need a key",
        ),
        ({"server.grpc_port": 8999}, "container.network=host"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unservable_configuration_leaves_no_container(
    client, name, models, image, home, config, said
):
    before = ours(home)

    with pytest.raises(MlflowException) as failure:
        client.create_deployment(name, models.once, config={"container.image": image, **config})

    assert said in failure.value.message
    assert "\n" not in failure.value.message
    assert ours(home) == before


def test_taken_container_name_is_refused(client, name, models, image):
    run_docker("create", "--name", name, image)
    try:
        with pytest.raises(
            MlflowException, match=f"container '{name}'.*does not belong to onnxserve"
        ):
            client.create_deployment(name, models.once, config={"container.image": image})
    finally:
        run_docker("rm", "-v", name)


def test_container_names_of_another_endpoint_are_refused(client, name, models, image, home):
    other = f"{name}-listener"
    client.create_deployment(other, models.once, config={"container.image": image})
    try:
        serving = container(other)["Id"]
        with pytest.raises(MlflowException, match=f"container '{other}'.*endpoint '{other}'"):
            client.create_deployment(name, models.once, config={"container.image": image})
        assert container(other)["Id"] == serving
        assert not (home / "docker" / name).exists()
    finally:
        client.delete_deployment(other)


def test_name_taken_by_another_home_is_refused(client, name, models, image, tmp_path, monkeypatch):
    client.create_deployment(name, models.once, config={"container.image": image})
    with monkeypatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(tmp_path))
        other = get_deploy_client("onnxserve:/docker")
        with pytest.raises(MlflowException, match=f"container '{name}' .*ONNXSERVE_HOME="):
            other.create_deployment(name, models.once, config={"container.image": image})

    assert not (tmp_path / "docker" / name).exists()
    assert predictions(client, name) == [{"y": 3.0}]


def test_deleted_deployment_leaves_nothing(client, name, models, image, home):
    client.create_deployment(name, models.once, config={"container.image": image})
    client.delete_deployment(name)

    assert [resource for resource in ours(home) if resource.startswith(name)] == []
    assert run_docker("volume", "ls", "-q", "--filter", f"name={name}").stdout == ""
    assert not (home / "docker" / name).exists()
    assert not (home / "deployments" / name).is_symlink()


@pytest.mark.release
def test_rollout_promotes_a_version(client, name, image, times, tracking_uri):
    first, second = (log_version(times, 2) for _ in range(2))
    MlflowClient().set_registered_model_alias("times", "live", first)
    client.create_deployment(name, "models:/times@live", config={"container.image": image})
    criteria = "--abort-on error_rate>1%,disagreement>20% --min-requests 20"

    with load(client.get_deployment(name)["url"], {"inputs": [[1.0, 2.0]]}) as answers:
        done = onnxserve(
            f"rollout start {name} --to {second} --steps 50,100 --every 1s {criteria} --wait"
        )

    assert done.exit_code == 0, done.output
    assert client.get_deployment(name)["version"] == second
    assert str(MlflowClient().get_model_version_by_alias("times", "live").version) == second
    assert list(answers) == [str(b'{"predictions":{"y":[[2.0,4.0]]}}')]
